"""The threaded worker: starts, stops, and listens to signals.

It owns threads and their end. It refuses to know how a job is claimed or settled: that is the feeder's and ``execution``'s.
"""

from __future__ import annotations

import os
import queue as queues
import random
import secrets
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType, TracebackType
from typing import Any, Self

from sqlalchemy import Engine
from sqlalchemy.orm import configure_mappers

from . import clock, events
from .connections import own_engine
from .execution import Around, Execution, Report, Run
from .feeder import Feeder, OnPollingError, Tray
from .lifecycle import Lifecycle
from .models import DEFAULT_QUEUE, checked_name
from .outcomes import connection_died
from .proletarian import Proletarian
from .registry import OnFailed
from .retry import Retry, RetryStrategy
from .sessions import checked_maker

_DONE = None
STAGGER = 0.05
LAST_CALLS = 1.0


class Worker:
    """Runs the jobs of one queue in threads.

    :param jobs: the app's :class:`Proletarian`: its models and handlers.
    :param engine: the app's engine. The worker connects as it does, with a pool of its own of ``threads + 2`` connections.
    :param queue: which queue to work on; default ``"default"``.
    :param threads: how many handlers run at once; default 1.
    :param polling_interval: how long to wait when the queue was found empty; default 100 ms, stretched or shortened by up
        to a tenth at random. While there are jobs the worker does not wait.
    :param retry: the retry strategy for handlers that have none of their own; default: give up.
    :param on_failed: called as ``(job, error)`` for handlers that have none of their own, after a job was archived as
        ``failure`` or ``crashed``; at most once.
    :param on_polling_error: called with an error that polling or settling met; a true answer stops the worker. By default
        it keeps running, after a pause that grows to 5 s (Proletarian's default is to stop).
    :param termination_timeout: how long ``stop`` waits for running jobs; default 10 s. Then their SQL is cancelled, and
        what still does not end is released, to run again.
    :param lease: how long a claim holds without being renewed, which is how long a job waits whose process died; default
        30 s. Claims are renewed after a third of it.
    :param crash_ceiling: how many times a process may die under a job before it is archived as ``crashed``; at least 2,
        default 5.
    :param session: the app's ``sessionmaker`` (or ``scoped_session``), whose class and options handlers' sessions keep.
    :param around: ``(job) -> context manager``, entered around each handler: an app context, a tenant, an error reporter.
    :param listener: takes every event; the default writes to the logger ``sa_proletarian``.
    :param worker_id: names the worker in events, threads and ``claimed_by``; the default is unique,
        ``proletarian[queue]@host:pid:random``.
    :param on_shutdown: called without arguments once the worker has stopped and everything is settled.

    ``TypeError`` or ``ValueError`` for arguments of the wrong kind, ``ConfigurationError`` for an AUTOCOMMIT engine, on
    which a claim would hold no lock.
    """

    def __init__(
        self,
        jobs: Proletarian,
        engine: Engine,
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
        session: Any = None,
        around: Around | None = None,
        listener: events.Listener = events.log_event,
        worker_id: str | None = None,
        on_shutdown: Callable[[], Any] | None = None,
    ) -> None:
        if not isinstance(jobs, Proletarian):
            raise TypeError(f"a worker takes a Proletarian first, got a {type(jobs).__name__}")
        own_engine(engine, size=1)  # refuses what cannot work, before anything is started
        self.queue = checked_name("queue", queue)
        self.worker_id = _checked_worker_id(worker_id) or default_worker_id(queue)
        self._jobs = jobs
        self._engine = engine
        self._threads = _at_least("threads", threads, 1)
        self._polling_interval = _span("polling_interval", polling_interval, timedelta(milliseconds=1))
        self._retry = _strategy(retry)
        self._on_failed = _callable_or_none("on_failed", on_failed)
        self._on_polling_error = _callable_or_none("on_polling_error", on_polling_error)
        self._termination_timeout = _span("termination_timeout", termination_timeout, timedelta(0))
        self._lease = _span("lease", lease, timedelta(milliseconds=300))
        self._crash_ceiling = _at_least("crash_ceiling", crash_ceiling, 2)
        self._session = checked_maker(session, engine)
        self._around = _callable_or_none("around", around)
        self._emit = events.Emitter(listener, worker_id=self.worker_id, queue=self.queue)
        self._on_shutdown = _callable_or_none("on_shutdown", on_shutdown)
        self._starting = threading.Lock()
        self._shift: _Shift | None = None

    @property
    def running(self) -> bool:
        """Whether the worker has been started and has not ended."""
        return self._shift is not None and not self._shift.done.is_set()

    def start(self) -> bool:
        """Start the threads and return at once; give whether this call did it (a running worker stays as it is)."""
        with self._starting:
            if self.running:
                return False
            self._jobs.refuse_coroutines()
            configure_mappers()
            self._shift = _Shift(self)
            self._shift.start()
            return True

    def stop(self, timeout: timedelta | None = None) -> bool:
        """Stop: claim no more, interrupt running jobs, wait for them, release what does not end.

        :param timeout: instead of the worker's ``termination_timeout``.

        Gives ``True`` when everything was settled in time and ``on_shutdown`` ran; ``False`` when jobs had to be taken away
        (the event ``queue_worker_shutdown_error`` names them) or ``on_shutdown`` raised. On a worker that does not run this
        does nothing. Called from a handler it only begins the stop, and gives ``False``.
        """
        shift = self._shift
        if shift is None or shift.done.is_set():
            self._emit(events.AlreadyShutDown)
            return True
        shift.begin_stop(self._termination_timeout if timeout is None else timeout)
        if threading.current_thread() in shift.threads:
            return False
        try:
            shift.done.wait()
        except KeyboardInterrupt:
            self._emit(events.InterruptedWhileShuttingDown, signal="SIGINT")
            shift.begin_stop(timedelta(0))
            shift.done.wait()
        return shift.clean

    def run(self) -> bool:
        """Start, wait for SIGTERM or SIGINT, stop; give what ``stop`` gives.

        A second signal releases at once what still runs. Outside of the main thread, where Python takes no signals, it
        waits until somebody calls ``stop``.
        """
        with _signals() as inbox:
            self.start()
            shift = self._shift
            assert shift is not None
            shift.tell_when_done(inbox)
            timeout = self._termination_timeout
            while (number := inbox.get()) is not _DONE:
                name = signal.Signals(number).name
                if not shift.stopping:
                    self._emit(events.WorkerInterrupted, signal=name)
                else:
                    self._emit(events.InterruptedWhileShuttingDown, signal=name)
                    timeout = timedelta(0)
                shift.begin_stop(timeout)
        return shift.clean

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


