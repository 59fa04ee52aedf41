"""Requests to one worker: that a job which it runs be cancelled.

It owns when they are looked for, and to which runs they are passed on. It refuses to stand in the way of work: a worker
that cannot write its own row in the worker table does not look there for requests either.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sqlalchemy import Connection

from . import clock
from .cancellation import Request
from .presence import Presence
from .runs import Asked, Run
from .transactions import Transactions
from .verbs import cancelling_for

INTERVAL = 1.0


class Requests:
    """Looks for requests once a second while jobs run, and else once in a lease, on a connection that the caller brings."""

    def __init__(self, transactions: Transactions, presence: Presence) -> None:
        self._transactions = transactions
        self._presence = presence
        self._cancelling = cancelling_for(transactions.lifecycle)
        self._last_look = clock.monotonic()
        self._pause = 0.0
        self._open = False

    def heed(self, connection: Connection, outstanding: Iterable[Run], pending: Iterable[Run]) -> bool:
        """Ask the runs to end of which somebody wants it; give whether there are any. Of the ``pending`` it is too late.

        Raises only what says that ``connection`` is dead.
        """
        running = [*outstanding]
        now = clock.monotonic()
        often = INTERVAL if running or self._open else self._lease
        if not self._presence.shown or now < self._last_look + max(often, self._pause):
            return False
        self._last_look = now
        found = self._look(connection)
        self._open = bool(found)
        return bool(found) and self._pass_on(connection, found, running, pending)

    def leave(self, connection: Connection) -> None:
        """See to what is asked of jobs that the worker has released at its end."""
        if self._presence.shown and not self._pause:
            self._pass_on(connection, self._look(connection), (), ())

    @property
    def _lease(self) -> float:
        return self._transactions.lease.total_seconds()

    def _look(self, connection: Connection) -> Sequence[Request]:
        found: list[Request] = []

        def read(connection: Connection) -> None:
            found.extend(
                self._cancelling.pending(
                    connection, worker_id=self._transactions.worker_id, patience=self._transactions.lease
                )
            )

        self._pause = self._presence.attempt(connection, read) or 0.0
        return found

    def _pass_on(
        self, connection: Connection, found: Sequence[Request], running: Iterable[Run], pending: Iterable[Run]
    ) -> bool:
        here = {str(run.claim.job_id): run for run in running}
        ending = {str(run.claim.job_id) for run in pending}
        asked = [(run, request.reason) for request in found if (run := here.get(request.job)) is not None]
        for run, reason in asked:
            if run.asked is None:
                run.ask(Asked.CANCELLED, reason)
        for request in found:
            if request.job not in here and request.job not in ending:
                self._make_again(connection, request)
        return bool(asked)

    def _make_again(self, connection: Connection, request: Request) -> None:
        self._presence.attempt(connection, lambda connection: self._cancelling.make_again(connection, request))
