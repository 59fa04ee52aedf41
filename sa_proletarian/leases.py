"""The leases of workers that have died: they end at once, and not when their time is over.

It owns the statement. A claim whose lease is ended here is an expired claim like any other, so that its next claim counts
the crash. It refuses to know who is dead, and to touch rows that a transaction still holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Text, any_, bindparam, func, select, update
from sqlalchemy.dialects.postgresql import ARRAY

from .dialects import statement_now


class Leases:
    """The verb on leases of the dead, for one job model."""

    def __init__(self, job_model: Any) -> None:
        job = job_model.__table__
        workers = bindparam("workers", type_=ARRAY(Text()))
        theirs = (job.c.claimed_by == any_(workers), job.c.claimed_until > statement_now())
        free = select(job.c.job_id).where(*theirs).with_for_update(key_share=True, skip_locked=True, of=job).subquery("free")
        self._end: Any = update(job).where(job.c.job_id == free.c.job_id).values(claimed_until=statement_now())
        self._left: Any = select(func.count()).select_from(job).where(*theirs)

    def cut_off(self, connection: Connection, worker_ids: Sequence[str]) -> int:
        """End the sessions of dead workers that still hold jobs, where the server does not by itself; give how many."""
        return 0

    def end(self, connection: Connection, worker_ids: Sequence[str]) -> tuple[int, int]:
        """End the leases of ``worker_ids``, who must be dead; give how many, and how many rows somebody still holds."""
        parameters = {"workers": list(worker_ids)}
        ended: int = connection.execute(self._end, parameters).rowcount
        left: int = connection.scalar(self._left, parameters) or 0
        return ended, left
