"""What follows once a job's end is committed: an event, and ``on_failed`` where it is due.

It owns the telling. It refuses to change a row: by now there is nothing left to change.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any, assert_never

from . import clock, events
from .lifecycle import Lifecycle
from .outcomes import RETURNED, Outcome
from .registry import OnFailed, Registry
from .runs import Run, Settled, prepare


@dataclass(frozen=True, slots=True)
class Conclusion:
    """Tells the listener and the app how jobs ended."""

    emit: events.Emitter
    registry: Registry
    lifecycle: Lifecycle
    on_failed: OnFailed | None
    now: clock.Clock

    def conclude(self, settled: Settled) -> None:
        """Tell the listener, and call ``on_failed`` where it is due; in a thread that may take its time."""
        self.announce(settled)
        if self.wants_callback(settled):
            self.call_on_failed(settled)

    def announce(self, settled: Settled) -> None:  # noqa: C901, PLR0912 - one clause for each outcome
        """Send the event that tells how the job was settled."""
        run, ruling = settled.run, settled.ruling
        run.outcome = ruling.outcome
        if ruling is RETURNED:  # nearly all of them, and the rest of this costs more than such a job
            self.tell(run, events.JobFinished)
            return
        if ruling.strategy_error is not None:
            self.tell(run, events.RetryStrategyError, error=ruling.strategy_error)
        match ruling.outcome:
            case Outcome.RETURNED:
                self.tell(run, events.JobFinished)
            case Outcome.RETRIED:
                assert ruling.spec is not None and ruling.delay is not None
                retry_at = clock.read(self.now) + ruling.delay
                self.tell(run, events.Retrying, retry_at=retry_at, retries_left=ruling.spec.retries_left)
            case Outcome.GAVE_UP:
                self.tell(run, events.NotRetrying, retry_spec=ruling.spec, error=ruling.cause)
            case Outcome.SNOOZED:
                self.tell(run, events.JobSnoozed, delay=ruling.delay)
            case Outcome.CANCELLED:
                self.tell(run, events.JobCancelled, reason=str(ruling.cause))
            case Outcome.INTERRUPTED:
                if run.started_at is not None:
                    self.tell(run, events.JobInterrupted)
            case Outcome.UNAVAILABLE:
                self.tell(run, events.ConnectionUnavailable, error=ruling.cause)
            case Outcome.CONNECTION_DIED:
                self.tell(run, events.ConnectionDied, error=ruling.cause)
            case Outcome.PROCESS_DIED:
                self.tell(run, events.ProcessDied, error=ruling.cause)
            case Outcome.CRASHED:
                self.tell(run, events.JobCrashed, crashes=run.claim.crashes)
            case Outcome.CLAIM_LOST:
                self.tell(run, events.ClaimLost)
            case Outcome.PARKED:
                self.tell(run, events.JobParked, error=ruling.cause, delay=ruling.delay)
            case _:
                assert_never(ruling.outcome)

    def wants_callback(self, settled: Settled) -> bool:
        """Whether ``on_failed`` is due: after a final failure that this worker, and certainly no other, has recorded."""
        return (
            settled.ruling is not RETURNED
            and settled.ruling.failed
            and settled.certain
            and self._callback_of(settled.run) is not None
        )

    def call_on_failed(self, settled: Settled) -> None:
        """Call ``on_failed``; an error in it is reported and harms nothing."""
        run, callback = settled.run, self._callback_of(settled.run)
        assert callback is not None and settled.ruling.cause is not None
        if run.job is None:  # it was archived without having run here
            with suppress(Exception):
                prepare(run, self.lifecycle)
        try:
            self._call(callback, run.job, settled.ruling.cause)
        except BaseException as error:  # sys.exit() in a callback is no reason to lose the thread
            self.tell(run, events.OnFailedError, error=error)

    def _call(self, callback: OnFailed, job: Any, error: BaseException) -> None:
        callback(job, error)

    def _callback_of(self, run: Run) -> OnFailed | None:
        registration = self.registry.registration(run.claim.job_type)
        return registration.on_failed if registration and registration.on_failed is not None else self.on_failed

    def tell(self, run: Run, kind: type[events.JobEvent], **fields: Any) -> None:
        """Send an event about the job of ``run``."""
        if not self.emit.has_use_for(kind):
            return
        claim = run.claim
        self.emit(kind, job_id=claim.job_id, job_type=claim.job_type, attempt=claim.attempts, **fields)
