"""Workers that die beside this one: what they had claimed is due within two seconds, and not when their leases are over.

It owns by what a worker is taken for dead. Both of a worker's sessions, its feeder's and the one on which it listens, show
a beacon, which ends with them and so with its process; it says so in its row of the worker table. Whose beacon is gone has
a moment to come back: that may be a connection that was lost. It is nobody's guess that a server has been away, with all
connections: what this worker has not seen burning on its present connection, it believes gone only when that is old
enough for anybody to have come back. Elsewhere than on PostgreSQL nobody listens, and the feeder's session says it alone.

It refuses to decide more than a lease would: the fence keeps what it always does, and where there is no worker table, no
direct connection or no right, leases are left to run out.
"""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy import Connection

from . import clock
from .beacons import Address
from .event_log import logger
from .presence import Presence
from .roster import Roster
from .transactions import SETTLE_LIMITS, Transactions
from .verbs import leases_for, life_for, roster_for

LOOK = 0.75
GRACE = 1.0
"""For so many seconds a worker may be without any session before it is taken for dead."""
AWAY = 10.0
"""A worker that lives has come back by then, whatever its pauses were while the server was away."""


class Vigil:
    """Looks after the other workers of one queue, on the feeder's connection.

    :param place: the queue, beside its job table.
    :param listens: whether the worker has a session to listen with.
    """

    def __init__(self, transactions: Transactions, presence: Presence, place: Address, *, listens: bool) -> None:
        self._presence = presence
        self._set_local = transactions.lifecycle.set_local
        self._life = life_for(transactions.lifecycle)
        ties = listens or self._life.sessions == 1
        self._roster: Roster | None = roster_for(transactions.lifecycle) if ties else None
        self._leases = leases_for(transactions.lifecycle)
        self._place = place
        self._me = transactions.worker_id
        self._lit = self._kept = False
        self._since = 0.0
        self._next_look = 0.0
        self._seen: set[str] = set()
        self._missed: dict[str, float] = {}

    def ties(self, *, hears: bool) -> bool:
        """Whether this worker's own beacon burns: on the feeder's connection, and on that by which it hears."""
        return self._lit and (hears or self._life.sessions == 1)

    @property
    def until(self) -> float:
        """When to look again."""
        return self._next_look if self._roster is not None and self._presence.shown else float("inf")

    def begin(self, connection: Connection) -> None:
        """Light this worker's beacon on a fresh connection, and forget what was seen on another."""
        self._lit, self._kept, self._since = False, False, clock.monotonic()
        self._seen, self._missed = set(), {}
        if self._roster is not None:
            with connection.begin():
                self._light(connection)

    def look(self, connection: Connection) -> bool:
        """End the leases of workers that have died, where it is time to look; give whether there were any to end.

        Raises only what says that ``connection`` is dead.
        """
        now = clock.monotonic()
        if self._roster is None or now < self.until:
            return False
        self._next_look = now + LOOK
        dead: list[str] = []
        ended: list[int] = []
        self._presence.attempt(connection, lambda connection: dead.extend(self._dead(connection, now)))
        if dead:
            self._presence.attempt(connection, lambda connection: self._cut_off(connection, dead))
            self._presence.attempt(connection, lambda connection: ended.append(self._end(connection, dead)))
        if any(ended):
            logger.info("handed_back jobs=%s", sum(ended))
        return any(ended)

    def _dead(self, connection: Connection, now: float) -> list[str]:
        assert self._roster is not None
        if not self._kept:
            self._life.keep(connection)
            self._kept = True
        if not self._lit:
            self._light(connection)
        names = [name for name in self._roster.tied(connection, queue=self._place.subject) if name != self._me]
        alive = self._life.burning(connection, [self._place_of(name) for name in names])
        self._seen |= alive
        self._missed = {name: self._missed.get(name, now) for name in names if name not in alive}
        is_old = now - self._since > AWAY
        grace = max(GRACE, self._life.grace)
        return [name for name, since in self._missed.items() if now - since >= grace and (is_old or name in self._seen)]

    def _place_of(self, name: str) -> Address:
        return replace(self._place, subject=name)

    def _light(self, connection: Connection) -> None:
        self._lit = self._life.light(connection, self._place_of(self._me))

    def _cut_off(self, connection: Connection, dead: list[str]) -> None:
        self._set_local(connection, **SETTLE_LIMITS)
        self._leases.cut_off(connection, dead)

    def _end(self, connection: Connection, dead: list[str]) -> int:
        """End their leases; a worker of whose rows none is held by a transaction any more is struck off."""
        assert self._roster is not None
        self._set_local(connection, **SETTLE_LIMITS)
        ended, left = self._leases.end(connection, dead)
        if not left:
            for name in dead:
                self._roster.unregister(connection, queue=self._place.subject, worker_id=name)
        return ended
