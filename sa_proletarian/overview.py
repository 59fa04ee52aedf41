"""What goes on now: the worker table, read for people.

It owns the reading, and the values that it gives. It refuses to decide anything by them: what is claimed, and by whom, is in
the job's own row and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from sqlalchemy import Connection, inspect, select
from sqlalchemy.orm import sessionmaker

from .bulletin import JOB
from .cancellation import CANCEL
from .dialects import Trouble, statement_now, trouble
from .errors import ConfigurationError
from .roster import QUEUE, is_silent

_NO_TABLE = "what runs now is in the worker table of version 2 of the schema, which is not there: run alembic upgrade head"


@dataclass(frozen=True, slots=True)
class RunningJob:
    """A job whose handler has said how far it is; ``attempt`` counts this one. One that says nothing is not here."""

    job_id: str
    worker_id: str
    done: float
    total: float | None
    note: str | None
    attempt: int
    seen_at: datetime


@dataclass(frozen=True, slots=True)
class RunningWorker:
    """A worker on one queue.

    :param idle: whether a job that became due now would start at once.
    :param silent: whether it was not seen for so long that it is taken for dead.
    """

    worker_id: str
    queue: str
    idle: bool
    silent: bool
    detail: dict[str, Any]
    started_at: datetime
    seen_at: datetime


@dataclass(frozen=True, slots=True)
class Running:
    """What goes on now, at the moment at which it was read.

    :param cancelling: the ids of running jobs that somebody has cancelled, as text.
    """

    workers: Sequence[RunningWorker]
    jobs: Sequence[RunningJob]
    cancelling: Sequence[str]


def running(target: Any, job_model: Any) -> Running:
    """Read the worker table in the caller's own transaction.

    :param target: a ``Session``, ``scoped_session`` or Flask-SQLAlchemy's ``db.session``; or a ``Connection``.
    """
    table = getattr(job_model, "__worker_table__", None)
    if table is None:
        raise ConfigurationError(f"{job_model.__name__} is a model of a given table: there is no worker table beside it")
    rows = _read(_connection(target, job_model), table)
    of = {kind: [row for row in rows if row.kind == kind] for kind in (QUEUE, JOB, CANCEL)}
    return Running(
        workers=[_worker(row) for row in of[QUEUE]],
        jobs=[_job(row) for row in of[JOB]],
        cancelling=list(dict.fromkeys(row.subject.rsplit(" ", 1)[0] for row in of[CANCEL])),
    )


def _read(connection: Connection, table: Any) -> Sequence[Any]:
    statement = select(table, statement_now().label("now")).order_by(table.c.subject, table.c.worker_id)
    try:
        with connection.begin_nested():
            return connection.execute(statement).all()
    except Exception as error:
        if trouble(error) is Trouble.MISSING_TABLE:
            raise ConfigurationError(_NO_TABLE) from error
        raise


def _worker(row: Any) -> RunningWorker:
    return RunningWorker(row.worker_id, row.subject, row.idle, is_silent(row), _said(row), row.started_at, row.last_seen_at)


def _job(row: Any) -> RunningJob:
    said = _said(row)
    done, total, note, attempt = said.get("done", 0), said.get("total"), said.get("note"), said.get("attempt", 1)
    return RunningJob(row.subject, row.worker_id, done, total, note, attempt, row.last_seen_at)


def _said(row: Any) -> dict[str, Any]:
    """Give the detail; nothing where somebody has written something else by hand."""
    return cast("dict[str, Any]", row.detail) if isinstance(row.detail, dict) else {}


def _connection(target: Any, job_model: Any) -> Connection:
    if isinstance(target, Connection):
        return target
    if isinstance(target, (type, sessionmaker)):
        raise TypeError("running takes a session or a connection, not what makes one: call it first")
    if hasattr(target, "run_sync") or type(target).__name__ == "async_scoped_session":
        raise TypeError(
            f"running executes at once, so {type(target).__name__} cannot take it directly;"
            " use: await session.run_sync(jobs.running), or the same of an AsyncConnection"
        )
    if not callable(getattr(target, "connection", None)):
        raise TypeError(f"running takes a session or a connection, got a {type(target).__name__}")
    connection: Connection = target.connection(bind_arguments={"mapper": inspect(job_model)})
    return connection
