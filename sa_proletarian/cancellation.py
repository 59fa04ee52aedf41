"""Cancelling a job from outside: the verb for apps, and those on the worker table's rows of kind ``cancel``.

It owns their statements and what is in them. Nothing here waits for a lock: a job that waits is archived at once, and of
one that runs its worker is asked, by a row of its own. It refuses to begin a transaction, and to know when a worker looks
for requests: that is ``requests``'s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any, Self
from uuid import uuid4

from sqlalchemy import Connection, Interval, Text, bindparam, delete, func, insert, inspect, literal, or_, select, tuple_
from sqlalchemy.orm import sessionmaker

from . import outcomes
from .dialects import Trouble, statement_now, trouble
from .errors import ConfigurationError
from .lifecycle import Lifecycle
from .tables import NAME_LIMIT

CANCEL = "cancel"
ANYBODY = ""
"""The ``worker_id`` of a request of which it could not be seen who has the job: whoever has it is meant."""
USUAL_REASON = "cancelled from outside"

_NO_TABLE = (
    "the job is being run, and asking its worker to give it up needs the worker table of version 2 of the schema, "
    "which is not there: run alembic upgrade head"
)


class Cancellation(StrEnum):
    """What ``jobs.cancel`` could do at once."""

    CANCELLED = "cancelled"
    """The job waited; it is in the archive as ``cancelled``."""
    REQUESTED = "requested"
    """The job is being run; its worker is asked to end it."""
    NOT_FOUND = "not_found"
    """There is no such job, or not any more."""


@dataclass(frozen=True, slots=True)
class Request:
    """That somebody wants a job to be given up; ``job`` is its id as text."""

    subject: str
    worker_id: str
    reason: str

    @classmethod
    def of(cls, row: Any) -> Self:
        """Give the request in a row of the table."""
        return cls(row.subject, row.worker_id, _reason(row.detail))

    @property
    def job(self) -> str:
        return self.subject.rsplit(" ", 1)[0]


class Cancelling:
    """The verbs, for one pair of models."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle
        model: Any = lifecycle.job_model
        self._job: Any = model.__table__
        self._table: Any = getattr(model, "__worker_table__", None)  # a model of a given table has none
        if self._table is not None:
            self._request: Any = self._requesting()
            self._pending: Any = self._reading()
            self._take: Any = self._taking()

    def cancel(self, connection: Connection, job_id: Any, reason: str) -> Cancellation:
        """Archive the job if it waits, else ask whoever runs it."""
        if self._lifecycle.cancel_waiting(connection, job_id, outcomes.cancelled(reason)):
            return Cancellation.CANCELLED
        if self._table is not None:
            return self._ask(connection, job_id, reason)
        if self._lifecycle.standing(connection, [job_id]):
            raise ConfigurationError(_NO_TABLE)
        return Cancellation.NOT_FOUND

    def _ask(self, connection: Connection, job_id: Any, reason: str) -> Cancellation:
        # a word of its own: the same key as another's, not yet committed, would have to be waited for
        word = f" {uuid4().hex}"
        subject = f"{job_id}"[: NAME_LIMIT - len(word)] + word
        try:
            with connection.begin_nested():
                asked = self._insert_request(connection, job_id, subject, {"reason": reason})
        except Exception as error:
            if trouble(error) is Trouble.MISSING_TABLE:
                raise ConfigurationError(_NO_TABLE) from error
            raise
        return Cancellation.REQUESTED if asked else Cancellation.NOT_FOUND

    def pending(self, connection: Connection, *, worker_id: str, patience: timedelta) -> list[Request]:
        """Give the requests to a worker, to anybody, and those to others that were not heeded for so long."""
        rows = connection.execute(self._pending, {"me": worker_id, "patience": patience}).all()
        return [Request.of(row) for row in rows]

    def make_again(self, connection: Connection, request: Request) -> None:
        """Do what is to be done by now about a request whose job is not where it was looked for."""
        if self._take_request(connection, request) and (job_id := self._id(request.job)) is not None:
            self.cancel(connection, job_id, request.reason)

    def _insert_request(self, connection: Connection, job_id: Any, subject: str, detail: dict[str, Any]) -> bool:
        parameters = {"id": job_id, "subject": subject, "detail": detail}
        return bool(connection.execute(self._request, parameters).all())

    def _take_request(self, connection: Connection, request: Request) -> bool:
        return bool(connection.execute(self._take, {"about": request.subject, "to": request.worker_id}).all())

    def _id(self, text: str) -> Any:
        try:
            return self._job.c.job_id.type.python_type(text)
        except ValueError:
            return None

    def _requesting(self) -> Any:
        job, row = self._job.c, self._table.c
        values = {
            row.kind: literal(CANCEL, row.kind.type),
            row.subject: bindparam("subject", type_=row.subject.type),
            row.worker_id: func.coalesce(func.right(job.claimed_by, NAME_LIMIT), ANYBODY, type_=Text()),
            row.idle: literal(False, row.idle.type),
            row.detail: bindparam("detail", type_=row.detail.type),
            row.started_at: statement_now(),
            row.last_seen_at: statement_now(),
        }
        of_the_job = select(*values.values()).where(job.job_id == bindparam("id", type_=job.job_id.type))
        return insert(self._table).from_select([*values], of_the_job).returning(row.subject)

    def _reading(self) -> Any:
        row = self._table.c
        unheeded = row.last_seen_at < statement_now() - bindparam("patience", type_=Interval())
        mine = or_(row.worker_id == bindparam("me"), row.worker_id == ANYBODY, unheeded)
        return select(row.subject, row.worker_id, row.detail).where(row.kind == CANCEL, mine)

    def _taking(self) -> Any:
        row = self._table.c
        free = (
            select(row.kind, row.subject, row.worker_id)
            .where(row.kind == CANCEL, row.subject == bindparam("about"), row.worker_id == bindparam("to"))
            .with_for_update(skip_locked=True)
        )
        return delete(self._table).where(tuple_(row.kind, row.subject, row.worker_id).in_(free)).returning(row.subject)


