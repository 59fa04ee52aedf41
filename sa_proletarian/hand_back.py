"""The jobs of workers that have died: they are due at once, not when their leases run out.

It owns a thread in which the supervisor has that said (the statement is in ``leases``): a database that is away must not
keep it from its children. It comes back for rows that a transaction still holds.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from sqlalchemy import Engine

from . import clock
from .errors import describe
from .event_log import logger
from .lifecycle import Lifecycle
from .transactions import SETTLE_LIMITS
from .verbs import leases_for, roster_for

FIRST_PAUSE = 0.25
LONGEST_PAUSE = 5.0
WATCHED = 10.0
"""So many seconds a dead worker is looked after: the server may still be at a statement that it had sent."""
LAST_CALL = 0.2


@dataclass(frozen=True, slots=True)
class Deceased:
    """A worker that has died.

    :param at: monotonic seconds.
    """

    worker_id: str
    queue: str
    at: float


class HandBack:
    """A thread that ends the leases of workers that have died, and strikes them off the worker table.

    :param engine: an engine of its own, which it disposes of at its end.
    :param lifecycle: the verbs on the workers' jobs in its database.
    :param lease: the workers' lease in seconds: nothing is owed beyond it.
    """

    def __init__(self, engine: Engine, lifecycle: Lifecycle, *, lease: float) -> None:
        self._engine = engine
        self._set_local = lifecycle.set_local
        self._leases = leases_for(lifecycle)
        self._roster = roster_for(lifecycle)
        self._lease = lease
        self._news = threading.Condition()
        self._arrived: list[Deceased] = []
        self._closing = False
        self._debts: list[Deceased] = []
        self._pause = FIRST_PAUSE
        self._thread = threading.Thread(target=self._run, name="sa_proletarian-hand-back", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def put(self, dead: Sequence[Deceased]) -> None:
        """Take note that these workers have died; returns at once."""
        with self._news:
            self._arrived.extend(dead)
            self._news.notify()

    def close(self) -> None:
        """End, once nothing is owed any more; a database that is away is waited for only a moment."""
        with self._news:
            self._closing = True
            self._news.notify()
        self._thread.join(LAST_CALL)

    def _run(self) -> None:
        while self._wait():
            self._settle()
        self._engine.dispose()

    def _wait(self) -> bool:
        """Wait until there is something to do; give whether there is."""
        with self._news:
            if not self._arrived and (self._debts or not self._closing):
                self._news.wait((FIRST_PAUSE if self._closing else self._pause) if self._debts else None)
            self._pause = FIRST_PAUSE if self._arrived else min(LONGEST_PAUSE, 2 * self._pause)
            self._debts += self._arrived
            self._arrived = []
            return bool(self._debts) or not self._closing

    def _settle(self) -> None:
        if not self._debts:
            return
        try:
            left = self._end_leases()
        except Exception as error:
            logger.warning("the jobs of dead workers cannot be handed back now: %s", describe(error))
            left = 1
        watched = max(WATCHED, self._lease) if left else 0.0 if self._closing else WATCHED
        now = clock.monotonic()
        self._debts = [dead for dead in self._debts if now - dead.at < watched]

    def _end_leases(self) -> int:
        with self._engine.connect() as connection:
            with connection.begin():
                self._set_local(connection, **SETTLE_LIMITS)
                ended, left = self._leases.end(connection, [dead.worker_id for dead in self._debts])
            if ended:
                logger.info("handed_back jobs=%s", ended)
            if self._roster is not None:
                with suppress(Exception), connection.begin():
                    self._set_local(connection, **SETTLE_LIMITS)
                    for dead in self._debts:
                        self._roster.unregister(connection, queue=dead.queue, worker_id=dead.worker_id)
        return left
