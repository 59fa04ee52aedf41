"""The main path: claim → run → settle.

It owns the frames of all transactions (no other room begins one) and the one place where a handler is called and its error
caught. What to claim is decided in ``polling``, what happens to a row in ``outcomes``, how it happens in ``lifecycle``; who
runs what and when is the business of ``feeder`` and ``worker``.

A job whose handler used its session is settled in the handler's own transaction, by the thread that ran it. Everything else
comes back as a :class:`Report`, to be settled together with others.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import PendingRollbackError
from sqlalchemy.orm import sessionmaker

from . import clock, events, outcomes, serializers
from .dialects import Trouble, sqlstate, trouble
from .errors import ControlFlow, Interrupted, TransactionEscaped
from .lifecycle import Claim, Lifecycle
from .models import detached
from .outcomes import Outcome, Ruling
from .polling import choose
from .registry import OnFailed, Registration, Registry
from .retry import RetryStrategy
from .sessions import Hold, open_session

SETTLE_LOCK_TIMEOUT = "1s"
MOST_CONFLICTS = 5

Around = Callable[[Any], AbstractContextManager[Any]]
"""``(job) -> context manager``, entered in the handler's thread around each call of a handler."""


# their writes stay: a handler that snoozes or cancels keeps what it has committed through its session
_KEPT = (Outcome.RETURNED, Outcome.SNOOZED, Outcome.CANCELLED)
# not one job's trouble, but the database's
SYSTEMIC = (Trouble.DISCONNECTED, Trouble.TRANSIENT, Trouble.MISSING_TABLE)


class Run:
    """A claimed job on its way through this process."""

    __slots__ = ("claim", "hold", "job", "keyboard_interrupt", "noticed", "outcome", "started_at", "stopping")

    def __init__(self, claim: Claim, hold: Hold, stopping: threading.Event) -> None:
        self.claim = claim
        self.hold = hold
        self.job: Any = None
        self.outcome: Outcome | None = None
        self.keyboard_interrupt: KeyboardInterrupt | None = None
        self.started_at: float | None = None
        self.noticed = False
        self.stopping = stopping

    def interrupted(self) -> bool:
        """Whether the worker is stopping; a handler that has seen this is interrupted rather than failed by an error."""
        self.noticed = self.noticed or self.stopping.is_set()
        return self.noticed

    def sleep(self, span: timedelta) -> None:
        """Sleep, or raise ``Interrupted`` as soon as the worker stops."""
        if self.stopping.wait(max(0.0, span.total_seconds())):
            self.noticed = True
            raise Interrupted("the worker is stopping")


@dataclass(slots=True, eq=False)
class Report:
    """A run that has ended and is to be settled.

    :param committed: what the job came to if it turns out that the handler's unanswered COMMIT was carried out.
    :param tried: a settling was sent before, and its answer did not come.
    :param failures: how often the database has refused the settling; it is not tried again before ``not_before``.
    """

    run: Run
    ruling: Ruling
    committed: Ruling | None = None
    tried: bool = False
    failures: int = 0
    not_before: float = 0.0

    @property
    def pair(self) -> tuple[Claim, Ruling]:
        return self.run.claim, self.ruling


@dataclass(frozen=True, slots=True)
class Settled:
    """A run whose end is committed; ``certain`` unless another worker may have settled the job as well."""

    run: Run
    ruling: Ruling
    certain: bool = True


@dataclass(frozen=True, slots=True)
class Claimed:
    """What a claim brought: jobs to run, and those that are to be archived as crashed."""

    runs: Sequence[Run] = ()
    condemned: Sequence[Report] = ()
    solo: bool = False
    wants_solitude: bool = False


