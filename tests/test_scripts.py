"""Several statements in one round trip: how many trips a job takes, and that a script means what its statements mean."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from datetime import timedelta

import pytest
from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

from sa_proletarian import ArchivedJob, Job, Outcome, Retry, inline
from sa_proletarian.connections import own_engine
from sa_proletarian.event_log import log_event
from sa_proletarian.execution import build_execution
from sa_proletarian.lifecycle import Lifecycle
from sa_proletarian.outcomes import RETURNED
from sa_proletarian.runs import Report
from sa_proletarian.transactions import Transactions

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


def test_a_claim_that_was_lost_before_the_first_use_of_the_session_is_not_held(jobs, enqueue, process_next, rows):
    had_it = []

    @jobs.handler("work")
    def work(session, job):
        rows("UPDATE proletarian_job SET claim_id = gen_random_uuid()")
        session.execute(text("INSERT INTO effect VALUES ('done')"))
        had_it.append(job)

    enqueue()
    assert process_next() is Outcome.CLAIM_LOST
    assert (had_it, rows("SELECT count(*) FROM effect")) == ([], [(0,)])


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


# what is prepared

PREPARED = text("SELECT count(*) FROM pg_prepared_statements WHERE name LIKE 'sa_proletarian_%'")


@pytest.fixture
def process(jobs, tables, enqueue):
    """Return a function that runs a job on connections that may have been used before, and gives what it came to."""
    engines = []

    def process(engine=tables):
        if not engines:
            engines.append(own_engine(engine, size=3))
        execution = build_execution(
            **jobs._for_one(engines[0], engine, queue="default", listener=log_event, worker_id="me"),
            retry=None,
            on_failed=None,
            session=None,
            around=None,
        )
        enqueue()
        return inline.process_next(execution)

    yield process
    for engine in engines:
        engine.dispose()


def test_a_connection_that_is_used_again_is_told_once_what_will_be_said_often(jobs, process, rows):
    seen = []

    @jobs.handler("work")
    def work(session, job):
        session.execute(text("INSERT INTO effect VALUES ('done')"))
        seen.append(session.scalar(PREPARED))

    assert [process() for _ in range(5)] == [Outcome.RETURNED] * 5
    assert seen == [0, 0, 3, 3, 3]
    assert rows("SELECT status, count(*) FROM proletarian_archived_job GROUP BY status") == [("success", 5)]
    assert rows("SELECT count(*) FROM effect") == [(5,)]


def test_where_the_driver_may_not_prepare_nothing_is_prepared(database_url, jobs, process):
    seen = []

    @jobs.handler("work")
    def work(session, job):
        seen.append(session.scalar(PREPARED))

    engine = create_engine(database_url, connect_args={"prepare_threshold": None})
    assert [process(engine) for _ in range(4)] == [Outcome.RETURNED] * 4
    engine.dispose()
    assert seen == [0, 0, 0, 0]


def test_an_app_that_empties_its_connections_on_return_only_loses_the_preparing(jobs, tables, process, rows):
    seen = []

    @event.listens_for(tables, "checkin")
    def empty(dbapi_connection, record):
        dbapi_connection.autocommit = True
        dbapi_connection.execute("DISCARD ALL")
        dbapi_connection.autocommit = False

    @jobs.handler("work")
    def work(session, job):
        seen.append(session.scalar(PREPARED))

    assert [process() for _ in range(5)] == [Outcome.RETURNED] * 5
    assert max(seen) <= 1
    assert seen[-1] == 0


def test_a_handler_that_throws_away_what_was_prepared_runs_once_more(jobs, tables, process, rows):
    """The settling finds nothing to say by its name; so the run is no attempt, and the next one is settled in full."""

    @jobs.handler("work")
    def work(session, job):
        session.execute(text("INSERT INTO effect VALUES ('done')"))
        session.execute(text("DEALLOCATE ALL"))

    outcomes = [process() for _ in range(7)]
    assert outcomes.count(Outcome.UNAVAILABLE) <= 1
    assert outcomes[-2:] == [Outcome.RETURNED] * 2
    (attempts,) = rows("SELECT max(attempts) FROM proletarian_archived_job")
    assert attempts == (1,)
    [(archived,)], [(effects,)] = rows("SELECT count(*) FROM proletarian_archived_job"), rows("SELECT count(*) FROM effect")
    assert archived == effects == outcomes.count(Outcome.RETURNED)


def roll_back_a_savepoint(session):
    with suppress(DBAPIError), session.begin_nested():
        session.execute(text("SELECT 1 / :nothing"), {"nothing": 0})


def drop_a_table(session):
    session.execute(text("CREATE TEMPORARY TABLE scratch (what text)"))
    session.execute(text("DROP TABLE scratch"))


@pytest.mark.parametrize("act", [roll_back_a_savepoint, drop_a_table])
def test_what_has_the_driver_forget_what_it_prepared_costs_no_second_run(jobs, tables, process, rows, act):
    """Psycopg says DEALLOCATE ALL then, if it has prepared anything; the scripts are prepared again."""
    seen = []

    @jobs.handler("work")
    def work(session, job):
        seen.append(session.scalar(PREPARED))
        for _ in range(7):
            session.execute(text("INSERT INTO effect VALUES ('done')"))
        if len(seen) == 5:
            act(session)

    assert [process() for _ in range(10)] == [Outcome.RETURNED] * 10
    assert seen[-1] > 0
    assert rows("SELECT count(*) FROM effect") == [(70,)]


def test_a_row_is_found_by_the_index_also_with_a_plan_that_was_kept(jobs, tables, process, rows):
    """Made for a table of one row, and used when it has many: what reads all of it would cost more with each job."""
    settings = []

    @jobs.handler("work")
    def work(session, job):
        settings.append(session.scalar(text("SHOW enable_seqscan")))

    for _ in range(8):
        process()
    rows(
        "INSERT INTO proletarian_job (job_id, queue, job_type, payload, attempts, enqueued_at, process_at, crashes) "
        "SELECT gen_random_uuid(), 'other', 'work', '{}', 0, now(), now(), 0 FROM generate_series(1, 50000)"
    )
    [(before,)] = rows(SEQUENTIAL)
    for _ in range(3):
        process()
    assert rows(SEQUENTIAL) == [(before,)]
    assert {*settings} == {"on"}


SEQUENTIAL = "SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = 'proletarian_job'"


def test_claims_and_settlings_of_many_take_a_trip_each(jobs, tables, enqueue, rows, tmp_path):
    jobs.handler("work")(lambda session, job: None)
    for _ in range(3):
        enqueue()
    engine = own_engine(tables, size=1)
    transactions = transactions_on(jobs, engine)
    with engine.connect() as connection:
        server = connection.connection.driver_connection.pgconn
        with (tmp_path / "trace").open("wb") as file:
            server.trace(os.dup(file.fileno()))
        runs = transactions.claim(connection, limit=10, idle=True).runs
        settled = [*transactions.settle(connection, [Report(run, RETURNED) for run in runs])]
        server.untrace()
    said = (tmp_path / "trace").read_bytes()
    assert said.count(READY) == said.count(b"\tQuery\t") == 2
    assert [one.ruling for one in settled] == [RETURNED] * 3
    assert rows("SELECT status, attempts FROM proletarian_archived_job") == [("success", 1)] * 3
    engine.dispose()


def transactions_on(jobs, engine):
    lifecycle = Lifecycle(Job, ArchivedJob)
    return Transactions(jobs, lifecycle, engine, "default", "me", timedelta(seconds=30), 5, lambda claim: None)


def test_somebody_who_listens_to_commits_hears_each_of_them(jobs, tables, enqueue):
    jobs.handler("work")(lambda session, job: None)
    enqueue()
    heard = []
    event.listen(tables, "before_cursor_execute", lambda *args: heard.append(args[2]))
    event.listen(tables, "commit", lambda connection: heard.append("COMMIT"))
    assert jobs.process_next(tables) is Outcome.RETURNED
    assert not any(";" in statement for statement in heard)
    assert heard.count("COMMIT") >= 2


def test_somebody_who_listens_to_statements_hears_the_scripts(jobs, tables, enqueue):
    jobs.handler("work")(lambda session, job: session.execute(text("SELECT 1")))
    enqueue()
    heard = []
    event.listen(tables, "before_cursor_execute", lambda *args: heard.append(args[2]))
    assert jobs.process_next(tables) is Outcome.RETURNED
    scripts = [statement for statement in heard if statement.startswith("BEGIN")]
    assert len(scripts) == 2
    assert ["SKIP LOCKED" in scripts[0], "SAVEPOINT" in scripts[1]] == [True, True]
