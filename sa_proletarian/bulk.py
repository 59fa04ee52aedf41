"""Enqueueing many jobs at once: chunk by chunk, in one savepoint of the app's own transaction.

It owns the chunks, the savepoint, and the two ways into the table: arrays that one ``INSERT … SELECT FROM unnest(…)``
unfolds, and ``executemany`` for whatever has no sure text form. What a job must look like is asked of ``drafts``. It never
commits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from itertools import chain, repeat
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    Connection,
    DateTime,
    Integer,
    SmallInteger,
    String,
    Text,
    Uuid,
    bindparam,
    cast,
    column,
    func,
    insert,
    select,
)
from sqlalchemy.dialects.postgresql import JSON as PG_JSON
from sqlalchemy.orm import Mapper, sessionmaker

from . import waking
from .arguments import at_least, callable_or_none
from .drafts import Drafts, Group, Item, same_kind

MOST_TEXT = 8 * 1024 * 1024
"""A chunk ends early when its payloads have come to so many characters."""


def put_many(
    target: Any,
    drafts: Drafts,
    items: Iterable[Item],
    *,
    chunk_size: int,
    progress: Callable[[int], None] | None,
) -> list[Any]:
    """Insert a job for each item, in one savepoint of ``target``'s transaction, and give their ids in that order."""
    at_least("chunk_size", chunk_size, 1)
    callable_or_none("progress", progress)
    if not isinstance(items, Iterable):
        raise TypeError(f"enqueue_many takes an iterable of (job_type, payload), got a {type(items).__name__}")
    ids: list[Any] = []
    _check_target(target)
    drafts.begin()
    with target.begin_nested():
        connection = _connection(target, drafts.mapper)
        insertion = Insertion(connection, drafts.mapper)
        for chunk in _chunks(drafts, items, chunk_size):
            ids += insertion.insert(chunk)
            waking.enqueued_many(connection, drafts.mapper.class_, chain.from_iterable(map(_news, chunk)))
            if progress is not None:
                progress(len(ids))
    return ids


def _chunks(drafts: Drafts, items: Iterable[Item], size: int) -> Iterator[list[Group]]:
    count, room = 0, MOST_TEXT
    for index, item in enumerate(items):
        if not count:
            drafts.begin()
        try:
            room -= drafts.take(item)
        except (TypeError, ValueError) as error:
            raise same_kind(error, f"item {index}: {error}") from error
        count += 1
        if count == size or room <= 0:
            yield drafts.end()
            count, room = 0, MOST_TEXT
    if count:
        yield drafts.end()


def _news(group: Group) -> set[tuple[Any, ...]]:
    """Give the queues of a group, each with the instants that say whether its jobs are due."""
    names = ("queue", "process_at", "enqueued_at")
    once = None if any(name in group.own for name in names) else 1
    columns = (group.own[name] if name in group.own else _repeated(group.shared.get(name), once) for name in names)
    return set(zip(*columns, strict=False))


def _repeated(value: Any, times: int | None) -> Iterator[Any]:
    return repeat(value) if times is None else repeat(value, times)


class Insertion:
    """The way of the drafts of one call into the table."""

    def __init__(self, connection: Connection, mapper: Mapper[Any]) -> None:
        self._connection = connection
        self._columns = mapper.columns
        self._table: Any = mapper.local_table
        self._dialect = connection.dialect
        self._statements: dict[Any, Any] = {}

    def insert(self, groups: Sequence[Group]) -> list[Any]:
        """Insert the jobs, group by group, and give their ids."""
        return [job_id for group in groups for job_id in self._insert(group)]

    def _insert(self, group: Group) -> list[Any]:
        if "job_id" not in group.own:
            return self._insert_without_ids(group)
        try:
            constants, arrays = self._split(group)
        except NoLiteralError:
            self._connection.execute(insert(self._table), self._rows(group))
        else:
            parameters = {f"the_{key}": value for key, value in constants.items()}
            parameters |= {f"all_{key}": literal for key, literal in arrays.items()}
            self._connection.execute(self._unnest(tuple(constants), tuple(arrays)), parameters)
        return group.own["job_id"]

    def _insert_without_ids(self, group: Group) -> list[Any]:
        statement = insert(self._table).returning(self._columns["job_id"], sort_by_parameter_order=True)
        return list(self._connection.scalars(statement, self._rows(group)))

    def _rows(self, group: Group) -> list[dict[str, Any]]:
        return [{self._columns[key].key: value for key, value in row.items()} for row in group.rows()]

    def _split(self, group: Group) -> tuple[dict[str, Any], dict[str, str]]:
        """Give the values that all jobs share, and for other columns their values as the literal of an array."""
        if self._dialect.name != "postgresql" or group.texts is None:
            raise NoLiteralError
        constants = self._defaults({*group.shared, *group.own, "payload"})
        constants |= {key: _constant(self._columns[key].type, value) for key, value in group.shared.items()}
        arrays = {"payload": self._payloads(group.texts)}
        for key, values in group.own.items():
            first = values[0]
            if all(value is first for value in values):
                constants[key] = _constant(self._columns[key].type, first)
            else:
                arrays[key] = _array(self._columns[key].type, values)
        return constants, arrays

    def _defaults(self, keys: set[str]) -> dict[str, Any]:
        """Give the constant defaults of the app's columns that ``keys`` leave out; others are for SQLAlchemy to make."""
        left = {key: self._columns[key].default for key in self._columns.keys() if key not in keys}
        defaults: dict[str, Any] = {key: default for key, default in left.items() if default is not None}
        if not all(default.is_scalar for default in defaults.values()):
            raise NoLiteralError
        return {key: _constant(self._columns[key].type, default.arg) for key, default in defaults.items()}

    def _payloads(self, texts: list[str]) -> str:
        kind = self._columns["payload"].type
        if not type(kind).__module__.startswith("sqlalchemy.") or not isinstance(kind.dialect_impl(self._dialect), PG_JSON):
            raise NoLiteralError
        return _strings(texts)

    def _unnest(self, constants: tuple[str, ...], arrays: tuple[str, ...]) -> Any:
        known = self._statements.get((constants, arrays))
        if known is None:
            known = self._statements[constants, arrays] = self._made_unnest(constants, arrays)
        return known

    def _made_unnest(self, constants: tuple[str, ...], arrays: tuple[str, ...]) -> Any:
        """Make the statement; arrays travel as one text each, which every driver passes on as it is."""
        literals = [cast(bindparam(f"all_{key}", type_=Text()), ARRAY(Text())) for key in arrays]
        jobs = func.unnest(*literals).table_valued(*(column(key, Text()) for key in arrays)).render_derived(name="jobs")
        of_type = {key: _cast_to(self._columns[key].type) for key in (*constants, *arrays)}
        shared = [cast(bindparam(f"the_{key}", type_=of_type[key]), of_type[key]) for key in constants]
        own = [cast(jobs.c[key], of_type[key]) for key in arrays]
        columns = [self._columns[key] for key in (*constants, *arrays)]
        return insert(self._table).from_select(columns, select(*shared, *own).select_from(jobs), include_defaults=False)


