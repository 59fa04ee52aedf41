"""Durable background jobs as an ORM extension of SQLAlchemy.

The tour, in the order in which one meets things:

1. **Models.** ``class Job(JobMixin, Base)`` and ``class ArchivedJob(ArchivedJobMixin, Base)`` are two tables of the app.
2. **Jobs.** ``jobs = Proletarian(Job, ArchivedJob)``; ``@jobs.handler("welcome")`` registers ``(session, job)`` functions.
3. **Enqueue.** ``jobs.enqueue(session, "welcome", {"user_id": 7})`` inside the transaction that the app already has.
4. **Work.** ``Worker(jobs, engine).run()`` claims due jobs, runs them, and archives each one as success or failure. What a
   handler writes through its session commits together with the job's completion, or not at all.
"""

from typing import TYPE_CHECKING, Any

from . import events
from .cancellation import Cancellation
from .errors import (
    Cancel,
    ClaimLost,
    ComputationFailed,
    ConfigurationError,
    ConnectionLost,
    DecryptionFailed,
    ExecutorUnavailable,
    Interrupted,
    JobCrashed,
    JobTimeout,
    ProcessDied,
    ProletarianError,
    SessionClosed,
    Snooze,
    StrategyFailed,
    TransactionEscaped,
)
from .job_ids import database_generated, uuid7
from .model_factory import models_for
from .models import ArchivedJob, ArchivedJobMixin, Job, JobMixin, metadata
from .outcomes import Outcome, Status
from .overview import Running, RunningJob, RunningWorker
from .process_pools import processes
from .proletarian import Proletarian
from .retry import Retry, RetryStrategy, exponential
from .serializers import Binding, JSONSerializer, Serializer
from .worker import Worker
from .workers import Workers

if TYPE_CHECKING:
    from .async_worker import AsyncWorker
    from .encryption import EncryptedSerializer

__all__ = [
    "ArchivedJob",
    "ArchivedJobMixin",
    "AsyncWorker",
    "Binding",
    "Cancel",
    "Cancellation",
    "ClaimLost",
    "ComputationFailed",
    "ConfigurationError",
    "ConnectionLost",
    "DecryptionFailed",
    "EncryptedSerializer",
    "ExecutorUnavailable",
    "Interrupted",
    "JSONSerializer",
    "Job",
    "JobCrashed",
    "JobMixin",
    "JobTimeout",
    "Outcome",
    "ProcessDied",
    "Proletarian",
    "ProletarianError",
    "Retry",
    "RetryStrategy",
    "Running",
    "RunningJob",
    "RunningWorker",
    "Serializer",
    "SessionClosed",
    "Snooze",
    "Status",
    "StrategyFailed",
    "TransactionEscaped",
    "Worker",
    "Workers",
    "database_generated",
    "events",
    "exponential",
    "metadata",
    "models_for",
    "processes",
    "uuid7",
]


def __getattr__(name: str) -> Any:
    if name == "AsyncWorker":
        from .async_worker import AsyncWorker  # noqa: PLC0415 (it needs greenlet, which SQLAlchemy 2.1 does not bring)

        return AsyncWorker
    if name == "EncryptedSerializer":
        from .encryption import EncryptedSerializer  # noqa: PLC0415 (it needs cryptography, an extra)

        return EncryptedSerializer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
