"""Job and archived job, as mixins for an app's own declarative base and as ready-made models.

It owns columns, index and CHECKs, and the constructor that validates and encodes a job before any SQL. It refuses to know
about sessions: adding and querying is what SQLAlchemy is for.

    class Job(JobMixin, Base): ...                   # table proletarian_job, and proletarian_worker beside it
    class ArchivedJob(ArchivedJobMixin, Base): ...   # table proletarian_archived_job

Set ``__tablename__`` and ``__table_args__`` as in any model; the index and the CHECKs stay. Further columns are welcome:
``enqueue(..., tenant_id=7)`` sets them, and a column of the same name in the archive receives them. Where a base writes the
constructors of its models (``MappedAsDataclass``, SQLModel), ``models_for`` makes the two models.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import is_dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar
from uuid import UUID

from sqlalchemy import Column, Integer, MetaData, String, Table, Text, Uuid, inspect
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, MappedColumn, Mapper, mapped_column

from . import clock, serializers
from .arguments import finite
from .job_ids import JobIdStrategy, uuid7
from .serializers import Binding, JSONSerializer, Serializer
from .tables import (
    COMMENT,
    DOCUMENT,
    EARLIEST,
    LATEST,
    OPTIONS,
    TIMESTAMP,
    add_checks,
    add_checks_of_ids,
    add_index,
    make_room,
    room,
    worker_table,
)
from .tables import NAME_LIMIT as NAME_LIMIT
from .tables import SCHEMA_VERSION as SCHEMA_VERSION

DEFAULT_QUEUE = "default"

_NAME = re.compile(r"[A-Za-z0-9_.:\-]{1,200}", re.ASCII)

J = TypeVar("J")


class RunningJob(Protocol):
    """What a running job asks of its worker."""

    def interrupted(self) -> bool: ...
    def tell_progress(self, done: float, total: float | None, note: str | None) -> None: ...
    def sleep(self, span: timedelta) -> None: ...
    async def sleep_async(self, span: timedelta) -> None: ...


def _two_constructors(model: type[Any]) -> TypeError:
    return TypeError(
        f"{model.__name__}: a dataclass or an SQLModel gets a constructor of its own, but JobMixin and ArchivedJobMixin "
        "need theirs: write Job, ArchivedJob = models_for(Base) instead"
    )


class _QueueTable:
    """What both tables share: the columns of Proletarian, and how a table gets its CHECKs and index."""

    if TYPE_CHECKING:
        __tablename__: Any

    job_id: Mapped[UUID] = mapped_column(Uuid(), primary_key=True, sort_order=-100)
    queue: Mapped[str] = mapped_column(String(NAME_LIMIT), nullable=False, sort_order=-99)
    job_type: Mapped[str] = mapped_column(String(NAME_LIMIT), nullable=False, sort_order=-98)
    payload: Mapped[Any] = mapped_column(DOCUMENT, nullable=False, sort_order=-97)
    attempts: Mapped[int] = mapped_column(Integer(), nullable=False, sort_order=-96)
    enqueued_at: Mapped[datetime] = mapped_column(TIMESTAMP, nullable=False, sort_order=-95)
    process_at: Mapped[datetime] = mapped_column(TIMESTAMP, nullable=False, sort_order=-94)

    def __init_subclass__(cls, **options: Any) -> None:
        if issubclass(cls, MappedAsDataclass) or hasattr(cls, "__pydantic_decorators__"):
            raise _two_constructors(cls)
        super().__init_subclass__(**options)

    @classmethod
    def __table_cls__(cls, *args: Any, **options: Any) -> Table | None:
        """Make the table, then add what must be there whatever the app's ``__table_args__`` say."""
        if is_dataclass(cls):  # made one by a decorator, or by a base that comes before the mixin
            raise _two_constructors(cls)
        make: Callable[..., Table | None] = getattr(super(), "__table_cls__", Table)
        options = {"comment": COMMENT, **OPTIONS, **cls._storage(), **options}
        table = make(*args[:2], *sorted(args[2:], key=_place), **options)
        if table is not None and "queue" in table.c:  # else it is a subclass's, joined to the table that has it
            cls._complete(table)
        return table

    @classmethod
    def _storage(cls) -> dict[str, Any]:
        return {}

    @classmethod
    def _complete(cls, table: Table) -> None:
        raise TypeError(f"{cls.__name__} is neither a job nor an archive")

    def __repr__(self) -> str:
        # never the payload: it would end up in logs
        values = self.__dict__
        return f"<{type(self).__name__} {values.get('job_id')} {values.get('job_type')} attempts={values.get('attempts')}>"


