"""The async worker: runs ``async def`` handlers on an event loop.

It owns the arguments, the signals, and what ``start`` and ``stop`` mean there. What happens to a job is the same as with
threads; see ``async_execution`` for what differs.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager
from datetime import timedelta
from functools import partial
from types import TracebackType
from typing import Any, Self

from sqlalchemy.ext.asyncio import AsyncEngine, async_scoped_session, async_sessionmaker
from sqlalchemy.orm import configure_mappers

from . import arguments, clock, events
from .async_execution import AsyncConclusion, AsyncExecution, AsyncHold, ThreadConclusion, sync_maker
from .async_shift import AsyncShift
from .claims import Claim
from .computation import MakeExecutor, begun, checked_executor
from .connections import Pooler, own_engine
from .execution import Execution
from .feeder import OnPollingError
from .listening import ears
from .models import DEFAULT_QUEUE, checked_name
from .proletarian import Proletarian
from .registry import OnFailed
from .retention import Retention
from .retry import RetryStrategy, checked_strategy
from .runs import Settled, Stopping
from .sessions import Hold, checked_maker
from .signals import ECHO
from .transactions import Transactions
from .verbs import lifecycle_for
from .worker import default_worker_id

AsyncAround = Callable[[Any], AbstractAsyncContextManager[Any] | AbstractContextManager[Any]]
"""``(job) -> context manager`` of either kind, entered in the handler's task."""


