"""Cancelling a job from outside: at once where it waits, by a request where it runs, and never by waiting."""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager
from datetime import timedelta
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import BigInteger, Table, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from sa_proletarian import (
    ArchivedJobMixin,
    AsyncWorker,
    Cancellation,
    ConfigurationError,
    Job,
    JobMixin,
    Outcome,
    Proletarian,
    Retry,
    Snooze,
    database_generated,
    requests,
)

HOUR = timedelta(hours=1)
PATIENCE = 20
REQUESTS = "SELECT split_part(subject, ' ', 1), worker_id, idle, detail FROM proletarian_worker WHERE kind = 'cancel'"


@pytest.fixture
def enqueue(jobs, tables):
    def enqueue(*job_types, **options):
        with Session(tables) as session, session.begin():
            return [jobs.enqueue(session, job_type, **options).job_id for job_type in job_types]

    return enqueue


@pytest.fixture
def cancel(jobs, tables):
    def cancel(job_id, **options):
        with Session(tables) as session, session.begin():
            return jobs.cancel(session, job_id, **options)

    return cancel


@pytest.fixture
def attentive(monkeypatch):
    """Let workers look for requests at each turn."""
    monkeypatch.setattr(requests, "INTERVAL", 0.0)


@pytest.fixture
def changes(tables, database_url):
    """Return a function that waits until something is found, asking after each deletion from the worker table."""
    with tables.begin() as connection:
        connection.execute(
            text(
                "CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS"
                " $$ BEGIN PERFORM pg_notify('changes', TG_OP); RETURN NULL; END $$"
            )
        )
        connection.execute(
            text("CREATE TRIGGER tell AFTER DELETE ON proletarian_worker FOR EACH ROW EXECUTE FUNCTION tell()")
        )
    url = database_url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("LISTEN changes")

        def wait_until(found):
            while not found():
                assert list(connection.notifies(timeout=PATIENCE, stop_after=1))

        yield wait_until


@pytest.fixture(params=["psycopg", "asyncpg"])
def url(request, database_url):
    return database_url.set(drivername=f"postgresql+{request.param}")


def write(session, what):
    session.execute(text("INSERT INTO effect VALUES (:what)"), {"what": what})


async def write_async(session, what):
    await session.execute(text("INSERT INTO effect VALUES (:what)"), {"what": what})


def effects(rows):
    return [what for (what,) in rows("SELECT what FROM effect ORDER BY what")]


def archive(rows):
    return rows("SELECT job_type, status, attempts, error FROM proletarian_archived_job ORDER BY job_type")


GONE = "Cancel: cancelled from outside"


# a job that waits


def test_a_waiting_job_goes_to_the_archive_at_once(jobs, enqueue, cancel, rows):
    [job_id] = enqueue("work", payload={"n": 1}, process_in=HOUR)
    assert cancel(job_id, reason="order 7 is off") is Cancellation.CANCELLED
    assert rows("SELECT count(*) FROM proletarian_job") == [(0,)]
    [row] = rows(
        "SELECT job_id, payload, status, error, attempts, finished_at BETWEEN enqueued_at AND now()"
        " FROM proletarian_archived_job"
    )
    assert row == (job_id, {"n": 1}, "cancelled", "Cancel: order 7 is off", 0, True)
    assert rows(REQUESTS) == []


def test_it_happens_in_the_callers_transaction(jobs, tables, enqueue, rows):
    [job_id] = enqueue("work")
    with Session(tables) as session:
        assert jobs.cancel(session, job_id) is Cancellation.CANCELLED
        session.rollback()
    assert rows("SELECT count(*) FROM proletarian_archived_job") == [(0,)]
    with tables.begin() as connection:
        assert jobs.cancel(connection, job_id) is Cancellation.CANCELLED
    assert archive(rows) == [("work", "cancelled", 0, GONE)]


def test_a_job_of_the_same_session_is_flushed_and_cancelled(jobs, tables, rows):
    with Session(tables) as session, session.begin():
        assert jobs.cancel(session, jobs.enqueue(session, "work").job_id) is Cancellation.CANCELLED
    assert archive(rows) == [("work", "cancelled", 0, GONE)]


def test_an_async_session_runs_it(jobs, enqueue, url, rows):
    [job_id] = enqueue("work")

    async def main():
        engine = create_async_engine(url)
        async with AsyncSession(engine) as session, session.begin():
            assert await session.run_sync(jobs.cancel, job_id) is Cancellation.CANCELLED
            with pytest.raises(TypeError, match="run_sync"):
                jobs.cancel(session, job_id)
        await engine.dispose()

    asyncio.run(main())
    assert archive(rows) == [("work", "cancelled", 0, GONE)]


