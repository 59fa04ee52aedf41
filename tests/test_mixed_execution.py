"""Async handlers in a threaded worker: on a loop beside its threads, with any driver, and otherwise as in an AsyncWorker."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta

import pytest
from sqlalchemy import create_engine, event, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from sa_proletarian import Job, JobTimeout, Outcome, Worker, overtime

PATIENCE = 20
SHORT = timedelta(milliseconds=50)
HOUR = timedelta(hours=1)


@pytest.fixture(params=["psycopg", "psycopg2", "psycopg_async", "asyncpg"])
def any_engine(request, tables):
    """Return the app's engine, of each kind."""
    url = tables.url.set(drivername=f"postgresql+{request.param}")
    if request.param in ("psycopg", "psycopg2"):
        engine = create_engine(url)
        yield engine
        engine.dispose()
    else:
        engine = create_async_engine(url)
        yield engine
        asyncio.run(engine.dispose())


@pytest.fixture(params=["psycopg", "psycopg2"])
def plain_engine(request, tables):
    """Return an engine whose driver knows of no event loop."""
    engine = create_engine(tables.url.set(drivername=f"postgresql+{request.param}"))
    yield engine
    engine.dispose()


@pytest.fixture
def enqueue(jobs, tables):
    def enqueue(*job_types, payload=None):
        with Session(tables) as session, session.begin():
            return [jobs.enqueue(session, job_type, payload).job_id for job_type in job_types]

    return enqueue


@contextmanager
def locked(engine):
    """Hold an advisory lock, for statements that shall wait."""
    with engine.connect() as connection:
        connection.execute(text("SELECT pg_advisory_lock(1)"))
        yield
        connection.execute(text("SELECT pg_advisory_unlock(1)"))


async def wait_in_sql(session):
    await session.execute(text("SELECT pg_advisory_xact_lock(1)"))


async def write(session, what):
    await session.execute(text("INSERT INTO effect VALUES (:what)"), {"what": what})


def effects(rows):
    return [what for (what,) in rows("SELECT what FROM effect ORDER BY what")]


def archive(rows):
    return rows("SELECT job_type, status, attempts FROM proletarian_archived_job ORDER BY job_type")


def queue(rows):
    return rows("SELECT attempts, crashes, claim_id FROM proletarian_job")


def backends(rows):
    [(count,)] = rows(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        " AND backend_type = 'client backend'"
    )
    return count


# run


def test_handlers_of_both_kinds_run_on_any_engine(any_engine, jobs, enqueue, start_worker, recorder, rows):
    threads = {}

    @jobs.handler("async")
    async def on_loop(session: AsyncSession, job: Job):
        threads["async"] = threading.current_thread().name
        await write(session, f"async {job.payload}")
        await session.commit()
        assert await session.scalar(text("SELECT count(*) FROM effect WHERE what LIKE 'async%'")) == 1

    @jobs.handler("plain")
    def in_thread(session: Session, job: Job):
        threads["plain"] = threading.current_thread().name
        session.execute(text("INSERT INTO effect VALUES ('plain')"))

    @jobs.handler("idle")
    async def idle(session, job):
        await asyncio.sleep(0)

    enqueue("async", "plain", "idle", payload="1")
    start_worker(jobs, any_engine, threads=3, worker_id="me")
    recorder.wait_for("job_finished", 3)
    assert archive(rows) == [("async", "success", 1), ("idle", "success", 1), ("plain", "success", 1)]
    assert effects(rows) == ["async 1", "plain"]
    assert threads["async"] == "sa_proletarian-loop"
    assert threads["plain"].startswith("me-")


def test_process_next_runs_them_too(any_engine, jobs, enqueue, rows):
    @jobs.handler("work", retry=None)
    async def work(session, job):
        await write(session, "written")

    enqueue("work")
    assert jobs.process_next(any_engine) is Outcome.RETURNED
    assert jobs.process_next(any_engine) is None
    assert effects(rows) == ["written"]


