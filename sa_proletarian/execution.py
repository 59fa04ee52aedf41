"""The main path: run one claimed job, from the handler's call to the settling.

It owns the one place where a handler is called and its error caught, and the handler's own transaction, in which a job is
settled whose handler used its session. Everything else leaves as a :class:`Report`, to be settled together with others
in ``transactions``. What an outcome means for the row is decided in ``outcomes``; who runs what and when is the business
of ``feeder`` and ``worker``.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.exc import PendingRollbackError
from sqlalchemy.orm import Session

from . import clock, events, outcomes, scripts, wires
from .computation import Computation
from .conclusion import Conclusion
from .dialects import Trouble, sqlstate, tells_of_disconnection, trouble
from .errors import ControlFlow, ExecutorUnavailable, Interrupted, JobTimeout, ProcessDied, TransactionEscaped
from .lifecycle import Lifecycle
from .outcomes import Outcome, Ruling
from .registry import Compute, OnFailed, Registration, Registry
from .retry import RetryStrategy
from .runs import Asked, Report, Run, Settled, Stopping, prepare
from .sessions import Hold, SessionSource, close_session, in_scope, open_session
from .transactions import SETTLE_LIMITS, Transactions

MOST_CONFLICTS = 5
LONGEST_CANCEL = 1.0
"""After so many seconds a cancel that was on its way has come, or will not."""
STALE = 0.8
"""A claim that was not renewed for so much of its lease belongs to somebody else soon, or does by now: this process was
paused. What has not begun does not begin then; if it is still ours when it is settled, it is released."""

Around = Callable[[Any], AbstractContextManager[Any]]
"""``(job) -> context manager``, entered in the handler's thread around each call of a handler and the flush after it."""

# their writes stay: a handler that snoozes or cancels keeps what it has committed through its session
_KEPT = (Outcome.RETURNED, Outcome.SNOOZED, Outcome.CANCELLED)