def test_a_job_whose_claim_has_run_out_waits(jobs, enqueue, cancel, rows):
    [job_id] = enqueue("work")
    rows(
        "UPDATE proletarian_job SET claim_id = gen_random_uuid(), claimed_by = 'dead', attempts = 1,"
        " claimed_until = now() - interval '1 s'"
    )
    assert cancel(job_id) is Cancellation.CANCELLED
    assert archive(rows) == [("work", "cancelled", 1, GONE)]


def test_there_is_nothing_to_cancel(jobs, enqueue, cancel, rows):
    [job_id] = enqueue("work")
    assert cancel(job_id) is Cancellation.CANCELLED
    assert cancel(job_id) is cancel(uuid4()) is Cancellation.NOT_FOUND
    assert rows(REQUESTS) == []


@pytest.mark.parametrize("wrong", ["no-uuid", None, 7, True])
def test_an_id_of_another_kind_is_refused(wrong, jobs, tables):
    with Session(tables) as session, pytest.raises(TypeError, match="job_id must be a UUID"):
        jobs.cancel(session, wrong)


def test_what_is_no_target_is_refused(jobs, tables):
    for wrong in (tables, sessionmaker(tables), Session, None):
        with pytest.raises(TypeError, match="cancel takes a session or a connection"):
            jobs.cancel(wrong, uuid4())
    with Session(tables) as session, pytest.raises(TypeError, match="reason must be a text"):
        jobs.cancel(session, uuid4(), reason=7)


def test_columns_of_the_apps_own_and_ids_of_the_database_are_as_with_any_archiving(engine):
    class Base(DeclarativeBase):
        pass

    class MyJob(JobMixin, Base):
        __tablename__ = "mail"
        job_id: Mapped[int] = mapped_column(BigInteger(), primary_key=True)
        job_id_strategy = staticmethod(database_generated)
        tenant: Mapped[int] = mapped_column(default=0)

    class MyArchivedJob(ArchivedJobMixin, Base):
        __tablename__ = "mail_archive"
        job_id: Mapped[int] = mapped_column(BigInteger(), primary_key=True, autoincrement=False)
        tenant: Mapped[int]

    Base.metadata.create_all(engine)
    mails = Proletarian(MyJob, MyArchivedJob)
    with Session(engine) as session:
        job = mails.enqueue(session, "work", tenant=3)
        session.flush()
        assert mails.cancel(session, job.job_id) is Cancellation.CANCELLED
        archived = session.get(MyArchivedJob, job.job_id)
        assert (archived.tenant, archived.status) == (3, "cancelled")


# a job that runs, seen from the app


def claimed(rows):
    rows(
        "UPDATE proletarian_job SET claim_id = gen_random_uuid(), claimed_by = 'worker-1',"
        " claimed_until = now() + interval '1 h', attempts = 1"
    )


def test_of_a_job_that_runs_its_worker_is_asked(jobs, enqueue, cancel, rows):
    [job_id] = enqueue("work")
    claimed(rows)
    assert cancel(job_id, reason="no more") is Cancellation.REQUESTED
    assert rows(REQUESTS) == [(str(job_id), "worker-1", False, {"reason": "no more"})]
    assert rows("SELECT count(*) FROM proletarian_job") == [(1,)]


def test_nobody_waits_for_a_handler_that_holds_its_job(jobs, tables, enqueue, cancel, rows):
    [job_id] = enqueue("work")
    claimed(rows)
    with Session(tables) as handler, Session(tables) as other:
        handler.get(Job, job_id, with_for_update=True)
        assert jobs.cancel(other, job_id) is Cancellation.REQUESTED
        assert cancel(job_id) is Cancellation.REQUESTED  # the same request beside one that is not committed
        other.commit()
    assert len(rows(REQUESTS)) == 2


def test_nobody_waits_for_somebody_who_is_just_claiming_or_cancelling(jobs, tables, enqueue, cancel, rows):
    [job_id] = enqueue("work")
    with Session(tables) as other:
        assert jobs.cancel(other, job_id) is Cancellation.CANCELLED
        assert cancel(job_id) is Cancellation.REQUESTED
        assert rows(REQUESTS) == [(str(job_id), "", False, {"reason": "cancelled from outside"})]


