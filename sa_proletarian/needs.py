"""What a pair of models needs in the database, as values.

It owns which columns, indexes and CHECKs of the models' tables are the library's, and what DDL they would be, by the
app's own names, schemas and types. It refuses to touch a connection. An app's own indexes and constraints are its own
business; its own columns must be there, because every statement names them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import CheckConstraint, Column, Dialect, Index, Table
from sqlalchemy.schema import CreateColumn, CreateIndex

from .conditions import without_storage
from .job_ids import database_generated
from .models import ArchivedJob, Job, JobMixin
from .quoting import quoted

_VERSION = re.compile(r"sa_proletarian schema v(\d{1,4})")

SchemaMap = Mapping[str | None, str | None]


@dataclass(frozen=True, slots=True)
class NeededColumn:
    """A column that must be there; ``type`` is ``None`` where it is the app's own, whose type nobody here judges."""

    name: str
    type: str | None
    nullable: bool
    needs_default: bool


@dataclass(frozen=True, slots=True)
class NeededIndex:
    """An index that must be there; ``definition`` is what follows ``USING`` in its DDL."""

    name: str
    definition: str
    is_unique: bool


@dataclass(frozen=True, slots=True)
class NeededTable:
    """A table that must be there.

    :ivar version: the one of its schema; ``None`` where the models know of none.
    :ivar overrides: whether the app declares some of the library's columns otherwise.
    """

    schema: str | None
    name: str
    version: int | None
    overrides: bool
    columns: tuple[NeededColumn, ...]
    primary_key: str
    indexes: tuple[NeededIndex, ...]
    checks: Mapping[str, str]

    @property
    def label(self) -> str:
        """The table's name for people."""
        return self.name if self.schema is None else f"{self.schema}.{self.name}"


@dataclass(frozen=True, slots=True)
class Needs:
    """The tables of one pair of models; a job model that is not of ``JobMixin`` brings no worker table."""

    job: NeededTable
    archived: NeededTable
    worker: NeededTable | None

    @property
    def tables(self) -> tuple[NeededTable, ...]:
        """All of them, the job table first."""
        return (self.job, self.archived) if self.worker is None else (self.job, self.archived, self.worker)

    @property
    def types(self) -> set[str]:
        """The types that their columns need."""
        return {column.type for table in self.tables for column in table.columns if column.type is not None}


def of(job_model: Any, archived_model: Any, dialect: Dialect, schemas: SchemaMap) -> Needs:
    """Say what the two models need, where ``schemas`` is the connection's ``schema_translate_map``."""
    is_ours = issubclass(job_model, JobMixin)
    worker: Table | None = getattr(job_model, "__worker_table__", None)
    generated = job_model.job_id_strategy is database_generated
    job, archived = job_model.__table__, archived_model.__table__
    return Needs(
        _table(job, Job.__table__ if is_ours else job, dialect, schemas, generated=generated),
        _table(archived, ArchivedJob.__table__ if is_ours else archived, dialect, schemas),
        None if worker is None else _table(worker, Job.__worker_table__, dialect, schemas),
    )


def version_of(comment: str | None) -> int | None:
    """Give the version that a table's comment states; ``None`` if it states none."""
    stated = _VERSION.fullmatch(comment or "")
    return int(stated[1]) if stated else None


def _table(table: Any, default: Any, dialect: Dialect, schemas: SchemaMap, *, generated: bool = False) -> NeededTable:
    """Say what ``table`` needs of what the library's own ``default`` has."""
    names = {str(item.name).replace(default.name, table.name, 1) for item in (*default.indexes, *_checks(default))}
    return NeededTable(
        schema=schemas.get(table.schema, table.schema),
        name=table.name,
        version=version_of(table.comment),
        overrides=any(_ddl(column, dialect) != _ddl(table.c[column.key], dialect) for column in default.c),
        columns=tuple(_column(column, default, dialect, generated=generated) for column in table.c),
        primary_key=", ".join(quoted(column.name) for column in table.primary_key),
        indexes=tuple(_index(index, dialect) for index in table.indexes if index.name in names),
        checks={str(one.name): _condition(one, dialect) for one in _checks(table) if one.name in names},
    )


def _column(column: Column[Any], default: Table, dialect: Dialect, *, generated: bool) -> NeededColumn:
    type_ = column.type.compile(dialect=dialect) if column.key in default.c else None
    return NeededColumn(column.name, type_, bool(column.nullable), needs_default=generated and column.key == "job_id")


def _ddl(column: Column[Any], dialect: Dialect) -> str:
    return str(CreateColumn(column).compile(dialect=dialect))


def _checks(table: Table) -> list[CheckConstraint]:
    named = [one for one in table.constraints if isinstance(one, CheckConstraint) and one.name is not None]
    return sorted(named, key=lambda one: str(one.name))


def _condition(check: CheckConstraint, dialect: Dialect) -> str:
    return str(check.sqltext.compile(dialect=dialect, compile_kwargs={"literal_binds": True}))


def _index(index: Index, dialect: Dialect) -> NeededIndex:
    table = dialect.identifier_preparer.format_table(index.table) if index.table is not None else ""
    _, _, definition = str(CreateIndex(index).compile(dialect=dialect)).partition(f" ON {table} ")
    definition = definition.removeprefix("USING ") if definition.startswith("USING ") else f"btree {definition}"
    return NeededIndex(str(index.name), without_storage(definition), bool(index.unique))