@dataclass(frozen=True, slots=True)
class Execution:
    """What one worker needs to run one claimed job."""

    registry: Registry
    app_engine: Engine
    transactions: Transactions
    conclusion: Conclusion
    retry: RetryStrategy | None
    session: SessionSource
    around: Around | None
    computation: Computation | None

    @property
    def stopping(self) -> Stopping:
        return self.transactions.stopping

    def runs_in(self, thread: threading.Thread) -> bool:
        """Whether handlers run in ``thread`` that is no thread of the worker's."""
        return False

    def close(self) -> None:
        """Close the worker's connections, and its executor."""
        self.transactions.engine.dispose()
        if self.computation is not None:
            self.computation.close()

    def cut_wires(self) -> None:
        """Let nobody wait for the server any more."""
        wires.cut(self.transactions.engine)

    def perform(self, run: Run) -> Report | None:
        """Run one claimed job; settle it if its handler used the session, else give the report of it."""
        early = self.begin(run)
        return self.go_on(run) if early is None else early

    def go_on(self, run: Run) -> Report | None:
        """Do what remains of it once it has begun."""
        try:
            error = self._compute(run)
            if error is None:
                error = self._call_until_no_conflict(run, self._call(run))
            return self._end(run, error)
        finally:
            run.hold.close()
            run.lighten()

    def begin(self, run: Run) -> Report | None:
        """Take note that ``run`` begins; give the report of one that need not."""
        now = clock.monotonic()
        renewed_at = run.claim.renewed_at  # 0 for a claim without a lease
        if renewed_at and now - renewed_at > STALE * self.transactions.lease.total_seconds():
            return Report(run, outcomes.INTERRUPTED)
        run.started_at = now
        run.hold.get_ready()
        if run.asked is not None:  # it need not begin
            return Report(run, self.end_early(run))
        self.conclusion.tell(run, events.HandlingJob)
        return None

    def _end(self, run: Run, error: BaseException | None) -> Report | None:
        if not run.finish():
            return None  # it was given up meanwhile, and its job is settled without it
        ruling = self._rule(run, error)
        if ruling is outcomes.RETURNED:
            run.job = None  # nobody asks for it any more, and the two name each other: that is work for the collector
        if run.hold.opened and not run.hold.died:
            return self._settle_held(run, ruling)
        return Report(run, ruling)

    def _compute(self, run: Run) -> BaseException | None:
        """Have computed what the handler is to get, if that is so; give the error with which that ended."""
        registration = self.registry.registration(run.claim.job_type)
        if registration is None or registration.compute is None:
            return None
        return self._have_computed(run, registration.compute)

    def _have_computed(self, run: Run, function: Compute) -> BaseException | None:
        try:
            prepare(run, self.transactions.lifecycle)
            if self.computation is None:  # here, for tests and the REPL
                run.computed = (function(run.job.payload),)
            else:
                run.computed = (self.computation.result_of(run, function),)
        except BaseException as error:
            return error
        return None

    def _call_until_no_conflict(self, run: Run, error: BaseException | None) -> BaseException | None:
        """Call the handler again while the database takes it for a loser; ``error`` is how its first call ended."""
        for _ in range(MOST_CONFLICTS):
            if error is None or trouble(error) is not Trouble.CONFLICT or run.interrupted():
                break
            self.conclusion.tell(run, events.ConflictRetried, error=error)
            self._renew_held(run)
            run.hold.reset()
            self._pause(random.uniform(0.01, 0.2))
            error = self._call(run)
        return error

    def _renew_held(self, run: Run) -> None:
        """Renew the lease before the lock is given up: it may have run out under it, and a poll would take us for dead."""
        if not run.claim.renewed_at or not run.hold.opened or run.hold.died:
            return
        now = clock.monotonic()
        with suppress(Exception):  # MariaDB has undone the whole transaction, and its lock with it
            run.hold.renew(self.transactions.lease)
            run.claim.renewed_at = now

    def _pause(self, seconds: float) -> None:
        time.sleep(seconds)

    def _call(self, run: Run) -> BaseException | None:
        """Call the handler within what belongs around it; give the error with which that ended."""
        try:
            prepare(run, self.transactions.lifecycle)
            session, given = self._open(run)
            try:
                self._call_within(given, run)
            finally:
                run.hold.seal()
                close_session(session)
        except BaseException as error:
            return error
        return None

    def _open(self, run: Run) -> tuple[Session, Any]:
        """Make the handler's session; give it as the one to flush and commit, and as the one to hand over."""
        session = open_session(self.session, self.app_engine, run.hold)
        return session, session

    def _call_within(self, session: Any, run: Run) -> None:
        registration = self.registry.registration(run.claim.job_type)
        if registration is None:
            raise LookupError(f"no handler takes the job type {run.claim.job_type!r}")
        self._invoke(registration, session, run)

    def _invoke(self, registration: Registration, session: Any, run: Run) -> None:
        if self.around is None and self.session is None:
            self._call_handler(registration, session, run)
        else:
            self._call_handler_within(registration, session, run)

    def _call_handler(self, registration: Registration, session: Any, run: Run) -> None:
        _refuse_coroutine(registration.handler(session, run.job, *run.computed))
        flush(session, run)

    def _call_handler_within(self, registration: Registration, session: Any, run: Run) -> None:
        """Call the handler in what the app has given for around it."""
        failure: BaseException | None = None
        with self.around(run.job) if self.around else nullcontext():
            try:
                with in_scope(self.session, session):
                    self._call_handler(registration, session, run)
            except BaseException as error:
                failure = error
                raise
        if failure is not None:  # a context manager that swallows errors must not turn a failure into a success
            raise failure

    # rule -------------------------------------------------------------------------------------------------------------

    def _rule(self, run: Run, error: BaseException | None) -> Ruling:
        if error is None and run.asked is None and run.hold.is_untouched:
            return outcomes.RETURNED  # nearly all short jobs
        if run.hold.lost:
            return outcomes.claim_lost(error)
        if run.asked is not None and self._ended_early(run, error):
            return self.end_early(run, error)
        return (
            self._rule_on_connection(run.hold, error) or self._rule_on_executor(error) or self._rule_on_handler(run, error)
        )

    def _rule_on_connection(self, hold: Hold, error: BaseException | None) -> Ruling | None:
        if hold.unavailable is not None:
            return outcomes.unavailable(hold.unavailable)
        if hold.died and (error is None or tells_of_disconnection(error)):
            return outcomes.connection_died(error or ConnectionError("the connection died while the job ran"))
        return None

    def _rule_on_executor(self, error: BaseException | None) -> Ruling | None:
        if not isinstance(error, ProcessDied | ExecutorUnavailable):
            return None
        if self.stopping.is_set():  # the end of the worker's own processes, perhaps
            return outcomes.INTERRUPTED
        return outcomes.process_died(error) if isinstance(error, ProcessDied) else outcomes.unavailable(error)

    def _rule_on_handler(self, run: Run, error: BaseException | None) -> Ruling:
        if error is not None and self._is_interruption(run, error):
            return outcomes.INTERRUPTED
        if error is not None and not isinstance(error, ControlFlow):
            return self._fail(run, error)
        return outcomes.rule(error, run.job, None)

    def _ended_early(self, run: Run, error: BaseException | None) -> bool:
        """Whether the handler, asked to end, has done so without coming to an end of its own."""
        if run.hold.died or run.hold.unavailable is not None:
            return True
        return error is not None and not isinstance(error, ControlFlow) and not self._is_ctrl_c(error)

    def end_early(self, run: Run, error: BaseException | None = None) -> Ruling:
        """Rule on a run that was asked to end; ``error`` is what its handler then raised, if it has ended at all."""
        if run.asked is Asked.CANCELLED:
            if error is not None and not isinstance(error, Interrupted):
                self.conclusion.tell(run, events.HandleJobExceptionWithInterrupt, error=error)
            return outcomes.cancelled(run.reason)
        timeout = JobTimeout(f"the handler took longer than its timeout of {run.timeout:g} s")
        timeout.__cause__ = error
        return self._fail(run, timeout.with_traceback(error.__traceback__ if error is not None else None))

    def _fail(self, run: Run, error: BaseException) -> Ruling:
        """Ask the strategy what follows from the handler's own ``error``."""
        if isinstance(error, Interrupted):
            error = RuntimeError("the handler raised Interrupted, but its worker is not stopping")
        if _savepoint_is_gone(error):
            self.conclusion.tell(run, events.TransactionEscaped)
            run.hold.spoilt = True
            error = TransactionEscaped("the handler ended the transaction behind its session's back")
        if isinstance(error, JobTimeout) or trouble(error) is Trouble.CANCELLED:
            self.conclusion.tell(run, events.TimedOut, error=error)
        self.conclusion.tell(run, events.HandleJobException, error=error)
        with suppress(Exception):  # the job as it was: the handler may have attached and expired it
            prepare(run, self.transactions.lifecycle)
        registration = self.registry.registration(run.claim.job_type)
        retry = registration.retry if registration and registration.retry is not None else self.retry
        return outcomes.rule(error, run.job, retry)

    def _is_interruption(self, run: Run, error: BaseException) -> bool:
        if self._is_ctrl_c(error):
            assert isinstance(error, KeyboardInterrupt)
            run.keyboard_interrupt = error
            return True
        if not self.stopping.is_set() or isinstance(error, ControlFlow):
            return False
        if isinstance(error, Interrupted):
            return True
        if run.noticed:
            self.conclusion.tell(run, events.HandleJobExceptionWithInterrupt, error=error)
        return run.noticed

    def _is_ctrl_c(self, error: BaseException) -> bool:
        return isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread()

    # settle -----------------------------------------------------------------------------------------------------------

    def _settle_held(self, run: Run, ruling: Ruling) -> Report | None:
        """Settle in the transaction that holds the job: with what the handler has done, or with that undone."""
        self._let_cancel_pass(run)
        if ruling.outcome in _KEPT and not ruling.undone:
            in_one_trip = run.hold.scripted and ruling is outcomes.RETURNED
            verdict = self._finish_and_commit(run) if in_one_trip else self._settle_and_commit(run, ruling)
            if not isinstance(verdict, Ruling):
                return verdict
            ruling = verdict
        return Report(run, ruling) if run.hold.died else self._settle_undone(run, ruling)

    def _let_cancel_pass(self, run: Run) -> None:
        """Wait for what cancels the statements of a run that was asked to end: it was meant for its handler's."""
        until = clock.monotonic() + LONGEST_CANCEL
        while run.asked is not None and not run.cut and clock.monotonic() < until:
            self._pause(0.005)

    def _settle_undone(self, run: Run, ruling: Ruling) -> Report | None:
        """Undo what the handler has done and settle under the lock that the transaction still has.

        Were the lock given up first, a poll could take the job for crashed whose lease has run out while it was held.
        """
        report = Report(run, ruling)
        try:
            run.hold.roll_back_to_lock()
            if run.claim.job_id not in self._settle(run, ruling):
                return report
            report.tried = True
            run.hold.for_settling().commit()
        except Exception:
            run.hold.spoilt = True
            return report
        self.conclusion.conclude(Settled(run, ruling))
        return None

    def _settle_and_commit(self, run: Run, ruling: Ruling) -> Ruling | Report | None:
        """Settle and COMMIT; give the ruling that applies when that failed, or a report when it is in doubt."""
        try:
            moved = self._settle(run, ruling)
            if run.claim.job_id not in moved:
                return self._not_moved(run)
        except Exception as error:
            return self._refused(run, error)
        try:
            run.hold.for_settling().commit()
        except Exception as error:
            if trouble(error) is Trouble.DISCONNECTED:
                return Report(run, outcomes.connection_died(error), committed=ruling)
            return self._refused(run, error, by_commit=True)
        if run.hold.held is not None and moved[run.claim.job_id] != run.hold.held.transaction_id:
            self.conclusion.tell(run, events.TransactionEscaped)
        self.conclusion.conclude(Settled(run, ruling))
        return None

    def _finish_and_commit(self, run: Run) -> Ruling | Report | None:
        """Do the same in one round trip."""
        try:
            transaction_id = run.hold.finish(SETTLE_LIMITS)
        except Exception as error:
            if trouble(error) is Trouble.DISCONNECTED:
                return Report(run, outcomes.connection_died(error), committed=outcomes.RETURNED)
            if scripts.says_not_moved(error):
                return self._not_moved_by_script(run)
            if scripts.says_forgotten(error):  # the handler has thrown away what was prepared; next time nothing is
                return outcomes.unavailable(error)
            return self._refused(run, error, by_commit=run.hold.has_ended())
        if run.hold.held is not None and transaction_id != run.hold.held.transaction_id:
            self.conclusion.tell(run, events.TransactionEscaped)
        self.conclusion.conclude(Settled(run, outcomes.RETURNED))
        return None

    def _not_moved_by_script(self, run: Run) -> Ruling:
        """Nothing was there to settle, and the script's error has left its mark on the transaction."""
        try:
            run.hold.roll_back_to_lock()
        except Exception:
            return outcomes.claim_lost()
        return self._not_moved(run)

    def _settle(self, run: Run, ruling: Ruling) -> dict[Any, str]:
        held, lifecycle, connection = run.hold.held, self.transactions.lifecycle, run.hold.for_settling()
        assert held is not None
        lifecycle.prepare_settling(connection, held, **SETTLE_LIMITS)
        return lifecycle.settle(connection, [(run.claim, ruling)])

    def _not_moved(self, run: Run) -> Ruling:
        """Nothing was there to settle: the handler's own doing, as long as its transaction has held the row."""
        held = run.hold.held
        if held is not None and self.transactions.lifecycle.still_holds(run.hold.for_settling(), held):
            return self._fail(run, RuntimeError("the handler deleted its own job's row, or changed the claim in it"))
        return outcomes.claim_lost()

    def _refused(self, run: Run, error: Exception, *, by_commit: bool = False) -> Ruling:
        """Rule on a settling that the database refused, by whose fault it is."""
        match trouble(error):
            case Trouble.DISCONNECTED:
                return outcomes.connection_died(error)
            case Trouble.CANCELLED if run.asked is not None:
                return self.end_early(run, error)
            case Trouble.CANCELLED if run.noticed:
                return outcomes.INTERRUPTED
            case Trouble.CONFLICT | Trouble.TRANSIENT | Trouble.LOCK_TIMEOUT | Trouble.CANCELLED:
                return outcomes.unavailable(error)
            case Trouble.CONSTRAINT if not by_commit:
                return outcomes.parked(error, run.claim.attempts)
            case _:
                return self._fail(run, error)


