"""Proletarian's two tables, as mixins for an app's own declarative base and as ready-made models.

It owns their columns, as the script ``database/postgresql/tables.sql`` of Proletarian 1.0.109 (© Martin Solli, MIT licence)
makes them, and the constructor that validates and encodes a job before any SQL. It refuses to add a column, and to be the
one who makes the tables: they are the Clojure app's, and its migrations'.

Where the tables have other names, say so as in any model::

    class Job(ClojureJobMixin, Base):
        __tablename__ = "jobs"
        __table_args__ = {"schema": "queue"}
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import DateTime, Index, Integer, Table, Text, Uuid
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.sql.elements import conv

from sa_proletarian import clock
from sa_proletarian.job_ids import JobIdStrategy, uuid7
from sa_proletarian.models import RunningJob, due_at, given_id
from sa_proletarian.serializers import MAX_BYTES

from .names import DEFAULT_QUEUE, stored_name
from .transit import Serializer, TransitSerializer

_timestamp = DateTime(timezone=True)


class _QueueTable:
    """What both tables share."""

    __table_args__: Any = {"schema": "proletarian"}  # noqa: RUF012 (SQLAlchemy's)

    job_id: Mapped[UUID] = mapped_column(Uuid(), primary_key=True, sort_order=-100)
    queue: Mapped[str] = mapped_column(Text(), nullable=False, sort_order=-99)
    job_type: Mapped[str] = mapped_column(Text(), nullable=False, sort_order=-98)
    payload: Mapped[Any] = mapped_column(Text(), nullable=False, sort_order=-97)
    attempts: Mapped[int] = mapped_column(Integer(), nullable=False, sort_order=-96)
    enqueued_at: Mapped[datetime] = mapped_column(_timestamp, nullable=False, sort_order=-95)
    process_at: Mapped[datetime] = mapped_column(_timestamp, nullable=False, sort_order=-94)

    def __repr__(self) -> str:
        # never the payload: it would end up in logs
        values = self.__dict__
        return f"<{type(self).__name__} {values.get('job_id')} {values.get('job_type')} attempts={values.get('attempts')}>"


class ClojureJobMixin(_QueueTable):
    """A waiting or running job of Proletarian.

    :param job_type: names the handler: a Clojure keyword, as ``"my.app/email"`` or ``":my.app/email"``.
    :param payload: what the handler needs; encoded by ``serializer`` now. In a handler ``job.payload`` is the value; on rows
        that you query it is the stored text, and ``Job.serializer.decode(row.payload)`` gives the value.
    :param queue: the queue, a keyword too; default ``:proletarian/default``.
    :param process_at: when the job is due, an aware ``datetime``; the past means now.
    :param process_in: when the job is due, as a span from now; a negative one means now.
    :param job_id: the id; by default ``job_id_strategy`` makes it (a UUIDv7; Proletarian's own are random).

    ``ValueError`` or ``TypeError`` for what the database, or Clojure, would refuse.
    """

    __tablename__ = "job"

    serializer: ClassVar[Serializer] = TransitSerializer()
    job_id_strategy: ClassVar[JobIdStrategy] = staticmethod(uuid7)

    def __init__(
        self,
        job_type: str,
        payload: Any = None,
        *,
        queue: str = DEFAULT_QUEUE,
        process_at: datetime | None = None,
        process_in: timedelta | None = None,
        job_id: Any = None,
        enqueued_at: datetime | None = None,
    ) -> None:
        now = clock.read(clock.system_clock if enqueued_at is None else lambda: enqueued_at)
        model: Any = type(self)
        columns: dict[str, Any] = {
            "queue": stored_name("queue", queue),
            "job_type": stored_name("job_type", job_type),
            "payload": _storable(self.serializer.encode(payload)),
            "attempts": 0,
            "enqueued_at": now,
            "process_at": due_at(now, process_at, process_in),
        }
        super().__init__(**columns, **given_id(model, job_id))

    @property
    def interrupted(self) -> bool:
        """Whether the worker that runs this job is stopping; as on a ``Job`` of the library's own."""
        return self._running is not None and self._running.interrupted()

    def sleep(self, span: timedelta) -> None:
        """Sleep for ``span``, or raise ``Interrupted`` as soon as the worker that runs this job stops."""
        if not isinstance(span, timedelta):
            raise TypeError(f"sleep takes a timedelta, got {span!r}")
        if self._running is None:
            raise RuntimeError("only a job that a worker runs can sleep")
        self._running.sleep(span)

    _running: ClassVar[RunningJob | None] = None

    @classmethod
    def __table_cls__(cls, *args: Any, **options: Any) -> Table | None:
        """Make the table, then add its index, whatever the app's ``__table_args__`` say."""
        make: Callable[..., Table | None] = getattr(super(), "__table_cls__", Table)
        table = make(*args, **options)
        if table is not None:
            Index(conv(f"{table.name}_queue_process_at"), table.c.queue, table.c.process_at)
        return table


class ClojureArchivedJobMixin(_QueueTable):
    """A job that has ended: ``status`` says how (``":success"`` or ``":failure"``), ``finished_at`` when."""

    __tablename__ = "archived_job"

    status: Mapped[str] = mapped_column(Text(), nullable=False, sort_order=-93)
    finished_at: Mapped[datetime] = mapped_column(_timestamp, nullable=False, sort_order=-92)


def _storable(text: Any) -> str:
    """Give what a serializer has made, if PostgreSQL's ``text`` can hold it."""
    if not isinstance(text, str):
        raise TypeError(f"a serializer for Proletarian's tables must give a text, got a {type(text).__name__}")
    if "\x00" in text:
        raise ValueError("the encoded payload holds a NUL character, which PostgreSQL cannot store")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise ValueError("the encoded payload holds a lone surrogate, which is not valid text") from None
    if size > MAX_BYTES:
        raise ValueError(f"payload is too large: {size} bytes, at most {MAX_BYTES} are allowed")
    return text


class _Base(DeclarativeBase):
    pass


class Job(ClojureJobMixin, _Base):
    """The table ``proletarian.job``, for apps that need no model of their own."""


class ArchivedJob(ClojureArchivedJobMixin, _Base):
    """The table ``proletarian.archived_job``, for apps that need no model of their own."""
