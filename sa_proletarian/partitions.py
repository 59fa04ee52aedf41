"""The archive in months: a partitioned table, from which old months are dropped and not deleted row by row.

    partitions.split(op.get_bind())                                        # once, in a migration of the app
    partitions.make(connection, months=3)                                  # now and then: the months to come
    partitions.drop(connection, older_than=timedelta(days=90))             # now and then: the months that are over

It owns the DDL. The models stay as they are: to them, and to every statement of the library, it is the same table. Each verb
takes a connection first, as the owner of the tables, and neither begins nor commits. It refuses other spans than months of
UTC.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, text

from . import arguments
from .dialects import SUPPORTED
from .errors import ConfigurationError
from .quoting import qualified, quoted

ARCHIVE = "proletarian_archived_job"
LONGEST_NAME = 63

_LIKE = (
    "INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING GENERATED INCLUDING IDENTITY INCLUDING STORAGE INCLUDING COMMENTS"
)

_FOUND = text("""
    SELECT CAST(c.relkind AS text) AS kind, pg_catalog.obj_description(c.oid, 'pg_class') AS comment,
           CAST(n.nspname AS text) AS schema
      FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
     WHERE c.oid = CAST(:name AS regclass)
""")

# the key of a partition is printed as the session prints instants, and is read by the same session
_PARTITIONS = text("""
    SELECT CAST(c.relname AS text) AS name, bound = 'DEFAULT' AS is_default,
           CAST(substring(bound FROM 'TO \\(''([^'']+)''\\)') AS timestamptz) AS ends_at
      FROM (SELECT relname, pg_catalog.pg_get_expr(relpartbound, oid) AS bound FROM pg_catalog.pg_class
             WHERE oid IN (SELECT inhrelid FROM pg_catalog.pg_inherits WHERE inhparent = CAST(:name AS regclass))) AS c
     ORDER BY ends_at
