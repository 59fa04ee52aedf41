"""The rows of the worker table on MariaDB and MySQL: the verbs of ``roster``, ``bulletin`` and ``cancellation``.

It owns what is spelt otherwise: an upsert, and a delete that skips what others hold, which are two statements here.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, bindparam, delete, exists, func, literal, or_, select, tuple_
from sqlalchemy.dialects.mysql import insert

from sa_proletarian.bulletin import JOB, Bulletin
from sa_proletarian.cancellation import ANYBODY, CANCEL, Cancelling, Request
from sa_proletarian.dialects import statement_now
from sa_proletarian.roster import QUEUE, Roster
from sa_proletarian.tables import NAME_LIMIT

from .lifecycle import microseconds
from .statements import later


class MySQLRoster(Roster):
    """The rows that say which worker works on which queue."""

    def register(
        self,
        connection: Connection,
        *,
        queue: str,
        worker_id: str,
        idle: bool,
        detail: dict[str, Any],
        started_at: datetime | None,
    ) -> datetime:
        values = {"subject": queue, "worker_id": worker_id, "idle": idle, "detail": detail}
        connection.execute(self._register, {**values, "since": started_at})
        at: datetime = connection.execute(self._registered, {"about": queue, "me": worker_id}).scalar_one()
        return at

    def _registration(self) -> Any:
        row, now = self._table.c, statement_now()
        self._registered: Any = select(row.started_at).where(
            row.kind == QUEUE, row.subject == bindparam("about"), row.worker_id == bindparam("me")
        )
        statement = insert(self._table).values(
            kind=QUEUE,
            subject=bindparam("subject"),
            worker_id=bindparam("worker_id"),
            idle=bindparam("idle"),
            detail=bindparam("detail"),
            started_at=func.coalesce(bindparam("since", type_=row.started_at.type), now),
            last_seen_at=now,
        )
        return _upsert(statement, "idle", "detail", "started_at", "last_seen_at")

    def _striking(self) -> Any:
        row = self._table.c
        seen_at = bindparam("seen_at", type_=row.last_seen_at.type)
        return (
            select(row.kind, row.subject, row.worker_id)
            .where(row.kind == QUEUE, row.subject == bindparam("in_queue"), row.worker_id == bindparam("name"))
            .where(row.last_seen_at == func.coalesce(seen_at, row.last_seen_at))
            .with_for_update(skip_locked=True)
        )

    def _strike_off(self, connection: Connection, subject: str, worker_id: str, seen_at: datetime | None) -> None:
        free = connection.execute(self._strike, {"in_queue": subject, "name": worker_id, "seen_at": seen_at}).all()
        _delete(connection, self._table, free)


class MySQLBulletin(Bulletin):
    """The rows that say how far the jobs of one worker are."""

    def show(self, connection: Connection, details: Mapping[str, Any]) -> None:
        for job, detail in details.items():
            connection.execute(self._show, {"about": job, "me": self._me, "news": detail})

    def sweep(self, connection: Connection) -> None:
        _delete(connection, self._table, connection.execute(self._orphans).all())

    def _showing(self) -> Any:
        row = self._table.c
        statement = insert(self._table).values(
            kind=JOB,
            subject=bindparam("about", type_=row.subject.type),
            worker_id=bindparam("me", type_=row.worker_id.type),
            idle=False,
            detail=bindparam("news", type_=row.detail.type),
            started_at=statement_now(),
            last_seen_at=statement_now(),
        )
        return _upsert(statement, "detail", "last_seen_at")

    def _sweeping(self) -> Any:
        row, worker = self._table.c, self._table.alias("worker")
        is_there = exists(select(literal(1)).where(worker.c.kind == QUEUE, worker.c.worker_id == row.worker_id))
        orphans = select(row.kind, row.subject, row.worker_id).where(row.kind == JOB, ~is_there)
        return orphans.with_for_update(skip_locked=True)


class MySQLCancelling(Cancelling):
    """The rows that ask for a job to be given up."""

    def pending(self, connection: Connection, *, worker_id: str, patience: timedelta) -> list[Request]:
        rows = connection.execute(self._pending, {"me": worker_id, "patience": -microseconds(patience)})
        return [Request.of(row) for row in rows]

    def _insert_request(self, connection: Connection, job_id: Any, subject: str, detail: dict[str, Any]) -> bool:
        """Read who has the job, without a lock: an INSERT … SELECT would wait for whoever holds it."""
        job = self._job.c
        found = connection.execute(select(job.claimed_by).where(job.job_id == job_id)).one_or_none()
        if found is None:
            return False
        whom = ANYBODY if found.claimed_by is None else found.claimed_by[-NAME_LIMIT:]
        connection.execute(self._request, {"subject": subject, "to": whom, "detail": detail})
        return True

    def _take_request(self, connection: Connection, request: Request) -> bool:
        free = connection.execute(self._take, {"about": request.subject, "to": request.worker_id}).all()
        _delete(connection, self._table, free)
        return bool(free)

    def _requesting(self) -> Any:
        return insert(self._table).values(
            kind=CANCEL,
            subject=bindparam("subject"),
            worker_id=bindparam("to"),
            idle=False,
            detail=bindparam("detail"),
            started_at=statement_now(),
            last_seen_at=statement_now(),
        )

    def _reading(self) -> Any:
        row = self._table.c
        unheeded = row.last_seen_at < later(bindparam("patience"))
        mine = or_(row.worker_id == bindparam("me"), row.worker_id == ANYBODY, unheeded)
        return select(row.subject, row.worker_id, row.detail).where(row.kind == CANCEL, mine)

    def _taking(self) -> Any:
        row = self._table.c
        return (
            select(row.kind, row.subject, row.worker_id)
            .where(row.kind == CANCEL, row.subject == bindparam("about"), row.worker_id == bindparam("to"))
            .with_for_update(skip_locked=True)
        )


def _upsert(statement: Any, *columns: str) -> Any:
    return statement.on_duplicate_key_update({name: statement.inserted[name] for name in columns})


def _delete(connection: Connection, table: Any, rows: Any) -> None:
    """Delete rows that are locked, by their keys."""
    if rows:
        key = tuple_(table.c.kind, table.c.subject, table.c.worker_id)
        connection.execute(delete(table).where(key.in_([tuple(row) for row in rows])))
