"""``op.proletarian_migrate``: the operation as Alembic knows it.

It owns the arguments: their defaults, what is refused at the call, and which of them a revision must spell out. It refuses
to touch the database, which is ``runner``'s.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from typing import Any

from alembic.operations import MigrateOperation, Operations
from sqlalchemy import Column

from . import runner, v1
from .instance import DEFAULT_PREFIX, Columns, Instance
from .patience import LOCK_TIMEOUT, RETRIES, Patience


@Operations.register_operation("proletarian_migrate")
class ProletarianMigrateOp(MigrateOperation):
    """Bring one instance of the tables from one version to another."""

    def __init__(
        self,
        from_version: int,
        to_version: int,
        tables: Instance,
        *,
        concurrently: bool = False,
        patience: Patience | None = None,
    ) -> None:
        _check_versions(from_version, to_version)
        self.from_version = from_version
        self.to_version = to_version
        self.tables = tables
        self.concurrently = concurrently
        self.patience: Patience = patience or Patience()

    @classmethod
    def proletarian_migrate(
        cls,
        operations: Operations,
        from_version: int,
        to_version: int,
        *,
        prefix: str = DEFAULT_PREFIX,
        job_table: str | None = None,
        archived_table: str | None = None,
        schema: str | None = None,
        job_columns: Iterable[Column[Any]] = (),
        archived_columns: Iterable[Column[Any]] = (),
        concurrently: bool = False,
        lock_timeout: timedelta | None = None,  # Alembic writes out defaults as they print: no timedelta can stand here
        retries: int = RETRIES,
    ) -> None:
        """Bring the tables of sa_proletarian from one version of their schema to another, up or down.

        Version 0 is: no tables. On PostgreSQL it happens in a savepoint of the migration's transaction, all or nothing. A
        lock that is not had within ``lock_timeout`` is given up and tried again later, so that enqueues wait no longer
        than that while a running job holds it.

        :param from_version: the version that the tables have; their comments must say so (not looked at with ``--sql``).
        :param to_version: the version that they get.
        :param prefix: goes before ``job``, ``archived_job`` and ``worker`` in the tables' names.
        :param job_table: the name of the job table, where a prefix does not say it; the worker table is called alike.
        :param archived_table: the name of the archive. Give both names; with one of them the call leaves the other table
            alone.
        :param schema: the tables' schema; it must be there.
        :param job_columns: columns of the job table that your model declares otherwise than the library, as
            ``sa.Column("job_id", sa.BigInteger(), sa.Identity(), nullable=False)``; used where the table is made.
        :param archived_columns: the same for the archive.
        :param concurrently: build indexes by ``CREATE INDEX CONCURRENTLY`` (PostgreSQL), which commits what the migration
            has done so far.
        :param lock_timeout: how long one try waits for a lock; default 200 ms.
        :param retries: how many more tries there are, with a pause of one to three times ``lock_timeout`` after each;
            the default is about a minute of them. After the last, ``CommandError`` names who holds the lock.

        ``ValueError`` or ``TypeError`` for arguments that mean nothing; ``CommandError``, before any change, where the
        tables' comments say another version than ``from_version``.
        """
        _check_flag(concurrently)
        tables = _instance(prefix, job_table, archived_table, schema, job_columns, archived_columns)
        patience = Patience(LOCK_TIMEOUT if lock_timeout is None else lock_timeout, retries)
        operations.invoke(cls(from_version, to_version, tables, concurrently=concurrently, patience=patience))

    def reverse(self) -> ProletarianMigrateOp:
        """Give the way back."""
        makes_tables = self.to_version == 0
        tables = self.tables if makes_tables else replace(self.tables, job_columns=(), archived_columns=())
        return ProletarianMigrateOp(self.to_version, self.from_version, tables, patience=self.patience)

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """Give what ``alembic check`` prints."""
        names = {name: value for name, value in self.keywords() if isinstance(value, str)}
        return ("proletarian_migrate", self.from_version, self.to_version, *([names] if names else []))

    def keywords(self) -> list[tuple[str, Any]]:
        """Give the keyword arguments that are not the defaults."""
        tables = self.tables
        prefix = tables.prefix
        given: dict[str, tuple[Any, Any]] = {
            "prefix": (DEFAULT_PREFIX if prefix is None else prefix, DEFAULT_PREFIX),
            "job_table": (tables.job if prefix is None else None, None),
            "archived_table": (tables.archived if prefix is None else None, None),
            "schema": (tables.schema, None),
            "job_columns": (tables.job_columns, ()),
            "archived_columns": (tables.archived_columns, ()),
            "concurrently": (self.concurrently, False),
            "lock_timeout": (self.patience.lock_timeout, LOCK_TIMEOUT),
            "retries": (self.patience.retries, RETRIES),
        }
        return [(name, value) for name, (value, default) in given.items() if value is not default and value != default]


@Operations.implementation_for(ProletarianMigrateOp)
def _migrate(operations: Operations, operation: ProletarianMigrateOp) -> None:
    runner.migrate(
        operations,
        operation.tables,
        operation.from_version,
        operation.to_version,
        concurrently=operation.concurrently,
        patience=operation.patience,
    )


def _instance(
    prefix: str,
    job_table: str | None,
    archived_table: str | None,
    schema: str | None,
    job_columns: Iterable[Column[Any]],
    archived_columns: Iterable[Column[Any]],
) -> Instance:
    for what, name in (("prefix", prefix), ("job_table", job_table), ("archived_table", archived_table), ("schema", schema)):
        _check_name(what, name)
    if job_table is None and archived_table is None:
        job_table, archived_table = f"{prefix}job", f"{prefix}archived_job"
    elif prefix != DEFAULT_PREFIX:
        raise ValueError("give prefix, or job_table and archived_table, not both")
    own = _columns("job_columns", job_columns, v1.job_columns())
    return Instance(
        job_table, archived_table, schema, own, _columns("archived_columns", archived_columns, v1.archived_columns())
    )


def _columns(what: str, given: Iterable[Column[Any]], known: list[Column[Any]]) -> Columns:
    columns = tuple(given)
    names = [column.name for column in known]
    for column in columns:
        if not isinstance(column, Column):
            raise TypeError(f"{what} must be columns, got {column!r}")
        if column.name not in names:
            raise ValueError(
                f"{what} are for columns of the library ({', '.join(names)}), got {column.name}: "
                "add a column of your own with op.add_column"
            )
    return columns


def _check_versions(from_version: object, to_version: object) -> None:
    for what, version in (("from_version", from_version), ("to_version", to_version)):
        if not isinstance(version, int) or isinstance(version, bool):
            raise TypeError(f"{what} must be an int, got {version!r}")
        if not 0 <= version <= runner.LATEST:
            raise ValueError(
                f"{what} must be between 0 (no tables) and {runner.LATEST}, the newest version that this release "
                f"of sa_proletarian knows, got {version}"
            )
    if from_version == to_version:
        raise ValueError(f"from_version and to_version are both {to_version}: there is nothing to migrate")


def _check_name(what: str, name: object) -> None:
    if not isinstance(name, str) and (name is not None or what == "prefix"):
        raise TypeError(f"{what} must be a text, got {name!r}")
    if name == "" and what != "prefix":
        raise ValueError(f"{what} must not be empty")


def _check_flag(concurrently: object) -> None:
    if not isinstance(concurrently, bool):
        raise TypeError(f"concurrently must be True or False, got {concurrently!r}")
