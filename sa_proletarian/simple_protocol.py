"""How psycopg says a script in PostgreSQL's simple protocol: past SQLAlchemy's result machinery, and without its own BEGIN.

It owns what is to be known of the driver: which one takes scripts, whether somebody listens, in what state its transaction
is, and what it has thrown away. It refuses to know what the scripts say.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Coroutine, Generator, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, event

_IDLE, _INTRANS = 0, 2


def understands(connection: Connection) -> bool:
    """Whether ``connection`` takes scripts."""
    if connection.dialect.driver != "psycopg":
        return False
    driver = driver_of(connection)
    if driver.cursor_factory is not _cursor_class(is_async=connection.dialect.is_async):
        return False
    if not all(
        hasattr(driver, name) for name in ("_autocommit", "_prepared")
    ):  # what it owns, and may call otherwise one day
        return False
    return not is_heard(connection) or _to_the_rows in [*connection.dispatch.after_cursor_execute]


def are_own(connection: Connection) -> bool:
    """Whether whole transactions may be said in scripts: not where somebody listens to their ends."""
    dispatch: Any = connection.dispatch
    listeners = [*dispatch.commit, *dispatch.rollback]
    return understands(connection) and all(listener.__module__.startswith(__package__) for listener in listeners)


def has_ended(connection: Connection) -> bool:
    """Whether the server says that no transaction is open any more."""
    return _status(connection) == _IDLE


def in_transaction(connection: Connection) -> bool:
    """Whether the server says that one is open, in which no statement has failed."""
    return _status(connection) == _INTRANS


@contextmanager
def without_begin(driver: Any) -> Generator[None, None, None]:
    """Let the driver say what it is told without a BEGIN of its own."""
    driver._autocommit = True
    try:
        yield
    finally:
        driver._autocommit = False


def _status(connection: Connection) -> int:
    return int(driver_of(connection).pgconn.transaction_status)


def losses(driver: Any) -> int:
    """Give how often the driver has said DEALLOCATE ALL since it was first asked, which means what we have prepared as well.

    That it does when something was rolled back, or dropped, and it has prepared statements by itself.
    """
    prepared = driver._prepared
    if not hasattr(prepared, "losses"):
        prepared.__class__ = _counting(prepared.__class__)
    return int(prepared.losses)


@functools.cache
def _counting(kind: Any) -> Any:
    def clear(self: Any) -> Any:
        cleared = kind.clear(self)
        self.losses += bool(cleared)
        return cleared

    return type(kind.__name__, (kind,), {"losses": 0, "clear": clear})


def driver_of(connection: Connection) -> Any:
    """Give psycopg's own connection."""
    return connection.connection.driver_connection


def said(connection: Any, driver: Any, script: str, place: int | None) -> list[Any]:
    """Have the driver say ``script``; by way of SQLAlchemy where somebody listens, for that takes four times as long."""
    if is_heard(connection):
        result = connection.exec_driver_sql(script, execution_options={"no_parameters": True, _OPTION: place or 0})
        return [tuple(row) for row in result] if place is not None and result.returns_rows else []
    cursor = _cursor_class(is_async=False)(driver)
    try:
        cursor.execute(script, prepare=False)
        if place is None:
            return []
        _go_to(cursor, place)
        rows: list[Any] = cursor.fetchall()
        return rows
    except Exception as error:
        connection._handle_dbapi_exception(error, script, None, cursor, None)
        raise  # not reached: it raises what SQLAlchemy makes of the error


def begin_to_say(driver: Any, script: str) -> None:
    """Send ``script``, and do not wait for the answer."""
    from psycopg import generators  # noqa: PLC0415 (as below)

    driver.pgconn.send_query(script.encode(driver.info.encoding))
    driver.wait(generators.send(driver.pgconn))


def answer_of(driver: Any, place: int) -> list[str]:
    """Wait for the answer to what was sent; give the first value of each row of the statement at ``place``."""
    from psycopg import errors, generators, pq  # noqa: PLC0415 (as below)

    results = driver.wait(generators.fetch_many(driver.pgconn))
    if results[-1].status != pq.ExecStatus.COMMAND_OK:
        raise errors.error_from_result(results[-1], encoding=driver.info.encoding)
    rows = results[place]
    return [rows.get_value(number, 0).decode() for number in range(rows.ntuples)]


_OPTION = "sa_proletarian_rows_of"


@functools.cache
def _cursor_class(*, is_async: bool) -> Any:
    from psycopg import AsyncCursor, Cursor  # noqa: PLC0415 (where it is not installed, nobody comes here)

    return AsyncCursor if is_async else Cursor


def is_heard(connection: Any) -> bool:
    """Whether somebody listens to the statements of ``connection``, or only SQLAlchemy can say them to the driver."""
    if connection._echo or connection.dialect.is_async:
        return True
    dispatch = connection.dispatch
    if dispatch.before_cursor_execute:
        return True
    return any(listener is not _to_the_rows for listener in dispatch.after_cursor_execute)


def listen_to(engine: Engine) -> None:
    """Let the result of a script be that of the statement whose rows are wanted: a cursor stands at the first."""
    event.listen(engine, "after_cursor_execute", _to_the_rows)


def _to_the_rows(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool) -> None:
    place = context.execution_options.get(_OPTION)
    if place is None:
        return
    if not context.dialect.is_async:
        _go_to(cursor, place)
        return
    its_own = cursor._cursor
    _go_to(its_own, place)
    if its_own.pgresult.nfields:  # SQLAlchemy keeps the rows of the first
        cursor._rows = deque(_without_waiting(its_own.fetchall()))


def _go_to(cursor: Any, place: int) -> None:
    for _ in range(place):
        cursor.nextset()


def _without_waiting(coroutine: Coroutine[Any, Any, Sequence[Any]]) -> Sequence[Any]:
    """Run what is ``async`` and waits for nothing, whatever the thread: the rows have come with the execution."""
    try:
        coroutine.send(None)
    except StopIteration as its_end:
        rows: Sequence[Any] = its_end.value
        return rows
    coroutine.close()
    raise RuntimeError("the driver fetches rows that a script should have brought")
