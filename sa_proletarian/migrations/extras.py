"""What an app has added to our tables, as operations that follow the one that makes them.

It owns extra columns, constraints and foreign keys of tables that are made in the same revision; their indexes have been
found by Alembic. It refuses to deal with tables that are there: those, Alembic compares as any other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from alembic.operations import ops
from sqlalchemy import CheckConstraint, Constraint, ForeignKeyConstraint, PrimaryKeyConstraint, UniqueConstraint
from sqlalchemy.sql.elements import conv

from .ownership import Owned

_LONGEST = 63


class CreateCheckOp(ops.CreateCheckConstraintOp):
    """A CHECK of the app, which Alembic 1.18 cannot write by itself."""


def columns(owned: Owned) -> list[ops.AddColumnOp]:
    """Give the columns."""
    table = owned.table
    return [ops.AddColumnOp.from_column_and_tablename(table.schema, table.name, column) for column in owned.extra_columns()]


def constraints(owned: Owned) -> list[Any]:
    """Give the constraints, without CHECKs and foreign keys."""
    return [_operation(one) for one in _own(owned) if not isinstance(one, CheckConstraint | ForeignKeyConstraint)]


def checks(owned: Owned) -> list[Any]:
    """Give the CHECKs."""
    return [_operation(one) for one in _own(owned) if isinstance(one, CheckConstraint)]


def foreign_keys(owned: Owned) -> list[Any]:
    """Give the foreign keys, which come when all tables and columns are there."""
    return [_operation(one) for one in _own(owned) if isinstance(one, ForeignKeyConstraint)]


def _own(owned: Owned) -> Iterator[Constraint]:
    for constraint in owned.table._sorted_constraints:
        if isinstance(constraint, PrimaryKeyConstraint) or constraint._type_bound:  # add_column brings those of types
            continue
        if not owned.check(constraint.name):
            yield constraint


def _operation(constraint: Constraint) -> Any:
    kind = CreateCheckOp if isinstance(constraint, CheckConstraint) else ops.AddConstraintOp
    operation: Any = kind.from_constraint(constraint)
    if not isinstance(constraint.name, str):
        operation.constraint_name = _name_by_postgresql(constraint)
    return operation


def _name_by_postgresql(constraint: Constraint) -> str | None:
    """Give the name that PostgreSQL would give, spelled out so that the downgrade can drop it by that name."""
    label = _label(constraint)
    alike = [one for one in constraint.table._sorted_constraints if not isinstance(one.name, str) and _label(one) == label]
    number = str(alike.index(constraint) or "")
    return conv(f"{label}{number}") if label and len(f"{label}{number}".encode()) <= _LONGEST else None


def _label(constraint: Constraint) -> str | None:
    columns = _column_names(constraint)
    match constraint:
        case ForeignKeyConstraint():
            suffix = "fkey"
        case UniqueConstraint():
            suffix = "key"
        case CheckConstraint():
            columns, suffix = columns if len(columns) == 1 else [], "check"
        case _:
            return None
    return "_".join([constraint.table.name, *columns, suffix])


def _column_names(constraint: Constraint) -> list[str]:
    if isinstance(constraint, CheckConstraint):  # as text, it does not know its columns
        words = {*re.findall(r"\w+", re.sub("'[^']*'", "", str(constraint.sqltext)))}
        return [column.name for column in constraint.table.c if column.name in words]
    return [column.name for column in getattr(constraint, "columns", ())]
