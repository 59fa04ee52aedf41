"""Enqueueing: into whatever the app's own transaction is, without I/O before its flush and without ever committing it."""

from __future__ import annotations

import asyncio
import threading
import uuid
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from sqlalchemy import BigInteger, ForeignKey, Identity, create_engine, event, func, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker

from sa_proletarian import (
    ArchivedJob,
    ArchivedJobMixin,
    Job,
    JobMixin,
    Outcome,
    Proletarian,
    database_generated,
    metadata,
)

NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)
DRIVERS = ["psycopg", "psycopg2"]
ASYNC_DRIVERS = ["psycopg", "asyncpg"]
PAYLOAD = {"user_id": 7, "tags": ["new", "naïve 🙂"], "at": None}


@pytest.fixture(params=DRIVERS)
def app(request, tables, database_url):
    """Make an app's engine, in turn with each synchronous driver."""
    engine = create_engine(database_url.set(drivername=f"postgresql+{request.param}"))
    yield engine
    engine.dispose()


@pytest.fixture(params=ASYNC_DRIVERS)
def run_async(request, tables, database_url):
    """Run an async function of an app's async engine, in turn with each asynchronous driver."""

    def run_async(function):
        async def main():
            engine = create_async_engine(database_url.set(drivername=f"postgresql+{request.param}"))
            try:
                return await function(engine)
            finally:
                await engine.dispose()

        return asyncio.run(main())

    return run_async


@pytest.fixture
def stored(rows):
    """Give the queue as it is committed."""
    return lambda: rows("SELECT job_id, queue, job_type, payload, attempts FROM proletarian_job ORDER BY job_id")


@contextmanager
def statements(engine):
    """Count what is sent to the database."""
    seen: list[str] = []

    def note(connection, cursor, statement, parameters, context, many):
        seen.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    yield seen
    event.remove(engine, "before_cursor_execute", note)


def row(job_id):
    return (job_id, "default", "welcome", PAYLOAD, 0)


# every kind of target


def test_a_session_takes_a_job_without_io_and_commits_it_with_everything_else(app, jobs, stored):
    with statements(app) as seen, Session(app) as session:
        job = jobs.enqueue(session, "welcome", PAYLOAD)
        assert seen == []
        assert (type(job), job.job_id.version, job.payload) == (Job, 7, PAYLOAD)
        session.flush()
        assert [statement.split()[0] for statement in seen] == ["INSERT"]
        assert stored() == []
        session.commit()
        assert stored() == [row(job.job_id)]


def test_a_session_takes_no_connection_for_a_job_before_its_flush(app, jobs):
    with Session(app) as session:
        jobs.enqueue(session, "welcome")
        assert app.pool.checkedout() == 0


def test_a_rolled_back_session_leaves_no_job(app, jobs, stored):
    with Session(app) as session:
        jobs.enqueue(session, "welcome", PAYLOAD)
        session.flush()
        session.rollback()
    assert stored() == []


def test_a_savepoint_that_is_rolled_back_takes_only_its_own_jobs_along(app, jobs, stored):
    with Session(app) as session, session.begin():
        kept = jobs.enqueue(session, "welcome", PAYLOAD).job_id
        with session.begin_nested() as nested:
            jobs.enqueue(session, "welcome", PAYLOAD)
            session.flush()
            nested.rollback()
    assert stored() == [row(kept)]


def test_a_job_that_was_added_by_hand_is_as_good(app, stored):
    with Session(app) as session, session.begin():
        session.add(job := Job("welcome", PAYLOAD))
        job = job.job_id
    assert stored() == [row(job)]


def test_many_jobs_go_in_one_statement(app, jobs, rows):
    with statements(app) as seen, Session(app) as session, session.begin():
        for number in range(50):
            jobs.enqueue(session, "welcome", {"n": number})
    assert len([statement for statement in seen if statement.startswith("INSERT")]) == 1
    assert rows("SELECT count(*) FROM proletarian_job") == [(50,)]


