"""What keeps the dead rows of the job table: a transaction, or something like one, that is older than it should be.

It owns the look at the server's views, which takes a millisecond and no right, and when to tell. It refuses to end anything:
whose transaction that is, and what for, is not a worker's to judge. A claim is kept from those rows by ``polling.Place``;
its look at the whole line, and everything else that reads the table, is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, text

from . import clock, events
from .beacons import Address
from .dialects import MYSQL, Trouble, trouble
from .transactions import Transactions

INTERVAL = 60.0
"""So many seconds are between two looks."""
OLD = 300.0
"""A snapshot is old after so many seconds."""
MANY = 10_000
"""Fewer dead rows are no harm."""
AGAIN = 600.0
"""So many seconds later a holder is told of again."""
LIMITS = {"statement_timeout": "2s", "lock_timeout": "100ms"}

# whose transaction it is, and which ids it keeps in sight, everybody may see; when it began only some may. The one with an
# id of its own comes first: a younger one whose snapshot was taken meanwhile shows the same horizon
_LOOK = text("""
    WITH holders AS (
        SELECT concat_ws(' ', CASE WHEN backend_type = 'walsender' THEN 'standby' ELSE 'transaction' END, 'of pid', pid,
                         'user', usename, 'application', nullif(application_name, '')) AS holder,
               CASE WHEN backend_xmin IS NULL OR age(backend_xid) >= age(backend_xmin) THEN backend_xid
                    ELSE backend_xmin END AS horizon,
               backend_xid IS NOT NULL AS has_id,
               extract(epoch FROM clock_timestamp() - xact_start) AS seconds
          FROM pg_catalog.pg_stat_activity
         WHERE pid <> pg_backend_pid() AND pid NOT IN (SELECT pid FROM pg_catalog.pg_stat_progress_vacuum)
           AND (datname = current_database() OR backend_type = 'walsender')
         UNION ALL
        SELECT concat_ws(' ', 'prepared transaction', gid, 'user', owner), transaction, true,
               extract(epoch FROM clock_timestamp() - prepared)
          FROM pg_catalog.pg_prepared_xacts WHERE database = current_database()
         UNION ALL
        SELECT concat_ws(' ', 'replication slot', slot_name), xmin, false, NULL FROM pg_catalog.pg_replication_slots
    )
    SELECT holder, CAST(horizon AS text) AS horizon, CAST(seconds AS float) AS seconds, job.dead
      FROM holders
     CROSS JOIN (
        SELECT max(n_dead_tup) AS dead FROM pg_catalog.pg_stat_all_tables
         WHERE relname = :table AND (schemaname = :schema OR (CAST(:schema AS text) IS NULL AND pg_table_is_visible(relid)))
     ) AS job
     WHERE horizon IS NOT NULL AND job.dead >= :many
     ORDER BY age(horizon) DESC, has_id DESC, seconds DESC NULLS LAST
     LIMIT 1
""")


@dataclass(slots=True)
class _Sighting:
    """What was at the end of the line at the last look, since when, and when it was told of."""

    who: tuple[str, str]
    since: float
    told_at: float = float("-inf")


class OldSnapshots:
    """Tells of what keeps dead rows in the job table.

    :param place: whose job table.
    """

    def __init__(self, transactions: Transactions, emit: events.Emitter, place: Address) -> None:
        self._set_local = transactions.lifecycle.set_local
        self._emit = emit
        self._table = {"schema": place.schema, "table": place.table}
        elsewhere = transactions.engine.dialect.name in MYSQL  # they purge by themselves, and a claim there has no such line
        self._next_look = float("inf") if elsewhere else clock.monotonic() + INTERVAL
        self._last: _Sighting | None = None

    def look(self, connection: Connection) -> None:
        """Look, where that is due, and tell. Raises only what says that ``connection`` is dead."""
        now = clock.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + INTERVAL
        try:
            with connection.begin():
                self._set_local(connection, **LIMITS)
                row = connection.execute(_LOOK, {**self._table, "many": MANY}).one_or_none()
        except Exception as error:
            if trouble(error) is Trouble.DISCONNECTED:
                raise
            return  # a server that is busy, or one where somebody has taken these views from PUBLIC
        self._saw(row, now)

    def _saw(self, row: Any, now: float) -> None:
        if row is None:
            self._last = None
            return
        who = row.holder, row.horizon
        if self._last is None or self._last.who != who:
            self._last = _Sighting(who, now)
        seconds = max(row.seconds or 0.0, now - self._last.since)
        if seconds >= OLD and now >= self._last.told_at + AGAIN:
            self._last.told_at = now
            self._emit(events.DeadRowsKept, holder=row.holder, age=timedelta(seconds=round(seconds)), rows=row.dead)