def test_without_the_worker_table_waiting_jobs_can_be_cancelled_and_running_ones_are_refused(
    jobs, tables, enqueue, cancel, rows
):
    rows("DROP TABLE proletarian_worker")
    waiting, running = enqueue("waiting", "running")
    rows("UPDATE proletarian_job SET claimed_until = now() + interval '1 h' WHERE job_id = :id", id=running)
    assert cancel(waiting) is Cancellation.CANCELLED
    with Session(tables) as session, session.begin():
        with pytest.raises(ConfigurationError, match="version 2 of the schema"):
            jobs.cancel(session, running)
        write(session, "the transaction goes on")
    assert effects(rows) == ["the transaction goes on"]


def test_a_model_of_a_given_table_is_treated_likewise(tables, rows):
    class Base(DeclarativeBase):
        pass

    class GivenJob(JobMixin, Base):
        __table__ = Table("proletarian_job", Base.metadata, autoload_with=tables)

    class GivenArchivedJob(ArchivedJobMixin, Base):
        __table__ = Table("proletarian_archived_job", Base.metadata, autoload_with=tables)

    given = Proletarian(GivenJob, GivenArchivedJob)
    with Session(tables) as session, session.begin():
        job_id = given.enqueue(session, "work").job_id
        session.flush()
        session.execute(text("UPDATE proletarian_job SET claimed_until = now() + interval '1 h'"))
        with pytest.raises(ConfigurationError, match="version 2 of the schema"):
            given.cancel(session, job_id)
        session.execute(text("UPDATE proletarian_job SET claimed_until = NULL"))
        assert given.cancel(session, job_id) is Cancellation.CANCELLED
        assert given.cancel(session, job_id) is Cancellation.NOT_FOUND


# a job that runs, in threads


def test_a_sleeping_job_is_cancelled_and_its_neighbour_goes_on(
    jobs, enqueue, cancel, start_worker, recorder, rows, attentive, changes
):
    gone = threading.Event()

    @jobs.handler("one", retry=Retry(retries=3))
    def one(session, job):
        write(session, "never")
        session.commit()
        job.sleep(HOUR)

    @jobs.handler("two")
    def two(session, job):
        assert gone.wait(PATIENCE)
        assert not job.interrupted

    job_id, _ = enqueue("one", "two")
    start_worker(jobs, threads=2)
    recorder.wait_for("handling_job", 2)
    assert cancel(job_id, reason="no more") is Cancellation.REQUESTED
    [event] = recorder.wait_for("job_cancelled")
    assert event.reason == "no more"
    gone.set()
    recorder.wait_for("job_finished")
    assert archive(rows) == [("one", "cancelled", 1, "Cancel: no more"), ("two", "success", 1, None)]
    assert effects(rows) == []
    changes(lambda: not rows(REQUESTS))


def test_requests_are_seen_within_about_a_second(jobs, enqueue, cancel, start_worker, recorder, rows):
    @jobs.handler("work")
    def work(session, job):
        write(session, "never")
        while not job.interrupted:
            pass
        raise KeyError("what it makes of that")

    [job_id] = enqueue("work")
    start_worker(jobs)
    recorder.wait_for("handling_job")
    cancel(job_id)
    recorder.wait_for("job_cancelled")
    assert recorder.names[:3] == ["handling_job", "handle_job_exception_with_interrupt", "job_cancelled"]
    assert (archive(rows), effects(rows)) == ([("work", "cancelled", 1, GONE)], [])


def test_a_handler_that_returns_all_the_same_has_returned(
    jobs, enqueue, cancel, start_worker, recorder, rows, attentive, changes
):
    @jobs.handler("work")
    def work(session, job):
        while not job.interrupted:
            pass
        write(session, "done")

    [job_id] = enqueue("work")
    start_worker(jobs)
    recorder.wait_for("handling_job")
    cancel(job_id)
    recorder.wait_for("job_finished")
    assert (archive(rows), effects(rows)) == ([("work", "success", 1, None)], ["done"])
    changes(lambda: not rows(REQUESTS))


@pytest.mark.parametrize("end", [Snooze(HOUR), Snooze(timedelta(0))])
def test_a_handler_that_goes_on_later_does_not(end, jobs, enqueue, cancel, start_worker, recorder, rows, attentive, changes):
    @jobs.handler("work")
    def work(session, job):
        while not job.interrupted:
            pass
        raise end

    [job_id] = enqueue("work")
    start_worker(jobs)
    recorder.wait_for("handling_job")
    cancel(job_id)
    recorder.wait_for("job_snoozed")
    changes(lambda: [row[1] for row in archive(rows)] == ["cancelled"] and not rows(REQUESTS))


