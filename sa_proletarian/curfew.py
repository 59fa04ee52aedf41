"""The moment at which this process has ended, whatever in it still runs.

It owns that bound of a stop, for a process that exists for its workers. A thread of the app that is no daemon, a task's
``to_thread`` or a handler at exit would keep an interpreter alive that has nothing to do any more. It refuses to hurry
anything before that moment.
"""

from __future__ import annotations

import os
import select
import threading
from contextlib import suppress

from . import clock

LIMIT = 1.9
"""So many seconds after its termination timeout a process that stops has ended: what is promised are two."""
STDERR = 2


class Curfew:
    """Ends this process when its stop has taken too long.

    :param seconds: the termination timeout.
    :param code: the exit code until ``code`` is set to another.
    """

    def __init__(self, seconds: float, *, code: int) -> None:
        self.code: int = code
        self._seconds = seconds
        self._at = float("inf")
        self._changed = threading.Condition()

    def begin(self) -> None:
        """Take note that the stop has begun."""
        self._set(self._seconds + LIMIT)

    def hurry(self) -> None:
        """Take note that the termination timeout is over, as somebody has asked a second time."""
        self._set(LIMIT)

    @property
    def left(self) -> float:
        """How many seconds there are left."""
        return max(0.0, self._at - clock.monotonic())

    def _set(self, seconds: float) -> None:
        with self._changed:
            first = self._at == float("inf")
            self._at = min(self._at, clock.monotonic() + seconds)
            self._changed.notify()
        if first:
            threading.Thread(target=self._watch, name="sa_proletarian-curfew", daemon=True).start()

    def _watch(self) -> None:
        with self._changed:
            while self.left:
                self._changed.wait(min(self.left, threading.TIMEOUT_MAX))
        self._say("sa-proletarian worker: the time to stop is over; the process ends with what still runs in it\n")
        os._exit(self.code)

    def _say(self, words: str) -> None:
        """Write to stderr past all locks, where somebody reads it."""
        with suppress(OSError):
            if select.select([], [STDERR], [], 0)[1]:
                os.write(STDERR, words.encode())
