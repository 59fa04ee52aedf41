"""Where ``def`` handlers of an async worker run: threads, started as they are needed.

It owns the threads. It refuses to know how a job is claimed or settled.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from . import clock, events
from .execution import Execution
from .outcomes import connection_died
from .runs import Report, Run, Settled
from .tray import Tray


class ThreadLane:
    """Runs what is put into it, in up to ``most`` threads, which do not keep the interpreter from exiting."""

    def __init__(self, execution: Execution, ended: Callable[[Run, Report | None], None], *, most: int) -> None:
        self._execution = execution
        self._ended = ended
        self._most = most
        self._tray = Tray(self.replace)
        self._threads: list[threading.Thread] = []
        self._started = 0
        self._inside = 0
        self._counting = threading.Lock()

    def put(self, items: Iterable[Run | Settled]) -> None:
        """Add work at the end."""
        work = list(items)
        with self._counting:
            self._inside += len(work)
            missing = min(self._most, self._inside) - len(self._threads)
        self._tray.put(work)
        for _ in range(missing):
            self._start_one()

    def replace(self, run: Run) -> None:
        """Forget the thread in which ``run`` hangs; another takes its place if there is work."""
        with self._counting:
            self._inside -= 1
            self._threads.remove(run.runner)
            missing = min(self._most, self._inside) - len(self._threads)
        if missing > 0:
            self._start_one()

    def take_back(self, wanted: Callable[[Run], bool]) -> list[Run]:
        """Take out those of the wanted runs that have not been started."""
        old = self._tray.take_back(wanted)
        with self._counting:
            self._inside -= len(old)
        return old

    def close(self) -> None:
        """Let the threads end once there is no work."""
        self._tray.close()

    def finish(self, timeout: float) -> bool:
        """Wait for the threads; give whether all of them have ended."""
        deadline = clock.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, min(deadline - clock.monotonic(), threading.TIMEOUT_MAX)))
        return not any(thread.is_alive() for thread in self._threads)

    def _start_one(self) -> None:
        self._started += 1
        name = f"{self._execution.transactions.worker_id}-{self._started}"
        thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _work(self) -> None:
        while (item := self._tray.take()) is not None:
            assert isinstance(item, Run)
            item.runner = threading.current_thread()
            report = self._perform(item)
            if item.abandoned:
                return
            with self._counting:
                self._inside -= 1
            self._ended(item, report)

    def _perform(self, run: Run) -> Report | None:
        try:
            return self._execution.perform(run)
        except BaseException as error:  # not the handler's error, which is a value by now, but ours: the job runs again
            self._execution.conclusion.emit(events.JobWorkerError, error=error)
            return Report(run, connection_died(error))