def test_a_scoped_session_takes_a_job(app, jobs, stored):
    db = scoped_session(sessionmaker(app))
    job = jobs.enqueue(db, "welcome", PAYLOAD).job_id
    assert stored() == []
    db.commit()
    db.remove()
    assert stored() == [row(job)]


def test_a_scoped_session_takes_each_threads_job_into_that_threads_transaction(app, jobs, stored):
    db = scoped_session(sessionmaker(app))
    kept = jobs.enqueue(db, "welcome", PAYLOAD).job_id

    def other():
        jobs.enqueue(db, "welcome", PAYLOAD)
        db.rollback()
        db.remove()

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    db.commit()
    db.remove()
    assert stored() == [row(kept)]


def test_flask_sqlalchemys_session_takes_a_job(tables, database_url, jobs, stored):
    import flask
    import flask_sqlalchemy

    app = flask.Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = database_url.render_as_string(False)
    db = flask_sqlalchemy.SQLAlchemy(app)

    @app.post("/signup")
    def signup():
        job = jobs.enqueue(db.session, "welcome", PAYLOAD)
        if flask.request.args.get("fail"):
            flask.abort(400)
        db.session.commit()
        return str(job.job_id)

    # the default models are on another metadata than db.Model, and take Flask-SQLAlchemy's own engine all the same
    with app.test_client() as client:
        assert client.post("/signup?fail=1").status_code == 400
        assert stored() == []
        job_id = client.post("/signup").text
    assert [str(key) for key, *_ in stored()] == [job_id]
    with app.app_context():
        db.engine.dispose()


def test_sqlmodels_session_takes_a_job(tables, jobs, stored):
    import sqlmodel

    with sqlmodel.Session(tables) as session:
        job = jobs.enqueue(session, "welcome", PAYLOAD).job_id
        session.commit()
    assert stored() == [row(job)]


def test_a_connection_takes_a_job_at_once_and_leaves_the_commit_to_its_owner(app, jobs, stored):
    with app.connect() as connection:
        with statements(app) as seen:
            job = jobs.enqueue(connection, "welcome", PAYLOAD).job_id
        assert [statement.split()[0] for statement in seen] == ["INSERT"]
        assert connection.in_transaction()
        assert stored() == []
        connection.commit()
    assert stored() == [row(job)]


def test_a_rolled_back_connection_leaves_no_job(app, jobs, stored):
    with app.connect() as connection:
        jobs.enqueue(connection, "welcome", PAYLOAD)
        connection.rollback()
    assert stored() == []


@pytest.mark.parametrize("payload", [None, {}, [], "", 0, False, "null"])
def test_a_connection_and_a_session_store_the_same(app, jobs, rows, payload):
    with app.begin() as connection:
        jobs.enqueue(connection, "welcome", payload, process_at=NOON + 400 * 24 * HOUR)
    with Session(app) as session, session.begin():
        jobs.enqueue(session, "welcome", payload, process_at=NOON + 400 * 24 * HOUR)
    columns = "queue, job_type, payload::text, payload IS NULL, attempts, crashes, process_at, claim_id, last_error"
    one, other = rows(f"SELECT {columns} FROM proletarian_job")
    assert one == other
    assert one[3] is False, "null is a payload too"


def test_an_async_session_takes_a_job_without_io_and_without_await(run_async, jobs, stored):
    async def enqueue(engine):
        async with AsyncSession(engine) as session:
            with statements(engine.sync_engine) as seen:
                job = jobs.enqueue(session, "welcome", PAYLOAD)
                assert (seen, stored()) == ([], [])
            await session.commit()
            await session.refresh(job)
            return job.job_id, job.payload

    job_id, payload = run_async(enqueue)
    assert payload == PAYLOAD
    assert [key for key, *_ in stored()] == [job_id]


def test_a_rolled_back_async_session_leaves_no_job(run_async, jobs, stored):
    async def enqueue(engine):
        with pytest.raises(ZeroDivisionError):
            async with AsyncSession(engine) as session, session.begin():
                jobs.enqueue(session, "welcome", PAYLOAD)
                await session.flush()
                1 / 0

    run_async(enqueue)
    assert stored() == []


