"""Jobs whose type nobody here knows.

It owns when to look for them and what to say of them. It refuses to do anything about them: another worker may know.
"""

from __future__ import annotations

from sqlalchemy import Connection

from . import events
from .transactions import Transactions

INTERVAL = 60.0


class UnknownTypes:
    """Tells which types of due jobs have no handler in one worker."""

    def __init__(self, transactions: Transactions, emit: events.Emitter) -> None:
        self._transactions = transactions
        self._emit = emit
        self._next_look = 0.0
        self._known: tuple[str, ...] = ()

    def look(self, connection: Connection, now: float) -> None:
        """Look, where that is due, and tell what has changed; a worker asks when it has found nothing to do."""
        if now < self._next_look:
            return
        self._next_look = now + INTERVAL
        found = tuple(self._transactions.unknown_types(connection))
        if found and found != self._known:
            self._emit(events.UnknownJobTypes, job_types=found)
        self._known = found