def cancel(
    target: Any,
    job_model: Any,
    archived_model: Any,
    job_id: Any,
    reason: str,
    verbs: Callable[[str, Any, Any], Cancelling],
) -> Cancellation:
    """Cancel a job in the caller's own transaction.

    :param target: a ``Session``, ``scoped_session`` or Flask-SQLAlchemy's ``db.session``, which is flushed; or a
        ``Connection``.
    :param verbs: gives them for a dialect and a pair of models.
    """
    mapper = inspect(job_model)
    expected: type = mapper.columns["job_id"].type.python_type
    if not isinstance(job_id, expected) or isinstance(job_id, bool):
        raise TypeError(f"job_id must be a {expected.__name__}, got {job_id!r}")
    if not isinstance(reason, str):
        raise TypeError(f"reason must be a text, got {reason!r}")
    connection = target if isinstance(target, Connection) else _connection(target, mapper)
    return verbs(connection.dialect.name, job_model, archived_model).cancel(connection, job_id, reason)


def _connection(target: Any, mapper: Any) -> Connection:
    if isinstance(target, (type, sessionmaker)):
        raise TypeError("cancel takes a session or a connection, not what makes one: call it first")
    if hasattr(target, "run_sync") or type(target).__name__ == "async_scoped_session":
        raise TypeError(
            f"cancel executes at once, so {type(target).__name__} cannot take it directly;"
            " use: await session.run_sync(jobs.cancel, job_id), or the same of an AsyncConnection"
        )
    if not all(callable(getattr(target, name, None)) for name in ("connection", "flush")):
        raise TypeError(f"cancel takes a session or a connection, got a {type(target).__name__}")
    target.flush()
    connection: Connection = target.connection(bind_arguments={"mapper": mapper})
    return connection


def _reason(detail: Any) -> str:
    match detail:
        case {"reason": str() as reason}:
            return reason
        case _:
            return USUAL_REASON
