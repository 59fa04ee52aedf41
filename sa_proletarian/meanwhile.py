"""Settling while the feeder claims: both are statements that wait for the server, which has more than one hand.

It owns a second connection, opened when many jobs end at a time and closed when they no longer do, and what is under way on
it. It refuses everything but the plain case: what it does not settle stays as it was, for the feeder to settle.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress

from sqlalchemy import Connection, text

from . import clock
from .outcomes import RETURNED
from .runs import Report, Settled
from .sessions import throw_away
from .transactions import Sent, Transactions

MANY = 32
"""Fewer jobs are settled sooner than two connections are waited for."""
IDLE = 10.0
"""After so many seconds without use the connection is closed; and so long is none asked for after one was refused."""


class Meanwhile:
    """Settles jobs that have returned on a connection of its own, while the feeder claims others."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions
        self._connection: Connection | None = None
        self._opened: deque[Connection] = deque()
        self._closed = False
        self._until = float("-inf")
        self._sent: Sent | None = None

    def send(self, connection: Connection, reports: Sequence[Report]) -> None:
        """Begin to settle those of ``reports`` that can be settled so, if they are many.

        :param connection: the feeder's own; what can be said there can be said here.
        """
        plain = [report for report in reports if report.ruling is RETURNED and not report.tried]
        self._rest()
        if len(plain) < MANY or not self._transactions.sends_ahead(connection):
            return
        second = self._second()
        if second is None:
            return
        self._until = clock.monotonic() + IDLE
        try:
            self._sent = self._transactions.send(second, plain)
        except Exception:
            self._throw_away()

    @property
    def under_way(self) -> Sequence[Report]:
        """What is being settled, and nobody else's to settle until it is waited for."""
        return self._sent.reports if self._sent is not None else ()

    def wait(self) -> Iterable[Settled]:
        """Wait for what was sent, and give what it came to; nothing where that failed: it is to be settled again then."""
        sent, self._sent = self._sent, None
        try:
            return sent.settled() if sent is not None else ()
        except Exception:
            self._throw_away()
            return ()

    def close(self) -> None:
        """Have no connection any more."""
        self._closed = True
        self._throw_away()
        self._throw_away_opened()

    def _rest(self) -> None:
        """Give the connection back if it is of no use any more."""
        if self._connection is not None and clock.monotonic() > self._until:
            self._throw_away()

    def _second(self) -> Connection | None:
        """Give the second connection, if it is there; else ask for it, which the feeder does not wait for."""
        if self._connection is None and self._opened:
            self._connection = self._opened.popleft()
        elif self._connection is None and clock.monotonic() > self._until:
            self._until = clock.monotonic() + IDLE
            threading.Thread(target=self._open, name=f"{self._transactions.worker_id}-second", daemon=True).start()
        return self._connection

    def _open(self) -> None:
        with suppress(Exception):  # where there is no place for one more, it goes without
            connection = self._transactions.engine.connect()
            try:
                connection.execute(text("SELECT 1"))  # a pooler answers only when it has one
                connection.rollback()
                self._opened.append(connection)
            except Exception:
                throw_away(connection)
        if self._closed:
            self._throw_away_opened()

    def _throw_away_opened(self) -> None:
        with suppress(IndexError):  # of two who take it only one gets it
            throw_away(self._opened.popleft())

    def _throw_away(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            throw_away(connection)
