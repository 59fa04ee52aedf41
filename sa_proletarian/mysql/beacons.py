"""The beacons of living workers on MariaDB and MySQL: named locks, which end with the session that has them.

It owns their names, the statements, and the time after which the server ends the session of a worker that says nothing: by
nothing else can these servers be told to look after a host that vanished. It refuses to know who is dead.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Any

from sqlalchemy import Connection, func, select, text

from sa_proletarian.beacons import Address, Life

SILENCE = 6
"""After so many seconds without a word the server takes the host for lost; each of the worker's looks is a word."""
GRACE = 4.0
"""The feeder's is the only session that shows that a worker lives: so long may it take to come back, its pauses included."""


class MySQLLife(Life):
    """The beacons of the workers of one queue."""

    sessions = 1
    grace = GRACE

    def light(self, connection: Connection, place: Address) -> bool:
        """Light the beacon, unless an earlier session of the worker still has it."""
        return connection.scalar(select(func.get_lock(_lock(connection, place), 0))) == 1

    def keep(self, connection: Connection) -> None:
        connection.execute(text("SET SESSION wait_timeout = :seconds"), {"seconds": SILENCE})

    def burning(self, connection: Connection, places: Sequence[Address]) -> set[str]:
        if not places:
            return set()
        holders: Any = connection.execute(select(*(func.is_used_lock(_lock(connection, place)) for place in places))).one()
        return {place.subject for place, holder in zip(places, holders, strict=True) if holder is not None}


def _lock(connection: Connection, place: Address) -> str:
    """Name the lock; these names are those of the whole server, and short."""
    words = (connection.engine.url.database, place.schema, place.table, place.subject)
    return f"sa_proletarian_{sha256(repr(words).encode()).hexdigest()[:40]}"
