"""How long a stop may take: until its deadline, and two seconds beyond, whatever the database does.

It owns the deadline of one stop and the thread that watches it. What is asked of a server that is away or stalled gets no
answer: a moment after the deadline its wires are cut, so that everybody who waits there goes on, and a moment later nothing
is waited for any more. It refuses to know what is to be ended.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta

from . import clock

CANCEL_GRACE = 0.7
"""So many seconds after the deadline has a handler whose SQL was cancelled to end by itself."""
GIVE_UP_GRACE = 1.2
"""So many seconds after it what cannot be settled is left to its lease, and the wires are cut."""
HOPELESS = 1.4
"""So many seconds after it nothing is waited for any more: a process then ends within two."""
LAST_CALLS = 1.0
TURN = 0.1


class Overdue:
    """The deadline of one stop.

    :param cut: called when everybody who waits for the server should go on; from another thread.
    :param give_up: called when nothing shall be waited for any more; from another thread.
    """

    def __init__(self, name: str, *, cut: Callable[[], object], give_up: Callable[[], object] | None = None) -> None:
        self.deadline: float = float("inf")
        self._cut = cut
        self._give_up = give_up
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=f"{name}-overdue", daemon=True)
        self._begun = threading.Lock()

    def begin(self, timeout: timedelta) -> None:
        """Begin the stop, or shorten it."""
        self.deadline = min(self.deadline, clock.monotonic() + timeout.total_seconds())
        if not self._over.is_set() and self._begun.acquire(blocking=False):
            self._thread.start()

    def end(self) -> None:
        """Take note that all has ended that could wait for the server."""
        self._over.set()
        if not self._begun.acquire(blocking=False):
            self._thread.join(TURN)

    @property
    def is_hopeless(self) -> bool:
        """Whether the stop has taken so much longer than it may that it will not end by itself."""
        return clock.monotonic() > self.deadline + HOPELESS

    @property
    def left(self) -> float:
        """How many seconds are left for what is no job: until the deadline, or a moment more."""
        now = clock.monotonic()
        return max(0.0, min(max(self.deadline - now, LAST_CALLS), self.deadline + GIVE_UP_GRACE - now))

    def _watch(self) -> None:
        for grace, act in ((GIVE_UP_GRACE, self._cut), (HOPELESS, self._give_up)):
            while (left := self.deadline + grace - clock.monotonic()) > 0:
                if self._over.wait(min(left, TURN)):
                    return
            if act is not None:
                act()