def test_they_take_the_workers_threads_like_any_other(jobs, enqueue, start_worker, recorder):
    inside, most = [], []

    @jobs.handler("async")
    async def on_loop(session, job):
        inside.append(job)
        most.append(len(inside))
        await asyncio.sleep(0.01)
        inside.remove(job)

    @jobs.handler("plain")
    def in_thread(session, job):
        inside.append(job)
        most.append(len(inside))
        inside.remove(job)

    enqueue(*["async", "plain"] * 5)
    start_worker(jobs, threads=1)
    recorder.wait_for("job_finished", 10)
    assert set(most) == {1}


def test_several_of_them_are_under_way_at_once(jobs, enqueue, start_worker, recorder):
    everybody = asyncio.Barrier(3)

    @jobs.handler("work")
    async def work(session, job):
        await everybody.wait()

    enqueue("work", "work", "work")
    start_worker(jobs, threads=3)
    recorder.wait_for("job_finished", 3)


def test_a_statement_that_waits_does_not_block_the_loop(plain_engine, jobs, enqueue, start_worker, recorder, tables):
    @jobs.handler("waits")
    async def waits(session, job):
        await wait_in_sql(session)

    @jobs.handler("goes_on")
    async def goes_on(session, job):
        await write(session, "went on")

    with locked(tables):
        enqueue("waits", "goes_on")
        start_worker(jobs, plain_engine, threads=2)
        [first] = recorder.wait_for("job_finished")
        assert first.job_type == "goes_on"
    recorder.wait_for("job_finished", 2)


def test_rows_can_be_streamed(plain_engine, jobs, enqueue, rows):
    @jobs.handler("work")
    async def work(session, job):
        result = await session.stream(text("SELECT n FROM generate_series(1, 2500) AS n"))
        total = [row.n async for row in result]
        await write(session, f"{len(total)} {sum(total)}")
        connection = await session.connection()
        assert await connection.scalar(text("SELECT 1")) == 1

    enqueue("work")
    assert jobs.process_next(plain_engine) is Outcome.RETURNED
    assert effects(rows) == ["2500 3126250"]


def test_connections_are_made_as_the_apps_engine_makes_them(plain_engine, jobs, enqueue, start_worker, recorder):
    made = []

    @event.listens_for(plain_engine, "connect")
    def note(dbapi_connection, record):
        cursor = dbapi_connection.cursor()  # the driver's own, where it may wait
        cursor.execute("SET application_name TO 'made by the app'")
        cursor.close()
        dbapi_connection.commit()
        made.append(type(dbapi_connection).__module__.split(".")[0])

    @jobs.handler("work")
    async def work(session, job):
        assert await session.scalar(text("SELECT current_setting('application_name')")) == "made by the app"

    enqueue("work")
    start_worker(jobs, plain_engine)
    recorder.wait_for("job_finished")
    assert set(made) == {plain_engine.dialect.driver}
    assert not plain_engine.dialect.is_async


# sessions and contexts


def test_their_session_holds_one_of_the_apps_class_with_its_options(tables, jobs, enqueue, start_worker, recorder):
    class AppSession(Session):
        pass

    seen = []

    @jobs.handler("work")
    async def work(session, job):
        seen.append((isinstance(session.sync_session, AppSession), session.sync_session.expire_on_commit, session.info))
        await session.execute(text("SELECT 1"))

    enqueue("work")
    start_worker(jobs, session=sessionmaker(tables, class_=AppSession, expire_on_commit=False, info={"app": 1}))
    recorder.wait_for("job_finished")
    assert seen == [(True, False, {"app": 1})]


def test_a_scoped_session_is_not_taken_from_the_loops_thread(tables, jobs, enqueue, start_worker, recorder, rows):
    scope = scoped_session(sessionmaker(tables))

    @jobs.handler("work")
    async def work(session, job):
        assert not scope.registry.has()
        await write(session, "written")

    enqueue("work", "work")
    start_worker(jobs, session=scope, threads=2)
    recorder.wait_for("job_finished", 2)
    assert effects(rows) == ["written", "written"]


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_around_is_entered_on_the_loop_and_may_be_async(kind, jobs, enqueue, start_worker, recorder):
    seen = []

    @contextmanager
    def plain(job):
        seen.append(("in", threading.current_thread().name))
        yield
        seen.append("out")

    @asynccontextmanager
    async def asynchronous(job):
        await asyncio.sleep(0)
        with plain(job):
            yield

    @jobs.handler("work")
    async def work(session, job):
        seen.append("work")

    enqueue("work")
    start_worker(jobs, around=plain if kind == "plain" else asynchronous)
    recorder.wait_for("job_finished")
    assert seen == [("in", "sa_proletarian-loop"), "work", "out"]


