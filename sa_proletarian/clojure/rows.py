"""The verbs that move Proletarian's rows, with its columns alone.

It owns the way in which Proletarian's own worker does it: a lock on the row is the claim, and the transaction that has it
lasts until the job is settled. So there is no lease, no fence and no count of crashes: when a process or a connection dies,
the server takes the lock away and the job is due as before.

``attempts`` serves as a weak fence where a job must be found again in another transaction: a run that was recorded in the
meantime has changed it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Connection,
    Interval,
    Select,
    Table,
    Text,
    any_,
    bindparam,
    cast,
    delete,
    func,
    insert,
    literal,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY

from sa_proletarian.claims import Claim, Held
from sa_proletarian.dialects import clock_now, later, statement_now
from sa_proletarian.lifecycle import Lifecycle
from sa_proletarian.outcomes import RETURNED, Move, Ruling, Status
from sa_proletarian.sessions import Hold
from sa_proletarian.statements import MOST_ATTEMPTS
from sa_proletarian.tables import EARLIEST, LATEST

STATUSES = {
    Status.SUCCESS: ":success",
    Status.FAILURE: ":failure",
    # Proletarian knows no third; what reads its archive must find every job under one of the two
    Status.CANCELLED: ":failure",
}

_NO_FENCE = UUID(int=0)

_ABOUT_THE_TRANSACTION = text(
    "SELECT set_config('idle_in_transaction_session_timeout', '0', true),"
    " current_setting('search_path') AS search_path, current_setting('role') AS role,"
    " pg_backend_pid() AS pid, CAST(pg_current_xact_id() AS text) AS transaction_id"
)


class RowLifecycle(Lifecycle):
    """The verbs, for one pair of models on Proletarian's tables."""

    def __init__(self, job_model: Any, archived_model: Any) -> None:
        self.job_model = job_model
        self.archived_model = archived_model
        self._job: Table = job_model.__table__
        self._archived: Table = archived_model.__table__

    @property
    def payload_is_json(self) -> bool:
        return False

    def claim_next(self, connection: Connection, *, queue: str, known: Sequence[str] | None) -> Claim | None:
        """Lock the next due job of ``queue`` until the caller's transaction ends; ``None`` when there is none."""
        row = connection.execute(self._due(queue, known)).one_or_none()
        if row is None:
            return None
        attempts = min(row.attempts, MOST_ATTEMPTS) + 1
        values = {**row._mapping, "attempts": attempts}
        return Claim(values, row.job_id, _NO_FENCE, row.job_type, attempts, crashes=0)

    def hold(self, connection: Connection, claim: Claim, *, lock_timeout: timedelta) -> Held | None:
        """Lock the claimed row again, in another transaction; ``None`` when somebody else has it, or has run it."""
        statement = select(self._job.c.job_id).where(*self._fence(claim)).with_for_update(skip_locked=True, key_share=True)
        return None if connection.scalar(statement) is None else self.held(connection)

    def held(self, connection: Connection) -> Held:
        """Give what is known of the transaction that has the lock; no limit on idle transactions applies to it."""
        row = connection.execute(_ABOUT_THE_TRANSACTION).one()
        return Held(row.pid, row.transaction_id, row.search_path, row.role)

    def settle(self, connection: Connection, rulings: Iterable[tuple[Claim, Ruling]]) -> dict[Any, str]:
        settled: dict[Any, str] = {}
        for claim, ruling in rulings:
            statement = self._settling(claim, ruling)
            rows: Any = connection.execute(statement) if statement is not None else ()
            settled.update({row[0]: row[1] for row in rows})
        return settled

    def finish(self, connection: Connection, claims: Sequence[Claim]) -> Collection[Any]:
        moved = self.settle(connection, [(claim, RETURNED) for claim in claims])
        return [claim.job_id for claim in claims if claim.job_id not in moved]

    def standing(self, connection: Connection, job_ids: Sequence[Any]) -> dict[Any, UUID | None]:
        job_id = self._job.c.job_id
        return dict.fromkeys(connection.scalars(select(job_id).where(job_id.in_(job_ids))))

    # statements -------------------------------------------------------------------------------------------------------

    def _due(self, queue: str, known: Sequence[str] | None) -> Any:
        job = self._job.c
        conditions = [job.queue == queue, job.process_at <= statement_now()]
        if known is not None:
            conditions.append(job.job_type == any_(bindparam("known", list(known), type_=ARRAY(Text()))))
        return (
            select(
                job.job_id,
                job.queue,
                job.job_type,
                job.payload,
                job.attempts,
                _readable(job.enqueued_at),
                _readable(job.process_at),
            )
            .where(*conditions)
            .order_by(job.process_at)
            .limit(1)
            .with_for_update(skip_locked=True, key_share=True)
        )

    def _settling(self, claim: Claim, ruling: Ruling) -> Any:
        fate = ruling.fate
        match fate.move:
            case Move.ARCHIVE:
                assert fate.status is not None
                return self._archive(claim, STATUSES[fate.status])
            case Move.RESCHEDULE:
                return self._reschedule(claim, ruling.delay, attempt=fate.attempt)
            case Move.RELEASE:
                return self._free(claim)  # the end of the transaction releases it
            case Move.LEAVE:
                return None

    def _archive(self, claim: Claim, status: str) -> Any:
        job, archived = self._job.c, self._archived.c
        attempts = (func.least(job.attempts, MOST_ATTEMPTS) + 1).label("attempts")
        gone: Any = (
            delete(self._job)
            .where(job.job_id.in_(self._free_id(claim)))
            .returning(job.job_id, job.queue, job.job_type, job.payload, attempts, job.enqueued_at, job.process_at)
            .cte("gone")
        )
        names = [*gone.c.keys(), "status", "finished_at"]
        moved: Any = select(*gone.c, literal(status, Text()), clock_now())
        return insert(self._archived).from_select(names, moved).returning(archived.job_id, _transaction_id())

    def _reschedule(self, claim: Claim, delay: timedelta | None, *, attempt: bool) -> Any:
        job = self._job.c
        return (
            update(self._job)
            .where(job.job_id.in_(self._free_id(claim)))
            .values(
                process_at=func.coalesce(later(clock_now(), cast(delay, Interval())), job.process_at),
                attempts=func.least(job.attempts, MOST_ATTEMPTS) + (1 if attempt else 0),
            )
            .returning(job.job_id, _transaction_id())
        )

    def _free(self, claim: Claim) -> Any:
        free = self._free_id(claim).subquery()
        return select(free.c.job_id, _transaction_id())

    def _free_id(self, claim: Claim) -> Select[Any]:
        """The job's id, unless somebody else has the row or has recorded a run of it; a lock of our own is none to us."""
        return select(self._job.c.job_id).where(*self._fence(claim)).with_for_update(skip_locked=True, key_share=True)

    def _fence(self, claim: Claim) -> tuple[Any, Any]:
        job = self._job.c
        return job.job_id == claim.job_id, func.least(job.attempts, MOST_ATTEMPTS) == claim.attempts - 1


class RowHold(Hold):
    """A hold whose transaction is open from the claim on."""

    _may_script = False

    def adopt(self, connection: Connection, held: Held) -> None:
        """Take over the ``connection`` on which the job was claimed."""
        self._connection = connection
        self.held: Held | None = held
        self._options = connection.get_execution_options()
        self._savepoint = connection.begin_nested()


def _readable(column: Any) -> Any:
    """Give the instant, or the nearest that Python can express: no CHECK keeps infinity out of these tables."""
    return func.greatest(func.least(column, literal(LATEST)), literal(EARLIEST)).label(column.key)


def _transaction_id() -> ColumnElement[str]:
    return cast(func.pg_current_xact_id(), Text)
