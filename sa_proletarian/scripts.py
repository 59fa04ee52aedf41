"""Several statements in one round trip, as one script of PostgreSQL's simple protocol.

It owns the way in which a worker's statements travel together: with their values written into them, without the driver's
own BEGIN and COMMIT, and prepared once for each connection that keeps what is prepared. That takes psycopg as it comes,
async or not; with any other driver, and for ids that are no UUIDs, the same is said statement by statement. It refuses
values of unknown form: an id and a fence are UUIDs, and what else stands in a script is ours, or text in quotation marks.
"""

from __future__ import annotations

import functools
import hashlib
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, event, literal_column
from sqlalchemy.sql.expression import Executable

from .dialects import sqlstate

BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED"
COMMIT = "COMMIT"
NOT_MOVED = "sa_proletarian: the row was not ours to move"
"""What the server quotes in its error when there was nothing to settle."""

_PREPARED, _LOSSES, _SEQSCAN = (f"sa_proletarian_{what}" for what in ("prepared", "losses", "seqscan"))
_FORGOTTEN = ("26000", "42P05")
_IDLE, _INTRANS = 0, 2


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


@dataclass(frozen=True, slots=True)
class Template:
    """A statement with places for values, and the SQL types of those."""

    statement: Executable
    types: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Text:
    """A template's text, for the schemas that the options of a connection say; with the name under which it is prepared."""

    name: str
    text: str
    types: tuple[str, ...]

    def said(self, values: Sequence[str], met: Mapping[str, bool] | None) -> list[str]:
        """Give the statements that say it: in full, or by name where it was prepared, which is done when it is met again.

        :param met: which were met on this connection, and whether they were prepared; ``None`` where nothing is.
        """
        if met is None or self.name not in met:
            return [self._inline(values)]
        execute = f"EXECUTE {self.name}({', '.join(values)})"
        return [execute] if met[self.name] else [self._prepare(), execute]

    def _prepare(self) -> str:
        text = self.text
        for number in range(len(self.types)):
            text = text.replace(_place(number), f"${number + 1}")
        return f"PREPARE {self.name}({', '.join(self.types)}) AS {text}"

    def _inline(self, values: Sequence[str]) -> str:
        text = self.text
        for number, (type_, value) in enumerate(zip(self.types, values, strict=True)):
            text = text.replace(_place(number), f"CAST({value} AS {type_})")
        return text


@dataclass(frozen=True, slots=True)
class Call:
    """A template by its name, with its values as SQL writes them."""

    name: str
    values: tuple[str, ...]