@pytest.mark.parametrize("uses_session", [True, False])
def test_on_failed_may_be_async_or_not_whatever_the_handler_is(uses_session, jobs, enqueue, start_worker, recorder):
    called = {}
    everybody = threading.Event()

    def note(job):
        called[job.job_type] = threading.current_thread().name
        if len(called) == 3:
            everybody.set()

    async def awaited(job, error):
        await asyncio.sleep(0)
        note(job)

    @jobs.handler("async.async", on_failed=awaited)
    @jobs.handler("async.plain", on_failed=lambda job, error: note(job))
    async def on_loop(session, job):
        if uses_session:
            await write(session, "never")
        raise ValueError("no")

    @jobs.handler("plain.async")
    def in_thread(session, job):
        raise ValueError("no")

    enqueue("async.async", "async.plain", "plain.async")
    start_worker(jobs, on_failed=awaited, worker_id="me")
    assert everybody.wait(PATIENCE)
    assert called["async.async"] == called["plain.async"] == "sa_proletarian-loop"
    assert called["async.plain"].startswith("me-")
    assert "on_failed_error" not in recorder.names


# end early


def test_one_that_waits_for_ever_is_cancelled_when_its_time_is_over(jobs, enqueue, start_worker, recorder, rows):
    @jobs.handler("slow", timeout=SHORT)
    async def slow(session, job):
        await write(session, "never")
        await asyncio.sleep(3600)

    @jobs.handler("next")
    async def follows(session, job):
        await write(session, "next")

    enqueue("slow", "next")
    start_worker(jobs)
    recorder.wait_for("job_finished")
    [failed] = recorder.named("not_retrying")
    assert isinstance(failed.error, JobTimeout)
    assert effects(rows) == ["next"]
    assert "handler_stuck" not in recorder.names


def test_one_that_waits_in_sql_is_cancelled_and_the_pool_stays_whole(
    plain_engine, jobs, enqueue, start_worker, recorder, rows, tables
):
    @jobs.handler("slow", timeout=SHORT)
    async def slow(session, job):
        await wait_in_sql(session)

    @jobs.handler("next")
    async def follows(session, job):
        await write(session, "next")

    with locked(tables):
        enqueue("slow", "slow", "slow", "next")
        start_worker(jobs, plain_engine)
        recorder.wait_for("not_retrying", 3)
    recorder.wait_for("job_finished")
    assert {type(failed.error) for failed in recorder.named("not_retrying")} == {JobTimeout}
    assert archive(rows) == [("next", "success", 1), *[("slow", "failure", 1)] * 3]


def test_a_handler_may_limit_its_own_statement_and_that_ends_on_the_server(
    plain_engine, jobs, enqueue, start_worker, recorder, rows, tables
):
    @jobs.handler("work")
    async def work(session, job):
        async with asyncio.timeout(0.05):
            await wait_in_sql(session)

    with locked(tables):
        enqueue("work")
        start_worker(jobs, plain_engine)
        [failed] = recorder.wait_for("not_retrying")
        assert isinstance(failed.error, TimeoutError)
        while rows("SELECT 1 FROM pg_stat_activity WHERE query LIKE '%pg_advisory_xact_lock(1)' AND state = 'active'"):
            pass


def test_one_that_ignores_its_cancellation_is_left_behind(jobs, enqueue, start_worker, recorder, rows, monkeypatch):
    monkeypatch.setattr(overtime, "STUCK_GRACE", 0.05)
    over = threading.Event()

    @jobs.handler("deaf", timeout=SHORT)
    async def deaf(session, job):
        while not over.is_set():
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                pass

    @jobs.handler("next")
    async def follows(session, job):
        await write(session, "next")

    enqueue("deaf", "next")
    worker = start_worker(jobs)
    recorder.wait_for("handler_stuck")
    recorder.wait_for("job_finished")
    over.set()
    assert worker.stop()
    assert archive(rows) == [("deaf", "failure", 1), ("next", "success", 1)]


