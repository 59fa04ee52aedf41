"""Several statements in one round trip, as one script of PostgreSQL's simple protocol.

It owns the way in which a worker's statements travel together: with their values written into them, without the driver's
own BEGIN and COMMIT, and prepared once for each connection that keeps what is prepared. That takes psycopg as it comes,
async or not; with any other driver, and for ids that are no UUIDs, the same is said statement by statement. It refuses
values of unknown form: an id and a fence are UUIDs, and what else stands in a script is ours, or text in quotation marks.
How the driver says them is known in ``simple_protocol``.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, literal_column
from sqlalchemy.sql.expression import Executable

from .dialects import sqlstate
from .simple_protocol import answer_of, begin_to_say, driver_of, in_transaction, is_heard, losses, said, without_begin

BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED"
COMMIT = "COMMIT"
NOT_MOVED = "sa_proletarian: the row was not ours to move"
"""What the server quotes in its error when there was nothing to settle."""

_PREPARED, _LOSSES, _SEQSCAN = (f"sa_proletarian_{what}" for what in ("prepared", "losses", "seqscan"))
_FORGOTTEN = ("26000", "42P05")


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
        if self.delays_releases and in_transaction(self):
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
        driver = driver_of(connection)
        begin_to_say(driver, script)

        def answer() -> list[str]:
            values = answer_of(driver, place or 0)
            done()
            return values

        return answer

    def sends_ahead(self, connection: Connection) -> bool:
        """Whether :meth:`send_ahead` is there for ``connection``: not where somebody listens.

        Nor where nothing is prepared: a pooler in transaction mode may let us wait until a handler's transaction is over.
        """
        return self._may_prepare(connection) and not is_heard(connection)

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
        return self._prepares and driver_of(connection).prepare_threshold is not None

    def _send(self, connection: Connection, pieces: Sequence[str | Call], rows_of: int | None, prepares: bool) -> list[Any]:
        script, place, done = self._written(connection, pieces, rows_of, prepares)
        driver = driver_of(connection)
        with without_begin(driver) if pieces[0] == BEGIN else nullcontext():
            rows = said(connection, driver, script, place)
        done()
        return rows

    def _written(
        self, connection: Connection, pieces: Sequence[str | Call], rows_of: int | None, prepares: bool
    ) -> tuple[str, int | None, Callable[[], None]]:
        """Write the script; give also the place of the statement whose rows are wanted, and what to call when it is done."""
        info = connection.info
        met: dict[str, bool] | None = None
        if prepares and self._may_prepare(connection):
            if info.get(_LOSSES) != (lost := losses(driver_of(connection))):
                info[_LOSSES], info[_PREPARED] = lost, {}
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
