"""Several statements in one round trip: what a worker says in the transaction of a handler that used its session.

It owns the way in which statements travel together: as one script of PostgreSQL's simple protocol, with its values written
into it, and without the driver's own BEGIN and COMMIT. That takes psycopg as it comes, async or not; with any other driver,
and for ids that are no UUIDs, the same is said statement by statement. It refuses values of unknown origin: an id and a
fence are UUIDs, and what else stands in a script is ours, or a setting of the server in quotation marks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Coroutine, Sequence
from typing import Any

from sqlalchemy import Connection, CursorResult, Engine, event
from sqlalchemy.sql.expression import Executable

from .dialects import sqlstate

BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED"
ANSWER = "answer"
"""The first column of the one statement in a script whose rows are wanted."""
JOB_ID, CLAIM_ID, WAIT = "@job_id@", "@claim_id@", "@wait@"
"""What stands in a template for the id of a job, for its fence, and for how long a lock is waited for."""
NOT_MOVED = "sa_proletarian: the row was not ours to move"
"""What the server quotes in its error when there was nothing to settle."""

_ANSWER = ANSWER.encode()
_OPTIONS = {"no_parameters": True, "sa_proletarian_script": True}


class HeldConnection(Connection):
    """A connection whose savepoints may have been made before they are asked for, and may be released later."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.made: list[str] = []
        self.to_release: list[str] = []
        self.delays_releases: bool = False

    def send_releases(self) -> None:
        """Say what was put off."""
        names, self.to_release = self.to_release, []
        for name in names:
            super()._release_savepoint_impl(name)

    def take_releases(self) -> list[str]:
        """Give the statements that were put off, which the caller will send."""
        names, self.to_release = self.to_release, []
        return [f"RELEASE SAVEPOINT {name}" for name in names]

    def _savepoint_impl(self, name: str | None = None) -> str:
        if self.made:
            return self.made.pop(0)
        self.send_releases()
        return super()._savepoint_impl(name)

    def _release_savepoint_impl(self, name: str) -> None:
        if self.delays_releases and _in_transaction(self):
            self.to_release.append(name)
            return
        self.send_releases()
        super()._release_savepoint_impl(name)

    def _rollback_to_savepoint_impl(self, name: str) -> None:
        self.to_release.clear()  # whatever was put off is younger than the savepoint, and gone with it
        super()._rollback_to_savepoint_impl(name)


def understands(connection: Connection) -> bool:
    """Whether ``connection`` takes scripts."""
    if connection.dialect.driver != "psycopg":
        return False
    driver: Any = connection.connection.driver_connection
    from psycopg import AsyncCursor, Cursor  # noqa: PLC0415 (where it is not installed, nobody comes here)

    as_it_comes = AsyncCursor if connection.dialect.is_async else Cursor
    return driver.cursor_factory is as_it_comes and hasattr(driver, "_autocommit")


def template(connection: Connection, statement: Executable) -> str:
    """Give the text of ``statement``, for the schemas that the options of ``connection`` say."""
    statement_: Any = statement
    schemas: Any = connection.get_execution_options().get("schema_translate_map")
    compiled = statement_.compile(
        dialect=connection.dialect,
        schema_translate_map=schemas,
        render_schema_translate=bool(schemas),
        compile_kwargs={"literal_binds": True},
    )
    return str(compiled)


def quoted(text: str) -> str:
    """Write a setting's value as a literal, whatever ``standard_conforming_strings`` says."""
    return "E'" + text.replace("\\", "\\\\").replace("'", "''") + "'"


def send(connection: Connection, statements: Sequence[str], *, begins: bool = False) -> CursorResult[Any]:
    """Say all ``statements`` in one round trip; give the rows of the one that has an :data:`ANSWER`.

    :param begins: the first of them is :data:`BEGIN`, and the driver must not say it by itself.
    """
    driver: Any = connection.connection.driver_connection
    driver._autocommit = begins
    try:
        return connection.exec_driver_sql(";".join(statements), execution_options=_OPTIONS)
    finally:
        driver._autocommit = False


def says_not_moved(error: BaseException) -> bool:
    """Whether ``error`` is the one with which a script ends that found nothing to settle."""
    return sqlstate(error) == "22P02" and NOT_MOVED in str(error)


def has_ended(connection: Connection) -> bool:
    """Whether the server says that no transaction is open any more."""
    driver: Any = connection.connection.driver_connection
    return int(driver.pgconn.transaction_status) == _IDLE


_IDLE, _INTRANS = 0, 2


def _in_transaction(connection: Connection) -> bool:
    driver: Any = connection.connection.driver_connection
    return int(driver.pgconn.transaction_status) == _INTRANS


def listen_to(engine: Engine) -> None:
    """Let the result of a script be that of the statement whose rows are wanted: a cursor stands at the first."""
    event.listen(engine, "after_cursor_execute", _to_the_rows)


def _to_the_rows(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool) -> None:
    if not context.execution_options.get("sa_proletarian_script"):
        return
    adapts = context.dialect.is_async
    its_own = cursor._cursor if adapts else cursor
    while not _has_answer(its_own.pgresult) and its_own.nextset():
        pass
    if adapts:  # SQLAlchemy keeps the rows of the first
        cursor._rows = deque(_without_waiting(its_own.fetchall()))


def _has_answer(result: Any) -> bool:
    """Whether ``result`` has the rows that are wanted; a cursor's description of it would take far longer to make."""
    return result is not None and result.nfields > 0 and result.fname(0) == _ANSWER


def _without_waiting(coroutine: Coroutine[Any, Any, Sequence[Any]]) -> Sequence[Any]:
    """Run what is ``async`` and waits for nothing, whatever the thread: the rows have come with the execution."""
    try:
        coroutine.send(None)
    except StopIteration as its_end:
        rows: Sequence[Any] = its_end.value
        return rows
    coroutine.close()
    raise RuntimeError("the driver fetches rows that a script should have brought")
