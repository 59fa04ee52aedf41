"""How far jobs are: the verbs on the worker table that concern its rows of kind ``job``.

It owns their statements and what is in them. It refuses to begin a transaction, and to know when to write: that is
``progress``'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from sqlalchemy import Connection, Table, bindparam, delete, exists, literal, select, tuple_
from sqlalchemy.dialects.postgresql import insert

from .dialects import statement_now
from .roster import QUEUE

JOB = "job"


class Bulletin:
    """The rows of one worker table that say how far the jobs of one worker are."""

    @classmethod
    def beside(cls, job_model: type[Any], *, worker_id: str) -> Self | None:
        """Give the bulletin of a job model; ``None`` for one that brings no worker table."""
        table = getattr(job_model, "__worker_table__", None)
        return None if table is None else cls(table, worker_id=worker_id)

    def __init__(self, table: Table, *, worker_id: str) -> None:
        self._table = table
        self._me = worker_id
        self._show: Any = self._showing()
        self._remove: Any = self._removing()
        self._orphans: Any = self._sweeping()

    def show(self, connection: Connection, details: Mapping[str, Any]) -> None:
        """Write how far jobs are, by their ids as text."""
        rows = [{"about": job, "me": self._me, "news": detail} for job, detail in details.items()]
        connection.execute(self._show, rows)

    def remove(self, connection: Connection, jobs: Sequence[str]) -> None:
        """Remove the rows about ``jobs``."""
        connection.execute(self._remove, {"jobs": list(jobs), "me": self._me})

    def sweep(self, connection: Connection) -> None:
        """Remove the rows of workers that are not there any more, wherever they are not locked."""
        connection.execute(self._orphans)

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
        news = {name: statement.excluded[name] for name in ("detail", "last_seen_at")}
        return statement.on_conflict_do_update(index_elements=[*self._table.primary_key], set_=news)

    def _removing(self) -> Any:
        row = self._table.c
        jobs = bindparam("jobs", expanding=True, type_=row.subject.type)
        return delete(self._table).where(row.kind == JOB, row.worker_id == bindparam("me"), row.subject.in_(jobs))

    def _sweeping(self) -> Any:
        row, worker = self._table.c, self._table.alias("worker")
        is_there = exists(select(literal(1)).where(worker.c.kind == QUEUE, worker.c.worker_id == row.worker_id))
        orphans = select(row.kind, row.subject, row.worker_id).where(row.kind == JOB, ~is_there)
        free = orphans.with_for_update(skip_locked=True, of=self._table)
        return delete(self._table).where(tuple_(row.kind, row.subject, row.worker_id).in_(free))