class _Shift:
    """One run of a worker, from start to stop; a worker that is started again begins another."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._emit = worker._emit
        self._engine = own_engine(worker._engine, size=worker._threads + 2)
        self._tray = Tray()
        self._execution = _execution(worker, self._engine)
        self._feeder = Feeder(
            self._execution,
            self._tray,
            slots=worker._threads,
            polling_interval=worker._polling_interval,
            on_polling_error=worker._on_polling_error,
        )
        self._deadline = float("inf")
        self._inbox: queues.SimpleQueue[int | None] | None = None
        self._handlers = [self._thread(self._work, str(number), number) for number in range(1, worker._threads + 1)]
        self._main = self._thread(self._feed, "feeder")
        self.threads = [self._main, *self._handlers]
        self.done = threading.Event()
        self.clean = False

    @property
    def stopping(self) -> bool:
        return self._execution.stopping.is_set()

    def start(self) -> None:
        for thread in self.threads:
            thread.start()

    def begin_stop(self, timeout: timedelta) -> None:
        self._deadline = min(self._deadline, clock.monotonic() + timeout.total_seconds())
        if not self.stopping:
            self._emit(events.ShuttingDown)
        self._feeder.stop(self._deadline)

    def tell_when_done(self, inbox: queues.SimpleQueue[int | None]) -> None:
        self._inbox = inbox
        if self.done.is_set():
            inbox.put(_DONE)

    def _thread(self, target: Callable[..., None], name: str, *args: Any) -> threading.Thread:
        # daemon: a forgotten worker must not keep the interpreter from exiting; its leases run out by themselves
        return threading.Thread(target=target, args=args, name=f"{self._worker.worker_id}-{name}", daemon=True)

    def _work(self, number: int) -> None:
        # staggered, so that the threads' first connections do not reach the server in one moment
        self._execution.stopping.wait((number - 1) * random.uniform(0.2, 1.0) * STAGGER)
        while (item := self._tray.take()) is not None:
            if isinstance(item, Run):
                self._feeder.ended(item, self._perform(item))
            else:
                self._execution.call_on_failed(item)

    def _perform(self, run: Run) -> Report | None:
        try:
            return self._execution.perform(run)
        except BaseException as error:  # not the handler's error, which is a value by now, but ours: the job runs again
            self._emit(events.JobWorkerError, error=error)
            return Report(run, connection_died(error))

    def _feed(self) -> None:
        try:
            self._feeder.run()
        finally:
            self._tray.close()
            self._end()

    def _end(self) -> None:
        unfinished = tuple(run.claim.job_id for run in self._feeder.unfinished)
        # no job is left; what a thread may still be at is an on_failed call
        deadline = max(self._deadline, clock.monotonic() + LAST_CALLS)
        for thread in self._handlers if not unfinished else ():
            thread.join(min(max(0.0, deadline - clock.monotonic()), threading.TIMEOUT_MAX))
        self._engine.dispose()
        if unfinished or any(thread.is_alive() for thread in self._handlers):
            self._emit(events.QueueWorkerShutdownError, error=None, job_ids=unfinished)
        else:
            self.clean = self._call_on_shutdown()
        self.done.set()
        if self._inbox is not None:
            self._inbox.put(_DONE)

    def _call_on_shutdown(self) -> bool:
        self._emit(events.CompletedShutdown)
        try:
            if self._worker._on_shutdown is not None:
                self._worker._on_shutdown()
        except Exception as error:
            self._emit(events.QueueWorkerShutdownError, error=error)
            return False
        return True


def default_worker_id(queue: str) -> str:
    """Make a unique worker id: ``proletarian[queue]@host:pid:random``."""
    return f"proletarian[{queue}]@{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"


def _execution(worker: Worker, engine: Engine) -> Execution:
    jobs = worker._jobs
    return Execution(
        registry=jobs,
        lifecycle=Lifecycle(jobs.job_model, jobs.archived_model),
        engine=engine,
        app_engine=worker._engine,
        emit=worker._emit,
        queue=worker.queue,
        worker_id=worker.worker_id,
        lease=worker._lease,
        crash_ceiling=worker._crash_ceiling,
        retry=worker._retry,
        on_failed=worker._on_failed,
        session=worker._session,
        around=worker._around,
        now=jobs.clock,
    )


@contextmanager
def _signals() -> Iterator[queues.SimpleQueue[int | None]]:
    """Send SIGTERM and SIGINT to a queue for as long as the context lasts (``SimpleQueue.put`` is reentrant)."""
    inbox: queues.SimpleQueue[int | None] = queues.SimpleQueue()

    def note(number: int, frame: FrameType | None) -> None:
        inbox.put(number)

    if threading.current_thread() is not threading.main_thread():
        yield inbox
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield inbox
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _checked_worker_id(worker_id: str | None) -> str | None:
    if worker_id is not None and not isinstance(worker_id, str):
        raise TypeError(f"worker_id must be a text, got {worker_id!r}")
    if worker_id is not None and (not worker_id.isprintable() or not 1 <= len(worker_id) <= 200):
        raise ValueError(f"worker_id must be 1 to 200 printable characters, got {worker_id!r}")
    return worker_id


def _at_least(what: str, value: object, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{what} must be an int, got {value!r}")
    if value < least:
        raise ValueError(f"{what} must be at least {least}, got {value}")
    return value


def _span(what: str, value: object, least: timedelta) -> timedelta:
    if not isinstance(value, timedelta):
        raise TypeError(f"{what} must be a timedelta, got {value!r}")
    if value < least:
        raise ValueError(f"{what} must be at least {least}, got {value}")
    return value


def _callable_or_none(what: str, value: Any) -> Any:
    if value is not None and not callable(value):
        raise TypeError(f"{what} must be callable, got {value!r}")
    return value


def _strategy(retry: Any) -> RetryStrategy | None:
    if retry is not None and not isinstance(retry, Retry) and not callable(retry):
        raise TypeError(f"retry must be a Retry or a function (job, error), got {retry!r}")
    return retry  # type: ignore[no-any-return]