def test_an_async_scoped_session_takes_a_job(run_async, jobs, stored):
    async def enqueue(engine):
        db = async_scoped_session(async_sessionmaker(engine, expire_on_commit=False), scopefunc=asyncio.current_task)
        job = jobs.enqueue(db, "welcome", PAYLOAD).job_id
        await db.commit()
        await db.remove()
        return job

    job = run_async(enqueue)
    assert stored() == [row(job)]


def test_an_async_connection_takes_a_job_by_run_sync(run_async, jobs, stored):
    async def enqueue(engine):
        async with engine.begin() as connection:
            job = await connection.run_sync(jobs.enqueue, "welcome", PAYLOAD)
            assert stored() == []
            return job.job_id

    job = run_async(enqueue)
    assert stored() == [row(job)]


def test_a_handler_stands_for_its_job_type(tables, jobs, stored):
    @jobs.handler("welcome")
    def greet(session, job):
        pass

    with Session(tables) as session, session.begin():
        job = jobs.enqueue(session, greet, PAYLOAD).job_id
    assert stored() == [row(job)]


# what cannot be enqueued into


class AsyncLooking:
    """Has a run_sync, and nothing to add to."""

    async def run_sync(self, function):
        pass


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (lambda engine: engine, "not an engine: the job must be part of your transaction"),
        (lambda engine: create_async_engine(engine.url), "not an engine: the job must be part of your transaction"),
        (lambda engine: sessionmaker(engine), "not a sessionmaker: call it"),
        (lambda engine: async_sessionmaker(), "not a sessionmaker: call it"),
        (lambda engine: Session, "got the class Session: make one of it"),
        (lambda engine: AsyncSession, "got the class AsyncSession: make one of it"),
        (lambda engine: AsyncLooking(), r"by: await connection.run_sync\(jobs.enqueue, job_type"),
        (lambda engine: None, "got a NoneType"),
        (lambda engine: "postgresql://", "got a str"),
        (lambda engine: engine.raw_connection, "got a method"),
    ],
)
def test_a_wrong_target_is_refused_with_the_right_one(engine, jobs, target, words):
    with pytest.raises(TypeError, match=words):
        jobs.enqueue(target(engine), "welcome")


def test_an_async_connection_is_refused_before_anything_is_sent(run_async, jobs, stored):
    async def enqueue(engine):
        async with engine.begin() as connection:
            with pytest.raises(TypeError, match="run_sync"):
                jobs.enqueue(connection, "welcome")

    run_async(enqueue)
    assert stored() == []


# when


@pytest.fixture
def at_noon():
    return Proletarian(clock=lambda: NOON.astimezone(timezone(timedelta(hours=-5))))


@pytest.mark.parametrize(
    ("when", "due"),
    [
        ({}, NOON),
        ({"process_in": HOUR}, NOON + HOUR),
        ({"process_in": -HOUR}, NOON),
        ({"process_in": timedelta(0)}, NOON),
        ({"process_in": timedelta(microseconds=1)}, NOON + timedelta(microseconds=1)),
        ({"process_at": NOON + HOUR}, NOON + HOUR),
        ({"process_at": NOON - HOUR}, NOON),
        ({"process_at": (NOON + HOUR).astimezone(timezone(timedelta(hours=9)))}, NOON + HOUR),
    ],
)
def test_the_clock_of_the_app_decides_when_a_job_was_enqueued_and_is_due(tables, at_noon, rows, when, due):
    with Session(tables) as session, session.begin():
        job = at_noon.enqueue(session, "welcome", **when)
        assert (job.enqueued_at, job.process_at) == (NOON, due)
        assert job.process_at.utcoffset() == timedelta(0)
    assert rows("SELECT enqueued_at, process_at FROM proletarian_job") == [(NOON, due)]


def test_a_time_zone_of_the_server_session_changes_no_instant(database_url, tables, at_noon, rows):
    app = create_engine(database_url, connect_args={"options": "-c timezone=America/New_York"})
    with Session(app) as session, session.begin():
        at_noon.enqueue(session, "welcome", process_in=HOUR)
    app.dispose()
    assert rows("SELECT process_at = '2026-03-01 13:00+00' FROM proletarian_job") == [(True,)]


