"""The public names as a type checker sees them: nothing here runs, mypy and pyright read it."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, assert_type
from uuid import UUID

from sqlalchemy import Connection, Engine, MetaData
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, sessionmaker

from sa_proletarian import (
    ArchivedJob,
    ArchivedJobMixin,
    Cancel,
    Job,
    JobMixin,
    JSONSerializer,
    Outcome,
    Proletarian,
    Retry,
    RetryStrategy,
    Serializer,
    Snooze,
    Status,
    Worker,
    database_generated,
    events,
    exponential,
    metadata,
    uuid7,
)


class Base(DeclarativeBase):
    pass


class MyJob(JobMixin, Base):
    tenant_id: Mapped[int]


class MyArchivedJob(ArchivedJobMixin, Base):
    tenant_id: Mapped[int]


class NumberedJob(JobMixin, Base):
    __tablename__ = "numbered_job"
    serializer = JSONSerializer()
    job_id_strategy = staticmethod(database_generated)


# models

assert_type(metadata, MetaData)
assert_type(Job("welcome", {"user_id": 7}, process_in=timedelta(minutes=5)), Job)
assert_type(MyJob("welcome", tenant_id=7).tenant_id, int)


def read_columns(job: Job, archived: ArchivedJob) -> None:
    assert_type(job.job_id, UUID)
    assert_type(job.queue, str)
    assert_type(job.payload, Any)
    assert_type(job.attempts, int)
    assert_type(job.process_at, datetime)
    assert_type(job.claimed_until, datetime | None)
    assert_type(job.last_error, str | None)
    assert_type(job.interrupted, bool)
    assert_type(job.sleep(timedelta(seconds=1)), None)
    assert_type(archived.status, str)
    assert_type(archived.finished_at, datetime)
    assert_type(archived.error, str | None)


# jobs: of the default models, or of the app's

jobs = Proletarian()
assert_type(jobs, Proletarian[Job, ArchivedJob])
mine = Proletarian(MyJob, MyArchivedJob, clock=lambda: datetime.now(UTC))
assert_type(mine, Proletarian[MyJob, MyArchivedJob])
assert_type(Proletarian(NumberedJob, MyArchivedJob), Proletarian[NumberedJob, MyArchivedJob])
assert_type(Proletarian(NumberedJob), Proletarian[NumberedJob, ArchivedJob])
assert_type(mine.job_model, type[MyJob])


def bare(jobs: Proletarian) -> None:
    assert_type(jobs, Proletarian[Any, Any])


bare(jobs)
bare(mine)


# handlers keep their own type, whatever they are registered with


@jobs.handler("welcome")
def welcome(session: Session, job: Job) -> None: ...


@mine.handler("report", retry=Retry(retries=2, delays=[timedelta(seconds=1)]), on_failed=lambda job, error: None)
def report(session: Session, job: MyJob) -> int:
    return job.tenant_id


@jobs.handler("slow", retry=exponential(5))
async def slow(session: AsyncSession, job: Job) -> None: ...


assert_type(report(Session(), MyJob("report")), int)


def strategy(job: Job, error: BaseException) -> Retry | None:
    if isinstance(error, ValueError):
        return None
    return Retry(job.attempts)


jobs.handler("picky", retry=strategy)(welcome)
a_strategy: RetryStrategy = strategy
another_strategy: RetryStrategy = Retry(1)
assert_type(exponential(3, cap=timedelta(hours=2)), Callable[[Any, BaseException], Retry])

# enqueue gives the model, whatever the target


async def enqueue(session: Session, async_session: AsyncSession, connection: Connection, other: AsyncConnection) -> None:
    assert_type(jobs.enqueue(session, "welcome", {"user_id": 7}), Job)
    assert_type(jobs.enqueue(session, welcome, process_in=timedelta(minutes=5)), Job)
    assert_type(jobs.enqueue(async_session, "welcome", process_at=datetime.now(UTC)), Job)
    assert_type(mine.enqueue(connection, report, queue="reports", tenant_id=7), MyJob)
    assert_type(await other.run_sync(mine.enqueue, "report"), MyJob)


def requeue(session: Session, archived: ArchivedJob, my_archived: MyArchivedJob) -> None:
    assert_type(jobs.requeue(session, archived), Job)
    assert_type(mine.requeue(session, my_archived, process_in=timedelta(hours=1)), MyJob)


# what must not pass


def mistakes(session: Session, archived: ArchivedJob) -> None:
    jobs.enqueue(session, "welcome", process_in=5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    jobs.enqueue(session, 7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    mine.requeue(session, archived)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Retry(1, [1.5])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    Retry("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Snooze(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Proletarian(MyArchivedJob, MyJob)  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]
    jobs.handler(welcome)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# work


def work(engine: Engine, maker: sessionmaker[Session]) -> None:
    worker = Worker(jobs, engine, queue="default", threads=4, session=maker, lease=timedelta(seconds=30))
    assert_type(worker, Worker)
    assert_type(Worker(mine, engine), Worker)
    assert_type(jobs.process_next(engine), Outcome | None)


# control flow, values

assert_type(Snooze(timedelta(seconds=1)).delay, timedelta)
assert_type(Cancel("gone").reason, str)
assert_type(Retry(1).retries, int)
assert_type(uuid7(), UUID)
assert_type(Status("success"), Status)


class Boxed:
    def encode(self, payload: object) -> dict[str, object]:
        return {"box": payload}

    def decode(self, value: dict[str, object]) -> object:
        return value["box"]


a_serializer: Serializer = JSONSerializer()
another_serializer: Serializer = Boxed()


# a listener tells events apart


def listener(event: events.Event) -> None:
    assert_type(event.name, str)
    match event:
        case events.Retrying(retry_at=retry_at, retries_left=retries_left):
            assert_type(retry_at, datetime)
            assert_type(retries_left, int)
        case events.JobEvent():
            assert_type(event.attempt, int)
        case _:
            pass


a_listener: events.Listener = listener
