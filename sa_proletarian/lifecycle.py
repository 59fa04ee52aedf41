"""The verbs that move rows: claim, hold, settle, renew.

It owns what a worker says to the database (the SQL itself is in ``statements``). Each verb takes a connection first; none
begins, commits or rolls back, but for the two by script, which send BEGIN or COMMIT along. All are fenced: they name
``(job_id, claim_id)`` and touch nothing whose claim is somebody else's by now, so that a late or repeated call does no harm.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from sqlalchemy import Connection, Select, func, literal_column, select, text

from . import simple_protocol
from .claims import Candidate, Claim, Held
from .dialects import statement_now
from .outcomes import Move, Ruling
from .scripts import BEGIN, COMMIT, Call, HeldConnection, Scripts, array, quoted, set_local
from .statements import (
    JOB_ID,
    SEQSCAN,
    TAKEN,
    UNTIL,
    Statements,
    claim_name,
)

if TYPE_CHECKING:
    from .models import ArchivedJobMixin, JobMixin

_LOOK_FOR_UNKNOWN = 1_000


class Lifecycle:
    """The verbs, for one pair of models."""

    def __init__(self, job_model: type[JobMixin], archived_model: type[ArchivedJobMixin]) -> None:
        self.job_model = job_model
        self.archived_model = archived_model
        self._statements = Statements(job_model, archived_model)
        self._scripts = Scripts(self._statements.templates)

    @property
    def payload_is_json(self) -> bool:
        """Whether payloads come as JSON text, as they do unless the app has given the column a type of its own."""
        return self._statements.payload_is_json

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
        begin: datetime | None = None,
    ) -> list[Candidate]:
        """Lock up to ``limit`` due jobs, in the order of their turn, past those that others hold.

        :param known: the job types to look for; ``None`` for all.
        :param skip_crashes: leave out jobs with exactly so many crashes.
        :param begin: leave out jobs that were due earlier.
        """
        parameters: dict[str, Any] = {"in_queue": queue, "most": limit, "lease": lease}
        if known is not None:
            parameters["known"] = list(known)
        if skip_crashes is not None:
            parameters["skip_crashes"] = skip_crashes
        if begin is not None:
            parameters["begin"] = begin
        statement = self._statements.candidates[known is None, skip_crashes is not None, begin is not None]
        rows = connection.execute(statement, parameters).all()
        return [*map(Candidate, rows)]

    def take(self, connection: Connection, candidates: Sequence[Candidate], *, worker_id: str) -> list[Claim]:
        """Claim the locked ``candidates`` under a fresh random fence; they are ours once the caller has committed."""
        if not candidates:
            return []
        token = uuid4()
        until = candidates[0].until
        ids = [candidate.row[JOB_ID] for candidate in candidates]
        result = connection.execute(self._statements.take, {"ids": ids, "token": token, "me": worker_id, "until": until})
        holder = worker_id, until
        claims = [Claim.of(candidate.row, token, holder) for candidate in candidates]
        if self._statements.extras:
            self._read_extras(connection, claims, result)
        return claims

    def claims_by_script(self, connection: Connection) -> bool:
        """Whether :meth:`claim_by_script` is there for ``connection``: not where the app has columns of its own to read."""
        return claim_name(True, False) in self._scripts and simple_protocol.are_own(connection)

    def claim_by_script(
        self,
        connection: Connection,
        *,
        queue: str,
        known: Sequence[str] | None,
        limit: int,
        lease: timedelta,
        worker_id: str,
        settings: Mapping[str, str],
        begin: datetime | None = None,
    ) -> list[Claim] | None:
        """Claim up to ``limit`` due jobs in a transaction of their own, in one round trip, in the order of their turn.

        ``None``, and nothing is claimed, if one of them is a suspect: whoever claims that has to choose.
        """
        token = uuid4()
        values = [quoted(queue), f"'{lease.total_seconds()} s'", f"'{limit}'", f"'{token.hex}'", quoted(worker_id)]
        if known is not None:
            values.append(array(known))
        if begin is not None:
            values.append(f"'{begin.isoformat()}'")
        claim = Call(claim_name(known is None, begin is not None), tuple(values))
        before = [BEGIN, *set_local(settings)]
        rows = self._scripts.send(connection, *before, claim, COMMIT, rows_of=len(before))
        if not rows:
            return []
        if rows[0][TAKEN] < len(rows):
            return None
        holder = worker_id, rows[0][UNTIL]
        return [Claim.of(row, token, holder, in_script=True) for row in rows]

    def unknown_types(self, connection: Connection, *, queue: str, known: Sequence[str]) -> list[str]:
        """Give the types among the first due jobs of ``queue`` that are not in ``known``."""
        job = self._statements.job.c
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

        The lock is waited for (our own renewal may have it for a moment), at most ``lock_timeout``; the setting is put
        back within the statement, so that the handler meets the server's own. A limit on idle transactions does not
        apply to this one: how long a handler may think is not the server's business.
        """
        parameters = {"id": claim.job_id, "fence": claim.claim_id, "wait": _milliseconds(lock_timeout)}
        row = connection.execute(self._statements.hold, parameters).one_or_none()
        return Held(row.pid, row.transaction_id, row.search_path, row.role) if row is not None else None

    def watch(self, connection: Connection) -> None:
        """Have the transaction that holds a job watched, once its savepoint is made: a transaction id needs no more."""

    def let_go(self, connection: Connection, held: Held) -> None:
        """Say that the transaction ``held`` is over: PostgreSQL sees that by itself."""

    @property
    def has_scripts(self) -> bool:
        """Whether jobs can be spoken of in scripts: ids that are UUIDs can be written into them."""
        return "hold" in self._scripts

    def hold_by_script(
        self, connection: Connection, claim: Claim, *, lock_timeout: timedelta, savepoints: Sequence[str]
    ) -> Held | None:
        """Begin, do what :meth:`hold` does, and make ``savepoints``, in one round trip."""
        hold = Call("hold", (*_fence(claim), f"'{_milliseconds(lock_timeout)}'"))
        index_only = self._scripts.index_only(connection)
        held = [index_only[0], hold, index_only[1]] if index_only else [hold]
        pieces = [BEGIN, *held, *(f"SAVEPOINT {name}" for name in savepoints)]
        rows = self._scripts.send(connection, *pieces, rows_of=pieces.index(hold), prepares=index_only is not None)
        if not rows:
            return None
        self._scripts.learn_seqscan(connection, rows[0][SEQSCAN])
        return Held(*rows[0][:SEQSCAN])

    def still_holds(self, connection: Connection, held: Held) -> bool:
        """Whether the transaction that holds the job is still the one on ``connection``."""
        now: str | None = connection.scalar(text("SELECT CAST(pg_current_xact_id() AS text)"))
        return now == held.transaction_id

    def undone_by(self, connection: Connection) -> BaseException | None:
        """Give the error by which the server has undone the transaction that ``connection`` still takes for open."""
        return None  # after an error PostgreSQL takes nothing more in the transaction, which all drivers know

    def has_committed(self, connection: Connection, held: Held) -> bool | None:
        """Whether the transaction ``held`` is known to have committed, or not to have; ``None`` where nobody can say."""
        status: str | None = connection.scalar(_STATUS, {"xid": held.transaction_id})
        return None if status is None else status == "committed"

    def end_backend(self, connection: Connection, held: Held) -> None:
        """End the server process that still runs the transaction ``held``, and no other that has its pid by now."""
        connection.execute(_to_holder(func.pg_terminate_backend), {"pid": held.pid, "xid": held.transaction_id})

    def cancel_statement(self, connection: Connection, held: Held) -> None:
        """Cancel what runs in the transaction ``held``, if something does; any driver and pooler lets this through."""
        connection.execute(_to_holder(func.pg_cancel_backend), {"pid": held.pid, "xid": held.transaction_id})

    # settle -----------------------------------------------------------------------------------------------------------

    def settle(self, connection: Connection, rulings: Iterable[tuple[Claim, Ruling]]) -> dict[Any, str]:
        """Carry out the rulings, each in its claim's fence.

        Gives, for every job whose row was ours to move, the id of the transaction that moved it. ``CLAIM_LOST`` moves
        none.
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

    def finish(self, connection: Connection, claims: Sequence[Claim]) -> Collection[Any]:
        """Archive jobs as ``success``, each in its claim's fence; give the ids of those whose row was not ours to move."""
        return connection.scalars(self._statements.finish, _fences(claims)).all()

    def prepare_settling(self, connection: Connection, held: Held, **limits: str) -> None:
        """Set ``limits`` in the transaction that holds a job, and undo what its handler may have set."""
        self.set_local(connection, **limits, search_path=held.search_path, role=held.role)

    def finish_by_script(self, connection: HeldConnection, claim: Claim, held: Held, *, limits: Mapping[str, str]) -> str:
        """Archive a held job as ``success`` and COMMIT, in one round trip; give the transaction's id.

        An error that :func:`scripts.says_not_moved` knows when its row was not ours to move; nothing is committed then.
        """
        settings = (limits["lock_timeout"], limits["statement_timeout"], held.search_path, held.role)
        before: list[str | Call] = [*connection.take_releases(), Call("prepare_settling", tuple(map(quoted, settings)))]
        index_only = self._scripts.index_only(connection)
        before += index_only[:1] if index_only else ()
        finish = Call("finish", _fence(claim))
        rows = self._scripts.send(connection, *before, finish, COMMIT, rows_of=len(before), prepares=index_only is not None)
        return str(rows[0][0])

    def finish_all_by_script(
        self, connection: Connection, claims: Sequence[Claim], *, settings: Mapping[str, str]
    ) -> list[Any]:
        """Do what :meth:`finish` does, in a transaction of its own, in one round trip."""
        pieces, place = _finish_all(claims, settings)
        return [row[0] for row in self._scripts.send(connection, *pieces, rows_of=place)]

    def send_finish_all(
        self, connection: Connection, claims: Sequence[Claim], *, settings: Mapping[str, str]
    ) -> Callable[[], list[Any]]:
        """Begin to do the same, where :meth:`sends_ahead`; what it gives waits for the answer."""
        pieces, place = _finish_all(claims, settings)
        answer = self._scripts.send_ahead(connection, *pieces, rows_of=place)
        return lambda: [UUID(row) for row in answer()]

    def sends_ahead(self, connection: Connection) -> bool:
        """Whether :meth:`send_finish_all` is there for ``connection``."""
        return self.finishes_by_script(connection) and self._scripts.sends_ahead(connection)

    def finishes_by_script(self, connection: Connection) -> bool:
        """Whether :meth:`finish_all_by_script` is there for ``connection``."""
        return "finish_all" in self._scripts and simple_protocol.are_own(connection)

    def cancel_waiting(self, connection: Connection, job_id: Any, ruling: Ruling) -> bool:
        """Archive a job that waits; give whether it did, and nobody held its row."""
        parameters = {"id": job_id, "status": str(ruling.fate.status), "error": ruling.error}
        return bool(connection.execute(self._statements.cancel, parameters).all())

    def standing(self, connection: Connection, job_ids: Sequence[Any]) -> dict[Any, UUID | None]:
        """Give the present fence of those of ``job_ids`` that are still in the job table."""
        job = self._statements.job.c
        rows: Any = connection.execute(select(job.job_id, job.claim_id).where(job.job_id.in_(job_ids)))
        return {row.job_id: row.claim_id for row in rows}

    # renew ------------------------------------------------------------------------------------------------------------

    def renew(self, connection: Connection, claims: Sequence[Claim], *, lease: timedelta) -> None:
        """Extend the leases of ``claims``; rows that their handlers hold are skipped, the lock protects them."""
        connection.execute(self._statements.renew, {**_fences(claims), "lease": lease})

    # transaction settings ---------------------------------------------------------------------------------------------

    @staticmethod
    def set_local(connection: Connection, **settings: str) -> None:
        """Change server settings until the transaction ends."""
        calls = ", ".join(f"set_config('{name}', :{name}, true)" for name in settings)
        connection.execute(text(f"SELECT {calls}"), settings)

    # rows -------------------------------------------------------------------------------------------------------------

    def _run_archive(self, connection: Connection, settled: Sequence[tuple[Claim, Ruling]]) -> dict[Any, str]:
        parameters = {
            **_fences([claim for claim, _ in settled]),
            "all_status": [str(ruling.fate.status) for _, ruling in settled],
            "all_error": [ruling.error for _, ruling in settled],
        }
        return _moved(connection.execute(self._statements.archive, parameters))

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
        return _moved(connection.execute(self._statements.reschedule, parameters))

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
        statement = select(*self._statements.labelled_extras()).where(self._statements.job.c.job_id == claim.job_id)
        try:
            self._put_extras(claim, connection.execute(statement).one())
        except Exception as error:
            claim.unreadable = error

    def _put_extras(self, claim: Claim, row: Any) -> None:
        mapping: Mapping[str, Any] = row._mapping
        claim.values.update({key: mapping[f"extra_{key}"] for key in self._statements.extras})