def build_execution(
    registry: Registry,
    lifecycle: Lifecycle,
    *,
    engine: Engine,
    app_engine: Engine,
    emit: events.Emitter,
    queue: str,
    worker_id: str,
    lease: timedelta,
    crash_ceiling: int,
    retry: RetryStrategy | None,
    on_failed: OnFailed | None,
    session: SessionSource,
    around: Around | None,
    now: clock.Clock,
    timeout: timedelta | None = None,
    computation: Computation | None = None,
    hold: type[Hold] = Hold,
    kind: type[Execution] = Execution,
    conclusion: type[Conclusion] = Conclusion,
) -> Execution:
    """Put together what one worker needs; ``engine`` is its own, ``app_engine`` the one that sessions would use."""
    return kind(
        registry,
        app_engine,
        Transactions(
            registry, lifecycle, engine, queue, worker_id, lease, crash_ceiling, partial(hold, engine, lifecycle), timeout
        ),
        conclusion(emit, registry, lifecycle, on_failed, now),
        retry,
        session,
        around,
        computation,
    )


def flush(session: Any, run: Run) -> None:
    """Write what the handler left in its session, while the app's context is there that finds it a connection."""
    if session.in_transaction():
        try:
            session.flush()
            run.hold.restore_options()
            run.hold.commit_session(session)
        except PendingRollbackError as error:  # of what the handler has swallowed
            raise run.hold.reason_of(error) from None


def _refuse_coroutine(result: object) -> None:
    """Take a function that only returns a coroutine for what it is: nothing has been done."""
    if result is not None and isinstance(result, Coroutine):
        result.close()
        raise TypeError("the handler returned a coroutine that nobody awaits; make it an async def function")


def _savepoint_is_gone(error: BaseException) -> bool:
    return sqlstate(error) == "3B001"
