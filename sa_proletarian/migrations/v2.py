"""Version 2: the worker table, which says what goes on now, and room in the job table's pages for claims.

Frozen: what is here made tables that exist. A change is another version. It refuses to import the models, which move on.
It takes no lock on the job table that an enqueue or a running job would notice.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic.operations import Operations
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import ExecutableDDLElement

from .instance import Instance, comment
from .v1 import Index, calendar, instant, options, primary_key


def upgrade(op: Operations, tables: Instance) -> None:
    """Make the worker table; rows of the job table that come from now on are kept with room beside them."""
    if tables.worker is not None:
        op.create_table(
            tables.worker,
            sa.Column("kind", sa.String(20), nullable=False),
            sa.Column("subject", sa.String(200), nullable=False),
            sa.Column("worker_id", sa.String(200), nullable=False),
            sa.Column("idle", sa.Boolean(), nullable=False),
            sa.Column("detail", sa.JSON().with_variant(postgresql.JSONB(), "postgresql"), nullable=True),
            sa.Column("started_at", instant(), nullable=False),
            sa.Column("last_seen_at", instant(), nullable=False),
            primary_key(op, tables.worker, tables.schema, "kind", "subject", "worker_id"),
            *calendar(tables.worker, "started_at", "last_seen_at"),
            schema=tables.schema,
            comment=comment(2),
            **options(),
        )
    keep_job_table(op, tables, "SET (fillfactor = 40)")
    state_version(op, tables, 2)


def indexes(tables: Instance) -> list[Index]:
    """Give the indexes that this version brings: none."""
    return []


def downgrade(op: Operations, tables: Instance) -> None:
    """Drop the worker table, last, so that its lock is held for the shortest time."""
    state_version(op, tables, 1)
    keep_job_table(op, tables, "RESET (fillfactor)")
    if tables.worker is not None:
        op.drop_table(tables.worker, schema=tables.schema)


def keep_job_table(op: Operations, tables: Instance, how: str) -> None:
    """Change how PostgreSQL keeps the rows of the job table, of which those that are there take no notice."""
    if tables.job is not None and op.get_context().dialect.name == "postgresql":
        table = sa.Table(tables.job, sa.MetaData(), schema=tables.schema)
        op.execute(_AlterTable(table, how))


class _AlterTable(ExecutableDDLElement):
    """What ``DDL`` would say, which doubles a percent sign in a name once too often."""

    def __init__(self, table: sa.Table, how: str) -> None:
        self.table, self.how = table, how


@compiles(_AlterTable)
def _alter_table(element: _AlterTable, compiler: Any, **kw: Any) -> str:
    return f"ALTER TABLE {compiler.preparer.format_table(element.table)} {element.how}"


def state_version(op: Operations, tables: Instance, version: int) -> None:
    """Write the version into the comments of job table and archive."""
    for table in (tables.job, tables.archived):
        if table is not None:
            op.create_table_comment(table, comment(version), schema=tables.schema)