class JobMixin(_QueueTable):
    """A waiting or running job.

    :param job_type: names the handler; 1 to 200 of the characters ``A-Z a-z 0-9 _ . : -``.
    :param payload: what the handler needs; encoded by ``serializer`` now, so that later changes do not matter.
    :param queue: the queue, named by the same rule as the job type.
    :param process_at: when the job is due, an aware ``datetime``; the past means now.
    :param process_in: when the job is due, as a span from now; a negative one means now.
    :param job_id: the id; by default ``job_id_strategy`` makes it.
    :param columns: values for columns that the app's subclass adds.

    ``ValueError`` or ``TypeError`` for what the database would refuse or could not give back.

    ``__worker_table__`` is the table beside it in which workers say what goes on now; a ``Table`` without a model.
    """

    __tablename__ = "proletarian_job"
    __worker_table__: ClassVar[Table]

    serializer: ClassVar[Serializer] = JSONSerializer()
    job_id_strategy: ClassVar[JobIdStrategy] = staticmethod(uuid7)

    claim_id: Mapped[UUID | None] = mapped_column(Uuid(), nullable=True, sort_order=-93)
    claimed_by: Mapped[str | None] = mapped_column(Text(), nullable=True, sort_order=-92)
    claimed_until: Mapped[datetime | None] = mapped_column(TIMESTAMP, nullable=True, sort_order=-91)
    crashes: Mapped[int] = mapped_column(Integer(), nullable=False, sort_order=-90)
    last_error: Mapped[str | None] = mapped_column(Text(), nullable=True, sort_order=-89)

    def __init__(
        self,
        job_type: str,
        payload: Any = None,
        *,
        queue: str = DEFAULT_QUEUE,
        process_at: datetime | None = None,
        process_in: timedelta | None = None,
        job_id: Any = None,
        **columns: Any,
    ) -> None:
        now = columns.pop("enqueued_at", None)
        now = clock.system_clock() if now is None else _instant("enqueued_at", now)
        own: dict[str, Any] = {
            "queue": checked_name("queue", queue),
            "job_type": checked_name("job_type", job_type),
            **given_id(type(self), job_id),
            "attempts": 0,
            "enqueued_at": now,
            "process_at": due_at(now, process_at, process_in),
            "crashes": 0,
        }
        binding = Binding(own.get("job_id"), own["queue"], own["job_type"])
        own["payload"] = serializers.encoded(self.serializer, payload, binding)[0]
        if super(_QueueTable, type(self)).__init__ is object.__init__:  # of @registry.mapped, without a base
            inspect(type(self)).registry.constructor(self, **own, **columns)
        else:
            super().__init__(**own, **columns)

    @property
    def interrupted(self) -> bool:
        """Whether this run shall end: the worker is stopping, the job's time is over, or somebody has cancelled the job.

        ``False`` outside of a worker. A handler that sees ``True`` because of a stop may finish within the termination
        timeout, or raise: it is then released, not failed.
        """
        return self._running is not None and self._running.interrupted()

    def progress(self, done: float, total: float | None = None, note: str | None = None) -> None:
        """Say how far the handler is, for people: others see it while the handler's own transaction is still open.

        :param done: how much is done, in whatever unit.
        :param total: how much there is to do, if that is known.
        :param note: a word about it; of more than 500 characters the first.

        Cheap enough for a tight loop: the worker writes the latest word into the worker table, once a second at most, and
        removes it when the run has ended. Nothing happens outside of a worker, and in ``process_next``.
        ``TypeError`` or ``ValueError`` for what is no finite number, or no text.
        """
        finite("done", done)
        if total is not None:
            finite("total", total)
        if note is not None and not isinstance(note, str):
            raise TypeError(f"note must be a text, got {note!r}")
        if self._running is not None:
            self._running.tell_progress(done, total, note)

    def sleep(self, span: timedelta) -> None:
        """Sleep for ``span``, or raise ``Interrupted`` as soon as the worker that runs this job stops."""
        if not isinstance(span, timedelta):
            raise TypeError(f"sleep takes a timedelta, got {span!r}")
        if self._running is None:
            raise RuntimeError("only a job that a worker runs can sleep")
        self._running.sleep(span)

    async def sleep_async(self, span: timedelta) -> None:
        """Do what :meth:`sleep` does, in an ``async def`` handler."""
        if not isinstance(span, timedelta):
            raise TypeError(f"sleep_async takes a timedelta, got {span!r}")
        if self._running is None:
            raise RuntimeError("only a job that a worker runs can sleep")
        await self._running.sleep_async(span)

    _running: ClassVar[RunningJob | None] = None

    @classmethod
    def _storage(cls) -> dict[str, Any]:
        return room()

    @classmethod
    def _complete(cls, table: Table) -> None:
        is_new = add_index(table, "due", "queue", "process_at", "job_id")
        if is_new:
            make_room(table)
            add_checks_of_ids(table, "job_id", "claim_id")
        add_checks(table, counts=("attempts", "crashes"), instants=("enqueued_at", "process_at", "claimed_until"))
        cls.__worker_table__ = worker_table(table, keep_existing=not is_new)


