"""One run of a worker: its threads, from their start to their end.

It owns the threads and the order in which they end. It refuses to know how a job is claimed, run or settled.
"""

from __future__ import annotations

import queue as queues
import random
import threading
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

from . import clock, events
from .execution import Execution
from .feeder import Feeder, OnPollingError
from .listening import Ears
from .outcomes import connection_died
from .overdue import LAST_CALLS, Overdue
from .retention import Retention
from .runs import Report, Run
from .tray import Tray

DONE = None
"""What ``tell_when_done`` puts into the inbox."""
STAGGER = 0.05
JOIN = 10.0
WAIT_TURN = 0.1


class Shift:
    """One run of a worker, from start to stop; a worker that is started again begins another."""

    def __init__(
        self,
        execution: Execution,
        *,
        threads: int,
        polling_interval: timedelta,
        on_polling_error: OnPollingError | None,
        on_shutdown: Callable[[], Any] | None,
        ears: Ears,
        retention: Retention | None = None,
    ) -> None:
        self._execution = execution
        self._retention = retention
        self._emit = execution.conclusion.emit
        self._worker_id = execution.transactions.worker_id
        self._on_shutdown = on_shutdown
        self._ears = ears
        self._tray = Tray(self._replace)
        self._feeder = self._make_feeder(slots=threads, polling_interval=polling_interval, on_polling_error=on_polling_error)
        self._stop = Overdue(self._worker_id, cut=self._cut_wires)
        self._inbox: queues.SimpleQueue[int | None] | None = None
        self._handlers = [self._thread(self._work, str(number), number) for number in range(1, threads + 1)]
        # handlers first: a feeder that stops at once must find them started
        self._feeding = self._thread(self._feed, "feeder")
        self.threads: list[threading.Thread] = [*self._handlers, self._feeding]
        self.done: threading.Event = threading.Event()
        self.clean: bool = False

    def runs_this_thread(self) -> bool:
        """Whether the current thread is one in which the shift runs handlers, or its feeder."""
        thread = threading.current_thread()
        return thread in self.threads or self._execution.runs_in(thread)

    @property
    def stopping(self) -> bool:
        return self._execution.stopping.is_set()

    def start(self) -> None:
        for thread in self.threads:
            thread.start()
        if self._retention is not None:
            self._retention.start()

    def begin_stop(self, timeout: timedelta) -> None:
        self._stop.begin(timeout)
        if not self.stopping:
            self._emit(events.ShuttingDown)
        self._feeder.stop(self._stop.deadline)

    def wait(self) -> bool:
        """Wait for the end, which a begun stop brings; give whether everything was settled in time.

        A feeder that hangs in the network beyond all timeouts is left behind: its claims run out by themselves.
        """
        while not self.done.wait(WAIT_TURN):
            if self.is_hopeless():
                self._emit_unfinished([run.claim.job_id for run in self._feeder.outstanding])
                return False
        self._feeding.join(JOIN)  # it has said that it is done, but may not have returned from that yet
        return self.clean

    def is_hopeless(self) -> bool:
        """Whether the stop has taken so much longer than it may that it will not end by itself."""
        return self._stop.is_hopeless

    def tell_when_done(self, inbox: queues.SimpleQueue[int | None]) -> None:
        self._inbox = inbox
        if self.done.is_set():
            inbox.put(DONE)

    def _make_feeder(self, **options: Any) -> Feeder:
        return Feeder(self._execution, self._tray, ears=self._ears, **options)

    def _thread(self, target: Callable[..., None], name: str, *args: Any) -> threading.Thread:
        # daemon: a forgotten worker must not keep the interpreter from exiting; its leases run out by themselves
        return threading.Thread(target=target, args=args, name=f"{self._worker_id}-{name}", daemon=True)

    def _work(self, number: int) -> None:
        # staggered, so that the threads' first connections do not reach the server in one moment
        self._execution.stopping.wait((number - 1) * random.uniform(0.2, 1.0) * STAGGER)
        while (item := self._tray.take()) is not None:
            if isinstance(item, Run):
                item.runner = threading.current_thread()
                report = self._perform(item)
                if item.abandoned:
                    return
                self._feeder.ended(item, report)
            else:
                self._execution.conclusion.call_on_failed(item)

    def _perform(self, run: Run) -> Report | None:
        try:
            return self._execution.perform(run)
        except BaseException as error:  # not the handler's error, which is a value by now, but ours: the job runs again
            self._emit(events.JobWorkerError, error=error)
            return Report(run, connection_died(error))

    def _replace(self, run: Run) -> None:
        """Start a thread in the place of the one in which ``run`` hangs, and which ends by itself if it ever comes back."""
        thread = self._thread(self._work, str(len(self.threads)), 1)
        self._handlers = [*(other for other in self._handlers if other is not run.runner), thread]
        self.threads.append(thread)
        thread.start()

    def _feed(self) -> None:
        try:
            self._feeder.run()
        finally:
            self._tray.close()
            try:
                self._end()
            finally:
                self._stop.end()
                self.done.set()
                if self._inbox is not None:
                    self._inbox.put(DONE)

    def _cut_wires(self) -> None:
        self._ears.cut()
        self._execution.cut_wires()

    def _end(self) -> None:
        unfinished = [run.claim.job_id for run in self._feeder.unfinished]
        # no job is left; what a thread may still be at is an on_failed call
        deadline = clock.monotonic() + self._stop.left
        for thread in self._handlers if not unfinished else ():
            thread.join(min(max(0.0, deadline - clock.monotonic()), threading.TIMEOUT_MAX))
        self._execution.close()
        if self._retention is not None:
            self._retention.wait(min(LAST_CALLS, self._stop.left))
        if unfinished or any(thread.is_alive() for thread in self._handlers):
            self._emit_unfinished(unfinished)
        else:
            self.clean = self._call_on_shutdown()

    def _emit_unfinished(self, job_ids: Iterable[Any]) -> None:
        self._emit(events.QueueWorkerShutdownError, error=None, job_ids=tuple(job_ids))

    def _call_on_shutdown(self) -> bool:
        self._emit(events.CompletedShutdown)
        try:
            if self._on_shutdown is not None:
                self._on_shutdown()
        except (Exception, SystemExit) as error:
            self._emit(events.QueueWorkerShutdownError, error=error)
            return False
        return True
