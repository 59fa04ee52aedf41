"""Events: what a worker tells the world, one frozen dataclass for each thing that happens.

It owns the names (Proletarian's where Proletarian has the event) and how they reach a listener; the default one, from
``event_log``, is here by name. It refuses to know levels, and payloads altogether: no event carries one.

A listener is a function of one argument, called in the thread in which the event happens; it should be quick. An error in
it is logged and harms nothing.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, ClassVar

from .errors import describe
from .event_log import level_of as level_of
from .event_log import line as line
from .event_log import log_event as log_event
from .event_log import logger
from .event_log import logs as logs
from .retry import RetrySpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Base of all events.

    :param worker_id: the worker that it happened to.
    :param queue: the queue of that worker.
    :param thread: the name of the thread in which it happened.
    """

    name: ClassVar[str] = "event"

    worker_id: str
    queue: str
    thread: str

    def __init_subclass__(cls) -> None:
        cls.name = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()

    def __str__(self) -> str:
        """Give the line of the default listener: unlike ``repr``, it quotes nothing from rows and parameters."""
        return line(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEvent(Event):
    """Base of the events about one job; ``attempt`` counts from 1 and includes the current run."""

    job_id: Any
    job_type: str
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PollingForJobs(Event):
    """The worker asks the database for due jobs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlingJob(JobEvent):
    """A handler is about to be called."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFinished(JobEvent):
    """The job is archived as ``success``, and that is committed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSnoozed(JobEvent):
    """The handler raised ``Snooze``; the job is due again after ``delay``."""

    delay: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class JobCancelled(JobEvent):
    """The handler raised ``Cancel``, or somebody has cancelled the job; it is archived as ``cancelled``."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobInterrupted(JobEvent):
    """The worker stopped before the job was done; the job is due again and the run is no attempt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HandleJobException(JobEvent):
    """The handler raised; what follows is ``retrying`` or ``not_retrying``."""

    error: BaseException


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedOut(JobEvent):
    """The handler took too long (``error`` is a ``JobTimeout``), or a statement of it; ``handle_job_exception`` follows."""

    error: BaseException


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerStuck(JobEvent):
    """The handler was asked to end and did not: its job is settled without it, and another thread takes its place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HandleJobExceptionWithInterrupt(JobEvent):
    """The handler raised after it had been interrupted; this is an interruption and not a failure."""

    error: BaseException


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrying(JobEvent):
    """The job will run again at about ``retry_at`` (the database's clock decides)."""

    retry_at: datetime
    retries_left: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NotRetrying(JobEvent):
    """The job is archived as ``failure``; ``retry_spec`` is what the strategy came to, ``None`` without one."""

    retry_spec: RetrySpec | None
    error: BaseException | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryStrategyError(JobEvent):
    """The retry strategy raised or returned nonsense; the job is given up."""

    error: BaseException


@dataclass(frozen=True, slots=True, kw_only=True)
class OnFailedError(JobEvent):
    """``on_failed`` raised; the job is archived all the same."""

    error: BaseException


@dataclass(frozen=True, slots=True, kw_only=True)
class ConflictRetried(JobEvent):
    """A deadlock or serialization failure; the handler is called again at once, in the same attempt."""

    error: BaseException


@dataclass(frozen=True, slots=True, kw_only=True)
class JobCrashed(JobEvent):
    """The job is archived as ``crashed``: processes died under it as often as the crash ceiling allows."""

    crashes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionDied(JobEvent):
    """The connection of the job died, it is not committed, and it will run again; no attempt, but a crash."""

    error: BaseException | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionUnavailable(JobEvent):
    """The handler's session could get no connection, or not the row's lock, or the executor none; the job will run again."""

    error: BaseException | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessDied(JobEvent):
    """The executor lost the process in which the job was computed; the job will run again; no attempt, but a crash."""

    error: BaseException | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimLost(JobEvent):
    """Somebody else has the job's claim; nothing of this run was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobParked(JobEvent):
    """A constraint refuses the settling (``error`` names it); the job waits for ``delay`` and is then tried again."""

    error: BaseException | None
    delay: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class TransactionEscaped(JobEvent):
    """The handler ended the worker's transaction behind its session's back; what it wrote before is committed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownJobTypes(Event):
    """Jobs of these types are due in the queue and this worker has no handler for them; they stay where they are."""

    job_types: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadRowsKept(Event):
    """Something old keeps about so many dead ``rows`` of the job table from being removed, which makes it slower to read."""

    holder: str
    age: timedelta
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SqlTransientException(Event):
    """The database is away or busy, or a poll lost a deadlock; the worker tries again after ``delay``."""

    error: BaseException
    delay: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class JobWorkerError(Event):
    """Polling or settling failed otherwise; the worker tries again unless ``on_polling_error`` says to stop."""

    error: BaseException
    hint: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorReplaced(Event):
    """The executor is broken (``error`` says how), or hangs in a call that was given up: the next job gets a new one."""

    error: BaseException | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PresenceUnavailable(Event):
    """The worker table cannot be written (``error`` says why): the worker works, but cannot be seen in the database."""

    error: BaseException


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchivePruned(Event):
    """The worker's retention has deleted so many ``rows`` of the archive."""

    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PruningFailed(Event):
    """The worker's retention met an ``error``; it comes back when the next pass is due."""

    error: BaseException


@dataclass(frozen=True, slots=True, kw_only=True)
class WakeUpsUnavailable(Event):
    """The worker cannot listen for enqueues (``error`` says why): until it can, it finds jobs by polling alone."""

    error: BaseException


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerInterrupted(Event):
    """A signal asks the worker to stop."""

    signal: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ShuttingDown(Event):
    """The worker claims no more jobs and interrupts those that run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlreadyShutDown(Event):
    """``stop`` was called on a worker that does not run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletedShutdown(Event):
    """All threads have ended, and every job is settled or released."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InterruptedWhileShuttingDown(Event):
    """A second signal, or Ctrl-C in ``stop``: what still runs is released at once."""

    signal: str


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueWorkerShutdownError(Event):
    """The stop ran past its timeout, or ``on_shutdown`` raised; ``job_ids`` are those that still ran."""

    error: BaseException | None
    job_ids: tuple[Any, ...] = ()


Listener = Callable[[Event], None]


class Emitter:
    """Sends events of one worker to one listener, whose errors are logged and harm nothing."""

    def __init__(self, listener: Listener, *, worker_id: str, queue: str) -> None:
        self._listener = listener
        self._only_logs = listener is log_event
        self._origin = {"worker_id": worker_id, "queue": queue}

    def has_use_for(self, kind: type[Event]) -> bool:
        """Whether an event of ``kind`` would reach anybody: the default listener drops what logging has no use for."""
        return not self._only_logs or logs(kind)

    def __call__(self, kind: type[Event], **fields: Any) -> None:
        """Make the event of ``kind`` and send it."""
        if not self.has_use_for(kind):
            return
        event = kind(**self._origin, thread=threading.current_thread().name, **fields)
        try:
            self._listener(event)
        except (Exception, SystemExit) as error:
            logger.error("the listener failed on %s: %s", event.name, describe(error))
