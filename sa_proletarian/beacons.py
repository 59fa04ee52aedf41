"""What a session of the server shows to others for as long as it lasts, and how they look: by advisory locks.

It owns the keys of those locks, the statements, and the channel on which an idle worker is woken. Nobody needs a right to
any of it, no row is read or written, and none of it can fail for the state of a table: an enqueuer may say it inside
the app's own transaction. It refuses to know when anything is said: that is for ``waking``, ``rest`` and ``listening``.

A worker lights a beacon by a *shared* lock, so that several can show the same. Who looks tries for the exclusive one, and
lets go of it within the same statement: it is had only where no beacon burns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text

IDLE = "idle"
"""The kind of beacon that says: a worker of this queue would start a job at once."""

LIFE = "life"
"""The kind of beacon that says: this worker has a session of the server."""

# the table's oid: the same for the enqueuer and the worker, also where one of them names a schema and the other has a
# search_path. By the catalog where there is a schema, because to_regclass fails on one that the role may not use
_OID = """
    CASE WHEN schema_name IS NULL THEN CAST(to_regclass(quote_ident(table_name)) AS oid)
    ELSE (SELECT c.oid FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
          WHERE n.nspname = schema_name AND c.relname = table_name) END"""
_KEYS = f"""
    SELECT subject, hashtextextended('sa_proletarian ' || :kind || ' ' || CAST({_OID} AS text) || ' ' || subject, 0) AS key
    FROM unnest(CAST(:schemas AS text[]), CAST(:tables AS text[]), CAST(:subjects AS text[]))
        AS places (schema_name, table_name, subject)"""  # noqa: S608 (constants of this room)
_BURNS = "CASE WHEN key IS NULL THEN false WHEN pg_try_advisory_lock(key) THEN NOT pg_advisory_unlock(key) ELSE {other} END"

# not where the server's queue of notifications runs full: somebody else's fault, but the app's COMMIT would fail
_RING = text(
    f"WITH keys AS MATERIALIZED ({_KEYS}) SELECT subject, pg_notify('sa_proletarian_' || key, '') FROM keys "  # noqa: S608
    f"WHERE {_BURNS.format(other='pg_notification_queue_usage() < 0.5')}"
)
_LOOK = text(f"WITH keys AS MATERIALIZED ({_KEYS}) SELECT subject FROM keys WHERE {_BURNS.format(other='true')}")  # noqa: S608
_KEY = text(_KEYS)
_LIGHT = text("SELECT pg_advisory_lock_shared(:key)")
_PUT_OUT = text("SELECT pg_advisory_unlock_shared(:key)")


@dataclass(frozen=True, slots=True)
class Address:
    """Whom a beacon is about: a queue, or a worker, of one job table."""

    schema: str | None
    table: str
    subject: str


class Life:
    """The beacons that say which workers of a queue live."""

    sessions: int = 2
    """In so many of its sessions a worker shows its beacon."""
    grace: float = 0.0
    """For so many seconds at least a worker may be without any."""

    def light(self, connection: Connection, place: Address) -> bool:
        """Light the beacon of a worker for as long as the session lasts; give whether it burns."""
        key = key_of(connection, LIFE, place)
        if key is not None:
            light(connection, key)
        return key is not None

    def keep(self, connection: Connection) -> None:
        """Let the session end soon after its host; the worker will say something each moment from now on."""

    def burning(self, connection: Connection, places: Sequence[Address]) -> set[str]:
        """Give the subjects of those of ``places`` where a beacon burns."""
        return burning(connection, LIFE, places)


def address(connection_or_engine: Any, table: Any, subject: str) -> Address:
    """Give the address of ``subject`` beside ``table``, where the connection or engine finds that."""
    schemas: dict[str | None, str | None] = connection_or_engine.get_execution_options().get("schema_translate_map") or {}
    return Address(schemas.get(table.schema, table.schema), table.name, subject)


def ring(connection: Connection, queues: Sequence[Address]) -> set[str]:
    """Notify, at the COMMIT, the idle workers of ``queues`` that there are; give the names of those queues."""
    rows: Any = connection.execute(_RING, _places(IDLE, queues))
    return {row.subject for row in rows}


def burning(connection: Connection, kind: str, places: Sequence[Address]) -> set[str]:
    """Give the subjects of those of ``places`` where a beacon of this kind burns."""
    rows: Any = connection.execute(_LOOK, _places(kind, places))
    return {row.subject for row in rows}


def key_of(connection: Connection, kind: str, place: Address) -> int | None:
    """Give the key of a beacon's lock; ``None`` while its table is not there."""
    row = connection.execute(_KEY, _places(kind, [place])).one()
    return row.key  # type: ignore[no-any-return]


def light(connection: Connection, key: int) -> None:
    """Light a beacon, until it is put out or the session ends."""
    connection.execute(_LIGHT, {"key": key})


def put_out(connection: Connection, key: int) -> None:
    """Put out a beacon that was lit in this session."""
    connection.execute(_PUT_OUT, {"key": key})


def listen(connection: Connection, key: int) -> None:
    """Listen, from the COMMIT to the end of the session, to what rings for the beacon with this key."""
    connection.execute(text(f'LISTEN "{channel(key)}"'))


def channel(key: int) -> str:
    """Give the name of the channel on which it is rung for the beacon with this key."""
    return f"sa_proletarian_{int(key)}"


def _places(kind: str, places: Sequence[Address]) -> dict[str, Any]:
    return {
        "kind": kind,
        "schemas": [place.schema for place in places],
        "tables": [place.table for place in places],
        "subjects": [place.subject for place in places],
    }