@pytest.mark.parametrize(
    ("when", "error", "words"),
    [
        ({"process_at": NOON, "process_in": HOUR}, ValueError, "process_at or process_in, not both"),
        ({"process_in": 60}, TypeError, "process_in must be a timedelta, got 60"),
        ({"process_at": NOON.timestamp()}, TypeError, "process_at must be a datetime"),
        ({"process_at": NOON.replace(tzinfo=None)}, TypeError, "aware datetime"),
    ],
)
def test_an_unclear_time_is_refused(engine, at_noon, when, error, words):
    with Session(engine) as session, pytest.raises(error, match=words):
        at_noon.enqueue(session, "welcome", **when)


def test_a_clock_that_is_naive_is_refused_at_the_enqueue(engine):
    jobs = Proletarian(clock=datetime.now)
    with Session(engine) as session, pytest.raises(TypeError, match="clock must return an aware datetime"):
        jobs.enqueue(session, "welcome")


def test_jobs_are_claimed_in_the_order_of_their_due_times_and_those_enqueued_at_once_in_the_order_of_their_making(
    tables, at_noon, rows
):
    with Session(tables) as session, session.begin():
        made = [at_noon.enqueue(session, "welcome").job_id for _ in range(20)]
    assert [key for (key,) in rows("SELECT job_id FROM proletarian_job ORDER BY process_at, job_id")] == made


# bad input and the business transaction around it

BAD = [
    ({"payload": float("nan")}, ValueError),
    ({"payload": "\x00"}, ValueError),
    ({"payload": {"k": "\ud800"}}, ValueError),
    ({"payload": {1: 1}}, TypeError),
    ({"payload": datetime(2026, 3, 1)}, TypeError),
    ({"payload": {b"x"}}, TypeError),
    ({"payload": "x" * 1_048_577}, ValueError),
    ({"queue": "two words"}, ValueError),
    ({"queue": "q" * 201}, ValueError),
    ({"job_type": ""}, ValueError),
    ({"job_type": None}, TypeError),
    ({"job_id": "not a uuid"}, TypeError),
    ({"no_such_column": 1}, TypeError),
    ({"attempts": 3}, TypeError),
]


@pytest.mark.parametrize(
    ("given", "error"), BAD, ids=[f"{next(iter(given))}-{number}" for number, (given, _) in enumerate(BAD)]
)
def test_bad_input_raises_before_any_sql_and_the_transaction_around_it_commits(app, jobs, rows, given, error):
    arguments = {"job_type": "welcome", "payload": PAYLOAD, **given}
    with Session(app) as session, session.begin():
        session.execute(text("INSERT INTO effect VALUES ('in a session')"))
        with statements(app) as seen, pytest.raises(error):
            jobs.enqueue(session, arguments.pop("job_type"), arguments.pop("payload"), **arguments)
        assert seen == []
    arguments = {"job_type": "welcome", "payload": PAYLOAD, **given}
    with app.begin() as connection:
        connection.execute(text("INSERT INTO effect VALUES ('on a connection')"))
        with statements(app) as seen, pytest.raises(error):
            jobs.enqueue(connection, arguments.pop("job_type"), arguments.pop("payload"), **arguments)
        assert seen == []
    assert rows("SELECT what FROM effect") == [("in a session",), ("on a connection",)]
    assert rows("SELECT count(*) FROM proletarian_job") == [(0,)]


# ids


def test_an_id_of_the_apps_own_makes_an_enqueue_that_can_be_repeated_safely(app, jobs, stored):
    order = uuid.uuid5(uuid.NAMESPACE_URL, "order/7")
    for _ in range(2):
        try:
            with Session(app) as session, session.begin():
                jobs.enqueue(session, "welcome", PAYLOAD, job_id=order)
        except IntegrityError:
            pass
    assert [key for key, *_ in stored()] == [order]