def test_a_cancel_from_outside_ends_it(jobs, enqueue, start_worker, recorder, rows, tables):
    begun = threading.Event()

    @jobs.handler("long")
    async def long(session, job):
        await write(session, "never")
        begun.set()
        await job.sleep_async(HOUR)

    [job_id] = enqueue("long")
    start_worker(jobs)
    assert begun.wait(PATIENCE)
    with Session(tables) as session, session.begin():
        jobs.cancel(session, job_id)
    recorder.wait_for("job_cancelled")
    assert (archive(rows), effects(rows)) == ([("long", "cancelled", 1)], [])


@pytest.mark.parametrize("deaf", [False, True])
def test_a_stop_interrupts_it_or_takes_the_job_away(deaf, jobs, enqueue, start_worker, recorder, rows):
    begun = threading.Event()

    @jobs.handler("long")
    async def long(session, job):
        await write(session, "never")
        begun.set()
        await (asyncio.sleep(3600) if deaf else job.sleep_async(HOUR))

    enqueue("long")
    worker = start_worker(jobs)
    assert begun.wait(PATIENCE)
    assert worker.stop(timedelta(seconds=0.1) if deaf else HOUR)
    assert recorder.names.count("job_interrupted") == 1
    assert (queue(rows), effects(rows)) == ([(0, 0, None)], [])


def test_a_handler_may_stop_its_worker(jobs, enqueue, tables, recorder, rows):
    answers = []

    @jobs.handler("last")
    async def last(session, job):
        answers.append(worker.stop())
        await write(session, "done")

    enqueue("last")
    worker = Worker(jobs, tables, listener=recorder)
    worker.start()
    recorder.wait_for("completed_shutdown")
    assert answers == [False]
    assert effects(rows) == ["done"]


@pytest.fixture
def hears_ctrl_c():
    """Let SIGINT be heard, also where this run was begun in the background of a shell, which has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("hears_ctrl_c")
def test_ctrl_c_in_process_next_releases_the_job_and_is_raised(jobs, enqueue, tables, rows):
    @jobs.handler("work")
    async def work(session, job):
        await write(session, "never")
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(3600)

    enqueue("work")
    with pytest.raises(KeyboardInterrupt):
        jobs.process_next(tables)
    assert (queue(rows), effects(rows), archive(rows)) == ([(0, 0, None)], [], [])


def test_a_stopped_worker_leaves_no_connection_and_no_thread(any_engine, jobs, enqueue, start_worker, recorder, rows):
    @jobs.handler("work")
    async def work(session, job):
        await write(session, "written")

    enqueue("work", "work")
    before = {*threading.enumerate()}
    worker = start_worker(jobs, any_engine, threads=2)
    recorder.wait_for("job_finished", 2)
    assert worker.stop()
    for thread in {*threading.enumerate()} - before:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    while backends(rows) > 1:  # the fixture's; the server takes a moment to see the end
        pass


WITHOUT_GREENLET = """
import sys
sys.modules["greenlet"] = None
from sqlalchemy import create_engine
from sa_proletarian import Proletarian, Worker
jobs = Proletarian()

@jobs.handler("work")
async def work(session, job): ...

for begin in (Worker(jobs, create_engine(sys.argv[1])).start, lambda: jobs.process_next(create_engine(sys.argv[1]))):
    try:
        begin()
    except Exception as error:
        print(type(error).__name__, error)
"""


def test_without_greenlet_they_are_refused_at_start(tables):
    url = tables.url.render_as_string(hide_password=False)
    answer = subprocess.run([sys.executable, "-c", WITHOUT_GREENLET, url], capture_output=True, text=True, check=False)
    first, second = answer.stdout.splitlines()
    assert first.startswith("ImportError ") and "pip install sqlalchemy[asyncio]" in first
    assert second.startswith("ImportError ")
