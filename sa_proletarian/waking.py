"""Enqueues that wake idle workers.

It owns what a transaction has enqueued, and the one statement that it says about that just before its COMMIT: to notify
the queues of which a worker shows that it is idle. A worker in the same process is told as well, after the COMMIT of a
session and without the database. It refuses to be more than a hint: polling finds every job, and where a transaction has
failed already, or ends in two phases, nothing is said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any
from weakref import WeakKeyDictionary, WeakSet, ref

from sqlalchemy import Connection, Engine, event
from sqlalchemy.orm import Session, object_session

from . import beacons, clock
from .beacons import Address
from .dialects import sqlstate

QUIET = 0.02
"""For so many seconds a process believes that nobody is idle. A worker that becomes idle polls once more after that."""

_FAILED_BEFORE = "25P02"
_ENQUEUED = "sa_proletarian enqueued"

Ring = Callable[[], None]

_watched: WeakSet[type[Any]] = WeakSet()
_noted: WeakKeyDictionary[Connection, _Notes] = WeakKeyDictionary()
_attended: WeakSet[Engine] = WeakSet()
_quiet: WeakKeyDictionary[Any, dict[Address, float]] = WeakKeyDictionary()
_sleepers: WeakKeyDictionary[Any, dict[Address, list[Ring]]] = WeakKeyDictionary()


def watch(job_model: type[Any]) -> None:
    """Let what is enqueued by this model wake workers, from now on."""
    if job_model not in _watched:
        _watched.add(job_model)
        event.listen(job_model, "after_insert", _inserted, propagate=True)


def enqueued(connection: Connection, job: Any) -> None:
    """Take note of a job that was inserted on ``connection``, if its model is watched and it is due at once."""
    enqueued_many(connection, type(job), [_news(job)])


def enqueued_many(connection: Connection, job_model: Any, jobs: Iterable[tuple[Any, ...]]) -> None:
    """Take note of jobs that were inserted on ``connection``, given as their ``(queue, process_at, enqueued_at)``."""
    if job_model in _watched:
        for queue in {news[0] for news in jobs if _is_due(*news)}:
            _note(connection, job_model.__table__, queue)


def sleep(engine: Any, place: Address, ring: Ring) -> Callable[[], None]:
    """Have ``ring`` called after commits of this process that enqueue at ``place`` by ``engine``; give what ends that."""
    if not event.contains(Session, "after_commit", _committed):
        event.listen(Session, "after_commit", _committed)
    rings = _sleepers.setdefault(engine.pool, {}).setdefault(place, [])
    rings.append(ring)
    return lambda: rings.remove(ring)


class _Notes:
    """What one connection has enqueued in its present transaction: queues, each with the savepoint in which it was."""

    def __init__(self) -> None:
        # references to transactions are weak: those know their connection, for whose life alone these notes are kept
        self._transaction = _reference(None)
        self._queues: dict[tuple[Address, Any], None] = {}

    def add(self, connection: Connection, place: Address) -> None:
        savepoint = connection.get_nested_transaction()
        if self._transaction() is not connection.get_transaction():
            self._transaction, self._queues = _reference(connection.get_transaction()), {}
        if savepoint is not None and not event.contains(connection, "rollback_savepoint", self._rolled_back):
            event.listen(connection, "rollback_savepoint", self._rolled_back)
        self._queues[place, _reference(savepoint)] = None

    def _rolled_back(self, connection: Connection, name: str, context: None) -> None:
        savepoint = connection.get_nested_transaction()
        self._queues = {note: None for note in self._queues if note[1]() is not savepoint}

    def ring(self, connection: Connection) -> None:
        """Notify whom it concerns, just before the COMMIT on ``connection``."""
        transaction, queues = self._transaction(), self._queues
        self._transaction, self._queues = _reference(None), {}
        if queues and transaction is connection.get_transaction():
            _ring(connection, {place for place, _ in queues})


def _committing(connection: Connection) -> None:
    notes = _noted.get(connection)
    if notes is not None:
        notes.ring(connection)


def _reference(transaction: Any) -> Callable[[], Any]:
    return _none if transaction is None else ref(transaction)


def _none() -> None:
    """Refer to no transaction."""


def _inserted(mapper: Any, connection: Connection, job: Any) -> None:
    queue, *instants = _news(job)
    if not _is_due(queue, *instants):
        return
    place = _note(connection, mapper.local_table, queue)
    session = object_session(job)
    if _sleepers and session is not None:
        session.info.setdefault(_ENQUEUED, set()).add((connection, place))


def _news(job: Any) -> tuple[Any, Any, Any]:
    values: dict[str, Any] = job.__dict__  # what is not there is the database's to say, and not worth a question
    return values.get("queue"), values.get("process_at"), values.get("enqueued_at")


def _is_due(queue: Any, at: Any, now: Any) -> bool:
    """Say whether a job is due at once; where that is an expression, the server may well say so."""
    if not isinstance(at, datetime) or not isinstance(now, datetime) or (at.tzinfo is None) != (now.tzinfo is None):
        return isinstance(queue, str)
    return isinstance(queue, str) and at <= now


def _note(connection: Connection, table: Any, queue: str) -> Address:
    place = beacons.address(connection, table, queue)
    if connection.dialect.name == "postgresql":
        notes = _noted.get(connection)
        if notes is None:
            _attend(connection.engine)
            notes = _noted[connection] = _Notes()
        notes.add(connection, place)
    return place


def _attend(engine: Engine) -> None:
    """See the commits of an engine: to listen to each connection by itself would cost more than what is noted of it."""
    if engine not in _attended:
        _attended.add(engine)
        event.listen(engine, "commit", _committing)


def _ring(connection: Connection, places: Iterable[Address]) -> None:
    """Notify the idle workers of ``places``, but for those of which it was just found that none is idle."""
    quiet, now = _quiet.setdefault(connection.engine.pool, {}), clock.monotonic()
    asked = [place for place in places if quiet.get(place, 0.0) <= now]
    if not asked:
        return
    try:
        idle = beacons.ring(connection, asked)
    except Exception as error:
        if sqlstate(error) == _FAILED_BEFORE:  # the app goes on to its COMMIT, which the server makes a rollback
            return
        raise
    quiet.update({place: clock.monotonic() + QUIET for place in asked if place.subject not in idle})


def _committed(session: Session) -> None:
    """Wake the workers in this process; the end of a savepoint, or of a session within the app's transaction, is none."""
    notes: set[tuple[Connection, Address]] = session.info.pop(_ENQUEUED, set())
    for connection, place in notes:
        if connection.in_transaction():
            session.info.setdefault(_ENQUEUED, set()).add((connection, place))
            continue
        for ring in [*_sleepers.get(connection.engine.pool, {}).get(place, ())]:
            ring()
