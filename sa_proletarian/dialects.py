"""What differs between databases, and what their errors mean.

It owns the SQL spellings for "now" and for arrays of rows, and the reading of SQLSTATEs. It refuses to hold statements:
those are in ``lifecycle``. Errors are classified by SQLSTATE and by whether the connection is gone, never by exception
class: PostgreSQL's idle-in-transaction timeout, for one, arrives as an ``InternalError``.
"""

from __future__ import annotations

from datetime import datetime
from enum import Enum, auto
from typing import Any

from sqlalchemy import DateTime, String, exc, func, literal_column
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.expression import FunctionElement
from sqlalchemy.types import TypeEngine

from . import mysql_errors
from .mysql_types import utc_datetime

SUPPORTED = ("postgresql",)
MYSQL = ("mysql", "mariadb")

TIMESTAMP: TypeEngine[datetime] = DateTime(timezone=True).with_variant(utc_datetime(), *MYSQL)


class statement_now(FunctionElement[Any]):
    """The database's clock at the start of the statement: stable, so that an index can serve a comparison with it."""

    type: TypeEngine[Any] = TIMESTAMP
    inherit_cache: bool | None = True


class clock_now(FunctionElement[Any]):
    """The database's clock at this very moment, also late in a long transaction, where ``now()`` stands still."""

    type: TypeEngine[Any] = TIMESTAMP
    inherit_cache: bool | None = True


@compiles(statement_now, "postgresql")
def _statement_timestamp(element: Any, compiler: Any, **kw: Any) -> str:
    return "statement_timestamp()"


@compiles(clock_now, "postgresql")
def _clock_timestamp(element: Any, compiler: Any, **kw: Any) -> str:
    return "clock_timestamp()"


@compiles(statement_now, *MYSQL)
@compiles(clock_now, *MYSQL)
def _utc_timestamp(element: Any, compiler: Any, **kw: Any) -> str:
    return "UTC_TIMESTAMP(6)"  # on these servers it stands still during a statement only


def later(now: Any, span: Any) -> Any:
    """Give the moment ``span`` after ``now``; a day has 24 hours, whatever the session's time zone makes of it."""
    utc = literal_column("'UTC'", String())
    return func.timezone(utc, func.timezone(utc, now, type_=DateTime()) + span, type_=TIMESTAMP)


class Trouble(Enum):
    """What an error means for the worker."""

    DISCONNECTED = auto()
    """The connection is gone; whatever it did last may or may not be committed."""
    TRANSIENT = auto()
    """The server is busy, full, or not taking writes now: the same statement may work later."""
    CONFLICT = auto()
    """A deadlock or serialization failure: the same transaction may work at once."""
    LOCK_TIMEOUT = auto()
    """A lock was not had in time."""
    CANCELLED = auto()
    """The statement was cancelled, by a timeout of the server or by somebody."""
    CONSTRAINT = auto()
    """A constraint refuses the statement."""
    MISSING_TABLE = auto()
    """A table or column is not there: the schema is not the one that this version needs."""
    OTHER = auto()
    """None of these."""


_BY_STATE = {
    "40001": Trouble.CONFLICT,
    "40P01": Trouble.CONFLICT,
    "55P03": Trouble.LOCK_TIMEOUT,
    "25006": Trouble.TRANSIENT,
    "25P03": Trouble.DISCONNECTED,
    "25P04": Trouble.DISCONNECTED,
    "57014": Trouble.CANCELLED,
    "57P01": Trouble.DISCONNECTED,
    "57P02": Trouble.DISCONNECTED,
    "57P03": Trouble.TRANSIENT,
    "57P05": Trouble.DISCONNECTED,
    "42P01": Trouble.MISSING_TABLE,
    "42703": Trouble.MISSING_TABLE,
    "3F000": Trouble.MISSING_TABLE,
}
_NO_SAVEPOINT = "3B001"
_BY_CLASS = {"08": Trouble.DISCONNECTED, "23": Trouble.CONSTRAINT, "53": Trouble.TRANSIENT, "58": Trouble.TRANSIENT}


def trouble(error: BaseException) -> Trouble:
    """Say what ``error`` means, whoever raised it."""
    if isinstance(error, exc.DBAPIError) and error.connection_invalidated:
        return Trouble.DISCONNECTED
    original = getattr(error, "orig", None) or error
    # asyncpg's network errors are Python's; the other is its word for a session that was ended at a bad moment
    if isinstance(error, ConnectionError) or type(original).__name__ == "InternalClientError":
        return Trouble.DISCONNECTED
    if isinstance(error, (exc.TimeoutError, exc.DisconnectionError, OSError)):
        return Trouble.TRANSIENT
    state = sqlstate(error)
    if state is None:
        # psycopg gives no SQLSTATE when a connection cannot be made at all
        return Trouble.TRANSIENT if isinstance(error, exc.OperationalError) else Trouble.OTHER
    if state == _NO_SAVEPOINT and (before := mysql_errors.undone_by(error)) is not None:
        return trouble(before)
    return _BY_STATE.get(state) or _BY_CLASS.get(state[:2]) or Trouble.OTHER


def tells_of_disconnection(error: BaseException) -> bool:
    """Whether ``error``, or one that it came from, is the loss of a connection, or what SQLAlchemy says ever after."""
    seen: BaseException | None = error
    for _ in range(20):
        if seen is None:
            return False
        if trouble(seen) is Trouble.DISCONNECTED or isinstance(seen, exc.PendingRollbackError):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def sqlstate(error: BaseException) -> str | None:
    """Give the SQLSTATE of a database error, of whichever driver; ``None`` where there is none."""
    original = getattr(error, "orig", None) or error
    state = mysql_errors.state_of(original) or getattr(original, "sqlstate", None) or getattr(original, "pgcode", None)
    return state if isinstance(state, str) else None
