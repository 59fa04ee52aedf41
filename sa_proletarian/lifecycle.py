"""The verbs that move rows: claim, hold, settle, renew.

It owns every statement that a worker sends. Each verb takes a connection first; none begins, commits or rolls back. All
statements are fenced: they name ``(job_id, claim_id)`` and touch nothing whose claim is somebody else's by now, so that a
late or repeated call does no harm. They are plain Core constructs, built once for a pair of models; schema translation and
execution options of the app's engine apply to them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from sqlalchemy import (
    JSON,
    Boolean,
    Connection,
    Integer,
    Interval,
    Select,
    String,
    Table,
    Text,
    any_,
    bindparam,
    case,
    cast,
    column,
    delete,
    func,
    insert,
    inspect,
    literal,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY

from .dialects import clock_now, statement_now
from .outcomes import Move, Ruling

if TYPE_CHECKING:
    from .models import ArchivedJobMixin, JobMixin

_MOST_ATTEMPTS = 2_147_483_646
_LOOK_FOR_UNKNOWN = 1_000
_LIBRARY = (
    "job_id queue job_type payload attempts enqueued_at process_at claim_id claimed_by claimed_until crashes last_error"
).split()


@dataclass(slots=True, eq=False)
class Claim:
    """A job that this worker has claimed: the row as it stands after the claim, the payload still in its stored form.

    :param unreadable: why the app's own columns could not be read; the run fails with it.
    """

    values: dict[str, Any]
    job_id: Any
    claim_id: UUID
    job_type: str
    attempts: int
    crashes: int
    claimed_at: float = 0.0
    renewed_at: float = 0.0
    unreadable: Exception | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A due row, locked but not yet claimed; ``crashes`` includes the one that an expired claim tells of."""

    row: Any
    crashes: int


@dataclass(frozen=True, slots=True)
class Held:
    """What is known of a transaction that holds a job: enough to end exactly that one from elsewhere."""

    pid: int
    transaction_id: str


