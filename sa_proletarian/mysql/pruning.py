"""Pruning on MariaDB and MySQL: the archive is read once in the order of its primary key, which is how it lies on the disk.

It owns how a batch is cut out, and which of several workers begins a pass. It refuses to move on by what a batch has
deleted: the next begins behind the last key that this one has looked at.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import BigInteger, Connection, bindparam, delete, func, insert, null, select, text, update

from sa_proletarian.dialects import statement_now
from sa_proletarian.pruning import LONGEST_AGE, Part, Passes, Pruning

from .lifecycle import microseconds
from .statements import later

_WAIT = "SET SESSION innodb_lock_wait_timeout = 1"


class MySQLPruning(Pruning):
    """The verbs on the old rows of one archive; sizes are numbers of rows."""

    first_size = 1_000
    most_size = 20_000

    def _statements(self, old: list[Any]) -> None:
        [key] = self._table.primary_key
        begin, end = (bindparam(name, type_=key.type) for name in ("begin", "end"))
        self._order: Any = select(key).order_by(key).offset(bindparam("skip", type_=BigInteger())).limit(1)
        self._order_behind: Any = self._order.where(key > begin)
        self._last: Any = select(func.max(key)).where(key > begin)
        self._delete: dict[tuple[bool, bool], Any] = {}
        self._count: dict[tuple[bool, bool], Any] = {}
        for has_begin in (False, True):
            for has_end in (False, True):
                bounds = [*[key > begin] * has_begin, *[key <= end] * has_end]
                self._delete[has_begin, has_end] = delete(self._table).where(*old, *bounds)
                self._count[has_begin, has_end] = select(func.count()).select_from(self._table).where(*old, *bounds)

    def extent(self, connection: Connection) -> int:
        """Give how many rows the server thinks that there are; it has no better number without reading them all."""
        schemas: Any = connection.get_execution_options().get("schema_translate_map") or {}
        schema = schemas.get(self._table.schema, self._table.schema)
        rows = connection.scalar(
            text(
                "SELECT table_rows FROM information_schema.tables"
                " WHERE table_name = :name AND table_schema = COALESCE(:schema, DATABASE())"
            ),
            {"name": self._table.name, "schema": schema},
        )
        return int(rows or 0)

    def begin(self, extent: int) -> Any:
        return (0, None)

    def cutoff(self, connection: Connection, older_than: timedelta) -> datetime | None:
        age = bindparam("age", type_=BigInteger())
        before: datetime | None = connection.scalar(select(later(age)), {"age": -microseconds(min(older_than, LONGEST_AGE))})
        return before  # None: before all that the server can name

    def limit(self, connection: Connection) -> None:
        connection.execute(text(_WAIT))

    def part(self, connection: Connection, before: Any, place: Any, size: int, extent: int, *, dry_run: bool) -> Part:
        seen, begin = place
        bounds: dict[str, Any] = {} if begin is None else {"begin": begin}
        order = self._order if begin is None else self._order_behind
        end = connection.scalar(order, {**bounds, "skip": size - 1})
        if end is not None:
            bounds["end"] = end
        statement = (self._count if dry_run else self._delete)[begin is not None, end is not None]
        result = connection.execute(statement, {**bounds, "before": before})
        count = result.scalar_one() if dry_run else result.rowcount
        if end is None:
            return Part(count, None, 1.0)
        seen += size
        return Part(count, (seen, end), min(0.99, seen / max(extent, seen + size)))


class MySQLPasses(Passes):
    """The verbs on a pass; an upsert does not say here whether it has changed anything."""

    def begin(self, connection: Connection, interval: timedelta) -> bool:
        if self._table is None:
            return True
        is_due = connection.execute(self._renew, {"interval": -microseconds(interval)}).rowcount
        return bool(is_due or connection.execute(self._begin).rowcount)

    def _beginning(self) -> Any:
        row, now = self._table.c, statement_now()
        self._renew: Any = (
            update(self._table)
            .where(row.kind == self.kind, row.subject == self._subject, row.worker_id == "")
            .where(row.last_seen_at <= later(bindparam("interval", type_=BigInteger())))
            .values(last_seen_at=now)
        )
        values = {**self._values(), "detail": null(), "started_at": now, "last_seen_at": now}
        return insert(self._table).prefix_with("IGNORE").values(**values)