@pytest.fixture
def numbered(engine):
    """Make jobs whose ids the database gives."""

    class Base(DeclarativeBase):
        pass

    class NumberedJob(JobMixin, Base):
        job_id_strategy = staticmethod(database_generated)
        job_id: Mapped[int] = mapped_column(BigInteger, Identity(start=1000), primary_key=True)

    class ArchivedNumberedJob(ArchivedJobMixin, Base):
        job_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)

    Base.metadata.create_all(engine)
    return Proletarian(NumberedJob, ArchivedNumberedJob)


@pytest.mark.parametrize("driver", DRIVERS)
def test_an_id_that_the_database_gives_is_there_after_the_flush_or_at_once_on_a_connection(numbered, database_url, driver):
    app = create_engine(database_url.set(drivername=f"postgresql+{driver}"))
    with Session(app) as session, session.begin():
        job = numbered.enqueue(session, "welcome")
        assert job.job_id is None
        session.flush()
        assert job.job_id == 1000
    with app.begin() as connection:
        assert numbered.enqueue(connection, "welcome").job_id == 1001
    app.dispose()


def test_an_id_that_the_database_gives_leads_a_job_through_its_whole_life(numbered, engine):
    numbered.handler("welcome")(lambda session, job: seen.append(job.job_id))
    seen: list[Any] = []
    with Session(engine) as session, session.begin():
        numbered.enqueue(session, "welcome")
    assert numbered.process_next(engine) is Outcome.RETURNED
    with Session(engine) as session, session.begin():
        archived = session.scalars(select(numbered.archived_model)).one()
        again = numbered.requeue(session, archived)
        session.flush()
        assert (archived.job_id, again.job_id, seen) == (1000, 1001, [1000])


@pytest.mark.parametrize("wrong", ["7", 7.0, True, uuid.UUID(int=7)])
def test_an_id_of_another_type_is_refused(numbered, engine, wrong):
    with Session(engine) as session, pytest.raises(TypeError, match="job_id must be a int"):
        numbered.enqueue(session, "welcome", job_id=wrong)


# further columns


@pytest.fixture
def tenants(engine):
    """Make jobs that belong to a tenant."""

    class Base(DeclarativeBase):
        pass

    class Tenant(Base):
        __tablename__ = "tenant"
        id: Mapped[int] = mapped_column(primary_key=True)

    class TenantJob(JobMixin, Base):
        tenant_id: Mapped[int] = mapped_column(ForeignKey("tenant.id"))
        source: Mapped[str] = mapped_column(default="web")
        noted_at: Mapped[datetime | None] = mapped_column(server_default=func.now())

    class ArchivedTenantJob(ArchivedJobMixin, Base):
        tenant_id: Mapped[int]
        source: Mapped[str]

    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO tenant VALUES (7), (8)"))
    return Proletarian(TenantJob, ArchivedTenantJob)


@pytest.mark.parametrize("kind", [Session, "connection"])
def test_further_columns_are_set_by_name_and_keep_their_defaults(tenants, engine, rows_of, kind):
    if kind is Session:
        with Session(engine) as session, session.begin():
            tenants.enqueue(session, "welcome", tenant_id=7)
    else:
        with engine.begin() as connection:
            tenants.enqueue(connection, "welcome", tenant_id=7)
    assert rows_of("SELECT tenant_id, source, noted_at IS NOT NULL FROM proletarian_job") == [(7, "web", True)]


@pytest.fixture
def rows_of(engine):
    def rows_of(question):
        with engine.connect() as connection:
            return [tuple(row) for row in connection.execute(text(question))]

    return rows_of


# again


@pytest.fixture
def failed(tables, jobs):
    """Let one job fail for good; give its id."""

    @jobs.handler("fail")
    def fail(session, job):
        raise ValueError("no")

    with Session(tables) as session, session.begin():
        job_id = jobs.enqueue(session, "fail", PAYLOAD, queue="mail").job_id
    assert jobs.process_next(tables, queue="mail") is Outcome.GAVE_UP
    return job_id


QUEUE = "SELECT queue, job_type, payload, attempts, crashes, last_error FROM proletarian_job"