class AsyncWorker:
    """Runs the jobs of one queue on the running event loop, and those of plain functions in threads beside it.

    :param jobs: the app's :class:`Proletarian`.
    :param engine: the app's ``AsyncEngine`` (psycopg or asyncpg). The worker connects as it does, with pools of its own.
    :param queue: which queue to work on; default ``"default"``.
    :param concurrency: how many handlers run at once; default 100.
    :param connections: how many of them may hold a connection at once, from their session's first use to their end; the
        others wait. Default 5; the worker's feeder has one more, and one on which it listens.
    :param timeout: as for :class:`Worker`; an ``async def`` handler is cancelled then, by a ``CancelledError``.
    :param session: the app's ``async_sessionmaker`` (or ``async_scoped_session``), whose class and options handlers'
        sessions keep.
    :param around: ``(job) -> context manager``, async or not, entered in the handler's task.
    :param on_failed: as for :class:`Worker`; awaited if it is ``async def``, else called in a thread.
    :param pooler: as for :class:`Worker`: ``"transaction"`` when PgBouncer stands between in transaction mode.
    :param on_shutdown: called without arguments once the worker has stopped and everything is settled, and awaited if it
        is ``async def``.
    :param executor: as for :class:`Worker`.

    The other arguments mean what they mean for :class:`Worker`: ``polling_interval``, ``retry``, ``on_polling_error``,
    ``termination_timeout``, ``lease``, ``crash_ceiling``, ``retention``, ``listener``, ``wake`` and ``worker_id``, with the
    same defaults. Retry strategies, listeners and ``on_polling_error`` are plain functions; keep them quick, they run
    between the handlers.
    """

    def __init__(
        self,
        jobs: Proletarian,
        engine: AsyncEngine,
        *,
        queue: str = DEFAULT_QUEUE,
        concurrency: int = 100,
        connections: int = 5,
        polling_interval: timedelta = timedelta(milliseconds=100),
        retry: RetryStrategy | None = None,
        on_failed: OnFailed | None = None,
        on_polling_error: OnPollingError | None = None,
        termination_timeout: timedelta = timedelta(seconds=10),
        lease: timedelta = timedelta(seconds=30),
        crash_ceiling: int = 5,
        timeout: timedelta | None = None,
        retention: timedelta | None = None,
        session: async_sessionmaker[Any] | async_scoped_session[Any] | None = None,
        around: AsyncAround | None = None,
        listener: events.Listener = events.log_event,
        pooler: Pooler | None = None,
        wake: bool = True,
        worker_id: str | None = None,
        on_shutdown: Callable[[], Any] | None = None,
        executor: MakeExecutor | None = None,
    ) -> None:
        if not isinstance(jobs, Proletarian):
            raise TypeError(f"a worker takes a Proletarian first, got a {type(jobs).__name__}")
        if not isinstance(engine, AsyncEngine):
            raise TypeError(f"an async worker takes an AsyncEngine, got a {type(engine).__name__}")
        own_engine(engine.sync_engine, size=1, pooler=pooler)  # refuses what cannot work, before anything is started
        self.queue: str = checked_name("queue", queue)
        self.worker_id: str = default_worker_id(queue) if worker_id is None else arguments.printable("worker_id", worker_id)
        self._jobs = jobs
        self._engine = engine.sync_engine
        self._pooler: Pooler | None = pooler
        self._wake = arguments.boolean("wake", wake) and jobs.wake
        self._concurrency = arguments.at_least("concurrency", concurrency, 1)
        self._connections = arguments.at_least("connections", connections, 1)
        self._polling_interval = arguments.span("polling_interval", polling_interval, timedelta(milliseconds=1))
        self._retry = checked_strategy(retry)
        self._on_failed = arguments.callable_or_none("on_failed", on_failed)
        self._on_polling_error = arguments.callable_or_none("on_polling_error", on_polling_error)
        self._termination_timeout = arguments.span("termination_timeout", termination_timeout, timedelta(0))
        self._lease = arguments.span("lease", lease, timedelta(milliseconds=300))
        self._crash_ceiling = arguments.at_least("crash_ceiling", crash_ceiling, 2)
        self._timeout = arguments.timeout_or_none(timeout)
        self._retention = arguments.retention_or_none(retention)
        self._session = checked_maker(session, self._engine, kind=async_sessionmaker)
        self._around = arguments.callable_or_none("around", around)
        self._emit = events.Emitter(listener, worker_id=self.worker_id, queue=self.queue)
        self._on_shutdown = arguments.callable_or_none("on_shutdown", on_shutdown)
        self._executor = checked_executor(executor)
        self._shift: AsyncShift | None = None

    @property
    def running(self) -> bool:
        """Whether the worker has been started and has not ended."""
        return self._shift is not None and not self._shift.done

    async def start(self) -> bool:
        """Start and return at once; give whether this call did it (a running worker stays as it is)."""
        if self.running:
            return False
        configure_mappers()
        self._shift = self._make_shift()
        self._shift.start()
        return True

    async def stop(self, timeout: timedelta | None = None) -> bool:  # noqa: ASYNC109 - as Worker.stop
        """Stop: claim no more, interrupt running jobs, wait for them, release what does not end.

        :param timeout: instead of the worker's ``termination_timeout``. Handlers that still run then are cancelled.

        Gives what :meth:`Worker.stop` gives. Called from a handler it only begins the stop, and gives ``False``.
        """
        shift = self._shift
        if shift is None or shift.done:
            self._emit(events.AlreadyShutDown)
            return True
        shift.begin_stop(self._termination_timeout if timeout is None else timeout)
        if shift.runs_this_task():
            return False
        return await shift.wait()

    async def run(self) -> bool:
        """Start, wait for SIGTERM or SIGINT, stop; give what ``stop`` gives.

        A second signal releases at once what still runs. Cancelling the task that awaits this stops the worker, too.
        Outside of the main thread, where Python takes no signals, it waits until somebody calls ``stop``.
        """
        await self.start()
        shift = self._shift
        assert shift is not None
        with self._signals(shift):
            try:
                return await shift.wait()
            except asyncio.CancelledError:
                shift.begin_stop(self._termination_timeout)
                await shift.wait()
                raise

    @contextmanager
    def _signals(self, shift: AsyncShift) -> Generator[None, None, None]:
        """Let SIGTERM and SIGINT stop ``shift`` for as long as the context lasts."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop, echo = asyncio.get_running_loop(), [(0, 0.0)]

        def note(number: int) -> None:
            last, at = echo[0]
            echo[0] = number, clock.monotonic()
            if number == last and clock.monotonic() - at < ECHO:
                return
            name = signal.Signals(number).name
            if not shift.stopping:
                self._emit(events.WorkerInterrupted, signal=name)
                shift.begin_stop(self._termination_timeout)
            else:
                self._emit(events.InterruptedWhileShuttingDown, signal=name)
                shift.begin_stop(timedelta(0))

        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        for number in before:
            loop.add_signal_handler(number, note, number)
        try:
            yield
        finally:
            for number, handler in before.items():
                loop.remove_signal_handler(number)
                signal.signal(number, handler)

    def _make_shift(self) -> AsyncShift:
        jobs, lifecycle = (
            self._jobs,
            lifecycle_for(self._engine.dialect.name, self._jobs.job_model, self._jobs.archived_model),
        )
        # a connection of an async driver belongs to the loop that opened it: that of the handlers, that of the feeder
        own = partial(own_engine, self._engine, pooler=self._pooler)
        here = own(size=self._connections, timeout=None, on_this_loop=True)
        feeder = own(size=2, on_this_loop=True)
        anywhere = own(size=self._connections, timeout=None)

        def call_back(settled: Settled) -> None:
            shift.call_back(settled)

        def make_hold(claim: Claim) -> Hold:
            registration = jobs.registration(claim.job_type)
            if registration is not None and not registration.is_async:
                return Hold(anywhere, lifecycle, claim)
            return AsyncHold(here, lifecycle, claim)

        transactions = Transactions(
            jobs, lifecycle, feeder, self.queue, self.worker_id, self._lease, self._crash_ceiling, make_hold, self._timeout
        )
        computation = begun(jobs, self._executor, self._emit)
        told = (self._emit, jobs, lifecycle, self._on_failed, jobs.clock)
        tasks = AsyncExecution(
            jobs, self._engine, transactions, AsyncConclusion(*told), self._retry, self._session, self._around, computation
        )
        threads = Execution(
            jobs,
            self._engine,
            transactions,
            ThreadConclusion(*told, call_back),
            self._retry,
            sync_maker(self._session),
            self._around,
            computation,
        )
        shift = AsyncShift(
            tasks,
            threads,
            [here, anywhere],
            concurrency=self._concurrency,
            polling_interval=self._polling_interval,
            on_polling_error=self._on_polling_error,
            on_shutdown=self._on_shutdown,
            retention=self._make_retention(transactions.stopping),
            ears=ears(
                self._engine,
                jobs.job_model.__table__,
                self.queue,
                self._emit,
                name=self.worker_id,
                wake=self._wake,
                pooler=self._pooler,
            ),
        )
        return shift

    def _make_retention(self, stopping: Stopping) -> Retention | None:
        if self._retention is None:
            return None
        make_engine = partial(own_engine, self._engine, size=1, pooler=self._pooler)
        jobs, name = self._jobs, self.worker_id
        return Retention(make_engine, jobs, self._retention, emit=self._emit, stopping=stopping, name=name)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()