class Lifecycle:
    """The statements for one pair of models; its methods are the verbs."""

    def __init__(self, job_model: type[JobMixin], archived_model: type[ArchivedJobMixin]) -> None:
        self.job_model = job_model
        self.archived_model = archived_model
        self.job: Table = job_model.__table__  # type: ignore[attr-defined]
        self.archived: Table = archived_model.__table__  # type: ignore[attr-defined]
        self.payload_is_json = isinstance(self.job.c.payload.type, JSON)
        self.extras = {key: column for key, column in inspect(job_model).columns.items() if key not in _LIBRARY}
        self._candidates = {
            (any_type, skip): self._build_candidates(any_type, skip) for any_type in (True, False) for skip in (True, False)
        }
        self._take = self._build_take()
        self._hold = self._build_hold()
        self._archive = self._build_archive()
        self._reschedule = self._build_reschedule()
        self._renew = self._build_renew()

    # claim ------------------------------------------------------------------------------------------------------------

    def candidates(
        self,
        connection: Connection,
        *,
        queue: str,
        known: Sequence[str] | None,
        limit: int,
        lease: timedelta,
        skip_crashes: int | None = None,
    ) -> list[Candidate]:
        """Lock up to ``limit`` due jobs, in the order of their turn, past those that others hold.

        :param known: the job types to look for; ``None`` for all.
        :param skip_crashes: leave out jobs with exactly so many crashes.
        """
        parameters: dict[str, Any] = {"in_queue": queue, "most": limit, "lease": lease}
        if known is not None:
            parameters["known"] = list(known)
        if skip_crashes is not None:
            parameters["skip_crashes"] = skip_crashes
        statement = self._candidates[known is None, skip_crashes is not None]
        rows = connection.execute(statement, parameters).all()
        return [Candidate(row, row.crashes + row.expired) for row in rows]

    def take(self, connection: Connection, candidates: Sequence[Candidate], *, worker_id: str) -> list[Claim]:
        """Claim the locked ``candidates`` under a fresh random fence; they are ours once the caller has committed."""
        if not candidates:
            return []
        token = uuid4()
        until = candidates[0].row.until
        ids = [candidate.row.job_id for candidate in candidates]
        result = connection.execute(self._take, {"ids": ids, "token": token, "me": worker_id, "until": until})
        claims = [self._claimed(candidate, token, worker_id, until) for candidate in candidates]
        if self.extras:
            self._read_extras(connection, claims, result)
        return claims

    def unknown_types(self, connection: Connection, *, queue: str, known: Sequence[str]) -> list[str]:
        """Give the types among the first due jobs of ``queue`` that are not in ``known``."""
        job = self.job.c
        due = (
            select(job.job_type)
            .where(job.queue == queue, job.process_at <= statement_now(), job.job_type.not_in(list(known)))
            .limit(_LOOK_FOR_UNKNOWN)
            .subquery()
        )
        return sorted(connection.scalars(select(due.c.job_type).distinct()))

    # hold -------------------------------------------------------------------------------------------------------------

    def hold(self, connection: Connection, claim: Claim, *, lock_timeout: timedelta) -> Held | None:
        """Lock the claimed row until the caller's transaction ends; ``None`` when the claim is somebody else's by now.

        The lock is waited for (our own renewal may have it for a moment), at most ``lock_timeout``; the setting is put back
        within the statement, so that the handler meets the server's own.
        """
        parameters = {"id": claim.job_id, "fence": claim.claim_id, "wait": _milliseconds(lock_timeout)}
        row = connection.execute(self._hold, parameters).one_or_none()
        return Held(row.pid, row.transaction_id) if row is not None else None

    def end_backend(self, connection: Connection, held: Held) -> None:
        """End the server process that still runs the transaction ``held``, and no other that has its pid by now."""
        connection.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE pid = :pid AND backend_xid = CAST(CAST(:xid AS xid8) AS xid)"
            ),
            {"pid": held.pid, "xid": held.transaction_id},
        )

    # settle -----------------------------------------------------------------------------------------------------------

    def settle(self, connection: Connection, rulings: Iterable[tuple[Claim, Ruling]]) -> dict[Any, str]:
        """Carry out the rulings, each in its claim's fence.

        Gives, for every job whose row was ours to move, the id of the transaction that moved it. ``CLAIM_LOST`` moves none.
        """
        archived: list[tuple[Claim, Ruling]] = []
        rescheduled: list[tuple[Claim, Ruling]] = []
        for claim, ruling in rulings:
            match ruling.fate.move:
                case Move.ARCHIVE:
                    archived.append((claim, ruling))
                case Move.RESCHEDULE | Move.RELEASE:
                    rescheduled.append((claim, ruling))
                case Move.LEAVE:
                    pass
        settled: dict[Any, str] = {}
        if archived:
            settled.update(self._run_archive(connection, archived))
        if rescheduled:
            settled.update(self._run_reschedule(connection, rescheduled))
        return settled

    def standing(self, connection: Connection, job_ids: Sequence[Any]) -> dict[Any, UUID | None]:
        """Give the present fence of those of ``job_ids`` that are still in the job table."""
        job = self.job.c
        rows = connection.execute(select(job.job_id, job.claim_id).where(job.job_id.in_(job_ids)))
        return {job_id: claim_id for job_id, claim_id in rows}

    # renew ------------------------------------------------------------------------------------------------------------

    def renew(self, connection: Connection, claims: Sequence[Claim], *, lease: timedelta) -> None:
        """Extend the leases of ``claims``; rows that their handlers hold are skipped, the lock protects them."""
        connection.execute(self._renew, {**_fences(claims), "lease": lease})

    # transaction settings ---------------------------------------------------------------------------------------------

    @staticmethod
    def set_local(connection: Connection, **settings: str) -> None:
        """Change server settings until the transaction ends."""
        for name, value in settings.items():
            connection.execute(text("SELECT set_config(:name, :value, true)"), {"name": name, "value": value})

    # the statements ---------------------------------------------------------------------------------------------------

    def _build_candidates(self, any_type: bool, skip: bool) -> Select[Any]:
        job = self.job.c
        expired = case((job.claimed_until.is_not(None), 1), else_=0)
        conditions = [
            job.queue == bindparam("in_queue"),
            job.process_at <= statement_now(),
            or_(job.claimed_until.is_(None), job.claimed_until <= statement_now()),
        ]
        if not any_type:
            conditions.append(job.job_type == any_(bindparam("known", type_=ARRAY(String()))))
        if skip:
            conditions.append(job.crashes + expired != bindparam("skip_crashes", type_=Integer()))
        payload = cast(job.payload, Text) if self.payload_is_json else job.payload
        return (
            select(
                job.job_id,
                job.queue,
                job.job_type,
                payload.label("payload"),
                job.attempts,
                job.enqueued_at,
                job.process_at,
                job.crashes,
                job.last_error,
                expired.label("expired"),
                (statement_now() + bindparam("lease", type_=Interval())).label("until"),
            )
            .where(*conditions)
            .order_by(job.process_at, job.job_id)
            .limit(bindparam("most", type_=Integer()))
            .with_for_update(skip_locked=True, key_share=True, of=self.job)
        )

    def _build_take(self) -> Any:
        job = self.job.c
        free = job.claimed_until.is_(None)
        statement = (
            update(self.job)
            .where(job.job_id == any_(bindparam("ids", type_=ARRAY(job.job_id.type))))
            .values(
                claim_id=bindparam("token", type_=job.claim_id.type),
                claimed_by=bindparam("me", type_=Text()),
                claimed_until=bindparam("until", type_=job.claimed_until.type),
                attempts=case((free, func.least(job.attempts, _MOST_ATTEMPTS) + 1), else_=job.attempts),
                crashes=case((free, job.crashes), else_=func.least(job.crashes, _MOST_ATTEMPTS) + 1),
            )
        )
        if self.extras:
            return statement.returning(job.job_id.label("claimed_job_id"), *self._labelled_extras())
        return statement

    def _build_hold(self) -> Any:
        job = self.job.c
        setting = literal("lock_timeout", Text(), literal_execute=True)
        before = select(
            func.current_setting(setting).label("value"),
            func.set_config(setting, bindparam("wait", type_=Text()), True).label("waiting"),
        ).cte("before")
        held = (
            select(job.job_id)
            .select_from(self.job.join(before, literal(True)))
            .where(job.job_id == bindparam("id", type_=job.job_id.type))
            .where(job.claim_id == bindparam("fence", type_=job.claim_id.type))
            .with_for_update(key_share=True, of=self.job)
            .cte("held")
        )
        return select(
            func.set_config(setting, before.c.value, True),
            func.pg_backend_pid().label("pid"),
            cast(func.pg_current_xact_id(), Text).label("transaction_id"),
        ).select_from(held.join(before, literal(True)))

    def _build_archive(self) -> Any:
        job = self.job.c
        fences = self._fences(status=String(), error=Text())
        moved = {
            "status": fences.c.status,
            "error": fences.c.error,
            "finished_at": clock_now(),
        }
        for key in inspect(self.archived_model).columns.keys():
            if key not in moved and (key in self.extras or key in _LIBRARY):
                moved[key] = self._job_column(key)
        gone = (
            delete(self.job)
            .where(job.job_id == fences.c.job_id, job.claim_id == fences.c.claim_id)
            .returning(*(value.label(key) for key, value in moved.items()))
            .cte("gone")
        )
        target = inspect(self.archived_model).columns
        return (
            insert(self.archived)
            .from_select([target[key] for key in moved], select(*(gone.c[key] for key in moved)))
            .returning(self.archived.c.job_id, cast(func.pg_current_xact_id(), Text))
        )

    def _build_reschedule(self) -> Any:
        job = self.job.c
        fences = self._fences(delay=Interval(), refund=Integer(), crash=Integer(), reported=Boolean(), error=Text())
        return (
            update(self.job)
            .where(job.job_id == fences.c.job_id, job.claim_id == fences.c.claim_id)
            .values(
                claim_id=None,
                claimed_by=None,
                claimed_until=None,
                process_at=func.coalesce(clock_now() + fences.c.delay, job.process_at),
                attempts=func.greatest(job.attempts - fences.c.refund, 0),
                crashes=case((fences.c.reported, 0), else_=job.crashes + fences.c.crash),
                last_error=func.coalesce(fences.c.error, job.last_error),
            )
            .returning(job.job_id, cast(func.pg_current_xact_id(), Text))
        )

    def _build_renew(self) -> Any:
        job = self.job.c
        fences = self._fences()
        free = (
            select(job.job_id)
            .select_from(self.job.join(fences, job.job_id == fences.c.job_id))
            .where(job.claim_id == fences.c.claim_id)
            .with_for_update(key_share=True, skip_locked=True, of=self.job)
            .subquery("free")
        )
        until = statement_now() + bindparam("lease", type_=Interval())
        return update(self.job).where(job.job_id == free.c.job_id).values(claimed_until=until)

    def _fences(self, **further: Any) -> Any:
        """The table of ``(job_id, claim_id, …)`` that arrives as arrays, one row for each claim."""
        types = {"job_id": self.job.c.job_id.type, "claim_id": self.job.c.claim_id.type, **further}
        arrays = [bindparam(f"all_{name}", type_=ARRAY(type_)) for name, type_ in types.items()]
        columns = [column(name, type_) for name, type_ in types.items()]
        return func.unnest(*arrays).table_valued(*columns).render_derived(name="fences")

    def _run_archive(self, connection: Connection, settled: Sequence[tuple[Claim, Ruling]]) -> dict[Any, str]:
        parameters = {
            **_fences([claim for claim, _ in settled]),
            "all_status": [str(ruling.fate.status) for _, ruling in settled],
            "all_error": [ruling.error for _, ruling in settled],
        }
        return {job_id: transaction_id for job_id, transaction_id in connection.execute(self._archive, parameters)}

    def _run_reschedule(self, connection: Connection, settled: Sequence[tuple[Claim, Ruling]]) -> dict[Any, str]:
        fates = [ruling.fate for _, ruling in settled]
        parameters = {
            **_fences([claim for claim, _ in settled]),
            "all_delay": [ruling.delay for _, ruling in settled],
            "all_refund": [0 if fate.attempt else 1 for fate in fates],
            "all_crash": [1 if fate.crash else 0 for fate in fates],
            "all_reported": [fate.reported for fate in fates],
            "all_error": [ruling.error for _, ruling in settled],
        }
        return {job_id: transaction_id for job_id, transaction_id in connection.execute(self._reschedule, parameters)}

    # rows -------------------------------------------------------------------------------------------------------------

    def _claimed(self, candidate: Candidate, token: UUID, worker_id: str, until: datetime) -> Claim:
        row = candidate.row
        attempts = row.attempts if row.expired else min(row.attempts, _MOST_ATTEMPTS) + 1
        values = {
            "job_id": row.job_id,
            "queue": row.queue,
            "job_type": row.job_type,
            "payload": row.payload,
            "attempts": attempts,
            "enqueued_at": row.enqueued_at,
            "process_at": row.process_at,
            "claim_id": token,
            "claimed_by": worker_id,
            "claimed_until": until,
            "crashes": candidate.crashes,
            "last_error": row.last_error,
        }
        return Claim(values, row.job_id, token, row.job_type, attempts, candidate.crashes)

    def _read_extras(self, connection: Connection, claims: Sequence[Claim], result: Any) -> None:
        """Read the app's own columns; where their types choke on a value, only that job shall fail."""
        try:
            rows = {row.claimed_job_id: row for row in result.all()}
        except Exception:
            for claim in claims:
                self._read_extras_of(connection, claim)
            return
        for claim in claims:
            self._put_extras(claim, rows[claim.job_id])

    def _read_extras_of(self, connection: Connection, claim: Claim) -> None:
        statement = select(*self._labelled_extras()).where(self.job.c.job_id == claim.job_id)
        try:
            self._put_extras(claim, connection.execute(statement).one())
        except Exception as error:
            claim.unreadable = error

    def _put_extras(self, claim: Claim, row: Any) -> None:
        mapping: Mapping[str, Any] = row._mapping
        claim.values.update({key: mapping[f"extra_{key}"] for key in self.extras})

    def _labelled_extras(self) -> list[Any]:
        return [column.label(f"extra_{key}") for key, column in self.extras.items()]

    def _job_column(self, key: str) -> Any:
        return self.extras[key] if key in self.extras else self.job.c[key]


def _fences(claims: Sequence[Claim]) -> dict[str, list[Any]]:
    return {"all_job_id": [claim.job_id for claim in claims], "all_claim_id": [claim.claim_id for claim in claims]}


def _milliseconds(span: timedelta) -> str:
    return f"{max(1, round(span.total_seconds() * 1000))}ms"
