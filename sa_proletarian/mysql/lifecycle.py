"""The verbs that move rows, on MariaDB and MySQL.

It owns the order of the statements in each verb, and what stands for PostgreSQL's transaction ids: a savepoint, which is
gone when the transaction has ended behind the session's back, and a named lock, by which the connection that holds a job
can be ended and no other.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError, PendingRollbackError

from sa_proletarian import mysql_errors
from sa_proletarian.claims import Candidate, Claim, Held
from sa_proletarian.lifecycle import Lifecycle
from sa_proletarian.outcomes import RETURNED, Ruling

from .statements import MySQLStatements

_TRIPWIRE = "sa_proletarian_tripwire"
_WAIT = "sa_proletarian_lock_wait"
_HOLDER = "sa_proletarian_holder"
_CLAIM = "sa_proletarian_claim"
_APPS_WAIT = "sa_proletarian_apps_lock_wait"
_NO_SUCH_THREAD = 1094

_SET_WAIT = "SET SESSION innodb_lock_wait_timeout = :seconds"
_HOLDING = f"{_SET_WAIT}, @sa_proletarian_lock = GET_LOCK(:name, 0), @sa_proletarian_claim = GET_LOCK(:claim, 0)"


class MySQLLifecycle(Lifecycle):
    """The verbs, for one pair of models."""

    def __init__(self, job_model: Any, archived_model: Any) -> None:
        self.job_model = job_model
        self.archived_model = archived_model
        self._statements: Any = MySQLStatements(job_model, archived_model)

    @property
    def has_scripts(self) -> bool:
        return False

    def claims_by_script(self, connection: Connection) -> bool:
        return False

    def finishes_by_script(self, connection: Connection) -> bool:
        return False

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
        begin: datetime | None = None,  # of no use here: what is done is gone from the index
    ) -> list[Candidate]:
        parameters: dict[str, Any] = {"in_queue": queue, "most": limit, "lease": microseconds(lease)}
        if known is not None:
            parameters["known"] = list(known)
        if skip_crashes is not None:
            parameters["skip_crashes"] = skip_crashes
        statement = self._statements.candidates[known is None, skip_crashes is not None]
        rows: Any = connection.execute(statement, parameters)
        return [*map(Candidate, rows)]

    def _read_extras(self, connection: Connection, claims: Sequence[Claim], result: Any) -> None:
        rows = connection.execute(self._statements.read_extras, {"ids": [claim.job_id for claim in claims]})
        super()._read_extras(connection, claims, rows)

    # hold -------------------------------------------------------------------------------------------------------------

    def hold(self, connection: Connection, claim: Claim, *, lock_timeout: timedelta) -> Held | None:
        mysql_errors.forget(connection)
        connection.info.pop(_WAIT, None)
        apps = _apps_wait(connection)
        connection.execute(text(_SET_WAIT), {"seconds": _seconds(lock_timeout)})
        row = connection.execute(self._statements.hold, {"id": claim.job_id, "fence": claim.claim_id}).one_or_none()
        name = f"sa_proletarian_{uuid4().hex}"
        claims = lock_of(claim.job_id, claim.claim_id)
        connection.execute(text(_HOLDING), {"seconds": apps, "name": name, "claim": claims})
        connection.info.update({_HOLDER: name, _CLAIM: claims})
        return Held(0, name) if row is not None else None

    def watch(self, connection: Connection) -> None:
        connection.exec_driver_sql(f"SAVEPOINT {_TRIPWIRE}")

    def let_go(self, connection: Connection, held: Held) -> None:
        with suppress(Exception):  # else the connection is dead, and the lock with it
            connection.info.pop(_HOLDER, None)
            names = {"name": held.transaction_id, "claim": connection.info.pop(_CLAIM, "")}
            connection.execute(text("DO RELEASE_LOCK(:name), RELEASE_LOCK(:claim)"), names)

    def still_holds(self, connection: Connection, held: Held) -> bool:
        """Say yes: where the transaction had ended, :meth:`prepare_settling` has raised."""
        return True

    def undone_by(self, connection: Connection) -> BaseException | None:
        return mysql_errors.noted(connection)

    def has_committed(self, connection: Connection, held: Held) -> bool | None:
        return None

    def end_backend(self, connection: Connection, held: Held) -> None:
        kill(connection, "CONNECTION", held.transaction_id)

    def cancel_statement(self, connection: Connection, held: Held) -> None:
        kill(connection, "QUERY", held.transaction_id)

    # settle -----------------------------------------------------------------------------------------------------------

    def prepare_settling(self, connection: Connection, held: Held, **limits: str) -> None:
        """Make sure that the transaction is still the one that holds the job; its savepoint is gone if not."""
        try:
            connection.exec_driver_sql(f"RELEASE SAVEPOINT {_TRIPWIRE}")
        except PendingRollbackError as error:
            # so says SQLAlchemy, without asking the server, where a handler has swallowed that the session's own is gone
            raise (self.undone_by(connection) or error) from None
        self.set_local(connection, **limits)

    def finish(self, connection: Connection, claims: Sequence[Claim]) -> Collection[Any]:
        moved = self._run_archive(connection, [(claim, RETURNED) for claim in claims])
        return [claim.job_id for claim in claims if claim.job_id not in moved]

    def cancel_waiting(self, connection: Connection, job_id: Any, ruling: Ruling) -> bool:
        if not connection.execute(self._statements.waiting, {"ids": [job_id]}).all():
            return False
        self._move([job_id], connection, ruling)
        return True

    def _run_archive(self, connection: Connection, settled: Sequence[tuple[Claim, Ruling]]) -> dict[Any, str]:
        mine = self._locked(connection, [claim for claim, _ in settled])
        for group in _alike((claim.job_id, ruling) for claim, ruling in settled if claim.job_id in mine):
            self._move([job_id for job_id, _ in group], connection, group[0][1])
        return mine

    def _move(self, job_ids: Sequence[Any], connection: Connection, ruling: Ruling) -> None:
        status = {"ids": job_ids, "status": str(ruling.fate.status), "error": ruling.error}
        connection.execute(self._statements.archive, status)
        connection.execute(self._statements.delete, {"ids": job_ids})

    def _run_reschedule(self, connection: Connection, settled: Sequence[tuple[Claim, Ruling]]) -> dict[Any, str]:
        mine = self._locked(connection, [claim for claim, _ in settled])
        for claim, ruling in settled:
            if claim.job_id in mine:
                connection.execute(self._statements.reschedule, _rescheduling(claim, ruling))
        return mine

    def _locked(self, connection: Connection, claims: Sequence[Claim]) -> dict[Any, str]:
        """Lock the rows of ``claims`` that are still theirs; wait for those only."""
        fences = {claim.job_id: claim.claim_id for claim in claims}
        found = self._fences(connection, self._statements.free, fences)
        if missing := fences.keys() - found.keys():
            standing = self.standing(connection, [*missing])
            held = [job_id for job_id, fence in standing.items() if fence == fences[job_id]]
            found |= self._fences(connection, self._statements.waited_for, held) if held else {}
        holder = connection.info.get(_HOLDER, "")
        return {job_id: holder for job_id, fence in found.items() if fence == fences[job_id]}

    def _fences(self, connection: Connection, statement: Any, job_ids: Iterable[Any]) -> dict[Any, UUID | None]:
        return {row.job_id: row.claim_id for row in connection.execute(statement, {"ids": [*job_ids]})}

    # renew ------------------------------------------------------------------------------------------------------------

    def renew(self, connection: Connection, claims: Sequence[Claim], *, lease: timedelta) -> None:
        fences = {claim.job_id: claim.claim_id for claim in claims}
        free = self._fences(connection, self._statements.free, fences)
        if mine := [job_id for job_id, fence in free.items() if fence == fences[job_id]]:
            connection.execute(self._statements.renew, {"ids": mine, "lease": microseconds(lease)})

    # settings ---------------------------------------------------------------------------------------------------------

    @staticmethod
    def set_local(connection: Connection, **settings: str) -> None:
        """Set how long a lock is waited for; the servers have no such settings for one transaction, so it stays.

        What else PostgreSQL is told here these servers do not have.
        """
        wait = settings.get("lock_timeout")
        if wait is not None and connection.info.get(_WAIT) != wait:
            _apps_wait(connection)
            connection.execute(text(_SET_WAIT), {"seconds": _seconds_of(wait)})
            connection.info[_WAIT] = wait


def _apps_wait(connection: Connection) -> int:
    """Give how long a lock is waited for where nobody has said otherwise, read once on each connection."""
    if _APPS_WAIT not in connection.info:
        connection.info[_APPS_WAIT] = connection.scalar(text("SELECT @@SESSION.innodb_lock_wait_timeout"))
    wait: int = connection.info[_APPS_WAIT]
    return wait


def microseconds(span: timedelta) -> int:
    """Give a span as these statements take it."""
    return span // timedelta(microseconds=1)


def _rescheduling(claim: Claim, ruling: Ruling) -> dict[str, Any]:
    fate = ruling.fate
    return {
        "id": claim.job_id,
        "delay": None if ruling.delay is None else microseconds(ruling.delay),
        "refund": 0 if fate.attempt else 1,
        "crash": 1 if fate.crash else 0,
        "reported": 1 if fate.reported else 0,
        "error": ruling.error,
    }


def _alike(settled: Iterable[tuple[Any, Ruling]]) -> Iterable[list[tuple[Any, Ruling]]]:
    """Give together what gets the same words in the archive."""
    groups: dict[Any, list[tuple[Any, Ruling]]] = {}
    for job_id, ruling in settled:
        groups.setdefault((ruling.fate.status, ruling.error), []).append((job_id, ruling))
    return groups.values()


def lock_of(job_id: Any, claim_id: UUID) -> str:
    """Name the lock of the session that holds a job, for those who know its claim only; claimed together is named alike."""
    return f"sa_proletarian_{sha256(f'{job_id} {claim_id}'.encode()).hexdigest()[:40]}"


def kill(connection: Connection, what: str, name: str) -> bool:
    """Kill the session that has the lock of this name, or its query; give whether there was one."""
    try:
        connection.execute(text(f"KILL {what} IS_USED_LOCK(:name)"), {"name": name})
    except DBAPIError as error:  # nobody has the lock: the transaction has ended
        if mysql_errors.number_of(error.orig) != _NO_SUCH_THREAD:
            raise
        return False
    return True


def _seconds(span: timedelta) -> int:
    return max(1, round(span.total_seconds()))


def _seconds_of(wait: str) -> int:
    number = int(wait.removesuffix("ms")) / 1000 if wait.endswith("ms") else int(wait.removesuffix("s"))
    return _seconds(timedelta(seconds=number))
