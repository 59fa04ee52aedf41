"""The pauses of one worker: when it polls next, and what it shows while it rests.

It owns the wait between two polls, and the beacon that says to enqueuers that the worker is idle. It says so, polls once
more, for what was committed just before, and only then rests. It refuses to poll.
"""

from __future__ import annotations

from sqlalchemy import Connection

from . import beacons, clock
from .beacons import IDLE, Address
from .polling import after_work, jittered
from .waking import QUIET

ONCE_MORE = 1.25 * QUIET
"""So many seconds after it has said that it is idle a worker polls once more: by then everybody looks for idle workers."""


class Rest:
    """Paces the polls of one worker.

    :param interval: the longest wait after a poll that found nothing, in seconds.
    :param place: whose beacon to light.
    """

    def __init__(self, interval: float, place: Address) -> None:
        self._interval = interval
        self._place = place
        self._next_poll = clock.monotonic() + (jittered(min(interval, 1.0)) - 0.9 * min(interval, 1.0))
        self._empty_polls: int | None = None
        self._rung = False
        self._lit: int | None = None

    def ring(self) -> None:
        """Let the next poll be due at once; for other threads, which then see to it that the worker looks."""
        self._rung = True

    def is_over(self, now: float) -> bool:
        """Whether it is time to poll."""
        return self._rung or now >= self._next_poll

    @property
    def until(self) -> float:
        """When it is time to poll, unless somebody rings before."""
        return self._next_poll

    def poll(self) -> None:
        """Take note that a poll begins: what rings from now on may have come too late for it."""
        self._rung = False

    def found_work(self, connection: Connection) -> None:
        """Take note that a poll found something: the next one is due as soon as there is a place for a job."""
        self._empty_polls, self._next_poll = 0, 0.0
        self.show_nothing(connection)

    def found_nothing(self, connection: Connection, now: float, *, hears: bool, until: float = float("inf")) -> None:
        """Take note that a poll found nothing, and show that the worker is idle if it ``hears`` who rings.

        :param until: when to poll again at the latest, as not everything was looked at.
        """
        if hears and self._lit is None:
            self._show_idle(connection)
            wait = min(self._interval, ONCE_MORE)
        elif hears or self._empty_polls is None:
            self._empty_polls, wait = None, self._interval
        else:
            wait = after_work(self._interval, self._empty_polls)
            self._empty_polls = self._empty_polls + 1 if wait < self._interval else None
        if not hears:
            self.show_nothing(connection)
        self._next_poll = min(now + jittered(wait), until)

    def show_nothing(self, connection: Connection) -> None:
        """Put out the beacon."""
        if self._lit is not None:
            with connection.begin():
                beacons.put_out(connection, self._lit)
            self._lit = None

    def lost(self) -> None:
        """Take note that the connection is gone, and the beacon with it."""
        self._lit = None

    def _show_idle(self, connection: Connection) -> None:
        with connection.begin():
            key = beacons.key_of(connection, IDLE, self._place)
            if key is not None:
                beacons.light(connection, key)
        self._lit = key