def until_it_is_archived(job_type, rows):
    while job_type not in [row[0] for row in archive(rows)]:
        pass


def test_a_job_that_is_claimed_and_not_begun_need_not_begin(jobs, enqueue, cancel, start_worker, recorder, rows, attentive):
    begun, free = threading.Event(), threading.Event()

    @jobs.handler("first")
    def first(session, job):
        begun.set()
        assert free.wait(PATIENCE)

    jobs.handler("quick")(lambda session, job: None)
    jobs.handler("second")(lambda session, job: write(session, "never"))
    *_, job_id = enqueue(*["quick"] * 100, "first", "second")  # so many that it claims ahead
    start_worker(jobs)
    assert begun.wait(PATIENCE)
    assert cancel(job_id) in (Cancellation.REQUESTED, Cancellation.CANCELLED)  # given back after a second
    until_it_is_archived("second", rows)
    free.set()
    recorder.wait_for("job_finished", 101)
    assert [row[1:2] + row[3:] for row in archive(rows) if row[0] == "second"] == [("cancelled", GONE)]
    assert effects(rows) == []


def test_a_timeout_counts_also_for_a_job_that_was_cancelled_before(
    jobs, enqueue, cancel, start_worker, recorder, rows, attentive, monkeypatch
):
    monkeypatch.setattr("sa_proletarian.overtime.STUCK_GRACE", 0.05)
    free = threading.Event()

    @jobs.handler("work", timeout=timedelta(seconds=1))
    def work(session, job):
        assert free.wait(PATIENCE)

    [job_id] = enqueue("work")
    start_worker(jobs, lease=timedelta(milliseconds=600))  # it rests for a third of that
    recorder.wait_for("handling_job")
    cancel(job_id)
    recorder.wait_for("job_cancelled")
    assert recorder.names[:3] == ["handling_job", "handler_stuck", "job_cancelled"]
    free.set()


# requests that were sent to the wrong place


def request(rows, job_id, worker_id, age="0 s"):
    rows(
        "INSERT INTO proletarian_worker (kind, subject, worker_id, idle, started_at, last_seen_at)"
        f" VALUES ('cancel', :subject, :worker_id, false, now(), now() - interval '{age}')",
        subject=str(job_id),
        worker_id=worker_id,
    )


def test_a_request_to_nobody_in_particular_is_for_whoever_has_the_job(
    jobs, enqueue, start_worker, recorder, rows, attentive, changes
):
    jobs.handler("work")(lambda session, job: job.sleep(HOUR))
    [job_id] = enqueue("work")
    start_worker(jobs)
    recorder.wait_for("handling_job")
    request(rows, job_id, "")
    recorder.wait_for("job_cancelled")
    changes(lambda: not rows(REQUESTS))


def test_a_request_to_a_worker_that_has_the_job_no_more_goes_to_the_one_that_has_it(
    jobs, enqueue, start_worker, recorder, rows, attentive
):
    jobs.handler("work")(lambda session, job: job.sleep(HOUR))
    jobs.handler("other")(lambda session, job: job.sleep(HOUR))
    [job_id] = enqueue("work")
    start_worker(jobs, worker_id="one")
    recorder.wait_for("handling_job")
    enqueue("other")
    start_worker(jobs, worker_id="two")
    recorder.wait_for("handling_job", 2)
    request(rows, job_id, "two")
    [event] = recorder.wait_for("job_cancelled")
    assert (event.worker_id, event.job_id) == ("one", job_id)


def test_a_request_to_a_dead_worker_is_heeded_by_another(jobs, enqueue, start_worker, recorder, rows, attentive, changes):
    jobs.handler("work")(lambda session, job: job.sleep(HOUR))
    jobs.handler("waiting")(lambda session, job: write(session, "never"))
    [waiting] = enqueue("waiting", process_in=HOUR)
    enqueue("work")
    request(rows, waiting, "dead", age="1 minute")
    request(rows, uuid4(), "dead", age="1 minute")
    request(rows, "nonsense", "dead", age="1 minute")
    start_worker(jobs)
    changes(lambda: not rows(REQUESTS))
    assert archive(rows) == [("waiting", "cancelled", 0, GONE)]


