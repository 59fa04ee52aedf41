"""The worker's own row in the worker table: that it is here, and whether a new job would start at once.

It owns when that is written, the frames of those short transactions, and what follows when one fails: an event, and
another try after a while. It refuses to stand in the way of work: it waits a moment for a lock and no longer, and where
there is no such table, or no right to it, jobs are run all the same.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from importlib import metadata
from typing import Any

from sqlalchemy import Connection

from . import clock, events
from .dialects import Trouble, sqlstate, trouble
from .roster import Roster
from .transactions import WAITING, Transactions
from .verbs import roster_for

LEAST_INTERVAL = 1.0
LOCK_PAUSE = 5.0
PAUSE = 60.0
LIMITS = {"synchronous_commit": "off", "lock_timeout": "100ms", "statement_timeout": "2s"}


class Presence:
    """Keeps the row of one worker fresh, on a connection that the caller brings.

    The row is written when the worker begins, after each third of its lease, when a beacon begins to burn for it (until
    others know of that, its jobs wait for their leases if it dies), and when it becomes idle or busy, but for that at most
    once a second. A job model without a worker table has no such row, and nothing is said of it.
    """

    def __init__(self, transactions: Transactions, emit: events.Emitter, *, threads: int) -> None:
        self._roster = roster_for(transactions.lifecycle)
        self._set_local = transactions.lifecycle.set_local
        self._emit = emit
        self._who = {"queue": transactions.queue, "worker_id": transactions.worker_id}
        self._lease = transactions.lease.total_seconds()
        self._detail: dict[str, Any] = {"lease": self._lease, "threads": threads, "version": _version()}
        self._started_at: datetime | None = None
        self._idle: bool | None = None
        self._tied = False
        self._next_write = 0.0
        self._next_change = 0.0
        self._next_tie = 0.0
        self._next_upkeep = 0.0
        self._told: set[str | None] = set()

    def show(self, connection: Connection, *, idle: bool, tied: bool = False) -> None:
        """Write that the worker is here and whether it is idle, where that is due; strike off workers that have died.

        :param tied: whether a beacon burns for as long as the worker lives.

        Raises only what says that ``connection`` is dead.
        """
        if self._roster is None:
            return
        now = clock.monotonic()
        changed = idle != self._idle or tied != self._tied
        least = self._next_tie if tied and not self._tied else self._next_change
        if now >= self._next_write or (changed and now >= least):
            self._register(self._roster, connection, idle=idle, tied=tied, now=now)
        if now >= self._next_upkeep and self._started_at is not None:
            pause = self.attempt(connection, self._roster.strike_off_the_dead)
            self._next_upkeep = now + (pause or self._lease)

    @property
    def shown(self) -> bool:
        """Whether the worker could write its row; a job model may have no worker table, and a database neither."""
        return self._started_at is not None

    def leave(self, connection: Connection) -> None:
        """Remove the row: the worker has stopped. What fails here is left to the upkeep of other workers."""
        if self._roster is not None and self._started_at is not None:
            roster, self._roster = self._roster, None
            self.attempt(connection, lambda connection: roster.unregister(connection, **self._who))

    def _register(self, roster: Roster, connection: Connection, *, idle: bool, tied: bool, now: float) -> None:
        detail = {**self._detail, "tied": True} if tied else self._detail

        def register(connection: Connection) -> None:
            self._started_at = roster.register(
                connection, **self._who, idle=idle, detail=detail, started_at=self._started_at
            )
            self._idle, self._tied = idle, tied

        pause = self.attempt(connection, register)
        self._next_write = now + (pause or self._lease / 3)
        self._next_change = now + (pause or LEAST_INTERVAL)
        self._next_tie = now + (pause or 0.0)

    def attempt(self, connection: Connection, write: Callable[[Connection], None]) -> float | None:
        """Read or write the table in a transaction; give after how many seconds to try again, ``None`` where it succeeded.

        Raises only what says that ``connection`` is dead.
        """
        try:
            with connection.begin():
                self._set_local(connection, **LIMITS)
                write(connection)
        except Exception as error:
            if trouble(error) is Trouble.DISCONNECTED:
                raise
            self._tell(error)
            return max(self._lease, LOCK_PAUSE) if trouble(error) in WAITING else PAUSE
        return None

    def _tell(self, error: Exception) -> None:
        """Say once in the life of a worker what goes wrong here: it goes on doing its work."""
        if (state := sqlstate(error)) not in self._told:
            self._told.add(state)
            self._emit(events.PresenceUnavailable, error=error)


def _version() -> str | None:
    try:
        return metadata.version("sa-proletarian")
    except metadata.PackageNotFoundError:
        return None
