"""Instants on MariaDB and MySQL, which have no type with a time zone: UTC in the column, aware values in Python.

It owns the one type. It refuses to show up in an app's revisions: for Alembic, and for whoever prints it, it is
SQLAlchemy's own ``mysql.DATETIME``.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy.dialects import mysql


class DATETIME(mysql.DATETIME):
    """``DATETIME`` in which every value is UTC; a naive value that is written is taken for UTC."""

    def bind_processor(self, dialect: Any) -> Any:
        return _to_naive

    def result_processor(self, dialect: Any, coltype: Any) -> Any:
        return _to_aware

    def __reduce__(self) -> Any:
        return utc_datetime, (self.fsp,)


# what Alembic writes into a revision, and what the revision imports, follows from these names
DATETIME.__module__ = mysql.DATETIME.__module__


def utc_datetime(fsp: int | None = 6) -> DATETIME:
    """Make the type, with so many digits of a second's fraction."""
    return DATETIME(fsp=fsp)


def _to_naive(value: Any) -> Any:
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value.astimezone(UTC).replace(tzinfo=None)
    return value


def _to_aware(value: Any) -> Any:
    return value.replace(tzinfo=UTC) if isinstance(value, datetime) else value