def test_a_request_that_others_still_may_heed_is_left_to_them(
    jobs, enqueue, start_worker, recorder, rows, attentive, changes
):
    jobs.handler("work")(lambda session, job: job.sleep(HOUR))
    enqueue("work")
    request(rows, uuid4(), "another")
    request(rows, uuid4(), "me")
    start_worker(jobs, worker_id="me")
    changes(lambda: len(rows(REQUESTS)) == 1)
    assert rows(REQUESTS)[0][1] == "another"


def test_a_job_that_is_released_when_its_worker_stops_does_not_run_again(jobs, enqueue, cancel, start_worker, rows, changes):
    inside, free = threading.Event(), threading.Event()

    @jobs.handler("work")
    def work(session, job):
        inside.set()
        assert free.wait(PATIENCE)

    [job_id] = enqueue("work")
    worker = start_worker(jobs)
    assert inside.wait(PATIENCE)
    cancel(job_id)
    assert not worker.stop(timedelta(0))
    free.set()
    changes(lambda: rows(REQUESTS) == [])  # on a busy machine the stop does not wait for the last of it
    assert archive(rows) == [("work", "cancelled", 0, GONE)]


def test_a_worker_without_the_table_works_and_says_once_that_nobody_can_ask(
    jobs, enqueue, start_worker, recorder, rows, attentive
):
    rows("DROP TABLE proletarian_worker")
    jobs.handler("work")(lambda session, job: None)
    enqueue(*["work"] * 5)
    worker = start_worker(jobs)
    recorder.wait_for("job_finished", 5)
    assert worker.stop()
    assert len(recorder.named("presence_unavailable")) == 1


# a job that runs, on the event loop


@asynccontextmanager
async def working(jobs, url, recorder, **options):
    engine = create_async_engine(url)
    options = {"polling_interval": timedelta(milliseconds=20), "listener": recorder, **options}
    try:
        async with AsyncWorker(jobs, engine, **options) as worker:
            yield worker
    finally:
        await engine.dispose()


async def wait_for_ever(session, job):
    await write_async(session, "never")
    await asyncio.Event().wait()


async def wait_in_sql(session, job):
    await write_async(session, "never")
    await session.execute(text("SELECT pg_sleep(3600)"))


async def sleep(session, job):
    await job.sleep_async(HOUR)


def sleep_in_thread(session, job):
    job.sleep(HOUR)


@pytest.mark.parametrize("handler", [wait_for_ever, wait_in_sql, sleep, sleep_in_thread])
def test_a_job_of_an_async_worker_is_cancelled_and_its_neighbour_goes_on(
    handler, url, jobs, enqueue, cancel, recorder, rows, attentive
):
    jobs.handler("one", retry=Retry(retries=3))(handler)

    @jobs.handler("two")
    async def two(session, job):
        await write_async(session, "kept")
        await asyncio.to_thread(recorder.wait_for, "job_cancelled")

    job_id, _ = enqueue("one", "two")

    async def main():
        async with working(jobs, url, recorder):
            await asyncio.to_thread(recorder.wait_for, "handling_job", 2)
            assert cancel(job_id) is Cancellation.REQUESTED
            await asyncio.to_thread(recorder.wait_for, "job_finished")

    asyncio.run(main())
    assert archive(rows) == [("one", "cancelled", 1, GONE), ("two", "success", 1, None)]
    assert effects(rows) == ["kept"]


def test_a_coroutine_that_is_claimed_and_not_begun_need_not_begin(url, jobs, enqueue, cancel, recorder, rows, attentive):
    @jobs.handler("first")
    async def first(session, job):
        assert await asyncio.to_thread(cancel, job_id) in (Cancellation.REQUESTED, Cancellation.CANCELLED)
        await asyncio.to_thread(until_it_is_archived, "second", rows)

    @jobs.handler("quick")
    async def quick(session, job):
        await asyncio.sleep(0)

    @jobs.handler("second")
    async def second(session, job):
        await write_async(session, "never")

    *_, job_id = enqueue(*["quick"] * 100, "first", "second")

    async def main():
        async with working(jobs, url, recorder, concurrency=1):
            await asyncio.to_thread(recorder.wait_for, "job_finished", 101)

    asyncio.run(main())
    assert [row[1:2] + row[3:] for row in archive(rows) if row[0] == "second"] == [("cancelled", GONE)]
    assert effects(rows) == []


def test_process_next_reads_no_request(jobs, tables, enqueue, cancel, rows):
    @jobs.handler("work")
    def work(session, job):
        assert cancel(job.job_id) is Cancellation.REQUESTED

    enqueue("work")
    assert jobs.process_next(tables) is Outcome.RETURNED
    assert rows(REQUESTS)[0][1] == "process_next"
