"""``ClojureProletarian``: what an app makes once to enqueue into Proletarian's tables and to work their jobs.

It owns the public verbs that need no worker. It refuses to hold connections or sessions; those are always the app's.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, inspect
from sqlalchemy.orm import configure_mappers

from sa_proletarian import clock as clocks
from sa_proletarian import events, outbox
from sa_proletarian.connections import Pooler, only_postgresql, own_engine, plain
from sa_proletarian.execution import Around, Execution, build_execution
from sa_proletarian.outcomes import Outcome
from sa_proletarian.registry import OnFailed, Registry
from sa_proletarian.retry import RetryStrategy
from sa_proletarian.sessions import checked_maker

from .models import ArchivedJob, ClojureArchivedJobMixin, ClojureJobMixin, Job
from .names import DEFAULT_QUEUE, stored_name
from .rows import RowLifecycle
from .turns import process_next

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

_NO_LEASE = timedelta(0)
_NO_CEILING = 0


class ClojureProletarian(Registry):
    """The jobs of an app in Proletarian's own two tables, and the handlers for those that Python works.

    :param job_model: the app's class of :class:`ClojureJobMixin`; by default :class:`Job`, the table ``proletarian.job``.
    :param archived_model: the app's class of :class:`ClojureArchivedJobMixin`; by default ``proletarian.archived_job``.
    :param clock: gives the current instant for ``enqueued_at`` and for relative due times, as an aware ``datetime``; the
        default is the system's.

    Job types and queues are Clojure keywords: ``"my.app/email"`` and ``":my.app/email"`` name the same one.
    """

    def __init__(
        self,
        job_model: type[ClojureJobMixin] = Job,
        archived_model: type[ClojureArchivedJobMixin] = ArchivedJob,
        *,
        clock: clocks.Clock = clocks.system_clock,
    ) -> None:
        super().__init__()
        if not callable(clock):
            raise TypeError(f"clock must be a function that gives an aware datetime, got {clock!r}")
        self.job_model: type[ClojureJobMixin] = _checked_model(job_model, ClojureJobMixin)
        self.archived_model: type[ClojureArchivedJobMixin] = _checked_model(archived_model, ClojureArchivedJobMixin)
        self.clock: clocks.Clock = clock

    def enqueue(
        self,
        target: Any,
        /,
        job_type: str | Callable[..., Any],
        payload: Any = None,
        *,
        queue: str = DEFAULT_QUEUE,
        process_at: datetime | None = None,
        process_in: timedelta | None = None,
        job_id: Any = None,
    ) -> ClojureJobMixin:
        """Enqueue a job in the caller's own transaction; it exists when, and only if, the caller commits.

        The arguments are those of ``Proletarian.enqueue``; ``job_type`` and ``queue`` are keywords, and ``payload`` is what
        the model's serializer takes, by default :class:`TransitSerializer`. ``ValueError`` or ``TypeError`` for bad input,
        before any SQL. Gives the job, with its id.
        """
        job = self.job_model(
            self.type_of(job_type),
            payload,
            queue=queue,
            process_at=process_at,
            process_in=process_in,
            job_id=job_id,
            enqueued_at=clocks.read(self.clock),
        )
        return outbox.put(target, job)

    def process_next(
        self,
        engine: Engine | AsyncEngine,
        *,
        queue: str = DEFAULT_QUEUE,
        retry: RetryStrategy | None = None,
        on_failed: OnFailed | None = None,
        session: Any = None,
        around: Around | None = None,
        listener: events.Listener = events.log_event,
        worker_id: str = "process_next",
    ) -> Outcome | None:
        """Run the next due job in this thread: for tests, the REPL and cron.

        The arguments mean what they mean for :class:`ClojureWorker`. Gives the outcome, or ``None`` when nothing was due.
        """
        queue = stored_name("queue", queue)
        execution = self.execution(
            engine,
            size=2,
            queue=queue,
            retry=retry,
            on_failed=on_failed,
            session=session,
            around=around,
            emit=events.Emitter(listener, worker_id=worker_id, queue=queue),
            worker_id=worker_id,
        )
        try:
            return process_next(execution)
        finally:
            execution.transactions.engine.dispose()

    def execution(
        self, engine: Engine | AsyncEngine, *, size: int, session: Any, pooler: Pooler | None = None, **options: Any
    ) -> Execution:
        """Put together what runs jobs, with ``size`` connections of its own; for :meth:`process_next` and the worker."""
        only_postgresql(engine, "a ClojureProletarian")
        self.refuse_coroutines()
        configure_mappers()
        app_engine: Engine = plain(engine)
        return build_execution(
            self,
            RowLifecycle(self.job_model, self.archived_model),
            engine=own_engine(engine, size=size, pooler=pooler),
            app_engine=app_engine,
            lease=_NO_LEASE,
            crash_ceiling=_NO_CEILING,
            session=checked_maker(session, app_engine),
            now=self.clock,
            **options,
        )

    def _checked_type(self, job_type: str) -> str:
        return stored_name("job_type", job_type)

    def _check_compute(self, compute: Any) -> None:
        if compute is not None:
            raise TypeError("a worker on Proletarian's own tables knows no executors")

    def _check_timeout(self, timeout: timedelta | None) -> None:
        if timeout is not None:
            raise TypeError("a worker on Proletarian's own tables knows no timeouts")


def _checked_model(model: Any, mixin: type[Any]) -> Any:
    if not isinstance(model, type) or not issubclass(model, mixin):
        raise TypeError(f"expected a model made with {mixin.__name__}, got {model!r}")
    if inspect(model, raiseerr=False) is None:
        raise TypeError(f"{model.__name__} is not mapped: it needs a declarative base besides {mixin.__name__}")
    return model