def test_an_archived_job_runs_again_under_a_new_id_with_all_its_attempts_ahead(app, jobs, failed, rows):
    with Session(app) as session, session.begin():
        job = jobs.requeue(session, session.get(ArchivedJob, failed))
        assert job.job_id != failed
    assert rows(QUEUE) == [("mail", "fail", PAYLOAD, 0, 0, None)]
    assert rows("SELECT job_id, status FROM proletarian_archived_job") == [(failed, "failure")]
    assert jobs.process_next(app, queue="mail") is Outcome.GAVE_UP
    assert rows("SELECT count(*) FROM proletarian_archived_job") == [(2,)]


def test_a_requeued_job_can_go_elsewhere_and_later(tables, jobs, failed, rows):
    with Session(tables) as session, session.begin():
        job = jobs.requeue(session, session.get(ArchivedJob, failed), queue="slow", process_in=HOUR)
        assert job.process_at - job.enqueued_at == HOUR
    assert rows(QUEUE)[0][0] == "slow"


def test_requeue_commits_nothing(tables, jobs, failed, rows):
    with Session(tables) as session:
        jobs.requeue(session, session.get(ArchivedJob, failed))
        session.flush()
        session.rollback()
    assert rows(QUEUE) == []


def test_requeue_works_on_a_connection(app, jobs, failed, rows):
    with Session(app) as session:
        archived = session.get(ArchivedJob, failed)
    with app.begin() as connection:
        jobs.requeue(connection, archived)
    assert rows(QUEUE) == [("mail", "fail", PAYLOAD, 0, 0, None)]


def test_requeue_works_in_an_async_session(run_async, jobs, failed, rows):
    async def requeue(engine):
        async with AsyncSession(engine) as session, session.begin():
            jobs.requeue(session, await session.get(ArchivedJob, failed))

    run_async(requeue)
    assert rows(QUEUE) == [("mail", "fail", PAYLOAD, 0, 0, None)]


def test_requeue_takes_further_columns_along_unless_told_otherwise(tenants, engine, rows_of):
    tenants.handler("welcome")(lambda session, job: None)
    with Session(engine) as session, session.begin():
        tenants.enqueue(session, "welcome", tenant_id=7, source="phone")
    tenants.process_next(engine)
    with Session(engine) as session, session.begin():
        archived = session.scalars(select(tenants.archived_model)).one()
        tenants.requeue(session, archived)
        tenants.requeue(session, archived, tenant_id=8)
    assert sorted(rows_of("SELECT tenant_id, source FROM proletarian_job")) == [(7, "phone"), (8, "phone")]


@pytest.mark.parametrize("wrong", [None, "id", Job("welcome")])
def test_only_an_archived_job_can_be_requeued(engine, jobs, wrong):
    with Session(engine) as session, pytest.raises(TypeError, match="requeue takes a ArchivedJob"):
        jobs.requeue(session, wrong)


# the process that enqueues needs no more than the right to insert


def test_inserting_is_the_only_right_that_enqueueing_needs(database_url, tables, administration, jobs, rows):
    role = f"enqueuer_{uuid.uuid4().hex}"
    with administration.connect() as connection:
        connection.execute(text(f"CREATE ROLE {role} LOGIN"))
    with tables.begin() as connection:
        connection.execute(text(f"GRANT INSERT ON proletarian_job TO {role}"))
    app = create_engine(database_url, connect_args={"options": f"-c role={role}"})
    with Session(app) as session, session.begin():
        jobs.enqueue(session, "welcome")
    with app.begin() as connection:
        assert connection.scalar(text("SELECT current_user")) == role
        jobs.enqueue(connection, "welcome")
    app.dispose()
    assert rows("SELECT count(*) FROM proletarian_job") == [(2,)]
    with tables.begin() as connection:
        connection.execute(text(f"DROP OWNED BY {role}"))
    with administration.connect() as connection:
        connection.execute(text(f"DROP ROLE {role}"))


def test_the_default_models_need_only_their_own_metadata():
    assert sorted(metadata.tables) == ["proletarian_archived_job", "proletarian_job", "proletarian_worker"]