""")

_MONTH = text("""
    SELECT date_trunc('month', statement_timestamp() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' AS month,
           statement_timestamp() AS now
""")

_NEXT = text("""
    SELECT (CAST(:month AS timestamptz) AT TIME ZONE 'UTC' + CAST(:months || ' months' AS interval)) AT TIME ZONE 'UTC'
""")

# of the table alone: what stands in its definition goes along by LIKE
_INDEXES = text("""
    SELECT CAST(c.relname AS text) AS name, pg_catalog.pg_get_indexdef(i.indexrelid) AS definition
      FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
     WHERE i.indrelid = CAST(:name AS regclass) AND NOT i.indisprimary
     ORDER BY c.relname
""")
_CONSTRAINTS = text("""
    SELECT CAST(conname AS text) AS name, CAST(contype AS text) AS kind, pg_catalog.pg_get_constraintdef(oid) AS definition
      FROM pg_catalog.pg_constraint
     WHERE conrelid = CAST(:name AS regclass) AND contype IN ('p', 'f')
     ORDER BY conname
""")
_RIGHTS = text("""
    SELECT CAST(NULL AS text) AS column, (a).privilege_type AS privilege, (a).is_grantable AS grantable,
           CASE WHEN (a).grantee <> 0 THEN CAST(pg_catalog.pg_get_userbyid((a).grantee) AS text) END AS grantee
      FROM (SELECT pg_catalog.aclexplode(relacl) AS a, relowner FROM pg_catalog.pg_class
             WHERE oid = CAST(:name AS regclass)) AS whole
     WHERE (a).grantee <> relowner
     UNION ALL
    SELECT CAST(attname AS text), (a).privilege_type, (a).is_grantable,
           CASE WHEN (a).grantee <> 0 THEN CAST(pg_catalog.pg_get_userbyid((a).grantee) AS text) END
      FROM (SELECT attname, pg_catalog.aclexplode(attacl) AS a FROM pg_catalog.pg_attribute
             WHERE attrelid = CAST(:name AS regclass) AND NOT attisdropped) AS part
""")


@dataclass(frozen=True, slots=True)
class _Archive:
    """The archive's table, by the name that statements have for it."""

    connection: Connection
    table: str
    schema: str | None

    @property
    def name(self) -> str:
        return qualified(self.schema, self.table)

    def beside(self, suffix: str) -> str:
        """Give the name of a table that belongs to it."""
        name = f"{self.table}_{suffix}"
        if len(name.encode()) > LONGEST_NAME:
            raise ValueError(f"the partition's name would be longer than {LONGEST_NAME} bytes: {name}")
        return name

    def qualified(self, table: str) -> str:
        return qualified(self.schema, table)

    def do(self, statement: str) -> None:
        self.connection.execute(text(statement.replace(":", "\\:")))  # as it stands: no colon in it begins a parameter

    def ask(self, query: Any, **parameters: Any) -> list[Any]:
        return [*self.connection.execute(query, {"name": self.name, **parameters} if ":name" in str(query) else parameters)]


def split(connection: Connection, table: str = ARCHIVE, *, schema: str | None = None, months: int = 3) -> None:
    """Make an archive a partitioned one: what is in it becomes the first partition, up to the end of this month.

    For a migration of the app. It rebuilds the primary key and reads the table once, for a time that grows with it,
    in which no job can be settled; the caller's ``lock_timeout`` says how long it waits for the table. Columns, defaults,
    CHECKs, indexes, foreign keys and GRANTs stay; triggers and policies do not.

    :param table: the archive's name; ``schema`` its schema, else where the ``search_path`` finds it.
    :param months: as for :func:`make`.

    ``ConfigurationError`` for one that is partitioned already, as the other verbs have it for one that is not. Foreign keys
    that refer to it keep it from being split: a partitioned table has no unique key without the column that it is split by.
    """
    archive = _archive(connection, table, schema)
    found = archive.ask(_FOUND)[0]
    if found.kind != "r":
        raise ConfigurationError(f"{archive.name} is not a plain table: is it partitioned already?")
    month = _next(archive, _this_month(archive)[0], 1)
    before = archive.beside(f"before_{month:%Y_%m}")
    _turn_into_partition(archive, before, found.comment, month)
    _make_default(archive, found.comment)
    make(connection, table, schema=schema, months=months)


def make(connection: Connection, table: str = ARCHIVE, *, schema: str | None = None, months: int = 3) -> list[str]:
    """Make the partitions of this month and of the next ``months``, as far as they are not there; give their names.

    Jobs that ended in a month without a partition are in the default one; they are moved. Settling goes on meanwhile, but
    for what would go into the default partition.
    """
    arguments.at_least("months", months, 0)
    archive = _archive(connection, table, schema)
    comment = _comment_of_partitioned(archive)
    partitions = archive.ask(_PARTITIONS)
    this_month, _ = _this_month(archive)
    end = max((one.ends_at.astimezone(UTC) for one in partitions if one.ends_at is not None), default=this_month)
    start, last = max(end, this_month), _next(archive, this_month, months + 1)
    default = next((one.name for one in partitions if one.is_default), None)
    made: list[str] = []
    while start < last:
        until = _next(archive, start, 1)
        made.append(_make_month(archive, start, until, default, comment))
        start = until
    return made


def drop(connection: Connection, table: str = ARCHIVE, *, schema: str | None = None, older_than: timedelta) -> list[str]:
    """Drop the partitions in which every job ended longer ago than ``older_than``; give their names.

    It needs the table for a moment for itself: the caller's ``lock_timeout`` says how long it waits for that.
    """
    age = arguments.span("older_than", older_than, timedelta(0))
    archive = _archive(connection, table, schema)
    _comment_of_partitioned(archive)
    _, now = _this_month(archive)
    old = [one.name for one in archive.ask(_PARTITIONS) if one.ends_at is not None and now - one.ends_at >= age]
    for name in old:
        archive.do(f"DROP TABLE {archive.qualified(name)}")
    return old


def _archive(connection: Any, table: str, schema: str | None) -> _Archive:
    if not isinstance(connection, Connection):
        raise TypeError(f"expected a Connection, got a {type(connection).__name__}")
    if connection.dialect.name not in SUPPORTED:
        raise ConfigurationError(f"partitions are made on PostgreSQL, not on {connection.dialect.name}")
    schemas: Any = connection.get_execution_options().get("schema_translate_map") or {}
    return _Archive(connection, table, schemas.get(schema, schema))


def _comment_of_partitioned(archive: _Archive) -> str | None:
    found = archive.ask(_FOUND)[0]
    if found.kind != "p":
        raise ConfigurationError(f"{archive.name} is not split into months: do that first, by partitions.split")
    comment: str | None = found.comment
    return comment


def _turn_into_partition(archive: _Archive, before: str, comment: str | None, month: datetime) -> None:
    """Rename the table, and make one of its name of which it is a partition."""
    indexes, constraints, rights = archive.ask(_INDEXES), archive.ask(_CONSTRAINTS), archive.ask(_RIGHTS)
    key = next(one for one in constraints if one.kind == "p")
    old, new = archive.qualified(before), archive.name
    archive.do(f"ALTER TABLE {new} RENAME TO {quoted(before)}")
    archive.do(f"ALTER TABLE {old} DROP CONSTRAINT {quoted(key.name)}")
    for number, index in enumerate(indexes):
        renamed = quoted(f"{before}_{number}")
        archive.do(f"ALTER INDEX {archive.qualified(index.name)} RENAME TO {renamed}")
    archive.do(f"CREATE TABLE {new} (LIKE {old} {_LIKE}) PARTITION BY RANGE (finished_at)")
    archive.do(f"ALTER TABLE {new} ADD CONSTRAINT {quoted(key.name)} {key.definition.removesuffix(')')}, finished_at)")
    for statement in (*(index.definition for index in indexes), *_foreign_keys(new, constraints), *_grants(new, rights)):
        archive.do(statement)
    _state_version(archive, new, comment)
    archive.do(f"ALTER TABLE {new} ATTACH PARTITION {old} FOR VALUES FROM (MINVALUE) TO ('{month.isoformat()}')")


def _foreign_keys(name: str, constraints: list[Any]) -> Iterator[str]:
    for one in constraints:
        if one.kind == "f":
            yield f"ALTER TABLE {name} ADD CONSTRAINT {quoted(one.name)} {one.definition}"


def _grants(name: str, rights: list[Any]) -> Iterator[str]:
    for right in rights:
        column = "" if right.column is None else f" ({quoted(right.column)})"
        grantee = "PUBLIC" if right.grantee is None else quoted(right.grantee)
        option = " WITH GRANT OPTION" if right.grantable else ""
        yield f"GRANT {right.privilege}{column} ON TABLE {name} TO {grantee}{option}"


def _make_default(archive: _Archive, comment: str | None) -> None:
    """Make the partition of what has no other: without it, a month that nobody has made would keep jobs from settling."""
    name = archive.qualified(archive.beside("default"))
    archive.do(f"CREATE TABLE {name} PARTITION OF {archive.name} DEFAULT")
    _state_version(archive, name, comment)


def _make_month(archive: _Archive, start: datetime, until: datetime, default: str | None, comment: str | None) -> str:
    """Make a table and attach it, which lets others insert meanwhile; making it as a partition would not."""
    made = archive.beside(f"{start:%Y_%m}")
    name, bounds = archive.qualified(made), f"'{start.isoformat()}') TO ('{until.isoformat()}'"
    archive.do(f"CREATE TABLE {name} (LIKE {archive.name} {_LIKE} INCLUDING INDEXES)")
    _state_version(archive, name, comment)
    if default is not None:
        rest = archive.qualified(default)
        archive.do(f"LOCK TABLE {rest} IN ACCESS EXCLUSIVE MODE")
        month = f"finished_at >= '{start.isoformat()}' AND finished_at < '{until.isoformat()}'"
        moved = f"WITH moved AS (DELETE FROM {rest} WHERE {month} RETURNING *)"  # noqa: S608 (names are quoted)
        archive.do(f"{moved} INSERT INTO {name} SELECT * FROM moved")  # noqa: S608 (as above)
    archive.do(f"ALTER TABLE {archive.name} ATTACH PARTITION {name} FOR VALUES FROM ({bounds})")
    return made


def _state_version(archive: _Archive, name: str, comment: str | None) -> None:
    """Write the version into a table's comment: by it, autogenerate knows a partition for one of ours and lets it be."""
    if comment is not None:
        archive.do(f"COMMENT ON TABLE {name} IS '{comment.replace(chr(39), chr(39) * 2)}'")


def _this_month(archive: _Archive) -> tuple[datetime, datetime]:
    """Give the beginning of this month, and now, by the database's clock."""
    row = archive.ask(_MONTH)[0]
    return row.month.astimezone(UTC), row.now.astimezone(UTC)


def _next(archive: _Archive, month: datetime, months: int) -> datetime:
    found: datetime = archive.ask(_NEXT, month=month, months=str(months))[0][0]
    return found.astimezone(UTC)
