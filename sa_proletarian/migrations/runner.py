"""From one version to another: whether the database is where the migration starts, and which steps go where it ends.

It owns the list of versions. It refuses to decide what a step does (``v1``, ``v2``) and how one waits (``patience``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from alembic.operations import Operations
from alembic.util import CommandError
from sqlalchemy import Connection, MetaData, Table, inspect
from sqlalchemy.engine.reflection import Inspector

from . import v1, v2
from .instance import Instance, translated, version_of
from .patience import Patience, patiently

VERSIONS = (v1, v2)
LATEST = len(VERSIONS)

ABSENT = 0


def migrate(op: Operations, tables: Instance, start: int, end: int, *, concurrently: bool, patience: Patience) -> None:
    """Bring ``tables`` from version ``start`` to version ``end``, in one savepoint; then build indexes ``concurrently``."""
    context = op.get_context()
    if not context.as_sql:
        check(op.get_bind(), tables, start)
    concurrently = concurrently and context.dialect.name == "postgresql"
    names = [_full_name(op, name, tables.schema) for name, since in tables.tables() if since <= max(start, end)]
    patiently(op, patience, names, partial(_steps, op, tables, start, end, with_indexes=not concurrently))
    if concurrently:
        _build_concurrently(op, tables, start, end)


def check(connection: Connection, tables: Instance, start: int) -> None:
    """Raise ``CommandError`` unless the tables' comments say version ``start``, or the tables are absent at version 0."""
    inspector = inspect(connection)
    for name, since in tables.tables():
        expected = start if since <= start else ABSENT
        found = stated_version(inspector, name, tables.schema)
        if found != expected:
            raise CommandError(_mismatch(name, found, expected, start))


def stated_version(inspector: Inspector, table: str, schema: str | None) -> int | None:
    """Give the version that the comment of a table states: 0 where there is no table, ``None`` where it states none."""
    schema = translated(inspector.bind, schema)
    if not inspector.has_table(table, schema=schema):
        return ABSENT
    return version_of(inspector.get_table_comment(table, schema=schema).get("text"))


def _mismatch(name: str, found: int | None, expected: int, start: int) -> str:
    begun = f"op.proletarian_migrate from version {start} cannot begin:"
    if found == ABSENT:
        return f"{begun} there is no table {name}. Version 0 is where it is made; or has it another name or schema?"
    if found is None:
        return (
            f"{begun} the comment of {name} states no version. If you know it to be at version {start or 1}, say "
            f"COMMENT ON TABLE {name} IS 'sa_proletarian schema v{start or 1}'"
        )
    if expected == ABSENT:
        return f"{begun} {name} is there already, at version {found}"
    return f"{begun} the comment of {name} states version {found}"


def _steps(op: Operations, tables: Instance, start: int, end: int, *, with_indexes: bool) -> None:
    if end == 0:
        _lock(op, tables, start)
    for step in _path(start, end):
        step(op, tables)
    if with_indexes:
        for name, table, columns in _indexes(tables, start, end):
            op.create_index(name, table, columns, schema=tables.schema)


def _path(start: int, end: int) -> Iterator[Callable[[Operations, Instance], None]]:
    if start < end:
        yield from (version.upgrade for version in VERSIONS[start:end])
    else:
        yield from (version.downgrade for version in reversed(VERSIONS[end:start]))


def _indexes(tables: Instance, start: int, end: int) -> Iterator[v1.Index]:
    for version in VERSIONS[start:end]:
        yield from version.indexes(tables)


def _build_concurrently(op: Operations, tables: Instance, start: int, end: int) -> None:
    for name, table, columns in _indexes(tables, start, end):
        with op.get_context().autocommit_block():
            op.create_index(name, table, columns, schema=tables.schema, postgresql_concurrently=True)


def _lock(op: Operations, tables: Instance, start: int) -> None:
    """Lock what will be dropped: wait for the job table only, so that waits do not add up behind it."""
    if op.get_context().dialect.name != "postgresql":
        return
    names = [_full_name(op, name, tables.schema) for name, since in tables.tables() if since <= start]
    for name, wait in zip(names, ["", *[" NOWAIT"] * len(names)], strict=False):
        once = name.replace("%%", "%")  # op.execute doubles percent signs, as the quoting has done
        op.execute(f"LOCK TABLE {once} IN ACCESS EXCLUSIVE MODE{wait}")


def _full_name(op: Operations, table: str, schema: str | None) -> str:
    context = op.get_context()
    place = translated(None if context.as_sql else context.connection, schema)
    return str(context.dialect.identifier_preparer.format_table(Table(table, MetaData(), schema=place)))
