"""The threaded worker: its arguments, and what ``start``, ``stop`` and ``run`` mean.

The threads themselves are ``shift``'s, and signals those of ``signals``.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from sqlalchemy import Engine
from sqlalchemy.orm import configure_mappers

from . import arguments, events, signals
from .computation import MakeExecutor, begun, checked_executor
from .connections import Pooler, own_engine, plain
from .execution import Around, build_execution
from .feeder import OnPollingError
from .listening import ears
from .models import DEFAULT_QUEUE, checked_name
from .proletarian import Proletarian
from .registry import OnFailed, is_async
from .retention import Retention
from .retry import RetryStrategy, checked_strategy
from .runs import Stopping
from .sessions import checked_maker
from .shift import Shift
from .verbs import lifecycle_for

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine


class Worker:
    """Runs the jobs of one queue in threads, and those of ``async def`` handlers on an event loop beside them.

    :param jobs: the app's :class:`Proletarian`: its models and handlers.
    :param engine: the app's engine, of any driver; an ``AsyncEngine`` too. The worker connects as it does, with a pool of
        its own of ``threads + 3`` connections, and one more on which it listens; async handlers have up to ``threads``
        more.
    :param queue: which queue to work on; default ``"default"``.
    :param threads: how many handlers run at once, of both kinds together; default 1.
    :param polling_interval: how long to wait when the queue was found empty; default 100 ms, stretched or shortened by
        up to a tenth at random. While there are jobs the worker does not wait.
    :param retry: the retry strategy for handlers that have none of their own; default: give up.
    :param on_failed: called as ``(job, error)`` for handlers that have none of their own, after a job was archived as
        ``failure`` or ``crashed``; at most once. It may be ``async def``.
    :param on_polling_error: called with an error that polling or settling met; a true answer stops the worker. By
        default it keeps running, after a pause that grows to 3 s (Proletarian's default is to stop).
    :param termination_timeout: how long ``stop`` waits for running jobs; default 10 s. Then their SQL is cancelled, and
        what still does not end is released, to run again.
    :param lease: how long a claim holds without being renewed, which is how long a job waits whose process died;
        default 30 s. Claims are renewed after a third of it.
    :param crash_ceiling: how many times a process may die under a job before it is archived as ``crashed``; at least 2,
        default 5.
    :param timeout: how long a call of a handler may take that has no ``timeout`` of its own; default: as long as it likes.
        Then ``job.interrupted`` is true, ``job.sleep`` raises and the handler's SQL is cancelled; the retry strategy decides
        as after any error. An ``async def`` handler is cancelled. A handler that has not ended 2 s later is left behind,
        and another thread takes its place.
    :param retention: delete archived jobs, of whatever queue, that ended longer ago than this; default: keep them all. It
        is done in the background, with a connection of its own, and by one of the workers at a time.
    :param session: the app's ``sessionmaker``, whose class and options handlers' sessions keep; or its ``scoped_session``,
        which then is the handler's session while the handler runs. An ``async def`` handler gets such a session within
        an ``AsyncSession``, and no scope.
    :param around: ``(job) -> context manager``, entered around each handler: an app context, a tenant, an error
        reporter. It is entered where the handler runs; around ``async def`` handlers it may be an async one.
    :param listener: takes every event; the default writes to the logger ``sa_proletarian``.
    :param pooler: ``"transaction"`` when PgBouncer, or another pooler, stands between in transaction mode: nothing that
        lives longer than a transaction is then left on the server.
    :param wake: let enqueues wake the worker while it is idle, by a connection of its own on which it listens; default
        ``True``. Not where the jobs' own ``wake`` is off, nor behind a pooler, where only enqueues in this process do.
    :param worker_id: names the worker in events, threads and ``claimed_by``; the default is unique,
        ``proletarian[queue]@host:pid:random``.
    :param on_shutdown: called without arguments once the worker has stopped and everything is settled.
    :param executor: makes the ``concurrent.futures.Executor`` that calls handlers' ``compute``, as ``processes(4)`` does; it
        must not fork. One that breaks is replaced, and the worker ends what it has made.

    ``TypeError`` or ``ValueError`` for arguments of the wrong kind, ``ConfigurationError`` for an AUTOCOMMIT engine, on
    which a claim would hold no lock.
    """

    def __init__(
        self,
        jobs: Proletarian,
        engine: Engine | AsyncEngine,
        *,
        queue: str = DEFAULT_QUEUE,
        threads: int = 1,
        polling_interval: timedelta = timedelta(milliseconds=100),
        retry: RetryStrategy | None = None,
        on_failed: OnFailed | None = None,
        on_polling_error: OnPollingError | None = None,
        termination_timeout: timedelta = timedelta(seconds=10),
        lease: timedelta = timedelta(seconds=30),
        crash_ceiling: int = 5,
        timeout: timedelta | None = None,
        retention: timedelta | None = None,
        session: Any = None,
        around: Around | None = None,
        listener: events.Listener = events.log_event,
        pooler: Pooler | None = None,
        wake: bool = True,
        worker_id: str | None = None,
        on_shutdown: Callable[[], Any] | None = None,
        executor: MakeExecutor | None = None,
    ) -> None:
        if not isinstance(jobs, Proletarian):
            raise TypeError(f"a worker takes a Proletarian first, got a {type(jobs).__name__}")
        own_engine(engine, size=1, pooler=pooler)  # refuses what cannot work, before anything is started
        self.queue: str = checked_name("queue", queue)
        self.worker_id: str = default_worker_id(queue) if worker_id is None else arguments.printable("worker_id", worker_id)
        self._jobs = jobs
        self._engine: Engine = plain(engine)
        self._pooler: Pooler | None = pooler
        self._wake = arguments.boolean("wake", wake) and jobs.wake
        self._threads = arguments.at_least("threads", threads, 1)
        self._polling_interval = arguments.span("polling_interval", polling_interval, timedelta(milliseconds=1))
        self._retry = checked_strategy(retry)
        self._on_failed = arguments.callable_or_none("on_failed", on_failed)
        self._on_polling_error = arguments.callable_or_none("on_polling_error", on_polling_error)
        self._termination_timeout = arguments.span("termination_timeout", termination_timeout, timedelta(0))
        self._lease = arguments.span("lease", lease, timedelta(milliseconds=300))
        self._crash_ceiling = arguments.at_least("crash_ceiling", crash_ceiling, 2)
        self._timeout = arguments.timeout_or_none(timeout)
        self._retention = arguments.retention_or_none(retention)
        self._session = checked_maker(session, self._engine)
        self._around = arguments.callable_or_none("around", around)
        self._emit = events.Emitter(listener, worker_id=self.worker_id, queue=self.queue)
        self._on_shutdown = arguments.callable_or_none("on_shutdown", on_shutdown)
        self._executor = checked_executor(executor)
        self._starting = threading.Lock()
        self._shift: Shift | None = None

    @property
    def running(self) -> bool:
        """Whether the worker has been started and has not ended."""
        return self._shift is not None and not self._shift.done.is_set()

    def start(self) -> bool:
        """Start the threads and return at once; give whether this call did it (a running worker stays as it is)."""
        return self._begin()[1]

    def stop(self, timeout: timedelta | None = None) -> bool:
        """Stop: claim no more, interrupt running jobs, wait for them, release what does not end.

        :param timeout: instead of the worker's ``termination_timeout``.

        Gives ``True`` when everything was settled in time and ``on_shutdown`` ran; ``False`` when jobs had to be taken
        away (the event ``queue_worker_shutdown_error`` names them) or ``on_shutdown`` raised. On a worker that does
        not run this does nothing. Called from a handler it only begins the stop, and gives ``False``.
        """
        shift = self._begin_stop(timeout)
        if shift is None:
            return True
        if shift.runs_this_thread():
            return False
        return signals.wait_for([shift])

    def run(self) -> bool:
        """Start, wait for SIGTERM or SIGINT, stop; give what ``stop`` gives.

        A second signal releases at once what still runs; one of the same kind within half a second is taken for an echo
        of the first, as wrappers that forward a terminal's Ctrl-C make it. Outside of the main thread, where Python
        takes no signals, it waits until somebody calls ``stop``.
        """
        with signals.caught() as inbox:
            self._begin()
            return signals.attend(inbox, [self._begun()])

    def _begin(self) -> tuple[Shift, bool]:
        """Give the shift that runs, and whether it was begun by this call."""
        with self._starting:
            if self._shift is not None and not self._shift.done.is_set():
                return self._shift, False
            configure_mappers()
            self._shift = shift = self._make_shift()
            shift.start()
            return shift, True

    def _begun(self) -> tuple[Shift, timedelta]:
        """Give what was begun, and how long its stop may take."""
        assert self._shift is not None
        return self._shift, self._termination_timeout

    def _begin_stop(self, timeout: timedelta | None) -> Shift | None:
        """Begin the stop, and give the shift that will end by it; ``None`` when none runs."""
        shift = self._shift
        if shift is None or shift.done.is_set():
            self._emit(events.AlreadyShutDown)
            return None
        shift.begin_stop(self._termination_timeout if timeout is None else timeout)
        return shift

    def _make_shift(self) -> Shift:
        execution = build_execution(
            self._jobs,
            lifecycle_for(self._engine.dialect.name, self._jobs.job_model, self._jobs.archived_model),
            engine=own_engine(self._engine, size=self._threads + 3, pooler=self._pooler),
            app_engine=self._engine,
            emit=self._emit,
            queue=self.queue,
            worker_id=self.worker_id,
            lease=self._lease,
            crash_ceiling=self._crash_ceiling,
            retry=self._retry,
            on_failed=self._on_failed,
            session=self._session,
            around=self._around,
            now=self._jobs.clock,
            timeout=self._timeout,
            computation=begun(self._jobs, self._executor, self._emit),
        )
        if self._jobs.has_coroutines() or is_async(self._on_failed):
            from .mixed_execution import mixed  # noqa: PLC0415 (it needs greenlet)

            execution = mixed(execution, self._engine, size=self._threads, pooler=self._pooler)
        return Shift(
            execution,
            threads=self._threads,
            polling_interval=self._polling_interval,
            on_polling_error=self._on_polling_error,
            on_shutdown=self._on_shutdown,
            retention=self._make_retention(execution.stopping),
            ears=ears(
                self._engine,
                self._jobs.job_model.__table__,
                self.queue,
                self._emit,
                name=self.worker_id,
                wake=self._wake,
                pooler=self._pooler,
            ),
        )

    def _make_retention(self, stopping: Stopping) -> Retention | None:
        if self._retention is None:
            return None
        make_engine = partial(own_engine, self._engine, size=1, pooler=self._pooler)
        jobs, name = self._jobs, self.worker_id
        return Retention(make_engine, jobs, self._retention, emit=self._emit, stopping=stopping, name=name)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


def default_worker_id(queue: str) -> str:
    """Make a unique worker id: ``proletarian[queue]@host:pid:random``, of a long queue's name its beginning."""
    return f"proletarian[{queue[:100]}]@{socket.gethostname()[:64]}:{os.getpid()}:{secrets.token_hex(3)}"
