"""What an app has added to our tables, as operations that follow the one that makes them.

It owns extra columns, constraints and foreign keys of tables that are made in the same revision; their indexes have been
found by Alembic. It refuses to deal with tables that are there: those, Alembic compares as any other.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from alembic.operations import ops
from sqlalchemy import CheckConstraint, Constraint, ForeignKeyConstraint, PrimaryKeyConstraint, UniqueConstraint

from .ownership import Owned

_SUFFIXES = {ForeignKeyConstraint: "fkey", UniqueConstraint: "key", CheckConstraint: "check"}
_LONGEST = 63


def columns(owned: Owned) -> list[ops.AddColumnOp]:
    """Give the columns."""
    table = owned.table
    return [ops.AddColumnOp.from_column_and_tablename(table.schema, table.name, column) for column in owned.extra_columns()]


def constraints(owned: Owned) -> list[Any]:
    """Give the constraints, without foreign keys."""
    return [_operation(one) for one in _own(owned) if not isinstance(one, ForeignKeyConstraint)]


def foreign_keys(owned: Owned) -> list[Any]:
    """Give the foreign keys, which come when all tables and columns are there."""
    return [_operation(one) for one in _own(owned) if isinstance(one, ForeignKeyConstraint)]


def _own(owned: Owned) -> Iterator[Constraint]:
    for constraint in sorted(owned.table.constraints, key=lambda one: (str(one.name or ""), _column_names(one))):
        if isinstance(constraint, PrimaryKeyConstraint) or constraint._type_bound:  # add_column brings those of types
            continue
        if not owned.check(constraint.name):
            yield constraint


def _operation(constraint: Constraint) -> Any:
    operation: Any = ops.AddConstraintOp.from_constraint(constraint)
    if not isinstance(constraint.name, str):
        operation.constraint_name = _name_by_postgresql(constraint)
    return operation


def _name_by_postgresql(constraint: Constraint) -> str | None:
    """Give the name that PostgreSQL would give, spelled out so that the downgrade can drop it by that name."""
    suffix = next((suffix for kind, suffix in _SUFFIXES.items() if isinstance(constraint, kind)), None)
    if suffix is None:
        return None
    name = "_".join([constraint.table.name, *_column_names(constraint), suffix])
    return name if len(name.encode()) <= _LONGEST else None


def _column_names(constraint: Constraint) -> list[str]:
    return [column.name for column in getattr(constraint, "columns", ())]
