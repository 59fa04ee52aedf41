"""The fates of a job: what a run can come to, and what then happens to its row.

It owns the one table from which the worker acts and from which the docs are drawn (:data:`FATES`), and the decision that
leads from what a handler did to a line of that table. It refuses to touch a database: everything here is a function from
values to values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any

from .errors import Cancel, Interrupted, JobCrashed, Snooze, StrategyFailed, describe, describe_with_frames
from .retry import Retry, RetrySpec, RetryStrategy, retry_spec

DOUBT_BACK_OFF = timedelta(seconds=1)
"""How long a job waits whose connection died: long enough for a restarting server, short enough to go unnoticed."""

PARKING = timedelta(minutes=1)
LONGEST_PARKING = timedelta(days=1)


class Status(StrEnum):
    """How a job ended: the values of the archive's ``status`` column."""

    SUCCESS = "success"
    FAILURE = "failure"
    CANCELLED = "cancelled"
    CRASHED = "crashed"


class Move(StrEnum):
    """Where a row goes."""

    ARCHIVE = "archive"
    RESCHEDULE = "reschedule"
    RELEASE = "release"
    LEAVE = "leave"


class Outcome(StrEnum):
    """What a run of a job came to: the keys of :data:`FATES`."""

    RETURNED = "returned"
    RETRIED = "retried"
    GAVE_UP = "gave_up"
    SNOOZED = "snoozed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"
    UNAVAILABLE = "unavailable"
    CONNECTION_DIED = "connection_died"
    PROCESS_DIED = "process_died"
    CRASHED = "crashed"
    CLAIM_LOST = "claim_lost"
    PARKED = "parked"


@dataclass(frozen=True, slots=True)
class Fate:
    """One line of the table.

    :param when: what happened, in the words of the docs.
    :param move: where the row goes.
    :param status: the archive's status, for rows that go there.
    :param attempt: whether the run counts as an attempt; where not, the attempt is given back.
    :param crash: whether the run counts as a crash.
    :param reported: whether the handler came to an end of its own; that sets the count of crashes back to 0.
    """

    when: str
    move: Move
    due: str
    status: Status | None = None
    attempt: bool = True
    crash: bool = False
    reported: bool = True


FATES: Mapping[Outcome, Fate] = {
    Outcome.RETURNED: Fate("the handler returned", Move.ARCHIVE, "–", Status.SUCCESS),
    Outcome.RETRIED: Fate("the handler raised or timed out, the strategy gives a delay", Move.RESCHEDULE, "finish + delay"),
    Outcome.GAVE_UP: Fate("the handler raised or timed out, the strategy gives up", Move.ARCHIVE, "–", Status.FAILURE),
    Outcome.SNOOZED: Fate("the handler raised `Snooze`", Move.RESCHEDULE, "now + delay", attempt=False),
    Outcome.CANCELLED: Fate("the handler raised `Cancel`, or somebody cancels the job", Move.ARCHIVE, "–", Status.CANCELLED),
    Outcome.INTERRUPTED: Fate(
        "the worker stopped first", Move.RELEASE, "at once, place in line kept", attempt=False, reported=False
    ),
    Outcome.UNAVAILABLE: Fate(
        "no connection, no lock in time, or no executor",
        Move.RESCHEDULE,
        "now + 1 s",
        attempt=False,
        reported=False,
    ),
    Outcome.CONNECTION_DIED: Fate(
        "the connection died and the job is not committed",
        Move.RESCHEDULE,
        "now + 1 s",
        attempt=False,
        crash=True,
        reported=False,
    ),
    Outcome.PROCESS_DIED: Fate(
        "the executor lost the process in which the job was computed",
        Move.RESCHEDULE,
        "now + 1 s",
        attempt=False,
        crash=True,
        reported=False,
    ),
    Outcome.CRASHED: Fate("the process died as often as the ceiling allows", Move.ARCHIVE, "–", Status.CRASHED),
    Outcome.CLAIM_LOST: Fate("somebody else has the claim", Move.LEAVE, "–"),
    Outcome.PARKED: Fate("a constraint refuses the settling", Move.RESCHEDULE, "now + 1 min, doubling up to a day"),
}


