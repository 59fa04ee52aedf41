"""What PostgreSQL's catalog says of tables, as values.

It owns the queries, which anybody may run who can connect: they need no right to the tables, change nothing, and work on
a standby and in a read-only transaction. It refuses to judge what it finds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, text

from .conditions import INSTANT

_WHERE = text("""
    SELECT current_user AS role, pg_catalog.current_database() AS database,
           CAST(pg_catalog.current_schemas(false) AS text[]) AS search_path,
           ARRAY(SELECT CAST(nspname AS text) FROM pg_catalog.pg_namespace
                  WHERE nspname = ANY (CAST(:schemas AS text[]))) AS schemas
""")

_TABLES = text("""
    SELECT CAST(c.oid AS bigint) AS oid, CAST(n.nspname AS text) AS schema, CAST(c.relname AS text) AS name,
           CAST(c.relkind AS text) AS kind, pg_catalog.pg_table_is_visible(c.oid) AS is_visible,
           pg_catalog.has_schema_privilege(n.oid, 'USAGE') AS may_use,
           pg_catalog.obj_description(c.oid, 'pg_class') AS comment
      FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
     WHERE c.relname = ANY (CAST(:names AS text[])) AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
     ORDER BY n.nspname
""")

_COLUMNS = text("""
    SELECT CAST(attrelid AS bigint) AS oid, CAST(attname AS text) AS name, CAST(atttypid AS bigint) AS type_oid,
           pg_catalog.format_type(atttypid, atttypmod) AS type, NOT attnotnull AS nullable,
           atthasdef OR attidentity <> '' AS has_default
      FROM pg_catalog.pg_attribute
     WHERE attrelid = ANY (CAST(:oids AS oid[])) AND attnum > 0 AND NOT attisdropped
     ORDER BY attrelid, attnum
""")

_CONSTRAINTS = text("""
    SELECT CAST(c.conrelid AS bigint) AS oid, CAST(c.conname AS text) AS name, CAST(c.contype AS text) AS kind,
           pg_catalog.pg_get_constraintdef(c.oid) AS definition, c.convalidated AS is_validated,
           ARRAY(SELECT CASE WHEN pg_catalog.current_setting('DateStyle') LIKE 'ISO%'
                             THEN CAST(pg_catalog.date_part('epoch', CAST(found.literal[1] AS timestamptz)) AS float8) END
                   FROM pg_catalog.regexp_matches(
                            pg_catalog.pg_get_constraintdef(c.oid), CAST(:instant AS text), 'g'
                        ) WITH ORDINALITY AS found (literal, place)
                  ORDER BY found.place) AS instants
      FROM pg_catalog.pg_constraint c
     WHERE c.conrelid = ANY (CAST(:oids AS oid[])) AND c.contype IN ('c', 'p')
     ORDER BY c.conrelid, c.conname
""").bindparams(instant=INSTANT.replace("'[^']*'", "'([^']*)'"))

_INDEXES = text("""
    SELECT CAST(i.indrelid AS bigint) AS oid, CAST(c.relname AS text) AS name,
           pg_catalog.pg_get_indexdef(i.indexrelid) AS definition, i.indisunique AS is_unique,
           i.indisvalid AND i.indisready AS is_valid
      FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
     WHERE i.indrelid = ANY (CAST(:oids AS oid[])) AND NOT i.indisprimary
     ORDER BY i.indrelid, c.relname
""")

_TYPES = text("""
    SELECT CAST(name AS text) AS name, CAST(CAST(pg_catalog.to_regtype(name) AS oid) AS bigint) AS oid
      FROM pg_catalog.unnest(CAST(:names AS text[])) AS given (name)
""")


@dataclass(frozen=True, slots=True)
class FoundColumn:
    """A column as it is."""

    name: str
    type: str
    type_oid: int
    nullable: bool
    has_default: bool


@dataclass(frozen=True, slots=True)
class FoundConstraint:
    """A CHECK or a primary key as it is; the instants in its definition are in ``instants``, in seconds since 1970."""

    name: str
    definition: str
    is_validated: bool
    instants: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class FoundIndex:
    """An index as it is; ``definition`` is what follows ``USING``, and ``is_valid`` whether a query may use it."""

    name: str
    definition: str
    is_unique: bool
    is_valid: bool


@dataclass(slots=True, eq=False)
class FoundTable:
    """A table, or a view of that name, as it is."""

    oid: int
    schema: str
    name: str
    kind: str
    is_visible: bool
    may_use: bool
    comment: str | None
    columns: dict[str, FoundColumn] = field(default_factory=dict[str, FoundColumn])
    checks: dict[str, FoundConstraint] = field(default_factory=dict[str, FoundConstraint])
    indexes: dict[str, FoundIndex] = field(default_factory=dict[str, FoundIndex])
    primary_key: FoundConstraint | None = None

    @property
    def is_table(self) -> bool:
        """Whether it is a table, partitioned or not."""
        return self.kind in ("r", "p")


@dataclass(frozen=True, slots=True)
class Place:
    """Where the connection is: as which role, in which database, with which search_path; ``schemas`` are there."""

    role: str
    database: str
    search_path: tuple[str, ...]
    schemas: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Catalog:
    """What was found: the tables of the names that were asked for, in any schema, and the oids of types."""

    place: Place
    tables: tuple[FoundTable, ...]
    types: Mapping[str, int | None]

    def table(self, schema: str | None, name: str) -> FoundTable | None:
        """Give the table that a statement would mean; without a schema, the one that the search_path finds."""
        for table in self.tables:
            if table.name == name and (table.is_visible if schema is None else table.schema == schema):
                return table
        return None

    def elsewhere(self, name: str) -> list[FoundTable]:
        """Give the tables of that name in whatever schema."""
        return [table for table in self.tables if table.name == name and table.is_table]


def read(connection: Connection, names: Iterable[tuple[str | None, str]], types: Collection[str]) -> Catalog:
    """Read what is known of the tables ``(schema, name)`` and of ``types``, in a few short queries."""
    wanted = [*names]
    where: Any = connection.execute(_WHERE, {"schemas": [schema for schema, _ in wanted if schema is not None]}).one()
    rows = connection.execute(_TABLES, {"names": [name for _, name in wanted]}).mappings()
    catalog = Catalog(
        Place(where.role, where.database, tuple(where.search_path), tuple(where.schemas)),
        tuple(FoundTable(**row) for row in rows),
        {row.name: row.oid for row in connection.execute(_TYPES, {"names": [*types]})},
    )
    _read_details(connection, [found for schema, name in wanted if (found := catalog.table(schema, name)) is not None])
    return catalog


def _read_details(connection: Connection, tables: Sequence[FoundTable]) -> None:
    by_oid = {table.oid: table for table in tables}
    oids = {"oids": [*by_oid]}
    for row in connection.execute(_COLUMNS, oids):
        column = FoundColumn(row.name, row.type, row.type_oid, row.nullable, row.has_default)
        by_oid[row.oid].columns[row.name] = column
    for row in connection.execute(_CONSTRAINTS, oids):
        constraint = FoundConstraint(row.name, row.definition, row.is_validated, tuple(row.instants))
        if row.kind == "p":
            by_oid[row.oid].primary_key = constraint
        else:
            by_oid[row.oid].checks[row.name] = constraint
    for row in connection.execute(_INDEXES, oids):
        _, _, definition = row.definition.partition(" USING ")
        by_oid[row.oid].indexes[row.name] = FoundIndex(row.name, definition, row.is_unique, row.is_valid)
