"""How far the jobs of one worker are, shown to others in the worker table.

It owns when that is written, and that it is removed when a job has ended. It refuses to stand in the way of work: a worker
that cannot write its own row in the worker table does not write these either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sqlalchemy import Connection

from . import clock
from .bulletin import Bulletin
from .errors import printable
from .presence import Presence
from .runs import Run
from .transactions import Transactions
from .verbs import bulletin_for

INTERVAL = 1.0
LONGEST_NOTE = 500


class Progress:
    """Writes, once a second at most, what handlers have said last; on a connection that the caller brings."""

    def __init__(self, transactions: Transactions, presence: Presence) -> None:
        self._bulletin = bulletin_for(transactions.lifecycle, worker_id=transactions.worker_id)
        self._presence = presence
        self._lease = transactions.lease.total_seconds()
        self._shown: dict[Run, dict[str, Any]] = {}
        self._next_write = self._next_upkeep = self._not_before = 0.0

    def show(self, connection: Connection, outstanding: set[Run]) -> None:
        """Write what is new, where that is due; remove what has ended. Raises only what says that the connection is dead."""
        now = clock.monotonic()
        bulletin = self._bulletin
        if bulletin is None or not self._presence.shown or now < self._not_before:
            return
        self._remove(connection, bulletin, [run for run in self._shown if run not in outstanding], now)
        if now >= self._next_write:
            self._next_write = now + INTERVAL
            self._write(connection, bulletin, outstanding, now)
        if now >= self._next_upkeep:
            self._next_upkeep = now + self._lease
            self._presence.attempt(connection, bulletin.sweep)

    def leave(self, connection: Connection) -> None:
        """Remove what is left at the worker's end."""
        if self._bulletin is not None:
            self._remove(connection, self._bulletin, [*self._shown], clock.monotonic())

    def _write(self, connection: Connection, bulletin: Bulletin, runs: Iterable[Run], now: float) -> None:
        said = {run: run.progress for run in runs}
        news = {run: what for run, what in said.items() if what is not None and what is not self._shown.get(run)}
        details = {_subject(run): {**what, "note": _short(what["note"])} for run, what in news.items()}
        if details and self._succeeds(connection, lambda connection: bulletin.show(connection, details), now):
            self._shown.update(news)

    def _remove(self, connection: Connection, bulletin: Bulletin, ended: Sequence[Run], now: float) -> None:
        jobs = [_subject(run) for run in ended]
        if jobs and self._succeeds(connection, lambda connection: bulletin.remove(connection, jobs), now):
            for run in ended:
                del self._shown[run]

    def _succeeds(self, connection: Connection, write: Callable[[Connection], None], now: float) -> bool:
        pause = self._presence.attempt(connection, write)
        self._not_before = now + (pause or 0.0)
        return pause is None


def _subject(run: Run) -> str:
    return str(run.claim.job_id)[:200]


def _short(note: str | None) -> str | None:
    return None if note is None else printable(note[:LONGEST_NOTE])
