"""Several statements in one round trip: how many trips a job takes, and that a script means what its statements mean."""

from __future__ import annotations

import asyncio
import os

import pytest
from sqlalchemy import create_engine, event, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

from sa_proletarian import Outcome, Retry

READY = b"\tReadyForQuery\t"


@pytest.fixture
def enqueue(jobs, tables):
    def enqueue(job_type="work", **options):
        with Session(tables) as session, session.begin():
            jobs.enqueue(session, job_type, **options)

    return enqueue


@pytest.fixture(params=["sync", "async", "async beside threads"])
def form(request):
    """How psycopg is used: as it comes, on an event loop, or on one beside the threads that run handlers."""
    return request.param


@pytest.fixture
def given(tables, form):
    """Return the app's engine."""
    engine = create_engine(tables.url) if form == "sync" else create_async_engine(tables.url)
    yield engine
    if form == "sync":
        engine.dispose()


@pytest.fixture
def process_next(jobs, given, form):
    """Return a function that runs the next job."""
    if form != "async":
        return lambda: jobs.process_next(given)
    return lambda: asyncio.run(jobs.process_next_async(given))


@pytest.fixture
def trips(given, tmp_path):
    """Return a function that gives how many times the server has answered on each connection that was made since."""

    def begin(dbapi_connection, record):
        pgconn = record.driver_connection.pgconn
        with (tmp_path / f"{pgconn.backend_pid}.trace").open("wb") as file:
            pgconn.trace(os.dup(file.fileno()))

    event.listen(getattr(given, "sync_engine", given), "connect", begin)
    return lambda: [(path.read_bytes(), path.read_bytes().count(READY)) for path in tmp_path.glob("*.trace")]


def test_a_job_that_writes_a_row_takes_three_round_trips(jobs, enqueue, process_next, trips, rows):
    """One begins, locks and makes both savepoints, one is the handler's, and one settles and commits."""

    @jobs.handler("work")
    def work(session, job):
        session.execute(text("INSERT INTO effect VALUES ('done')"))

    enqueue()
    assert process_next() is Outcome.RETURNED
    assert rows("SELECT what FROM effect") == [("done",)]
    assert [count for trace, count in trips() if b"INSERT INTO effect" in trace] == [3]


def test_a_driver_that_takes_no_scripts_says_the_same_statement_by_statement(database_url, tables, jobs, enqueue, rows):
    @jobs.handler("work")
    def work(session, job):
        session.execute(text("INSERT INTO effect VALUES ('done')"))

    enqueue()
    engine = create_engine(database_url.set(drivername="postgresql+psycopg2"))
    assert jobs.process_next(engine) is Outcome.RETURNED
    engine.dispose()
    assert rows("SELECT what FROM effect") == [("done",)]
    assert rows("SELECT status FROM proletarian_archived_job") == [("success",)]


def test_a_row_that_the_handler_has_deleted_is_a_failure_of_its_own(jobs, enqueue, process_next, rows):
    @jobs.handler("work", retry=Retry(1))
    def work(session, job):
        session.execute(text("INSERT INTO effect VALUES ('undone')"))
        session.execute(text("DELETE FROM proletarian_job"))

    enqueue()
    assert process_next() is Outcome.RETRIED
    assert rows("SELECT what FROM effect") == []
    assert rows("SELECT attempts, last_error LIKE '%deleted its own%' FROM proletarian_job") == [(1, True)]


def test_a_deferred_constraint_that_fails_at_commit_is_the_handlers_failure(jobs, enqueue, process_next, rows):
    rows("CREATE TABLE parent (id int PRIMARY KEY)")
    rows("CREATE TABLE child (parent int REFERENCES parent DEFERRABLE INITIALLY DEFERRED)")

    @jobs.handler("work")
    def work(session, job):
        session.execute(text("INSERT INTO child VALUES (1)"))

    enqueue()
    assert process_next() is Outcome.GAVE_UP
    assert rows("SELECT count(*) FROM child") == [(0,)]
    assert rows("SELECT status, error LIKE '%23503%' FROM proletarian_archived_job") == [("failure", True)]


@pytest.mark.parametrize("path", ["", "pg_catalog", 'Weird, "p\'q\\r", public'])
def test_what_a_handler_has_set_does_not_lead_the_settling_astray(jobs, enqueue, process_next, rows, path):
    """The settling finds the tables where the worker found them, though its statements come without parameters."""

    @jobs.handler("work")
    def work(session, job):
        session.execute(text("INSERT INTO effect VALUES ('done')"))
        session.execute(text("SELECT set_config('search_path', :path, false)"), {"path": path})
        session.execute(text("SET standard_conforming_strings TO off"))

    enqueue()
    assert process_next() is Outcome.RETURNED
    assert rows("SELECT status FROM proletarian_archived_job") == [("success",)]


def test_a_search_path_with_quotation_marks_is_restored_as_it_was(jobs, enqueue, given, process_next):
    """What the server says of its own settings goes back into a script as a literal."""
    path = '"o\'r\\n", public'

    @event.listens_for(getattr(given, "sync_engine", given), "connect")
    def set_path(dbapi_connection, record):
        cursor = dbapi_connection.cursor()
        cursor.execute("SELECT set_config('search_path', %s, false)", (path,))
        cursor.close()
        dbapi_connection.commit()

    seen = []

    @jobs.handler("work")
    def work(session, job):
        seen.append(session.scalar(text("SHOW search_path")))
        session.execute(text("INSERT INTO effect VALUES ('done')"))

    enqueue()
    assert process_next() is Outcome.RETURNED
    assert seen == [path]


def test_a_handler_commits_and_rolls_back_as_often_as_it_likes(jobs, enqueue, process_next, rows):
    @jobs.handler("work")
    def work(session, job):
        for what in ("a", "b", "c", "d"):
            session.execute(text("INSERT INTO effect VALUES (:what)"), {"what": what})
            session.commit() if what in "ac" else session.rollback()
        session.execute(text("INSERT INTO effect VALUES ('e')"))

    enqueue()
    assert process_next() is Outcome.RETURNED
    assert rows("SELECT what FROM effect ORDER BY what") == [("a",), ("c",), ("e",)]


def test_a_failure_undoes_also_what_was_committed_before_it(jobs, enqueue, process_next, rows):
    @jobs.handler("work")
    def work(session, job):
        for what in ("a", "b"):
            session.execute(text("INSERT INTO effect VALUES (:what)"), {"what": what})
            session.commit()
        raise RuntimeError

    enqueue()
    assert process_next() is Outcome.GAVE_UP
    assert rows("SELECT what FROM effect") == []
    assert rows("SELECT status FROM proletarian_archived_job") == [("failure",)]
