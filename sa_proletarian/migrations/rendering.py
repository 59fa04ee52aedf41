"""How a revision spells the operation.

It owns the one line for each instance of the tables. Alembic imports nothing of this before it writes a revision.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, cast

from alembic.autogenerate import renderers
from alembic.autogenerate.api import AutogenContext
from alembic.autogenerate.render import _render_column

from .instance import Columns
from .operation import ProletarianMigrateOp


@renderers.dispatch_for(ProletarianMigrateOp)
def render(context: AutogenContext, op: ProletarianMigrateOp) -> str:
    """Give the call of the operation, with those keywords that are not the defaults."""
    arguments = [str(op.from_version), str(op.to_version)]
    arguments += [f"{name}={_value(context, value)}" for name, value in op.keywords()]
    return f"{context.opts['alembic_module_prefix']}proletarian_migrate({', '.join(arguments)})"


def _value(context: AutogenContext, value: Any) -> str:
    if isinstance(value, tuple):
        columns = cast("Columns", value)
        return f"[{', '.join(_render_column(column, context) for column in columns)}]"
    if isinstance(value, timedelta):
        context.imports.add("import datetime")
    return repr(value)
