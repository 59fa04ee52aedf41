"""The tray between the feeder and the handler threads.

It owns work that waits to be begun, and the waiting for it. It refuses to know what the work is.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Protocol

from .runs import Run, Settled


class Intake(Protocol):
    """Where the feeder puts work, takes back what has not been begun, and says what will not come back from its run."""

    def put(self, items: Iterable[Run | Settled]) -> None: ...
    def take_back(self, wanted: Callable[[Run], bool], /) -> list[Run]: ...
    def replace(self, run: Run, /) -> None: ...


class Tray:
    """Where the feeder puts work and handler threads take it: runs, and ``on_failed`` calls that are due.

    :param replace: called with a run whose thread hangs, to start another.
    """

    def __init__(self, replace: Callable[[Run], None]) -> None:
        self.replace: Callable[[Run], None] = replace
        self._items: deque[Run | Settled] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, items: Iterable[Run | Settled]) -> None:
        """Add work at the end."""
        with self._changed:
            self._items.extend(items)
            self._changed.notify_all()

    def take(self) -> Run | Settled | None:
        """Wait for work and take it; ``None`` when the tray is closed and empty."""
        while True:
            try:  # popleft needs no lock: of two takers each gets another item
                return self._items.popleft()
            except IndexError:
                pass
            with self._changed:
                while not self._items:
                    if self._closed:
                        return None
                    self._changed.wait()

    def take_back(self, wanted: Callable[[Run], bool]) -> list[Run]:
        """Take out those of the wanted runs that have not been started."""
        old: list[Run] = []
        kept: list[Run | Settled] = []
        with self._changed:
            while self._items:  # item by item, as takers do it: what one of them has, the other has not
                with suppress(IndexError):
                    item = self._items.popleft()
                    if isinstance(item, Run) and wanted(item):
                        old.append(item)
                    else:
                        kept.append(item)
            self._items.extend(kept)
            self._changed.notify_all()
        return old

    def close(self) -> None:
        """Let the threads end once the tray is empty."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
