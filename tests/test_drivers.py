"""The same promises on every driver: of the app that enqueues, and of the worker's own connections."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta

import pytest
from asyncpg.exceptions import InternalClientError
from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from sa_proletarian import Cancel, ConfigurationError, Job, Outcome, Retry, Snooze, Worker
from sa_proletarian.connections import own_engine
from sa_proletarian.dialects import Trouble, trouble

ASYNC = {"psycopg (async)": "psycopg", "asyncpg": "asyncpg"}
DRIVERS = ["psycopg", "psycopg2", *ASYNC]
SOON = timedelta(milliseconds=50)


def make_engine(url, driver, **options):
    if driver in ASYNC:
        return create_async_engine(url.set(drivername=f"postgresql+{ASYNC[driver]}"), **options)
    return create_engine(url.set(drivername=f"postgresql+{driver}"), **options)


def dispose(app):
    # an async engine that only a worker has used has no connection of its own to close
    app.sync_engine.dispose(close=False) if hasattr(app, "sync_engine") else app.dispose()


@pytest.fixture(params=DRIVERS)
def app(request, tables, database_url):
    """The app's engine, of each driver in turn, on a database that has the tables."""
    app = make_engine(database_url, request.param)
    yield app
    dispose(app)


@pytest.fixture(params=ASYNC)
def async_app(request, tables, database_url):
    app = make_engine(database_url, request.param)
    yield app
    dispose(app)


@pytest.fixture
def enqueue(jobs, tables):
    def enqueue(*arguments, **options):
        with Session(tables) as session, session.begin():
            return jobs.enqueue(session, *arguments, **options).job_id

    return enqueue


def archive(rows):
    return rows("SELECT job_type, status, attempts FROM proletarian_archived_job ORDER BY job_type")


def write(session, what):
    session.execute(text("INSERT INTO effect VALUES (:what)"), {"what": what})


# enqueue


PAYLOAD = {"text": "Grüße, 世界", "number": 1.5, "nested": [None, {"deep": True}]}


def enqueue_through(app, jobs, form):
    """Enqueue one job through a session or a connection of this engine, in its own transaction, and roll another back."""
    if not hasattr(app, "sync_engine"):
        target = {"session": lambda: Session(app), "connection": app.connect}[form]
        for end in ("commit", "rollback"):
            with target() as opened:
                jobs.enqueue(opened, end, PAYLOAD)
                getattr(opened, end)()
        return

    async def main():
        for end in ("commit", "rollback"):
            if form == "session":
                async with AsyncSession(app) as session:
                    jobs.enqueue(session, end, PAYLOAD)
                    await getattr(session, end)()
            else:
                async with app.connect() as connection:
                    await connection.run_sync(jobs.enqueue, end, PAYLOAD)
                    await getattr(connection, end)()
        await app.dispose()

    asyncio.run(main())


@pytest.mark.parametrize("form", ["session", "connection"])
def test_what_one_driver_enqueues_arrives_whole_at_another(app, form, jobs, tables):
    enqueue_through(app, jobs, form)
    seen = []
    jobs.handler("*")(lambda session, job: seen.append((job.job_type, job.payload)))
    while jobs.process_next(tables):
        pass
    assert seen == [("commit", PAYLOAD)]


# work


def test_each_fate_of_a_job(app, jobs, enqueue, start_worker, recorder, rows):
    def refuse(session, job):
        write(session, "refused")
        raise ValueError("no")

    def later(session, job):
        write(session, f"later {job.attempts}")
        if job.attempts < 3:
            raise ValueError("not yet")

    def cancel(session, job):
        raise Cancel("not wanted")

    def snooze(session, job):
        if rows("SELECT 1 FROM effect WHERE what = 'snoozed'"):
            return
        write(session, "snoozed")
        session.commit()
        raise Snooze(SOON)

    jobs.handler("idle")(lambda session, job: None)
    jobs.handler("writing")(lambda session, job: write(session, job.payload))
    jobs.handler("refusing")(refuse)
    jobs.handler("retried", retry=Retry(retries=3, delays=[SOON]))(later)
    jobs.handler("cancelled")(cancel)
    jobs.handler("snoozed")(snooze)
    for job_type in ("idle", "writing", "refusing", "retried", "cancelled", "snoozed"):
        enqueue(job_type, job_type)
    start_worker(jobs, app, threads=2)
    recorder.wait_for("job_finished", 4)
    recorder.wait_for("not_retrying")
    recorder.wait_for("job_cancelled")
    assert archive(rows) == [
        ("cancelled", "cancelled", 1),
        ("idle", "success", 1),
        ("refusing", "failure", 1),
        ("retried", "success", 3),
        ("snoozed", "success", 1),
        ("writing", "success", 1),
    ]
    assert rows("SELECT what FROM effect ORDER BY what") == [("later 3",), ("snoozed",), ("writing",)]
    assert rows("SELECT count(*) FROM proletarian_job") == [(0,)]
    [(error,)] = rows("SELECT error FROM proletarian_archived_job WHERE job_type = 'refusing'")
    assert error.startswith("ValueError: no")


