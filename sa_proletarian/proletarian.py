"""``Proletarian``: what an app makes once, and enqueues and registers handlers with.

It owns the public verbs that need no worker. It refuses to hold connections or sessions; those are always the app's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from sqlalchemy import Engine, inspect
from sqlalchemy.orm import Mapper, configure_mappers

from . import bulk, cancellation, drafts, events, outbox, overview, verbs, waking
from . import clock as clocks
from .arguments import boolean, timeout_or_none
from .cancellation import USUAL_REASON, Cancellation
from .connections import own_engine, plain
from .drafts import Item
from .execution import Around, build_execution
from .inline import process_next
from .job_ids import database_generated
from .models import DEFAULT_QUEUE, ArchivedJob, ArchivedJobMixin, Job, JobMixin, checked_name
from .outcomes import Outcome
from .pruning import Progress
from .registry import OnFailed, Registry, is_async
from .retry import RetryStrategy
from .serializers import decoded, is_bound
from .sessions import checked_maker
from .verbs import cancelling, lifecycle_for

_INLINE_LEASE = timedelta(seconds=30)
_INLINE_CEILING = 5


M = TypeVar("M", bound=JobMixin)

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    # with a default, so that a bare ``Proletarian`` means one of any models; SQLAlchemy's dependency, and not one of ours
    from typing_extensions import TypeVar as TypeVarWithDefault

    J = TypeVarWithDefault("J", bound=JobMixin, default=Any)
    A = TypeVarWithDefault("A", bound=ArchivedJobMixin, default=Any)
else:
    J = TypeVar("J", bound=JobMixin)
    A = TypeVar("A", bound=ArchivedJobMixin)


class Proletarian(Registry, Generic[J, A]):
    """The jobs of an app: its two models, and its handlers.

    :param job_model: the app's class of :class:`JobMixin`; by default the library's own :class:`Job`.
    :param archived_model: the app's class of :class:`ArchivedJobMixin`; by default the library's own.
    :param clock: gives the current instant for ``enqueued_at`` and for relative due times, as an aware ``datetime``; the
        default is the system's. After the enqueue only the database's clock counts.
    :param wake: let an enqueue wake a worker that is idle, by one statement more in each transaction; default ``True``. It
        is a matter of the job model: one ``Proletarian`` of it that wakes is enough.
    """

    @overload
    def __init__(self: Proletarian[Job, ArchivedJob], *, clock: clocks.Clock = ..., wake: bool = ...) -> None: ...

    @overload
    def __init__(
        self: Proletarian[M, ArchivedJob], job_model: type[M], *, clock: clocks.Clock = ..., wake: bool = ...
    ) -> None: ...

    @overload
    def __init__(
        self, job_model: type[J], archived_model: type[A], *, clock: clocks.Clock = ..., wake: bool = ...
    ) -> None: ...

    def __init__(
        self,
        job_model: type[JobMixin] = Job,
        archived_model: type[ArchivedJobMixin] = ArchivedJob,
        *,
        clock: clocks.Clock = clocks.system_clock,
        wake: bool = True,
    ) -> None:
        super().__init__()
        if not callable(clock):
            raise TypeError(f"clock must be a function that gives an aware datetime, got {clock!r}")
        self.job_model: type[J] = _checked_model(job_model, JobMixin)
        if is_bound(job_model.serializer) and job_model.job_id_strategy is database_generated:
            raise TypeError(
                f"{job_model.__name__}: its serializer is bound to the job's id, which the database makes too late"
            )
        self.archived_model: type[A] = _checked_model(archived_model, ArchivedJobMixin)
        self.clock: clocks.Clock = clock
        self.wake: bool = boolean("wake", wake)
        if wake:
            waking.watch(self.job_model)

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
        **columns: Any,
    ) -> J:
        """Enqueue a job in the caller's own transaction; it exists when, and only if, the caller commits.

        :param target: a ``Session``, ``AsyncSession``, ``scoped_session``, ``async_scoped_session``, Flask-SQLAlchemy's
            ``db.session``, or a ``Connection`` (``await async_connection.run_sync(jobs.enqueue, …)`` for the async one).
            Sessions get the job by ``add``, without I/O.
        :param job_type: names the handler, or is the registered handler's function itself.
        :param payload: what the handler needs; see :class:`JSONSerializer` for what is understood by default.
        :param queue: the queue; default ``"default"``.
        :param process_at: when the job is due, an aware ``datetime``; the past means now.
        :param process_in: when the job is due, as a span from now; a negative one means now. Not with ``process_at``.
        :param job_id: the id, instead of what the model's ``job_id_strategy`` makes.
        :param columns: values for columns that the app's model adds, as ``tenant_id=7``.

        Gives the job, with its id. ``ValueError`` or ``TypeError`` for bad input, before any SQL: the session stays usable,
        and the transaction around it can still commit.
        """
        job = self.job_model(
            self.type_of(job_type),
            payload,
            queue=queue,
            process_at=process_at,
            process_in=process_in,
            job_id=job_id,
            enqueued_at=clocks.read(self.clock),
            **columns,
        )
        return outbox.put(target, job)

    def enqueue_many(
        self,
        target: Any,
        /,
        items: Iterable[Item],
        *,
        queue: str = DEFAULT_QUEUE,
        process_at: datetime | None = None,
        process_in: timedelta | None = None,
        progress: Callable[[int], None] | None = None,
        chunk_size: int = 2000,
        **columns: Any,
    ) -> list[Any]:
        """Insert any number of jobs in the caller's own transaction, now and fast, and give their ids in order.

        :param target: a ``Session``, ``scoped_session``, Flask-SQLAlchemy's ``db.session`` or ``Connection``. For the async
            ones: ``await session.run_sync(jobs.enqueue_many, items)``.
        :param items: any iterable of ``(job_type, payload)``, or of mappings of ``enqueue``'s arguments, as
            ``{"job_type": "welcome", "payload": {…}, "process_in": timedelta(hours=1)}``; it is consumed chunk by chunk.
        :param queue: the queue of items that name none. ``process_at``, ``process_in`` and ``columns`` likewise; relative
            due times count from the making of the item's chunk.
        :param progress: called with the number of jobs inserted so far, after each chunk.
        :param chunk_size: how many jobs go in one statement; default 2000, fewer if their payloads are large.

        All of it happens in one savepoint: a bad item is a ``TypeError`` or ``ValueError`` that names its index, and undoes
        this call and nothing else. Mapper events do not run.
        """
        made = drafts.Drafts(
            self.job_model,
            type_of=self.type_of,
            now=lambda: clocks.read(self.clock),
            queue=queue,
            process_at=process_at,
            process_in=process_in,
            columns=columns,
        )
        return bulk.put_many(target, made, items, chunk_size=chunk_size, progress=progress)

    def requeue(self, target: Any, /, archived: A, **options: Any) -> J:
        """Enqueue an archived job again, under a new id and with all its attempts ahead; the archive keeps its row.

        :param target: as for :meth:`enqueue`.
        :param archived: an instance of the archive model.
        :param options: ``queue``, ``process_at``, ``process_in``, ``job_id`` or further columns, as for :meth:`enqueue`.
        """
        if not isinstance(archived, self.archived_model):
            raise TypeError(f"requeue takes a {self.archived_model.__name__}, got a {type(archived).__name__}")
        payload = decoded(self.job_model.serializer, archived.payload, archived)
        values: dict[str, Any] = {"queue": archived.queue, **self._shared_columns(archived), **options}
        return self.enqueue(target, archived.job_type, payload, **values)

    def cancel(self, target: Any, /, job_id: Any, *, reason: str = USUAL_REASON) -> Cancellation:
        """Cancel a job in the caller's own transaction; give what could be done at once, without waiting for anybody.

        :param target: a ``Session``, ``scoped_session``, Flask-SQLAlchemy's ``db.session`` or ``Connection``; a session is
            flushed. For the async ones: ``await session.run_sync(jobs.cancel, job_id)``.
        :param reason: for the archive's ``error``, and for the event.

        ``Cancellation.CANCELLED``: the job waited, and is in the archive as ``cancelled``. ``REQUESTED``: it is being run;
        its worker sees the request within about a second of the caller's commit, and asks the handler to end. What that
        raises archives the job as ``cancelled`` and undoes what it wrote; a handler that returns has returned.
        ``NOT_FOUND``: there is no such job, or it has ended.

        ``ConfigurationError`` for a job that is being run where the database is on version 1 of the schema.
        """
        return cancellation.cancel(target, self.job_model, self.archived_model, job_id, reason, cancelling)

    def running(self, target: Any, /) -> overview.Running:
        """Read what goes on now: the workers, how far their jobs say they are, and which of these shall be given up.

        :param target: a ``Session``, ``scoped_session``, Flask-SQLAlchemy's ``db.session`` or ``Connection``. For the async
            ones: ``await session.run_sync(jobs.running)``.

        It is for people, a moment old, and decides nothing. ``ConfigurationError`` where the database is on version 1 of
        the schema.
        """
        return overview.running(target, self.job_model)

    def prune(
        self,
        engine: Engine | AsyncEngine,
        *,
        older_than: timedelta,
        queue: str | None = None,
        status: str | None = None,
        dry_run: bool = False,
        progress: Progress | None = None,
    ) -> int:
        """Delete archived jobs that ended longer ago than ``older_than``; give how many there were.

        It needs an engine, because it commits batch by batch; workers can go on beside it. In async code:
        ``await asyncio.to_thread(jobs.prune, engine, older_than=…)``.

        :param queue: only jobs of this queue.
        :param status: only jobs that ended so: ``"success"``, ``"failure"``, ``"cancelled"`` or ``"crashed"``.
        :param dry_run: only count them.
        :param progress: called as ``(rows, share)`` after each batch, ``share`` of the table between 0 and 1.
        """
        own = own_engine(engine, size=1)
        return verbs.prune(
            own,
            self.archived_model,
            older_than,
            queue=queue,
            status=status,
            dry_run=dry_run,
            progress=progress,
        )

    def process_next(
        self,
        engine: Engine | AsyncEngine,
        *,
        queue: str = DEFAULT_QUEUE,
        retry: RetryStrategy | None = None,
        on_failed: OnFailed | None = None,
        timeout: timedelta | None = None,
        session: Any = None,
        around: Around | None = None,
        listener: events.Listener = events.log_event,
        worker_id: str = "process_next",
    ) -> Outcome | None:
        """Run the next due job in this thread: for tests, the REPL and cron.

        The arguments mean what they mean for :class:`Worker`. A handler that is ``async def`` runs on an event loop of its
        own; within a running one, use :meth:`process_next_async`. Gives the outcome, such as ``Outcome.RETURNED`` or
        ``Outcome.RETRIED``, or ``None`` when nothing was due. What the handler raises is not raised here; it is in the
        outcome, the events and the row. A handler that does not end when its time is over is waited for: this thread has
        no other.
        """
        own = own_engine(engine, size=3, server_watches=False)  # there may be a pooler between, of which nobody tells us
        execution = build_execution(
            **self._for_one(own, engine, queue=queue, listener=listener, worker_id=worker_id),
            retry=retry,
            on_failed=on_failed,
            timeout=timeout_or_none(timeout),
            session=checked_maker(session, plain(engine)),
            around=around,
        )
        if self.has_coroutines() or is_async(on_failed):
            from .mixed_execution import mixed  # noqa: PLC0415 (it needs greenlet)

            execution = mixed(execution, engine, size=1, server_watches=False)
        try:
            return process_next(execution)
        finally:
            execution.close()

    async def process_next_async(
        self,
        engine: AsyncEngine,
        *,
        queue: str = DEFAULT_QUEUE,
        retry: RetryStrategy | None = None,
        on_failed: OnFailed | None = None,
        timeout: timedelta | None = None,  # noqa: ASYNC109 - the handler's
        session: Any = None,
        around: Callable[[Any], Any] | None = None,
        listener: events.Listener = events.log_event,
        worker_id: str = "process_next",
    ) -> Outcome | None:
        """Do what :meth:`process_next` does, on the running event loop: the handler may be ``async def``.

        The arguments mean what they mean for :class:`AsyncWorker`. A handler that is a plain function is called here as
        well, and blocks the loop where it waits for anything but its session.
        """
        from .async_inline import process_one  # noqa: PLC0415 (it needs greenlet)

        own = own_engine(engine, size=3, on_this_loop=True, server_watches=False)
        settings = self._for_one(own, engine, queue=queue, listener=listener, worker_id=worker_id)
        settings |= {"retry": retry, "on_failed": on_failed, "timeout": timeout_or_none(timeout), "around": around}
        return await process_one(**settings, session=session)

    def _for_one(
        self, own: Engine, engine: Engine | AsyncEngine, *, queue: str, listener: events.Listener, worker_id: str
    ) -> dict[str, Any]:
        configure_mappers()
        return {
            "registry": self,
            "lifecycle": lifecycle_for(plain(engine).dialect.name, self.job_model, self.archived_model),
            "engine": own,
            "app_engine": plain(engine),
            "emit": events.Emitter(listener, worker_id=worker_id, queue=queue),
            "queue": checked_name("queue", queue),
            "worker_id": worker_id,
            "lease": _INLINE_LEASE,
            "crash_ceiling": _INLINE_CEILING,
            "now": self.clock,
        }

    def _shared_columns(self, archived: Any) -> dict[str, Any]:
        """Give the values of the app's own columns that both models have."""
        library = {*Job.__table__.c.keys(), *ArchivedJob.__table__.c.keys()}
        both = set(inspect(self.job_model).columns.keys()) & set(inspect(self.archived_model).columns.keys())
        return {key: getattr(archived, key) for key in both - library}


def _checked_model(model: Any, mixin: type[Any]) -> Any:
    if not isinstance(model, type) or not issubclass(model, mixin):
        raise TypeError(f"expected a model made with {mixin.__name__}, got {model!r}")
    mapper: Mapper[Any] | None = inspect(model, raiseerr=False)
    if mapper is None:
        raise TypeError(f"{model.__name__} is not mapped: it needs a declarative base besides {mixin.__name__}")
    if [column.key for column in mapper.primary_key] != ["job_id"]:
        raise TypeError(
            f"{model.__name__} has a primary key besides job_id: use a base that does not bring one, "
            "or Job, ArchivedJob = models_for(Base)"
        )
    return model