class Scripts:
    """The templates of one pair of models, as their texts are for the connections that they have met."""

    def __init__(self, templates: Mapping[str, Template]) -> None:
        self._templates = templates
        self._texts: dict[Any, _Text] = {}
        self._prepares = True

    def __contains__(self, name: str) -> bool:
        return name in self._templates

    def send(
        self, connection: Connection, *pieces: str | Call, rows_of: int | None = None, prepares: bool = True
    ) -> list[Any]:
        """Say all ``pieces`` in one round trip; give the rows of the one at the place ``rows_of``.

        If the first is :data:`BEGIN`, the driver does not say it by itself, and all is said once more if what had been
        prepared on this connection was thrown away. With ``prepares=False`` everything is said in full.
        """
        try:
            return self._send(connection, pieces, rows_of, prepares)
        except Exception as error:
            if not says_forgotten(error):
                raise
            self._prepares = False
            if pieces[0] != BEGIN:
                raise
            connection.connection.rollback()
        return self._send(connection, pieces, rows_of, prepares=False)

    def send_ahead(self, connection: Connection, *pieces: str | Call, rows_of: int) -> Callable[[], list[str]]:
        """Send all ``pieces`` as :meth:`send` does, and do not wait, where :meth:`sends_ahead`.

        What it gives waits for the answer, and gives the first value of each row; until then the connection is nobody's. If
        one of the two raises, what was done is not known, and the connection is to be thrown away.
        """
        script, place, done = self._written(connection, pieces, rows_of, prepares=True)
        driver = _driver(connection)
        _begin_to_say(driver, script)

        def answer() -> list[str]:
            values = _answer(driver, place or 0)
            done()
            return values

        return answer

    def sends_ahead(self, connection: Connection) -> bool:
        """Whether :meth:`send_ahead` is there for ``connection``: not where somebody listens.

        Nor where nothing is prepared: a pooler in transaction mode may let us wait until a handler's transaction is over.
        """
        return self._may_prepare(connection) and not _is_heard(connection)

    def index_only(self, connection: Connection) -> tuple[str, str] | None:
        """Give what is to be said before and behind a call that finds one row, in a transaction that is not ours alone.

        A plan that was made and kept while the table was short would else read all of it when it is long. ``None`` as long
        as :meth:`learn_seqscan` was not called, or nothing is prepared here.
        """
        own = connection.info.get(_SEQSCAN)
        if own is None or not self._may_prepare(connection):
            return None
        return "SET LOCAL enable_seqscan = off", f"SET LOCAL enable_seqscan = {own}"

    def learn_seqscan(self, connection: Connection, own: str) -> None:
        """Take note of the setting that the connection came with."""
        connection.info.setdefault(_SEQSCAN, own)

    def _may_prepare(self, connection: Connection) -> bool:
        return self._prepares and _driver(connection).prepare_threshold is not None

    def _send(self, connection: Connection, pieces: Sequence[str | Call], rows_of: int | None, prepares: bool) -> list[Any]:
        script, place, done = self._written(connection, pieces, rows_of, prepares)
        driver = _driver(connection)
        with _without_begin(driver) if pieces[0] == BEGIN else nullcontext():
            rows = _said(connection, driver, script, place)
        done()
        return rows

    def _written(
        self, connection: Connection, pieces: Sequence[str | Call], rows_of: int | None, prepares: bool
    ) -> tuple[str, int | None, Callable[[], None]]:
        """Write the script; give also the place of the statement whose rows are wanted, and what to call when it is done."""
        info = connection.info
        met: dict[str, bool] | None = None
        if prepares and self._may_prepare(connection):
            if info.get(_LOSSES) != (losses := _losses(_driver(connection))):
                info[_LOSSES], info[_PREPARED] = losses, {}
            met = info[_PREPARED]
        statements: list[str] = []
        place, names = None, list[str]()
        for number, piece in enumerate(pieces):
            if isinstance(piece, str):
                statements.append(piece)
            else:
                text = self._text(connection, piece.name)
                names.append(text.name)
                statements += text.said(piece.values, met)
            if number == rows_of:
                place = len(statements) - 1
        if met is None or all(map(met.get, names)):
            return ";".join(statements), place, _nothing
        info[_PREPARED] = None  # if this fails, nobody knows what of it was done
        known = {**met, **{name: name in met for name in names}}
        return ";".join(statements), place, lambda: info.update({_PREPARED: known})

    def _text(self, connection: Connection, name: str) -> _Text:
        schemas: Any = connection.get_execution_options().get("schema_translate_map")
        key = (name, connection.dialect, *schemas.items()) if schemas else (name, connection.dialect)
        text = self._texts.get(key)
        if text is None:
            text = self._texts[key] = _compiled(connection, self._templates[name], schemas)
        return text


def place(number: int, type_: Any) -> Any:
    """Give the place for a value in a template."""
    return literal_column(_place(number), type_)


@functools.cache
def _place(number: int) -> str:
    return f"@{number}@"


def understands(connection: Connection) -> bool:
    """Whether ``connection`` takes scripts."""
    if connection.dialect.driver != "psycopg":
        return False
    driver = _driver(connection)
    if driver.cursor_factory is not _cursor_class(is_async=connection.dialect.is_async) or not hasattr(
        driver, "_autocommit"
    ):
        return False
    return not _is_heard(connection) or _to_the_rows in [*connection.dispatch.after_cursor_execute]