def test_what_a_handler_does_to_its_session_does_not_let_go_of_the_job(
    app, jobs, enqueue, start_worker, recorder, rows, tables
):
    def locked(job):
        with Session(tables) as other:
            query = text("SELECT 1 FROM proletarian_job WHERE job_id = :id FOR UPDATE SKIP LOCKED")
            return other.execute(query, {"id": job.job_id}).all() == []

    held = []

    def handler(session, job):
        write(session, "rolled back")
        session.rollback()
        write(session, "committed")
        session.commit()
        held.append(locked(job))
        with pytest.raises(Exception, match="does not exist"):
            session.execute(text("SELECT * FROM nowhere"))
        session.rollback()
        assert session.get(Job, job.job_id).job_id == job.job_id
        session.close()
        held.append(locked(job))
        held.extend(session.scalars(text("SELECT generate_series(1, 3)"), execution_options={"yield_per": 1}))

    jobs.handler("work")(handler)
    enqueue("work")
    start_worker(jobs, app)
    recorder.wait_for("job_finished")
    assert held == [True, True, 1, 2, 3]
    assert rows("SELECT what FROM effect") == [("committed",)]


def test_many_jobs_in_many_threads_each_have_their_effect_once(app, jobs, enqueue, start_worker, recorder, rows):
    jobs.handler("writing")(lambda session, job: write(session, job.payload))
    jobs.handler("idle")(lambda session, job: None)
    for number in range(30):
        enqueue("writing", str(number))
        enqueue("idle")
    start_worker(jobs, app, threads=4)
    recorder.wait_for("job_finished", 60)
    assert rows("SELECT count(*), count(DISTINCT what) FROM effect") == [(30, 30)]


def test_a_job_whose_connection_dies_runs_again(app, jobs, enqueue, start_worker, recorder, rows, tables):
    def handler(session, job):
        write(session, "once")
        pid = session.scalar(text("SELECT pg_backend_pid()"))
        if job.crashes == 0:
            with tables.connect() as other:
                other.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})
            session.execute(text("SELECT 1"))

    jobs.handler("work")(handler)
    enqueue("work")
    start_worker(jobs, app)
    recorder.wait_for("job_finished")
    assert archive(rows) == [("work", "success", 1)]
    assert rows("SELECT what FROM effect") == [("once",)]