# after a failover there may be no such transaction yet, of which pg_xact_status would not hear
_STATUS = text(
    "SELECT CASE WHEN xid < pg_snapshot_xmax(pg_current_snapshot()) THEN pg_xact_status(xid) END"
    " FROM (SELECT CAST(CAST(:xid AS text) AS xid8) AS xid) AS held"
)


def _to_holder(call: Callable[..., Any]) -> Select[Any]:
    holder = text("pid = :pid AND backend_xid = CAST(CAST(CAST(:xid AS text) AS xid8) AS xid)")
    return select(call(literal_column("pid"))).select_from(text("pg_stat_activity")).where(holder)


def _fences(claims: Sequence[Claim]) -> dict[str, list[Any]]:
    return {"all_job_id": [claim.job_id for claim in claims], "all_claim_id": [claim.claim_id for claim in claims]}


def _finish_all(claims: Sequence[Claim], settings: Mapping[str, str]) -> tuple[list[str | Call], int]:
    """Give the pieces of the script, and the place of the one whose rows are wanted."""
    fences = array([claim.id_text for claim in claims]), array([claim.claim_id.hex for claim in claims])
    before = [BEGIN, *set_local(settings)]
    return [*before, Call("finish_all", fences), COMMIT], len(before)


def _fence(claim: Claim) -> tuple[str, str]:
    return f"'{claim.job_id.hex}'", f"'{claim.claim_id.hex}'"


def _milliseconds(span: timedelta) -> str:
    return f"{max(1, round(span.total_seconds() * 1000))}ms"


def _moved(rows: Any) -> dict[Any, str]:
    """Read pairs of job id and transaction id."""
    return {row[0]: row[1] for row in rows}
