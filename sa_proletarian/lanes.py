"""The two lanes of an async worker: ``async def`` handlers run on the event loop, ``def`` handlers in threads.

It owns the switch between them, which the feeder takes for its tray. It refuses to run anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from .async_execution import AsyncHold
from .async_lane import AsyncLane
from .runs import Run, Settled
from .thread_lane import ThreadLane


class Lanes:
    """Puts each run into the lane in which its handler runs, and ``on_failed`` calls onto the loop."""

    def __init__(self, tasks: AsyncLane, threads: ThreadLane) -> None:
        self._tasks = tasks
        self._threads = threads

    def put(self, items: Iterable[Run | Settled]) -> None:
        """Add work at the end."""
        tasks: list[Run | Settled] = []
        threads: list[Run | Settled] = []
        for item in items:
            in_thread = isinstance(item, Run) and not isinstance(item.hold, AsyncHold)
            (threads if in_thread else tasks).append(item)
        if tasks:
            self._tasks.put(tasks)
        if threads:
            self._threads.put(threads)

    def take_back(self, wanted: Callable[[Run], bool]) -> list[Run]:
        """Take out those of the wanted runs that have not been started."""
        return self._tasks.take_back(wanted) + self._threads.take_back(wanted)

    def replace(self, run: Run) -> None:
        """Let something else run in the place of ``run``, which hangs."""
        lane = self._tasks if isinstance(run.hold, AsyncHold) else self._threads
        lane.replace(run)