def test_a_worker_that_loses_every_connection_makes_new_ones(app, jobs, enqueue, start_worker, recorder, tables):
    jobs.handler("work")(lambda session, job: write(session, "x"))
    enqueue("work")
    start_worker(jobs, app)
    recorder.wait_for("job_finished")
    with tables.begin() as other:
        other.execute(
            text(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )
    recorder.wait_for("sql_transient_exception")
    enqueue("work")
    recorder.wait_for("job_finished", 2)


def test_a_stop_cancels_the_statement_that_runs_and_the_job_is_not_an_attempt(
    app, jobs, enqueue, start_worker, recorder, rows
):
    running = threading.Event()

    def handler(session, job):
        write(session, "gone")
        running.set()
        session.execute(text("SELECT pg_sleep(60)"))

    jobs.handler("work")(handler)
    enqueue("work")
    worker = start_worker(jobs, app)
    assert running.wait(10)
    worker.stop(timedelta(0))
    assert recorder.named("job_interrupted"), recorder.names
    assert rows("SELECT attempts, crashes, claim_id FROM proletarian_job") == [(0, 0, None)]
    assert rows("SELECT * FROM effect") == []


def test_a_constraint_of_the_app_that_refuses_the_settling_parks_the_job(app, jobs, enqueue, start_worker, recorder, rows):
    job_id = enqueue("work")
    rows("CREATE TABLE attachment (job_id uuid REFERENCES proletarian_job (job_id))")
    rows("INSERT INTO attachment VALUES (:id)", id=job_id)
    jobs.handler("work")(lambda session, job: write(session, "x"))
    start_worker(jobs, app)
    recorder.wait_for("job_parked")
    [(error, claim)] = rows("SELECT last_error, claim_id FROM proletarian_job")
    assert "attachment_job_id_fkey" in error
    assert (claim, rows("SELECT * FROM effect")) == (None, [])


def test_pythons_own_network_errors_are_read_as_asyncpg_means_them():
    assert trouble(ConnectionResetError()) is Trouble.DISCONNECTED, "a COMMIT may have been carried out"
    assert trouble(FileNotFoundError()) is Trouble.TRANSIENT, "no socket: there was no connection"
    confused = InternalClientError("cannot switch to state 15")
    assert trouble(confused) is Trouble.DISCONNECTED, "the session was ended just as something was asked of it"
    assert trouble(DBAPIError("SELECT 1", {}, confused)) is Trouble.DISCONNECTED, "as SQLAlchemy 2.1 tells of it"


def test_one_job_in_the_callers_thread(app, jobs, enqueue, rows):
    jobs.handler("work")(lambda session, job: write(session, "x"))
    enqueue("work")
    assert jobs.process_next(app) is Outcome.RETURNED
    assert jobs.process_next(app) is None
    assert rows("SELECT what FROM effect") == [("x",)]


def test_a_server_that_cannot_be_reached_is_tried_again(jobs, recorder, start_worker, database_url, request):
    for driver in DRIVERS:
        nowhere = make_engine(database_url.set(query={"host": "/nowhere"}), driver)
        worker = start_worker(jobs, nowhere, worker_id=driver)
        recorder.wait_for("sql_transient_exception", DRIVERS.index(driver) + 1)
        worker.stop()
        dispose(nowhere)
    assert recorder.named("job_worker_error") == []


def test_errors_of_the_workers_connections_hide_parameters_and_rows(app):
    own = own_engine(app, size=1)
    with own.connect() as connection:
        connection.execute(text("CREATE TEMP TABLE account (email text UNIQUE)"))
        connection.execute(text("INSERT INTO account VALUES ('canary-7f3a')"))
        with pytest.raises(Exception, match="duplicate key") as failure:
            connection.execute(text("INSERT INTO account VALUES (:email)"), {"email": "canary-7f3a"})
    own.dispose()
    assert "canary" not in str(failure.value) + repr(failure.value)


# async drivers in threads


def test_a_handler_may_use_its_session_in_another_thread_and_run_a_loop_of_its_own(
    async_app, jobs, enqueue, start_worker, recorder, rows
):
    async def outside():
        await asyncio.sleep(0)
        return "from a loop"

    def handler(session, job):
        write(session, asyncio.run(outside()))
        thread = threading.Thread(target=write, args=(session, "from a thread"))
        thread.start()
        thread.join()

    jobs.handler("work")(handler)
    enqueue("work")
    start_worker(jobs, async_app)
    recorder.wait_for("job_finished")
    assert rows("SELECT what FROM effect ORDER BY what") == [("from a loop",), ("from a thread",)]


def test_connects_as_the_async_engine_does(tables, database_url, request):
    """``do_connect`` hooks, listeners, ``connect_args`` and ``async_creator`` all count, as they would on the app's loop."""
    import asyncpg

    async def creator():
        return await asyncpg.connect(**arguments)

    arguments = {"host": database_url.query["host"], "user": "postgres", "database": database_url.database}
    seen = []
    for options in (
        {"connect_args": {"server_settings": {"application_name": "shop"}}},
        {"async_creator": creator},
    ):
        app = make_engine(database_url, "asyncpg", **options)

        @event.listens_for(app.sync_engine, "connect")
        def prepare(dbapi_connection, record):
            dbapi_connection.run_async(lambda raw: raw.execute("SET search_path TO tenant_7"))
            with dbapi_connection.cursor() as cursor:
                cursor.execute("SELECT current_setting('search_path'), 1")
                seen.extend(cursor)
                cursor.execute("SELECT 2")
                seen.append(cursor.fetchone())

        own = own_engine(app, size=1)
        with own.connect() as connection:
            seen.append(connection.scalar(text("SHOW application_name")))
            seen.append(connection.scalar(text("SHOW transaction_isolation")))
        own.dispose()
        dispose(app)
    one, two = [("tenant_7", 1), (2,), "shop", "read committed"], [("tenant_7", 1), (2,), "", "read committed"]
    assert [tuple(row) if not isinstance(row, str) else row for row in seen] == one + two


def test_a_session_class_of_the_app_is_bound_to_the_engine_inside(async_app, jobs, enqueue, start_worker, recorder, rows):
    class Own(Session):
        pass

    seen = []

    def handler(session, job):
        seen.append(isinstance(session, Own))
        write(session, "x")

    jobs.handler("work")(handler)
    enqueue("work")
    start_worker(jobs, async_app, session=sessionmaker(async_app.sync_engine, class_=Own))
    recorder.wait_for("job_finished")
    assert (seen, rows("SELECT what FROM effect")) == ([True], [("x",)])


def test_refuses_an_async_engine_in_autocommit(jobs, database_url):
    for driver in ASYNC:
        app = make_engine(database_url, driver, isolation_level="AUTOCOMMIT")
        with pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
            Worker(jobs, app)


def test_a_stopped_worker_leaves_no_thread_and_no_connection(async_app, jobs, enqueue, start_worker, recorder, rows):
    before = set(threading.enumerate())
    opened = []
    event.listen(async_app.sync_engine, "connect", lambda connection, record: opened.append(record.driver_connection))
    jobs.handler("work")(lambda session, job: write(session, "x"))
    enqueue("work")
    worker = start_worker(jobs, async_app)
    recorder.wait_for("job_finished")
    assert worker.stop()
    assert set(threading.enumerate()) <= before
    assert len(opened) >= 2
    assert all(getattr(raw, "closed", None) or raw.is_closed() for raw in opened)