def are_own(connection: Connection) -> bool:
    """Whether whole transactions may be said in scripts: not where somebody listens to their ends."""
    dispatch: Any = connection.dispatch
    listeners = [*dispatch.commit, *dispatch.rollback]
    return understands(connection) and all(listener.__module__.startswith(__package__) for listener in listeners)


def _nothing() -> None:
    """Nothing was prepared by it."""


def _compiled(connection: Connection, template: Template, schemas: Any) -> _Text:
    statement: Any = template.statement
    compiled = statement.compile(
        dialect=connection.dialect,
        schema_translate_map=schemas,
        render_schema_translate=bool(schemas),
        compile_kwargs={"literal_binds": True},
    )
    text = str(compiled)
    # named by what it says: another client of a pooler may have prepared it, but never something else
    name = hashlib.sha256(text.encode()).hexdigest()[:16]
    return _Text(f"sa_proletarian_{name}", text, template.types)


def quoted(text: str) -> str:
    """Write text as a literal, whatever ``standard_conforming_strings`` says."""
    return "E'" + text.replace("\\", "\\\\").replace("'", "''") + "'"


def array(texts: Iterable[str]) -> str:
    """Write an array of UUIDs or names, in which nothing needs quotation marks, as a literal."""
    return "'{" + ",".join(texts) + "}'"


def set_local(settings: Mapping[str, str]) -> list[str]:
    """Give the statements that change settings of the server until the transaction ends."""
    return [f"SET LOCAL {name} = {quoted(value)}" for name, value in settings.items()]


def says_not_moved(error: BaseException) -> bool:
    """Whether ``error`` is the one with which a script ends that found nothing to settle."""
    return sqlstate(error) == "22P02" and NOT_MOVED in str(error)


def says_forgotten(error: BaseException) -> bool:
    """Whether ``error`` says that what was prepared is gone, or what was not is there: DISCARD, or a hidden pooler."""
    return sqlstate(error) in _FORGOTTEN


def has_ended(connection: Connection) -> bool:
    """Whether the server says that no transaction is open any more."""
    return _status(connection) == _IDLE


def _in_transaction(connection: Connection) -> bool:
    return _status(connection) == _INTRANS


@contextmanager
def _without_begin(driver: Any) -> Generator[None, None, None]:
    """Let the driver say what it is told without a BEGIN of its own."""
    driver._autocommit = True
    try:
        yield
    finally:
        driver._autocommit = False


def _status(connection: Connection) -> int:
    return int(_driver(connection).pgconn.transaction_status)


def _losses(driver: Any) -> int:
    """Give how often the driver has said DEALLOCATE ALL since it was first asked, which means what we have prepared as well.

    That it does when something was rolled back, or dropped, and it has prepared statements by itself.
    """
    prepared = driver._prepared
    if type(prepared) is not _counting():
        prepared.__class__ = _counting()
    return int(prepared.losses)


@functools.cache
def _counting() -> Any:
    from psycopg._preparing import PrepareManager  # noqa: PLC0415 (as below)

    class Counting(PrepareManager):
        losses = 0

        def clear(self) -> bool:
            cleared = super().clear()
            self.losses += cleared
            return cleared

    return Counting


def _driver(connection: Connection) -> Any:
    return connection.connection.driver_connection


# what SQLAlchemy would do ----------------------------------------------------------------------------------------------


def _said(connection: Any, driver: Any, script: str, place: int | None) -> list[Any]:
    """Have the driver say ``script``; by way of SQLAlchemy where somebody listens, for that takes four times as long."""
    if _is_heard(connection):
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


def _begin_to_say(driver: Any, script: str) -> None:
    from psycopg import generators  # noqa: PLC0415 (as below)

    driver.pgconn.send_query(script.encode(driver.info.encoding))
    driver.wait(generators.send(driver.pgconn))


def _answer(driver: Any, place: int) -> list[str]:
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


def _is_heard(connection: Any) -> bool:
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
