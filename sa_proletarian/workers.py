"""Several workers in one process: tenants, databases, queues.

It owns their starting and stopping together. Each worker keeps its own threads, connections and claims, so that what
happens to one database does not reach the others. It refuses to share anything between them.
"""

from __future__ import annotations

from datetime import timedelta
from types import TracebackType
from typing import Self

from . import signals
from .worker import Worker


class Workers:
    """Starts, runs and stops several workers as one.

    :param workers: the workers: one for each tenant's schema, for each database, or for each queue.

    ``TypeError`` for anything that is not a :class:`Worker`, ``ValueError`` for none at all, or the same one twice.
    """

    def __init__(self, *workers: Worker) -> None:
        for worker in workers:
            if not isinstance(worker, Worker):
                raise TypeError(f"Workers takes Worker objects, got a {type(worker).__name__}")
        if not workers or len(set(workers)) < len(workers):
            raise ValueError("Workers takes at least one worker, and each of them once")
        self._workers = workers

    @property
    def running(self) -> bool:
        """Whether any of the workers has been started and has not ended."""
        return any(worker.running for worker in self._workers)

    def start(self) -> bool:
        """Start those that do not run; give whether this call started any. If one cannot start, none stays started."""
        resting = [worker for worker in self._workers if not worker.running]
        try:
            return True in [worker.start() for worker in resting]
        except BaseException:
            for worker in resting:
                worker._begin_stop(None)
            raise

    def stop(self, timeout: timedelta | None = None) -> bool:
        """Stop all at once, each as its own ``stop`` does; give whether every one settled everything in time.

        :param timeout: instead of each worker's ``termination_timeout``.

        Called from a handler it only begins the stop, and gives ``False``.
        """
        shifts = [shift for worker in self._workers if (shift := worker._begin_stop(timeout)) is not None]
        if any(shift.runs_this_thread() for shift in shifts):
            return False
        return signals.wait_for(shifts)

    def run(self) -> bool:
        """Start, wait for SIGTERM or SIGINT, stop all; give what ``stop`` gives. A second signal releases at once.

        It returns when the last worker has ended. Outside of the main thread it waits until somebody calls ``stop``.
        """
        with signals.caught() as inbox:
            self.start()
            return signals.attend(inbox, [worker._begun() for worker in self._workers])

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