class ArchivedJobMixin(_QueueTable):
    """A job that has ended: ``status`` says how, ``error`` why, ``finished_at`` when."""

    __tablename__ = "proletarian_archived_job"

    status: Mapped[str] = mapped_column(String(20), nullable=False, sort_order=-93)
    finished_at: Mapped[datetime] = mapped_column(TIMESTAMP, nullable=False, sort_order=-92)
    error: Mapped[str | None] = mapped_column(Text(), nullable=True, sort_order=-91)

    @classmethod
    def _complete(cls, table: Table) -> None:
        add_checks(table, counts=("attempts",), instants=("enqueued_at", "process_at", "finished_at"))


def _place(item: Any) -> int:
    """Give the place of an item of a table: an app's declaration of our column stands where ours would."""
    attributes = {**vars(_QueueTable), **vars(JobMixin), **vars(ArchivedJobMixin)}
    own = [name for name, attribute in attributes.items() if isinstance(attribute, MappedColumn)]
    return own.index(item.name) if isinstance(item, Column) and item.name in own else len(own)


def checked_name(what: str, name: object) -> str:
    """Give ``name`` if it can be a queue or a job type; ``TypeError`` or ``ValueError`` if not."""
    if not isinstance(name, str):
        raise TypeError(f"{what} must be a text, got {name!r}")
    if not _NAME.fullmatch(name):
        raise ValueError(f"{what} must be 1 to {NAME_LIMIT} of the characters A-Z a-z 0-9 _ . : -, got {name[:250]!r}")
    return str.__str__(name)  # plainly the text, also of a member of an enum, whose own str() may be something else


def due_at(now: datetime, process_at: datetime | None, process_in: timedelta | None) -> datetime:
    """Give the instant at which a job enqueued ``now`` is due; the past means now."""
    if process_at is not None and process_in is not None:
        raise ValueError("give process_at or process_in, not both")
    if process_in is not None:
        if not isinstance(process_in, timedelta):
            raise TypeError(f"process_in must be a timedelta, got {process_in!r}")
        process_at = _later(now, process_in)
    return now if process_at is None else max(now, _instant("process_at", process_at))


def _later(now: datetime, span: timedelta) -> datetime:
    try:
        return now + span
    except OverflowError:
        if span < timedelta(0):
            return now
        raise ValueError(f"process_in is beyond the calendar: {span!r}") from None


def _instant(what: str, value: object) -> datetime:
    if not isinstance(value, datetime):
        raise TypeError(f"{what} must be a datetime, got {value!r}")
    if value.utcoffset() is None:
        raise TypeError(f"{what} must be an aware datetime, got the naive {value!r}")
    try:
        instant = value.astimezone(UTC)
    except OverflowError:
        instant = EARLIEST if value.year < 5000 else LATEST
    if instant >= LATEST:
        raise ValueError(f"{what} must be before {LATEST:%Y-%m-%d}, got {value!r}")
    return max(instant, EARLIEST)


def given_id(model: type[JobMixin], job_id: Any) -> dict[str, Any]:
    """Give ``job_id``, or what the model's strategy makes, as a column's value; nothing where the database makes it."""
    if job_id is None:
        job_id = model.job_id_strategy()
    if job_id is None:
        return {}
    known: Any = model
    expected = _id_type(known)
    if not isinstance(job_id, expected) or isinstance(job_id, bool):
        raise TypeError(f"job_id must be a {expected.__name__}, got {job_id!r}")
    return {"job_id": job_id}


@functools.cache
def _id_type(model: type[Any]) -> type:
    """Give the Python type of ids, whose way to it costs as much as making one."""
    known: Any = model
    expected: type = _mapper_of(known).columns["job_id"].type.python_type
    return expected


def detached(model: type[J], values: dict[str, Any], **further: Any) -> J:
    """Make an instance of ``model`` as a query would have given it, then detached: without a query, and fast."""
    known: Any = model
    mapper = _mapper_of(known)
    instance: Any = mapper.class_manager.new_instance()
    state = instance._sa_instance_state
    state.dict.update(values, **further)
    state.key = mapper.identity_key_from_primary_key((values["job_id"],))
    return instance  # type: ignore[no-any-return]


@functools.cache
def _mapper_of(model: type[Any]) -> Mapper[Any]:
    """Give what ``inspect`` gives, whose way to it costs as much as the rest of making an instance."""
    mapper: Mapper[Any] = inspect(model)
    return mapper


metadata: MetaData = MetaData()
"""The tables of the default models; name it in ``target_metadata`` if you use them."""


class _Base(DeclarativeBase):
    metadata = metadata


class Job(JobMixin, _Base):
    """The default job model, for apps that have no declarative base of their own."""


class ArchivedJob(ArchivedJobMixin, _Base):
    """The default archive model, for apps that have no declarative base of their own."""