class NoLiteralError(Exception):
    """These values have no text form that is sure to mean the same: SQLAlchemy and the driver shall pass them."""


def _array(kind: Any, values: Sequence[Any]) -> str:
    """Give the literal of an array of texts, each of which PostgreSQL can cast to ``kind``."""
    python_type, literal = _form(kind)
    if any(type(value) is not python_type for value in values):
        raise NoLiteralError
    return literal(values)


def _constant(kind: Any, value: Any) -> Any:
    if value is not None and type(value) is not _form(kind)[0]:
        raise NoLiteralError
    return value


def _form(kind: Any) -> tuple[type, Callable[[Sequence[Any]], str]]:
    """Say for a column's type how its values look in Python, and how they become the literal of an array."""
    for kinds, python_type, literal in _LITERALS:
        if type(kind) in kinds:
            return python_type, literal
    raise NoLiteralError


def _cast_to(kind: Any) -> Any:
    """Give the type to cast to; a cast to ``VARCHAR(n)`` would cut off what an INSERT refuses."""
    return Text() if type(kind) in (String, Text) else kind


def _strings(values: Sequence[Any]) -> str:
    joined = "\x00".join(values)
    if joined.count("\x00") != len(values) - 1:  # the database refuses it; the separator must not hide it
        raise NoLiteralError
    escaped = joined.replace("\\", "\\\\").replace('"', '\\"')
    return '{"' + escaped.replace("\x00", '","') + '"}'


def _uuids(values: Sequence[UUID]) -> str:
    return "{" + ",".join([f"{value.int:032x}" for value in values]) + "}"


def _integers(values: Sequence[int]) -> str:
    return "{" + ",".join(map(str, values)) + "}"


def _booleans(values: Sequence[bool]) -> str:
    return "{" + ",".join("t" if value else "f" for value in values) + "}"


def _instants(values: Sequence[datetime]) -> str:
    if any(value.tzinfo is None for value in values):
        raise NoLiteralError
    return _strings([value.isoformat() for value in values])


_LITERALS: Sequence[tuple[tuple[type, ...], type, Callable[[Sequence[Any]], str]]] = (
    ((Uuid,), UUID, _uuids),
    ((String, Text), str, _strings),
    ((DateTime,), datetime, _instants),
    ((Integer, BigInteger, SmallInteger), int, _integers),
    ((Boolean,), bool, _booleans),
)


def _check_target(target: Any) -> None:
    if isinstance(target, Connection):
        return
    if isinstance(target, (type, sessionmaker)):
        raise TypeError("enqueue_many takes a session or a connection, not what makes one: call it first")
    if hasattr(target, "run_sync") or type(target).__name__ == "async_scoped_session":
        raise TypeError(
            f"enqueue_many writes at once, so {type(target).__name__} cannot take it directly;"
            " use: await session.run_sync(jobs.enqueue_many, items), or the same of an AsyncConnection"
        )
    if not all(callable(getattr(target, name, None)) for name in ("begin_nested", "connection", "flush")):
        raise TypeError(f"enqueue_many takes a session or a connection, got a {type(target).__name__}")


def _connection(target: Any, mapper: Mapper[Any]) -> Connection:
    if isinstance(target, Connection):
        return target
    connection: Connection = target.connection(bind_arguments={"mapper": mapper})
    return connection