@dataclass(frozen=True, slots=True)
class Ruling:
    """What shall happen to one job: its outcome, and the values that go into the row.

    :param delay: from the settling until the job is due again; ``None`` leaves ``process_at`` as it is.
    :param error: the text for ``last_error`` or the archive's ``error``; ``None`` leaves it as it is.
    :param cause: the exception itself, for events and ``on_failed``.
    :param spec: what the retry strategy came to, for events.
    :param undone: nothing that the handler has committed through its session stays, whatever the outcome.
    :param strategy_error: why the retry strategy was of no use; the job is given up then.
    """

    outcome: Outcome
    delay: timedelta | None = None
    error: str | None = None
    cause: BaseException | None = None
    spec: RetrySpec | None = None
    undone: bool = False
    strategy_error: StrategyFailed | None = None

    @property
    def fate(self) -> Fate:
        """The line of the table that this ruling follows."""
        return FATES[self.outcome]

    @property
    def failed(self) -> bool:
        """Whether this is the end of the job after which ``on_failed`` is due."""
        return self.fate.status in (Status.FAILURE, Status.CRASHED)


RETURNED = Ruling(Outcome.RETURNED)
INTERRUPTED = Ruling(Outcome.INTERRUPTED)


def rule(error: BaseException | None, job: Any, strategy: RetryStrategy | None) -> Ruling:
    """Decide the fate of ``job`` after its handler ended with ``error`` (``None``: it returned)."""
    match error:
        case None:
            return RETURNED
        case Snooze():
            return Ruling(Outcome.SNOOZED, delay=error.delay)
        case Cancel():
            return Ruling(Outcome.CANCELLED, error=describe(error), cause=error)
        case Interrupted():
            return INTERRUPTED
        case _:
            return _retry_or_give_up(error, job, strategy)


def _retry_or_give_up(error: BaseException, job: Any, strategy: RetryStrategy | None) -> Ruling:
    text = describe_with_frames(error)
    try:
        spec = apply_strategy(strategy, job, error)
    except StrategyFailed as failure:
        return Ruling(Outcome.GAVE_UP, error=text, cause=error, strategy_error=failure)
    if spec is None or spec.delay is None:
        return Ruling(Outcome.GAVE_UP, error=text, cause=error, spec=spec)
    return Ruling(Outcome.RETRIED, delay=spec.delay, error=text, cause=error, spec=spec)


def apply_strategy(strategy: RetryStrategy | None, job: Any, error: BaseException) -> RetrySpec | None:
    """Ask ``strategy`` what follows; ``StrategyFailed`` when it raises or answers nonsense."""
    try:
        retry = strategy(job, error) if callable(strategy) else strategy
        if retry is None:
            return None
        if isinstance(retry, Retry):
            return retry_spec(retry, job.attempts)
    except BaseException as failure:  # sys.exit() in a strategy, or a spoilt job.attempts, is no reason to lose the thread
        raise StrategyFailed(f"the retry strategy raised {describe(failure)}") from failure
    raise StrategyFailed(f"the retry strategy must return a Retry or None, it returned a {type(retry).__name__}")


def unavailable(error: BaseException) -> Ruling:
    """The handler's session could not be opened, or its executor not be had; nothing happened, so nothing counts."""
    return Ruling(Outcome.UNAVAILABLE, delay=DOUBT_BACK_OFF, error=describe(error), cause=error)


def connection_died(error: BaseException) -> Ruling:
    """The connection died while the job ran, and no failure of the handler's own is known."""
    return Ruling(Outcome.CONNECTION_DIED, delay=DOUBT_BACK_OFF, error=describe(error), cause=error)


def process_died(error: BaseException) -> Ruling:
    """The executor has lost the process in which the job was computed; nobody can say by whose fault."""
    return Ruling(Outcome.PROCESS_DIED, delay=DOUBT_BACK_OFF, error=describe(error), cause=error)


def crashed(crashes: int) -> Ruling:
    """The process died once too often."""
    error = JobCrashed(
        f"the worker's process, its executor's, or the job's connection died {crashes} times while this job ran"
    )
    return Ruling(Outcome.CRASHED, error=describe(error), cause=error)


def claim_lost(error: BaseException | None = None) -> Ruling:
    """Somebody else has the claim: nothing is written."""
    return Ruling(Outcome.CLAIM_LOST, cause=error)


def cancelled(reason: str) -> Ruling:
    """Somebody cancels the job from outside."""
    error = Cancel(reason)
    return Ruling(Outcome.CANCELLED, error=describe(error), cause=error, undone=True)


def parked(error: BaseException, attempts: int) -> Ruling:
    """A constraint refuses the settling: wait for somebody to mend it, longer from time to time."""
    delay = min(LONGEST_PARKING, PARKING * 2 ** min(max(attempts - 1, 0), 11))
    return Ruling(Outcome.PARKED, delay=delay, error=f"could not be settled: {describe(error)}", cause=error)
