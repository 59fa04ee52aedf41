"""How a revision spells the operation.

It owns the one line for each instance of the tables, and that for a CHECK of the app. Nothing imports it before there is
something to compare.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, cast

from alembic.autogenerate import renderers
from alembic.autogenerate.api import AutogenContext
from alembic.autogenerate.render import _render_column, _render_potential_expr
from sqlalchemy.sql.elements import conv

from .extras import CreateCheckOp
from .instance import Columns
from .operation import ProletarianMigrateOp


@renderers.dispatch_for(ProletarianMigrateOp)
def migrate(context: AutogenContext, op: ProletarianMigrateOp) -> str:
    """Give the call of the operation, with those keywords that are not the defaults."""
    arguments = [str(op.from_version), str(op.to_version)]
    arguments += [f"{name}={_value(context, value)}" for name, value in op.keywords()]
    return f"{_prefix(context)}proletarian_migrate({', '.join(arguments)})"


@renderers.dispatch_for(CreateCheckOp)
def check(context: AutogenContext, op: CreateCheckOp) -> str:
    """Give the call that adds a CHECK of the app."""
    name = repr(op.constraint_name and str(op.constraint_name))
    arguments = [f"{_prefix(context)}f({name})" if isinstance(op.constraint_name, conv) else name, repr(op.table_name)]
    arguments.append(_render_potential_expr(op.condition, context))
    arguments += [f"schema={op.schema!r}"] if op.schema else []
    return f"{_prefix(context)}create_check_constraint({', '.join(arguments)})"


def _prefix(context: AutogenContext) -> str:
    return str(context.opts["alembic_module_prefix"])


def _value(context: AutogenContext, value: Any) -> str:
    if isinstance(value, tuple):
        columns = cast("Columns", value)
        return f"[{', '.join(_render_column(column, context) for column in columns)}]"
    if isinstance(value, timedelta):
        context.imports.add("import datetime")
    return repr(value)
