"""The leases of workers that have died, on MariaDB and MySQL: locked first, then ended.

It owns the statements, as ``leases`` does for PostgreSQL. There the server sees by itself that a host is gone whose
transactions hold jobs; here whoever finds a worker dead has to end them, and may, as the same user.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, String, bindparam, select, update

from sa_proletarian.dialects import statement_now
from sa_proletarian.leases import Leases

from .lifecycle import kill, lock_of


class MySQLLeases(Leases):
    """The verb on leases of the dead, for one job model."""

    def __init__(self, job_model: Any) -> None:
        job = job_model.__table__
        workers = bindparam("workers", expanding=True, type_=String())
        theirs = (job.c.claimed_by.in_(workers), job.c.claimed_until > statement_now())
        among = job.c.job_id.in_(bindparam("ids", expanding=True, type_=job.c.job_id.type))
        self._theirs: Any = select(job.c.job_id).where(*theirs)  # without a lock: there is no index on who has claimed
        self._free: Any = self._theirs.where(among).with_for_update(skip_locked=True)
        self._claims: Any = select(job.c.job_id, job.c.claim_id).where(
            job.c.claimed_by.in_(workers), job.c.claim_id.is_not(None)
        )
        self._end: Any = update(job).where(among).values(claimed_until=statement_now())

    def cut_off(self, connection: Connection, worker_ids: Sequence[str]) -> int:
        claims = connection.execute(self._claims, {"workers": list(worker_ids)}).all()
        return sum(kill(connection, "CONNECTION", lock_of(*claim)) for claim in claims)

    def end(self, connection: Connection, worker_ids: Sequence[str]) -> tuple[int, int]:
        parameters = {"workers": list(worker_ids)}
        free: list[Any] = []
        if theirs := list(connection.scalars(self._theirs, parameters)):
            free = list(connection.scalars(self._free, {**parameters, "ids": theirs}))
        if free:
            connection.execute(self._end, {"ids": free})
        return len(free), len(theirs) - len(free)