@dataclass(slots=True, eq=False)
class Execution:
    """Everything that one worker needs to bring one job from claim to settling."""

    registry: Registry
    lifecycle: Lifecycle
    engine: Engine
    app_engine: Engine
    emit: events.Emitter
    queue: str
    worker_id: str
    lease: timedelta
    crash_ceiling: int
    retry: RetryStrategy | None = None
    on_failed: OnFailed | None = None
    session: sessionmaker[Any] | None = None
    around: Around | None = None
    now: clock.Clock = clock.system_clock
    stopping: threading.Event = field(default_factory=threading.Event)

    # claim ------------------------------------------------------------------------------------------------------------

    def claim(self, connection: Connection, *, limit: int, idle: bool, skip_last_chance: bool = False) -> Claimed:
        """Claim up to ``limit`` due jobs, durable in one short transaction.

        A claim that a crash of the server forgets is only a job that is still due: so it need not wait for the disk.
        """
        with connection.begin():
            candidates = self.lifecycle.candidates(
                connection,
                queue=self.queue,
                known=self.registry.known_types(),
                limit=limit,
                lease=self.lease,
                skip_crashes=self.crash_ceiling - 1 if skip_last_chance else None,
            )
            choice = choose(candidates, ceiling=self.crash_ceiling, idle=idle)
            chosen = [*choice.run, *choice.condemned]
            if chosen:
                self.lifecycle.set_local(connection, synchronous_commit="off")
            claims = self.lifecycle.take(connection, chosen, worker_id=self.worker_id)
        now = clock.monotonic()
        runs = [self._start(claim, now) for claim in claims]
        split = len(choice.run)
        condemned = [Report(run, outcomes.crashed(run.claim.crashes)) for run in runs[split:]]
        return Claimed(runs[:split], condemned, choice.solo, choice.wants_solitude)

    def unknown_types(self, connection: Connection) -> list[str]:
        """Give the types of due jobs that no handler here takes."""
        known = self.registry.known_types()
        if known is None:
            return []
        with connection.begin():
            return self.lifecycle.unknown_types(connection, queue=self.queue, known=known)

    # run --------------------------------------------------------------------------------------------------------------

    def perform(self, run: Run) -> Report | None:
        """Run one claimed job; settle it if its handler used the session, else give the report of it."""
        run.started_at = clock.monotonic()
        self._tell(run, events.HandlingJob)
        try:
            ruling = self._rule(run, self._call_until_no_conflict(run))
            if run.hold.opened and not run.hold.died:
                return self._settle_held(run, ruling)
            return Report(run, ruling)
        finally:
            run.hold.close()

    def _call_until_no_conflict(self, run: Run) -> BaseException | None:
        for _ in range(MOST_CONFLICTS):
            error = self._call(run)
            if error is None or trouble(error) is not Trouble.CONFLICT or self.stopping.is_set():
                return error
            self._tell(run, events.ConflictRetried, error=error)
            run.hold.reset()
            self.stopping.wait(random.uniform(0.01, 0.2))
        return self._call(run)

    def _call(self, run: Run) -> BaseException | None:
        """Call the handler, and flush what it left in its session; give the error with which that ended."""
        try:
            registration = self._prepare(run)
            session = open_session(self.session, self.app_engine, run.hold)
            try:
                self._call_within(registration, session, run.job)
                if session.in_transaction():
                    session.commit()
            finally:
                with suppress(Exception):
                    session.close()
        except BaseException as error:
            return error
        return None

    def _call_within(self, registration: Registration, session: Any, job: Any) -> None:
        failure: BaseException | None = None
        with self.around(job) if self.around else nullcontext():
            try:
                registration.handler(session, job)
            except BaseException as error:
                failure = error
                raise
        if failure is not None:  # a context manager that swallows errors must not turn a failure into a success
            raise failure

    def _prepare(self, run: Run) -> Registration:
        """Make the job as the handler will see it; raise what makes that impossible."""
        claim = run.claim
        run.job = detached(self.lifecycle.job_model, {**claim.values, "payload": None, "_running": run})
        registration = self.registry.registration(claim.job_type)
        if registration is None:
            raise LookupError(f"no handler takes the job type {claim.job_type!r}")
        if claim.unreadable is not None:
            raise claim.unreadable
        stored = claim.values["payload"]
        value = serializers.loads(stored) if self.lifecycle.payload_is_json else stored
        run.job.__dict__["payload"] = self.lifecycle.job_model.serializer.decode(value)
        return registration

    # rule -------------------------------------------------------------------------------------------------------------

    def _rule(self, run: Run, error: BaseException | None) -> Ruling:
        hold = run.hold
        if hold.lost:
            return outcomes.claim_lost(error)
        if hold.unavailable is not None:
            return outcomes.unavailable(hold.unavailable)
        if hold.died and (error is None or _tells_of_disconnection(error)):
            return outcomes.connection_died(error or ConnectionError("the connection died while the job ran"))
        if error is not None and self._is_interruption(run, error):
            return outcomes.INTERRUPTED
        if error is not None and not isinstance(error, ControlFlow):
            return self._fail(run, error)
        return outcomes.rule(error, run.job, None)

    def _fail(self, run: Run, error: BaseException) -> Ruling:
        """Ask the strategy what follows from the handler's own ``error``."""
        if isinstance(error, Interrupted):
            error = RuntimeError("the handler raised Interrupted, but its worker is not stopping")
        if _savepoint_is_gone(error):
            self._tell(run, events.TransactionEscaped)
            error = TransactionEscaped("the handler ended the transaction behind its session's back")
        self._tell(run, events.HandleJobException, error=error)
        registration = self.registry.registration(run.claim.job_type)
        retry = registration.retry if registration and registration.retry is not None else self.retry
        return outcomes.rule(error, run.job, retry)

    def _is_interruption(self, run: Run, error: BaseException) -> bool:
        if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
            run.keyboard_interrupt = error
            return True
        if not self.stopping.is_set() or isinstance(error, ControlFlow):
            return False
        if isinstance(error, Interrupted):
            return True
        if run.noticed:
            self._tell(run, events.HandleJobExceptionWithInterrupt, error=error)
        return run.noticed

    # settle -----------------------------------------------------------------------------------------------------------

    def _settle_held(self, run: Run, ruling: Ruling) -> Report | None:
        """Settle in the handler's own transaction; where that cannot be, roll it back and record why under the fence."""
        connection = run.hold.connection()
        if ruling.outcome in _KEPT:
            verdict = self._commit_with_handler(run, ruling, connection)
            if not isinstance(verdict, Ruling):
                return verdict
            ruling = verdict
        report = Report(run, ruling)
        try:
            connection.rollback()
            # at once and here: once the row lock is gone, an expired lease no longer has anything to protect it
            for settled in self.settle(connection, [report]):
                self.conclude(settled)
        except Exception:
            return report
        return None

    def _commit_with_handler(self, run: Run, ruling: Ruling, connection: Connection) -> Ruling | Report | None:
        """Settle and COMMIT; give the ruling that applies when that failed, or a report when it is in doubt."""
        claim = run.claim
        held = run.hold.held
        try:
            self.lifecycle.set_local(connection, lock_timeout=SETTLE_LOCK_TIMEOUT)
            moved = self.lifecycle.settle(connection, [(claim, ruling)])
        except Exception as error:
            return self._refused(run, error)
        if claim.job_id not in moved:
            return outcomes.claim_lost()
        try:
            connection.commit()
        except Exception as error:
            if trouble(error) is Trouble.DISCONNECTED:
                return Report(run, outcomes.connection_died(error), committed=ruling)
            return self._refused(run, error, by_commit=True)
        if held is not None and moved[claim.job_id] != held.transaction_id:
            self._tell(run, events.TransactionEscaped)
        self.conclude(Settled(run, ruling))
        return None

    def _refused(self, run: Run, error: Exception, *, by_commit: bool = False) -> Ruling:
        """Rule on a settling that the database refused: whose fault is it?"""
        match trouble(error):
            case Trouble.DISCONNECTED:
                return outcomes.connection_died(error)
            case Trouble.CONFLICT | Trouble.TRANSIENT:
                return outcomes.unavailable(error)
            case Trouble.CONSTRAINT if not by_commit:
                return outcomes.parked(error, run.claim.attempts)
            case _:
                return self._fail(run, error)

    def settle(self, connection: Connection, reports: Sequence[Report]) -> Iterator[Settled]:
        """Settle ``reports`` in one transaction, or row by row if that fails; give each once it is committed.

        Raises what keeps the rest from being settled; those reports stay valid and may be handed in again.
        """
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
        failure: Exception | None = None
        for report in reports:
            try:
                yield from self.settle(connection, [report])
            except Exception as error:
                if trouble(error) in SYSTEMIC:
                    raise
                failure = error
        if failure is not None:
            raise failure

    def _settle_together(self, connection: Connection, reports: Sequence[Report]) -> list[Settled]:
        tried = [report.tried for report in reports]
        for report in reports:
            report.tried = True
        with connection.begin():
            self.lifecycle.set_local(connection, lock_timeout=SETTLE_LOCK_TIMEOUT)
            moved = self.lifecycle.settle(connection, [report.pair for report in reports])
            missing = [report.run.claim.job_id for report in reports if report.run.claim.job_id not in moved]
            standing = self.lifecycle.standing(connection, missing) if missing else {}
        return [
            _settled(report, report.run.claim.job_id in moved, report.run.claim.job_id in standing, was_tried)
            for report, was_tried in zip(reports, tried, strict=True)
        ]

    def _settle_refused(self, connection: Connection, report: Report, error: Exception) -> Iterator[Settled]:
        """One row cannot be settled as it should: park it, or get out of the way what holds it."""
        if trouble(error) in (Trouble.LOCK_TIMEOUT, Trouble.CONFLICT):
            self._end_transaction_of(connection, report.run)
            raise error
        if report.ruling.outcome is Outcome.PARKED:
            raise error
        report.ruling = outcomes.parked(error, report.run.claim.attempts)
        report.committed = None
        yield from self.settle(connection, [report])

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
        with connection.begin():
            self.lifecycle.set_local(connection, synchronous_commit="off")
            self.lifecycle.renew(connection, [run.claim for run in runs], lease=self.lease)
        now = clock.monotonic()
        for run in runs:
            run.claim.renewed_at = now

    # conclude ---------------------------------------------------------------------------------------------------------

    def conclude(self, settled: Settled) -> None:
        """Tell the listener, and call ``on_failed`` where it is due; in a thread that may take its time."""
        self.announce(settled)
        if self.wants_callback(settled):
            self.call_on_failed(settled)

    def announce(self, settled: Settled) -> None:
        """Send the event that tells how the job was settled."""
        run, ruling = settled.run, settled.ruling
        run.outcome = ruling.outcome
        if ruling.strategy_error is not None:
            self._tell(run, events.RetryStrategyError, error=ruling.strategy_error)
        match ruling.outcome:
            case Outcome.RETURNED:
                self._tell(run, events.JobFinished)
            case Outcome.RETRIED:
                assert ruling.spec is not None and ruling.delay is not None
                retry_at = clock.read(self.now) + ruling.delay
                self._tell(run, events.Retrying, retry_at=retry_at, retries_left=ruling.spec.retries_left)
            case Outcome.GAVE_UP:
                self._tell(run, events.NotRetrying, retry_spec=ruling.spec, error=ruling.cause)
            case Outcome.SNOOZED:
                self._tell(run, events.JobSnoozed, delay=ruling.delay)
            case Outcome.CANCELLED:
                self._tell(run, events.JobCancelled, reason=str(ruling.cause))
            case Outcome.INTERRUPTED:
                if run.started_at is not None:
                    self._tell(run, events.JobInterrupted)
            case Outcome.UNAVAILABLE:
                self._tell(run, events.ConnectionUnavailable, error=ruling.cause)
            case Outcome.CONNECTION_DIED:
                self._tell(run, events.ConnectionDied, error=ruling.cause)
            case Outcome.CRASHED:
                self._tell(run, events.JobCrashed, crashes=run.claim.crashes)
            case Outcome.CLAIM_LOST:
                self._tell(run, events.ClaimLost)
            case Outcome.PARKED:
                self._tell(run, events.JobParked, error=ruling.cause, delay=ruling.delay)

    def wants_callback(self, settled: Settled) -> bool:
        """Whether ``on_failed`` is due: after a final failure that this worker, and certainly no other, has recorded."""
        return settled.ruling.failed and settled.certain and self._callback_of(settled.run) is not None

    def call_on_failed(self, settled: Settled) -> None:
        """Call ``on_failed``; an error in it is reported and harms nothing."""
        run, callback = settled.run, self._callback_of(settled.run)
        assert callback is not None and settled.ruling.cause is not None
        if run.job is None:  # it was archived without having run here
            with suppress(Exception):
                self._prepare(run)
        try:
            callback(run.job, settled.ruling.cause)
        except BaseException as error:  # sys.exit() in a callback is no reason to lose the thread
            self._tell(run, events.OnFailedError, error=error)

    def _callback_of(self, run: Run) -> OnFailed | None:
        registration = self.registry.registration(run.claim.job_type)
        return registration.on_failed if registration and registration.on_failed is not None else self.on_failed

    def _start(self, claim: Claim, now: float) -> Run:
        claim.claimed_at = claim.renewed_at = now
        return Run(claim, Hold(self.engine, self.lifecycle, claim), self.stopping)

    def _tell(self, run: Run, kind: type[events.JobEvent], **fields: Any) -> None:
        claim = run.claim
        self.emit(kind, job_id=claim.job_id, job_type=claim.job_type, attempt=claim.attempts, **fields)


def _settled(report: Report, moved: bool, stands: bool, was_tried: bool) -> Settled:
    """Say what became of a report, given whether its row was moved now and whether it still stands."""
    if moved:
        return Settled(report.run, report.ruling)
    if not stands and report.committed is not None:
        return Settled(report.run, report.committed, certain=False)
    if not stands and was_tried:
        return Settled(report.run, report.ruling, certain=False)
    return Settled(report.run, outcomes.claim_lost())


def _tells_of_disconnection(error: BaseException) -> bool:
    """Whether ``error``, or one that it came from, is the loss of a connection, or what SQLAlchemy says ever after."""
    seen: BaseException | None = error
    for _ in range(20):
        if seen is None:
            return False
        if trouble(seen) is Trouble.DISCONNECTED or isinstance(seen, PendingRollbackError):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _savepoint_is_gone(error: BaseException) -> bool:
    return sqlstate(error) == "3B001"


def _roll_back(connection: Connection) -> None:
    with suppress(Exception):
        connection.rollback()
