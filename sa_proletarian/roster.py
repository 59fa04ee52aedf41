"""Who is here: the verbs on the worker table that concern its rows of kind ``queue``.

It owns their statements and what is in them. It refuses to begin a transaction, and to know when to write: that is
``presence``'s.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Self

from sqlalchemy import Connection, Table, bindparam, delete, func, select, tuple_
from sqlalchemy.dialects.postgresql import insert

from .dialects import statement_now

QUEUE = "queue"
SILENT_LEASES = 5
"""A worker that was not seen for so many of its own leases is taken for dead."""
USUAL_LEASE = 30.0


class Roster:
    """The rows of one worker table that say which worker works on which queue."""

    @classmethod
    def beside(cls, job_model: type[Any]) -> Self | None:
        """Give the roster of a job model; ``None`` for one that brings no worker table."""
        table = getattr(job_model, "__worker_table__", None)
        return None if table is None else cls(table)

    def __init__(self, table: Table) -> None:
        self._table = table
        self._register: Any = self._registration()
        self._seen: Any = self._sightings()
        self._strike: Any = self._striking()

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
        """Say that the worker is here now, also where it was struck off; give ``started_at``, by default now."""
        values = {"subject": queue, "worker_id": worker_id, "idle": idle, "detail": detail}
        at: datetime = connection.execute(self._register, {**values, "since": started_at}).scalar_one()
        return at

    def unregister(self, connection: Connection, *, queue: str, worker_id: str) -> None:
        """Remove the worker's row, wherever it is not locked."""
        self._strike_off(connection, queue, worker_id, None)

    def strike_off_the_dead(self, connection: Connection) -> None:
        """Remove the rows of workers that were not seen for five of their own leases, wherever they are not locked."""
        for row in connection.execute(self._seen).all():
            if is_silent(row):
                self._strike_off(connection, row.subject, row.worker_id, row.last_seen_at)

    def tied(self, connection: Connection, *, queue: str) -> list[str]:
        """Give the workers of ``queue`` that have said that they show a beacon for as long as they live."""
        rows = connection.execute(self._seen).all()
        return [row.worker_id for row in rows if row.subject == queue and is_tied(row.detail)]

    def _strike_off(self, connection: Connection, subject: str, worker_id: str, seen_at: datetime | None) -> None:
        connection.execute(self._strike, {"in_queue": subject, "name": worker_id, "seen_at": seen_at})

    def _registration(self) -> Any:
        now = statement_now()
        statement = insert(self._table).values(
            kind=QUEUE,
            subject=bindparam("subject"),
            worker_id=bindparam("worker_id"),
            idle=bindparam("idle"),
            detail=bindparam("detail"),
            started_at=func.coalesce(bindparam("since", type_=self._table.c.started_at.type), now),
            last_seen_at=now,
        )
        news = {name: statement.excluded[name] for name in ("idle", "detail", "started_at", "last_seen_at")}
        return statement.on_conflict_do_update(index_elements=[*self._table.primary_key], set_=news).returning(
            self._table.c.started_at
        )

    def _sightings(self) -> Any:
        row = self._table.c
        columns = (row.subject, row.worker_id, row.detail, row.last_seen_at, statement_now().label("now"))
        return select(*columns).where(row.kind == QUEUE)

    def _striking(self) -> Any:
        row = self._table.c
        seen_at = bindparam("seen_at", type_=row.last_seen_at.type)
        free = (
            select(row.kind, row.subject, row.worker_id)
            .where(row.kind == QUEUE, row.subject == bindparam("in_queue"), row.worker_id == bindparam("name"))
            .where(row.last_seen_at == func.coalesce(seen_at, row.last_seen_at))
            .with_for_update(skip_locked=True)
        )
        return delete(self._table).where(tuple_(row.kind, row.subject, row.worker_id).in_(free))


def is_silent(row: Any) -> bool:
    """Say whether a worker was not seen for so long that it is taken for dead.

    The times are in the session's zone, and two of one zone subtract as if its clocks never changed.
    """
    silence: float = row.now.timestamp() - row.last_seen_at.timestamp()
    return silence > SILENT_LEASES * lease_in(row.detail)


def lease_in(detail: Any) -> float:
    """Give the lease that a worker has written down, in seconds; the usual one where somebody wrote something else."""
    match detail:
        case {"lease": int() | float() as lease}:
            return float(lease)
        case _:
            return USUAL_LEASE


def is_tied(detail: Any) -> bool:
    """Say whether a worker has written down that a beacon burns while it lives."""
    match detail:
        case {"tied": True}:
            return True
        case _:
            return False
