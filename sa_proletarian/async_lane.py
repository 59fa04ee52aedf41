"""Where ``async def`` handlers run: tasks on an event loop, fed from the feeder's thread.

It owns the tasks and how many there are at once. It refuses to know how a job is claimed or settled.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from contextvars import ContextVar

from sqlalchemy.util.concurrency import greenlet_spawn

from . import events
from .async_execution import AsyncExecution
from .outcomes import connection_died
from .runs import Report, Run, Settled

Ended = Callable[[Run, Report | None], None]


_lane: ContextVar[AsyncLane | None] = ContextVar("sa_proletarian_lane", default=None)


class AsyncLane:
    """Runs what the feeder puts into it, on one event loop; made and closed on that loop."""

    def __init__(self, execution: AsyncExecution, ended: Ended, *, concurrency: int) -> None:
        self._execution = execution
        self._ended = ended
        self._concurrency = concurrency
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Run | Settled] = deque()
        self._changing = threading.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._lost: set[asyncio.Task[None]] = set()

    # for the feeder's thread ------------------------------------------------------------------------------------------

    def put(self, items: Iterable[Run | Settled]) -> None:
        """Add work at the end."""
        with self._changing:
            self._waiting.extend(items)
        with suppress(RuntimeError):  # the loop is closed: nobody runs anything any more, and leases run out
            self._loop.call_soon_threadsafe(self._fill)

    def take_back(self, wanted: Callable[[Run], bool]) -> list[Run]:
        """Take out those of the wanted runs that have not been started."""
        with self._changing:
            old = [item for item in self._waiting if isinstance(item, Run) and wanted(item)]
            if old:
                self._waiting = deque(item for item in self._waiting if item not in old)
            return old

    def replace(self, run: Run) -> None:
        """Forget the task in which ``run`` hangs; another takes its place if there is work."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._lose, run.runner)

    # on the loop ------------------------------------------------------------------------------------------------------

    def runs_this_task(self) -> bool:
        """Whether the current task is, or was begun by, a handler that runs here."""
        return _lane.get() is self

    async def finish(self, seconds: float) -> bool:
        """Wait for what still runs; give whether all of it has ended."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)
        return not self._tasks

    def _fill(self) -> None:
        while len(self._tasks) < self._concurrency and (item := self._next()) is not None:
            task = self._loop.create_task(self._do(item))
            self._tasks.add(task)
            task.add_done_callback(self._over)

    def _next(self) -> Run | Settled | None:
        with self._changing:
            return self._waiting.popleft() if self._waiting else None

    def _lose(self, task: asyncio.Task[None]) -> None:
        if task in self._tasks:
            self._lost.add(task)  # the loop itself would not keep it
            self._over(task)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.done():
            self._lost.discard(task)
        if self._waiting:
            self._fill()

    async def _do(self, item: Run | Settled) -> None:
        _lane.set(self)
        if isinstance(item, Run):
            item.runner = asyncio.current_task()
            report = await self._perform(item)
            if not item.abandoned:
                self._ended(item, report)
        else:
            await greenlet_spawn(self._execution.conclusion.call_on_failed, item)

    async def _perform(self, run: Run) -> Report | None:
        try:
            return await self._execution.perform_here(run)
        except BaseException as error:  # not the handler's error, which is a value by now, but ours: the job runs again
            self._execution.conclusion.emit(events.JobWorkerError, error=error)
            return Report(run, connection_died(error))
