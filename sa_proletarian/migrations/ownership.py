"""What of an app's tables is the library's: columns, indexes and CHECKs, by name.

It owns the line between what the plugin hides from Alembic's comparison and what stays the app's. It refuses to compare.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

from alembic.operations import ops
from sqlalchemy import Column, Dialect, Table
from sqlalchemy.schema import CreateColumn

from sa_proletarian.models import ArchivedJob, Job

from .instance import Columns, Instance, version_of, worker_table_name
from .runner import VERSIONS


class Role(Enum):
    """Which of the library's tables a table is; the value is the default one."""

    JOB = Job.__table__
    ARCHIVED = ArchivedJob.__table__
    WORKER = Job.__worker_table__


@dataclass(frozen=True, slots=True)
class Owned:
    """A table of the app's metadata that is one of the library's."""

    table: Table
    role: Role
    dialect: Dialect

    @property
    def schema(self) -> str | None:
        """The schema as reflection names it: ``None`` for the default one."""
        return normal(self.table.schema, self.dialect)

    def column(self, name: str) -> bool:
        """Say whether the column is the library's, and declared as the library does."""
        return name in self.role.value.c and name not in {column.name for column in self.overridden()}

    def overridden(self) -> Columns:
        """Give the library's columns that the app declares in another way."""
        return tuple(
            self.table.c[column.name]
            for column in self.role.value.c
            if self._definition(self.table.c[column.name]) != self._definition(column)
        )

    def extra_columns(self) -> list[Column[Any]]:
        """Give the columns that are the app's own."""
        return [column for column in self.table.c if column.name not in self.role.value.c]

    def index(self, name: object) -> bool:
        """Say whether the index is the library's, of whichever version."""
        tables = Instance(self.table.name if self.role is Role.JOB else None, None)
        return name in {index for version in VERSIONS for index, _, _ in version.indexes(tables)}

    def check(self, name: object) -> bool:
        """Say whether the CHECK is the library's."""
        return name in {f"ck_{self.table.name}_{column.name}" for column in self.role.value.c}

    def hides(self, op: ops.MigrateOperation) -> bool:
        """Say whether a proposed change of this table is about what the library owns."""
        match op:
            case ops.CreateTableCommentOp() | ops.DropTableCommentOp():
                return True
            case ops.AddColumnOp():
                return op.column.name in self.role.value.c
            case ops.AlterColumnOp():
                return self.column(op.column_name)
            case ops.CreateIndexOp() | ops.DropIndexOp():
                return self.index(op.index_name)
            case ops.CreateCheckConstraintOp() | ops.DropConstraintOp():
                return self.check(op.constraint_name)
            case _:
                return False

    def _definition(self, column: Any) -> str:
        return str(CreateColumn(column).compile(dialect=self.dialect))


def owned_tables(tables: Iterable[Table], dialect: Dialect) -> Iterator[Owned]:
    """Give those of ``tables`` that are the library's: whose comment says so, in full sets."""
    owned = [Owned(table, role, dialect) for table in tables if (role := _role(table)) is not None]
    workers = {(one.table.schema, worker_table_name(one.table.name)) for one in owned if one.role is Role.JOB}
    for one in owned:
        if one.role is not Role.WORKER or (one.table.schema, one.table.name) in workers:
            yield one


def normal(schema: str | None, dialect: Dialect) -> str | None:
    """Give ``None`` for the default schema, as reflection does."""
    return None if schema == dialect.default_schema_name else schema


def _role(table: Table) -> Role | None:
    if version_of(table.comment) is None:
        return None
    names = {column.name for column in table.c}
    return next((role for role in Role if names >= {column.name for column in role.value.c}), None)
