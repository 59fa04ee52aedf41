"""Version 1: the job table with its index, and the archive.

Frozen: what is here made tables that exist. A change is another version. It refuses to import the models, which move on.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import sqlalchemy as sa
from alembic.operations import Operations
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.sql.elements import conv

from .instance import Columns, Instance, comment

Index = tuple[str, str, list[str]]


def upgrade(op: Operations, tables: Instance) -> None:
    """Make the tables, without the index."""
    if tables.job is not None:
        checks = counts(tables.job, "attempts", "crashes")
        checks += calendar(tables.job, "enqueued_at", "process_at", "claimed_until")
        columns = chosen(job_columns(), tables.job_columns)
        create(op, tables.job, tables.schema, columns, checks + uuids(op, tables.job, columns))
    if tables.archived is not None:
        checks = counts(tables.archived, "attempts")
        checks += calendar(tables.archived, "enqueued_at", "process_at", "finished_at")
        create(op, tables.archived, tables.schema, chosen(archived_columns(), tables.archived_columns), checks)


def indexes(tables: Instance) -> list[Index]:
    """Give the indexes that this version brings, each as its name, its table and its columns."""
    if tables.job is None:
        return []
    return [(f"ix_{tables.job}_due", tables.job, ["queue", "process_at", "job_id"])]


def downgrade(op: Operations, tables: Instance) -> None:
    """Drop the tables, with all jobs in them."""
    for table in (tables.archived, tables.job):
        if table is not None:
            op.drop_table(table, schema=tables.schema)


def create(
    op: Operations, table: str, schema: str | None, columns: list[sa.Column[Any]], checks: list[sa.CheckConstraint]
) -> None:
    """Make one table."""
    key = primary_key(op, table, schema, "job_id")
    op.create_table(table, *columns, key, *checks, schema=schema, comment=comment(1), **options())


def job_columns() -> list[sa.Column[Any]]:
    """Give the columns of the job table."""
    return [
        *shared_columns(),
        sa.Column("claim_id", sa.Uuid(), nullable=True),
        sa.Column("claimed_by", sa.Text(), nullable=True),
        sa.Column("claimed_until", instant(), nullable=True),
        sa.Column("crashes", sa.Integer(), nullable=False),
        sa.Column("last_error", sa.Text(), nullable=True),
    ]


def archived_columns() -> list[sa.Column[Any]]:
    """Give the columns of the archive."""
    return [
        *shared_columns(),
        sa.Column("status", sa.String(20), nullable=False),
        sa.Column("finished_at", instant(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
    ]


def shared_columns() -> list[sa.Column[Any]]:
    """Give the columns that both tables begin with."""
    return [
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("queue", sa.String(200), nullable=False),
        sa.Column("job_type", sa.String(200), nullable=False),
        sa.Column("payload", sa.JSON().with_variant(postgresql.JSONB(), "postgresql"), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("enqueued_at", instant(), nullable=False),
        sa.Column("process_at", instant(), nullable=False),
    ]


def chosen(columns: list[sa.Column[Any]], given: Columns) -> list[sa.Column[Any]]:
    """Give ``columns``, where the app has given one of its own as a copy of that, in the same place."""
    by_name = {column.name: column for column in given}
    return [by_name[column.name]._copy() if column.name in by_name else column for column in columns]


def primary_key(op: Operations, table: str, schema: str | None, *columns: str) -> sa.PrimaryKeyConstraint:
    """Give the primary key, by the naming convention of that MetaData of the app which has the table.

    Alembic does that itself, but not where ``target_metadata`` is a list.
    """
    target: Any = op.get_context().opts.get("target_metadata")
    listed = cast("Iterable[sa.MetaData]", target if isinstance(target, list | tuple) else ())
    convention = next((one.naming_convention for one in listed if has_table(one, table, schema)), None)
    named = sa.Table(table, sa.MetaData(naming_convention=convention), sa.Column(columns[0], sa.Integer, primary_key=True))
    name = named.primary_key.name
    return sa.PrimaryKeyConstraint(*columns, name=name if isinstance(name, str) else None)


def has_table(metadata: sa.MetaData, name: str, schema: str | None) -> bool:
    """Say whether a MetaData has a table of this name in this schema."""
    return any((table.name, table.schema) == (name, schema) for table in metadata.tables.values())


def instant() -> sa.types.TypeEngine[Any]:
    """Give the type of instants."""
    return sa.DateTime(timezone=True).with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")


def options() -> dict[str, Any]:
    """Give the options of tables; they concern MariaDB and MySQL, where names are told apart by their case through them."""
    return {"mysql_collate": "utf8mb4_bin", "mariadb_collate": "utf8mb4_bin"}


def counts(table: str, *columns: str) -> list[sa.CheckConstraint]:
    """Give the CHECKs of columns that count."""
    return [check(table, column, f"{column} >= 0") for column in columns]


def calendar(table: str, *columns: str) -> list[sa.CheckConstraint]:
    """Give the CHECKs of columns that are instants."""
    return [check(table, column, f"{column} >= '0001-01-03' AND {column} < '9999-12-30'") for column in columns]


def uuids(op: Operations, table: str, columns: list[sa.Column[Any]]) -> list[sa.CheckConstraint]:
    """Give the CHECKs of UUIDs for MySQL, which keeps them as text."""
    dialect = op.get_context().dialect
    if dialect.name not in ("mysql", "mariadb") or dialect.supports_native_uuid:
        return []
    names = [column.name for column in columns if isinstance(column.type, sa.Uuid)]
    return [check(table, name, f"{name} REGEXP '^[0-9a-fA-F]{{32}}$'") for name in names]


def check(table: str, column: str, condition: str) -> sa.CheckConstraint:
    """Give one CHECK, by a name that no naming convention changes."""
    return sa.CheckConstraint(condition, name=conv(f"ck_{table}_{column}"))
