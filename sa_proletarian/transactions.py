"""The frames of a worker's own transactions: claim, settle, renew.

It owns their beginning and their end, and what follows when one of them fails: row by row instead of together, parked
instead of archived. What to claim is decided in ``polling``; the statements are in ``lifecycle``. The only other
transaction is the handler's own, in ``execution``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Engine

from . import clock, outcomes
from .claims import Candidate, Claim
from .dialects import Trouble, trouble
from .lifecycle import Lifecycle
from .outcomes import RETURNED, Outcome
from .polling import Place, choose
from .registry import Registry
from .runs import Claimed, Report, Run, Settled, Stopping
from .sessions import Hold

SETTLE_LOCK_TIMEOUT = "1s"

# not one job's trouble, but the database's
SYSTEMIC = (Trouble.DISCONNECTED, Trouble.TRANSIENT, Trouble.MISSING_TABLE)

# the row is fine, and was not had in time
WAITING = (Trouble.LOCK_TIMEOUT, Trouble.CANCELLED, Trouble.CONFLICT)
CLAIM_SETTINGS = {
    # a claim that a crash of the server forgets is only a job that is still due: so it need not wait for the disk
    "synchronous_commit": "off",
    # before the first ANALYZE the planner would sort all that is due, to take the first few
    "enable_bitmapscan": "off",
    "enable_seqscan": "off",
}
SETTLE_LIMITS = {"lock_timeout": SETTLE_LOCK_TIMEOUT, "statement_timeout": "30s"}
FINISH_SETTINGS = {
    **SETTLE_LIMITS,
    # its plan is kept, and the table may be a thousand times as long when it is used again
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
}


@dataclass(slots=True, eq=False)
class Transactions:
    """The short transactions of one worker, each on a connection that the caller brings."""

    registry: Registry
    lifecycle: Lifecycle
    engine: Engine
    queue: str
    worker_id: str
    lease: timedelta
    crash_ceiling: int
    make_hold: Callable[[Claim], Hold]
    timeout: timedelta | None = None
    stopping: Stopping = field(default_factory=Stopping)
    place: Place = field(default_factory=Place)

    def claim(self, connection: Connection, *, limit: int, idle: bool, skip_last_chance: bool = False) -> Claimed:
        """Claim up to ``limit`` due jobs, durable in one short transaction.

        It looks where the one before has ended, and now and then at the whole line (see ``polling.Place``).
        """
        now = clock.monotonic()
        if not skip_last_chance and self.lifecycle.claims_by_script(connection):
            runs = self._claim_at_once(connection, limit, now)
            if runs is not None:
                return Claimed(runs)
        skip_crashes = self.crash_ceiling - 1 if skip_last_chance else None
        with connection.begin():
            self.lifecycle.set_local(connection, **CLAIM_SETTINGS)
            begin = self.place.begin(now)
            candidates = self._look(connection, begin, limit, skip_crashes)
            choice = choose(candidates, ceiling=self.crash_ceiling, idle=idle)
            chosen = [*choice.run, *choice.condemned]
            claims = self.lifecycle.take(connection, chosen, worker_id=self.worker_id)
        self.place.came(candidates, set(chosen), swept=begin is None, short=len(candidates) < limit, now=now)
        # since it was asked for: if this process stood still meanwhile, its leases are older than the answer
        runs = [self._start(claim, now) for claim in claims]
        split = len(choice.run)
        condemned = [Report(run, outcomes.crashed(run.claim.crashes)) for run in runs[split:]]
        return Claimed(runs[:split], condemned, choice.solo, choice.wants_solitude)

    def _claim_at_once(self, connection: Connection, limit: int, now: float) -> list[Run] | None:
        """Claim in one round trip, if no suspect is among what is due; else give ``None``, and nothing is claimed."""
        begin = self.place.begin(now)
        claims = self._claim_by_script(connection, limit, begin)
        if claims is None:
            return None
        last = claims[-1].process_at if claims else None
        self.place.came_to(last, swept=begin is None, short=len(claims) < limit, now=now)
        # since it was asked for, as above
        return [self._start(claim, now) for claim in claims]

    def _claim_by_script(self, connection: Connection, limit: int, begin: datetime | None) -> list[Claim] | None:
        with connection.begin():
            return self.lifecycle.claim_by_script(
                connection,
                queue=self.queue,
                known=self.registry.known_types(),
                limit=limit,
                lease=self.lease,
                worker_id=self.worker_id,
                settings=CLAIM_SETTINGS,
                begin=begin,
            )

    def _look(self, connection: Connection, begin: datetime | None, limit: int, skip_crashes: int | None) -> list[Candidate]:
        return self.lifecycle.candidates(
            connection,
            queue=self.queue,
            known=self.registry.known_types(),
            limit=limit,
            lease=self.lease,
            skip_crashes=skip_crashes,
            begin=begin,
        )

    def unknown_types(self, connection: Connection) -> list[str]:
        """Give the types of due jobs that no handler here takes."""
        known = self.registry.known_types()
        if known is None:
            return []
        with connection.begin():
            return self.lifecycle.unknown_types(connection, queue=self.queue, known=known)

    def settle(self, connection: Connection, reports: Sequence[Report]) -> Iterator[Settled]:
        """Settle ``reports`` in as few transactions as it takes; give each once it is committed.

        Raises what keeps the rest from being settled; those reports stay valid and may be handed in again.
        """
        failures: list[Exception] = []
        for group in self._groups(connection, reports):
            try:
                yield from self._settle_group(connection, group)
            except Exception as error:
                if trouble(error) in SYSTEMIC:
                    raise
                failures.append(error)
        if failures:
            raise failures[0]

    def _groups(self, connection: Connection, reports: Sequence[Report]) -> Iterator[list[Report]]:
        """Part ``reports``, if some can be settled in one round trip: nearly all of them, as a rule."""
        returned = [report for report in reports if report.ruling is RETURNED]
        if len(returned) == len(reports) or not returned or not self.lifecycle.finishes_by_script(connection):
            yield [*reports]
            return
        yield returned
        yield [report for report in reports if report.ruling is not RETURNED]

    def _settle_group(self, connection: Connection, reports: Sequence[Report]) -> Iterator[Settled]:
        """Settle in one transaction, or row by row if that fails."""
        try:
            yield from self._settle_together(connection, reports)
            return
        except Exception as error:
            _roll_back(connection)
            if trouble(error) in SYSTEMIC:
                raise
            if len(reports) == 1:
                yield from self._settle_refused(connection, reports[0], error)
                return
        failures: list[Exception] = []
        for report in reports:
            try:
                yield from self._settle_group(connection, [report])
            except Exception as error:
                failures.append(error)
                # more than one that waits: the rest would too, and meanwhile no lease would be renewed
                if trouble(error) in SYSTEMIC or (len(failures) > 1 and trouble(error) in WAITING):
                    raise
        if failures:
            raise failures[0]

    def sends_ahead(self, connection: Connection) -> bool:
        """Whether :meth:`send` is there for connections such as ``connection``."""
        return self.lifecycle.sends_ahead(connection)

    def send(self, connection: Connection, reports: Sequence[Report]) -> Sent:
        """Begin to settle ``reports``, which have returned and were not tried before; the answer is waited for later."""
        for report in reports:
            report.tried = True
        claims = [report.run.claim for report in reports]
        missing = self.lifecycle.send_finish_all(connection, claims, settings=FINISH_SETTINGS)
        return Sent(self, connection, reports, missing)

    def _settle_together(self, connection: Connection, reports: Sequence[Report]) -> Iterable[Settled]:
        tried = [report.tried for report in reports]
        for report in reports:
            report.tried = True
        if all(report.ruling is RETURNED for report in reports) and self.lifecycle.finishes_by_script(connection):
            missing = self._finish_at_once(connection, reports)
            return self.finished(connection, reports, tried, missing)
        with connection.begin():
            self.lifecycle.set_local(connection, **SETTLE_LIMITS)
            missing = self._move(connection, reports)
            standing = self._standing(connection, reports, missing)
        return _all_settled(reports, tried, missing, standing)

    def finished(
        self, connection: Connection, reports: Sequence[Report], tried: Sequence[bool], missing: Collection[Any]
    ) -> Iterable[Settled]:
        """Say what became of reports that are settled, but for the ``missing``."""
        if not missing:
            return (Settled(report.run, report.ruling) for report in reports)
        with connection.begin():
            standing = self._standing(connection, reports, missing)
        return _all_settled(reports, tried, missing, standing)

    def _finish_at_once(self, connection: Connection, reports: Sequence[Report]) -> list[Any]:
        claims = [report.run.claim for report in reports]
        with connection.begin():
            return self.lifecycle.finish_all_by_script(connection, claims, settings=FINISH_SETTINGS)

    def _standing(self, connection: Connection, reports: Sequence[Report], missing: Collection[Any]) -> Collection[Any]:
        """Give those of the ``missing`` that are still there, and look what became of COMMITs that were not answered."""
        if not missing:
            return ()
        self._look_for_commits(connection, [report for report in reports if report.run.claim.job_id in missing])
        return self.lifecycle.standing(connection, [*missing])

    def _look_for_commits(self, connection: Connection, reports: Sequence[Report]) -> None:
        """Ask what became of unanswered COMMITs: where they were not carried out, somebody else has had the job."""
        for report in reports:
            held = report.run.hold.held if report.committed is not None else None
            if held is not None and self.lifecycle.has_committed(connection, held) is False:
                report.committed = None

    def _move(self, connection: Connection, reports: Sequence[Report]) -> list[Any]:
        """Carry out what the reports say; give the ids of the jobs whose rows were not ours to move."""
        missing: list[Any] = []
        returned = [report.run.claim for report in reports if report.ruling is RETURNED]
        if returned:
            missing += self.lifecycle.finish(connection, returned)
        others = [report.pair for report in reports if report.ruling is not RETURNED]
        if others:
            moved = self.lifecycle.settle(connection, others)
            missing += [claim.job_id for claim, _ in others if claim.job_id not in moved]
        return missing

    def _settle_refused(self, connection: Connection, report: Report, error: Exception) -> Iterator[Settled]:
        """One row cannot be settled as it should: park it, or get out of the way what holds it."""
        if trouble(error) in WAITING:
            self._end_transaction_of(connection, report.run)
            raise error
        if report.ruling.outcome is Outcome.PARKED:
            raise error
        report.ruling = outcomes.parked(error, report.run.claim.attempts)
        report.committed = None
        yield from self._settle_group(connection, [report])

    def cancel_statements(self, connection: Connection, runs: Sequence[Run]) -> None:
        """Cancel the statements in which handlers wait, so that they may end by themselves."""
        for run in runs:
            if run.hold.held is not None:
                with connection.begin():
                    self.lifecycle.cancel_statement(connection, run.hold.held)

    def end_transactions(self, connection: Connection, runs: Sequence[Run]) -> None:
        """End the server processes in which handlers still hang, so that their jobs can be released."""
        for run in runs:
            self._end_transaction_of(connection, run)

    def _end_transaction_of(self, connection: Connection, run: Run) -> None:
        if run.hold.held is not None:
            with connection.begin():
                self.lifecycle.end_backend(connection, run.hold.held)

    def renew(self, connection: Connection, runs: Sequence[Run]) -> None:
        """Extend the leases of ``runs``."""
        now = clock.monotonic()  # as for a claim
        with connection.begin():
            self.lifecycle.set_local(connection, synchronous_commit="off")
            self.lifecycle.renew(connection, [run.claim for run in runs], lease=self.lease)
        for run in runs:
            run.claim.renewed_at = now

    def _start(self, claim: Claim, now: float) -> Run:
        claim.claimed_at = claim.renewed_at = now
        registration = self.registry.registration(claim.job_type)
        timeout = registration.timeout if registration is not None and registration.timeout is not None else self.timeout
        return Run(claim, self.make_hold, self.stopping, timeout)


@dataclass(frozen=True, slots=True, eq=False)
class Sent:
    """A settling that is under way on ``connection``."""

    transactions: Transactions
    connection: Connection
    reports: Sequence[Report]
    missing: Callable[[], Collection[Any]]

    def settled(self) -> Iterable[Settled]:
        """Wait for it, and give what it came to; raises what kept it from being carried out."""
        missing, tried = self.missing(), [False] * len(self.reports)
        return self.transactions.finished(self.connection, self.reports, tried, missing)


def _all_settled(
    reports: Sequence[Report], tried: Sequence[bool], missing: Collection[Any], standing: Collection[Any]
) -> list[Settled]:
    return [
        _settled(report, report.run.claim.job_id not in missing, report.run.claim.job_id in standing, was_tried)
        for report, was_tried in zip(reports, tried, strict=True)
    ]


def _settled(report: Report, moved: bool, stands: bool, was_tried: bool) -> Settled:
    """Say what became of a report, given whether its row was moved now and whether it still stands."""
    if moved:
        return Settled(report.run, report.ruling)
    if not stands and report.committed is not None:
        return Settled(report.run, report.committed, certain=False)
    if not stands and was_tried:
        return Settled(report.run, report.ruling, certain=False)
    return Settled(report.run, outcomes.claim_lost())


def _roll_back(connection: Connection) -> None:
    with suppress(Exception):
        connection.rollback()
