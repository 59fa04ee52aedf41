"""Enqueues that wake idle workers, and those that need not or cannot: always by real commits, told by real notifications."""

from __future__ import annotations

import asyncio
import queue as queues
import threading
import time
from contextlib import contextmanager
from datetime import timedelta
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import DBAPIError, ProgrammingError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from sa_proletarian import AsyncWorker, Job, Proletarian, Worker, beacons
from sa_proletarian.beacons import IDLE, Address
from sa_proletarian.grants import grants
from sa_proletarian.rest import Rest

HOUR = timedelta(hours=1)
PATIENCE = 30
DRIVERS = {
    "psycopg": lambda url: create_engine(url),
    "psycopg2": lambda url: create_engine(url.set(drivername="postgresql+psycopg2")),
    "psycopg (async)": lambda url: create_async_engine(url),
    "asyncpg": lambda url: create_async_engine(url.set(drivername="postgresql+asyncpg")),
}


@pytest.fixture(params=DRIVERS)
def app(request, database_url, tables):
    """An app's engine, of each driver."""
    app = DRIVERS[request.param](database_url)
    yield app
    getattr(app, "sync_engine", app).dispose(close=not hasattr(app, "sync_engine"))


class Watcher:
    """A session of its own that shows an idle worker of some queues, and counts the notifications that this brings."""

    def __init__(self, engine, *queues, idle=True):
        with engine.connect() as connection:
            self.queues = {queue: beacons.key_of(connection, IDLE, self._address(connection, queue)) for queue in queues}
        self._raw = psycopg.connect(engine.url.set(drivername="postgresql").render_as_string(False), autocommit=True)
        self._said = []
        self._raw.add_notify_handler(lambda notification: self._said.append(notification.channel))
        self._raw.execute("LISTEN the_end")
        for key in self.queues.values():
            self._raw.execute(f'LISTEN "{beacons.channel(key)}"')
        if idle:
            self.light()

    def _address(self, connection, queue):
        return beacons.address(connection, Job.__table__, queue)

    def light(self):
        for key in self.queues.values():
            self._raw.execute("SELECT pg_advisory_lock_shared(%s)", (key,))

    def heard(self):
        """The queues for which it has been rung since the last time, in order; one NOTIFY of ours marks the end."""
        names = {beacons.channel(key): queue for queue, key in self.queues.items()}
        self._raw.execute("NOTIFY the_end")
        deadline = time.monotonic() + PATIENCE
        while "the_end" not in self._said:
            assert time.monotonic() < deadline, "not even our own notification has come"
            self._raw.execute("SELECT 1")
        end = self._said.index("the_end")
        heard, self._said[: end + 1] = self._said[:end], []
        return sorted(names[channel] for channel in heard)

    def close(self):
        self._raw.close()


@pytest.fixture
def watch(tables):
    watchers = []

    def watch(*queues, **options):
        watchers.append(Watcher(tables, *(queues or ("default",)), **options))
        return watchers[-1]

    yield watch
    for watcher in watchers:
        watcher.close()


@contextmanager
def counted(engine):
    """Count the statements that go through ``engine``."""
    statements = []

    def note(connection, cursor, statement, *_):
        statements.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    yield statements
    event.remove(engine, "before_cursor_execute", note)


def enqueue(jobs, engine, *queues, **options):
    with Session(engine) as session, session.begin():
        for queue in queues or ("default",):
            jobs.enqueue(session, "work", queue=queue, **options)


# what an enqueue says


def test_several_enqueues_in_one_transaction_ring_once_for_each_queue_by_one_statement(jobs, tables, watch):
    watcher = watch("default", "mail", "slow")
    with counted(tables) as statements:
        enqueue(jobs, tables, "default", "mail", "default", "mail", "default")
    assert watcher.heard() == ["default", "mail"]
    assert len([statement for statement in statements if "INSERT" not in statement]) == 1


def test_a_job_that_is_added_or_inserted_otherwise_rings_as_well(jobs, tables, watch):
    watcher = watch()
    with Session(tables) as session, session.begin():
        session.add(Job("work"))
    assert watcher.heard() == ["default"]
    with tables.begin() as connection:
        jobs.enqueue(connection, "work")
        jobs.enqueue(connection, "work")
    assert watcher.heard() == ["default"]
    with Session(tables) as session, session.begin():
        jobs.enqueue_many(session, [("work", None)] * 20)
    assert watcher.heard() == ["default"]
    with tables.begin() as connection:
        jobs.enqueue_many(connection, [{"job_type": "work", "queue": queue} for queue in ("default", "mail")] * 2)
    assert watcher.heard() == ["default"]


def test_every_driver_rings(app, jobs, watch):
    watcher = watch()
    if hasattr(app, "sync_engine"):

        async def enqueue_both_ways():
            async with AsyncSession(app) as session, session.begin():
                jobs.enqueue(session, "work")
            async with app.begin() as connection:
                await connection.run_sync(jobs.enqueue, "work")
            await app.dispose()

        asyncio.run(enqueue_both_ways())
    else:
        enqueue(jobs, app)
        with app.begin() as connection:
            jobs.enqueue(connection, "work")
    assert watcher.heard() == ["default", "default"]


def test_nothing_is_said_after_a_rollback(jobs, tables, watch):
    watcher = watch()
    with Session(tables) as session:
        jobs.enqueue(session, "work")
        session.flush()
        session.rollback()
        session.execute(text("INSERT INTO effect VALUES ('something else')"))
        session.commit()
    with tables.connect() as connection:
        jobs.enqueue(connection, "work")
        connection.rollback()
        connection.execute(text("INSERT INTO effect VALUES ('something else')"))
        connection.commit()
    assert watcher.heard() == []


def test_a_savepoint_that_is_rolled_back_says_nothing_and_one_that_is_released_says_it_at_the_end(jobs, tables, watch):
    watcher = watch("undone", "kept", "default")
    with Session(tables) as session:
        undone = session.begin_nested()
        jobs.enqueue(session, "work", queue="undone")
        session.flush()
        undone.rollback()
        with session.begin_nested():
            jobs.enqueue(session, "work", queue="kept")
        jobs.enqueue(session, "work")
        session.flush()
        assert watcher.heard() == []
        session.commit()
    assert watcher.heard() == ["default", "kept"]


def test_nothing_is_said_while_no_worker_is_idle(jobs, tables, watch):
    watcher = watch(idle=False)
    enqueue(jobs, tables)
    assert watcher.heard() == []
    watcher.light()
    for _ in range(1000):  # the process believes for a moment that nobody is
        enqueue(jobs, tables)
        if watcher.heard():
            break
    else:
        raise AssertionError("never heard")


def test_a_job_for_later_rings_for_nobody(jobs, tables, watch):
    watcher = watch()
    enqueue(jobs, tables, process_in=timedelta(seconds=30))
    with tables.begin() as connection:
        jobs.enqueue(connection, "work", process_in=HOUR)
        jobs.enqueue_many(connection, [("work", None)], process_in=HOUR)
    assert watcher.heard() == []


def test_the_switch_turns_it_off(tables, watch, database_url):
    from sqlalchemy.orm import DeclarativeBase

    from sa_proletarian import models_for

    class Base(DeclarativeBase):
        pass

    quiet_job, archived = models_for(Base, prefix="quiet")
    Base.metadata.create_all(tables)
    quiet = Proletarian(quiet_job, archived, wake=False)
    with counted(tables) as statements:
        enqueue(quiet, tables)
    assert len(statements) == 1
    with pytest.raises(TypeError, match="wake must be True or False"):
        Proletarian(wake="no")
    with pytest.raises(TypeError, match="wake must be True or False"):
        Worker(quiet, tables, wake=1)


# never to the harm of the app's transaction


def test_a_role_that_may_only_insert_rings(jobs, tables, watch, administration, database_url):
    role = f"enqueuer_{uuid4().hex}"
    with tables.begin() as connection:
        connection.execute(text(f"CREATE ROLE {role} LOGIN"))
        for statement in grants("enqueuer", to=role).statements():
            connection.execute(text(statement))
    app = create_engine(database_url.set(username=role))
    watcher = watch()
    enqueue(jobs, app)
    assert watcher.heard() == ["default"]
    app.dispose()
    with tables.begin() as connection:
        connection.execute(text(f"DROP OWNED BY {role}; DROP ROLE {role}"))


def test_a_database_without_a_worker_table_takes_the_job_and_rings(jobs, tables, watch, rows):
    rows("DROP TABLE proletarian_worker")
    watcher = watch()
    enqueue(jobs, tables)
    assert watcher.heard() == ["default"]
    assert rows("SELECT count(*) FROM proletarian_job") == [(1,)]


def test_a_commit_after_a_swallowed_error_ends_as_it_did_before(jobs, tables, app, watch, rows):
    """PostgreSQL makes it a rollback and says nothing; nor do we."""
    watcher = watch()

    def enqueue_and_stumble(connection):
        jobs.enqueue(connection, "work")
        with pytest.raises(Exception, match="nowhere"):
            connection.execute(text("SELECT * FROM nowhere"))
        connection.commit()
        connection.execute(text("SELECT 1"))

    async def on_a_loop():
        async with app.connect() as connection:
            await connection.run_sync(enqueue_and_stumble)
        await app.dispose()

    if hasattr(app, "sync_engine"):
        asyncio.run(on_a_loop())
    else:
        with app.connect() as connection:
            enqueue_and_stumble(connection)
    assert rows("SELECT count(*) FROM proletarian_job") == [(0,)]
    assert watcher.heard() == []


def test_a_role_that_may_no_longer_use_the_schema_at_the_commit_does_no_harm(tables, rows):
    from sqlalchemy.orm import DeclarativeBase

    from sa_proletarian import models_for

    class Base(DeclarativeBase):
        pass

    own_job, archived = models_for(Base, schema="own")
    rows("CREATE SCHEMA own")
    Base.metadata.create_all(tables)
    role = f"nobody_{uuid4().hex}"
    rows(f"CREATE ROLE {role}")
    with tables.begin() as connection:
        Proletarian(own_job, archived).enqueue(connection, "work")
        connection.execute(text(f"SET LOCAL ROLE {role}"))
        with pytest.raises(ProgrammingError), connection.begin_nested():
            connection.execute(text("SELECT to_regclass('own.proletarian_job')"))
    assert rows("SELECT count(*) FROM own.proletarian_job") == [(1,)]
    rows(f"DROP ROLE {role}")


def test_a_transaction_in_two_phases_says_nothing(jobs, tables):
    """PostgreSQL prepares none that has said NOTIFY; nor any other, by default."""
    with counted(tables) as statements, tables.connect() as connection:
        transaction = connection.begin_twophase()
        jobs.enqueue(connection, "work")
        with pytest.raises(DBAPIError, match="max_prepared_transactions|disabled"):
            transaction.prepare()
        connection.invalidate()
    said = [statement.split()[0] for statement in statements]
    assert [word for word in said if word != "PREPARE"] == ["INSERT"]  # that one SQLAlchemy 2.0 tells of


# what a worker hears


@contextmanager
def working(jobs, app, recorder, **options):
    """A worker of either kind that would not poll again within the hour."""
    options = {"polling_interval": HOUR, "listener": recorder, **options}
    if options.pop("of_kind", Worker) is Worker:
        with Worker(jobs, app, **options):
            yield
        return
    stop, loop = [], asyncio.new_event_loop()
    begun = threading.Event()

    async def main():
        over = asyncio.Event()
        stop.append(lambda: loop.call_soon_threadsafe(over.set))
        async with AsyncWorker(jobs, app, **options):
            begun.set()
            await over.wait()
        await app.dispose()

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()))
    thread.start()
    assert begun.wait(PATIENCE)
    try:
        yield
    finally:
        stop[0]()
        thread.join(PATIENCE)
        loop.close()


def until_idle(rows, count=1):
    """Wait until so many workers of the queue show that they are idle."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        pids = rows(
            "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ShareLock' AND granted"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            " AND (CAST(classid AS bigint) << 32 | CAST(objid AS bigint)) = hashtextextended("
            "'sa_proletarian idle ' || CAST(CAST('proletarian_job' AS regclass) AS oid) || ' default', 0)"
        )
        if len(pids) == count:
            return
    raise AssertionError("the worker does not become idle")


def by_sql(rows):
    """Enqueue as another process would, so that only the server can tell."""
    rows(
        "INSERT INTO proletarian_job (job_id, queue, job_type, payload, attempts, enqueued_at, process_at, crashes)"
        " VALUES (gen_random_uuid(), 'default', 'work', 'null', 0, now(), now(), 0)"
    )


@pytest.mark.parametrize("kind", [Worker, AsyncWorker])
def test_an_idle_worker_is_woken_by_the_server(kind, app, jobs, recorder, rows, tables):
    if kind is AsyncWorker and not hasattr(app, "sync_engine"):
        pytest.skip("an AsyncWorker takes an AsyncEngine")
    jobs.handler("work")(lambda session, job: None)
    with working(jobs, app, recorder, of_kind=kind):
        for number in range(1, 4):
            until_idle(rows)
            enqueue(jobs, tables)  # through another engine than the worker's: nobody in this process can tell it
            recorder.wait_for("job_finished", number, timeout=PATIENCE)


def test_a_worker_in_the_same_process_is_woken_without_the_server(jobs, tables, recorder):
    jobs.handler("work")(lambda session, job: None)
    with working(jobs, tables, recorder, pooler="transaction"):
        recorder.wait_for("polling_for_jobs", timeout=PATIENCE)
        for number in range(1, 4):
            with Session(tables) as session, session.begin():
                with session.begin_nested():
                    jobs.enqueue(session, "work")
                # the end of the savepoint wakes nobody: there would be nothing to be seen
                session.execute(text("SELECT 1"))
            recorder.wait_for("job_finished", number, timeout=PATIENCE)


def test_a_worker_that_shall_not_be_woken_opens_no_connection_for_it_and_shows_nothing(jobs, tables, recorder, rows, watch):
    engine = create_engine(tables.url, connect_args={"application_name": "the worker"})
    jobs.handler("work")(lambda session, job: None)
    watcher = watch(idle=False)
    with working(jobs, engine, recorder, wake=False, polling_interval=timedelta(milliseconds=20)):
        recorder.wait_for("polling_for_jobs", 20, timeout=PATIENCE)
        assert rows("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'the worker'") == [(1,)]
        enqueue(jobs, tables)
        recorder.wait_for("job_finished", timeout=PATIENCE)
    assert watcher.heard() == []
    engine.dispose()


def test_the_connection_to_listen_with_is_made_as_the_engines_are_and_heals(app, jobs, tables, recorder, rows):
    """Whoever ends it, the worker makes another, polls, and is woken again."""
    jobs.handler("work")(lambda session, job: None)
    opened = queues.SimpleQueue()
    event.listen(getattr(app, "sync_engine", app), "do_connect", lambda *_: opened.put(1))
    with working(jobs, app, recorder):
        until_idle(rows)
        assert [opened.get(timeout=PATIENCE) for _ in range(2)], "the feeder's, and this one"
        for number in range(1, 3):
            # it shows its worker's life, and the feeder's shows besides that the worker is idle
            ended = rows(
                "SELECT pg_terminate_backend(pid, 5000) FROM (SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND"
                " database = (SELECT oid FROM pg_database WHERE datname = current_database())"
                " GROUP BY pid HAVING count(*) = 1) AS ears"
            )
            assert ended
            assert opened.get(timeout=PATIENCE)
            until_idle(rows)
            enqueue(jobs, tables)
            recorder.wait_for("job_finished", number, timeout=PATIENCE)


def test_a_worker_says_once_that_it_cannot_listen_and_works_by_polling(jobs, tables, recorder):
    jobs.handler("work")(lambda session, job: None)
    engine = create_engine(tables.url)
    opened = []

    @event.listens_for(engine, "do_connect")
    def refuse_all_but_the_feeders(*_):
        opened.append(threading.current_thread().name)
        if opened[-1].endswith("-ears"):
            raise OSError("no more connections for you")

    with working(jobs, engine, recorder, polling_interval=timedelta(milliseconds=20)):
        recorder.wait_for("wake_ups_unavailable", timeout=PATIENCE)
        enqueue(jobs, tables)
        recorder.wait_for("job_finished", timeout=PATIENCE)
        while len([name for name in opened if name.endswith("-ears")]) < 4:
            recorder.wait_for("polling_for_jobs", len(recorder.named("polling_for_jobs")) + 1, timeout=PATIENCE)
    assert len(recorder.named("wake_ups_unavailable")) == 1
    engine.dispose()


def test_what_was_committed_while_the_worker_became_idle_is_found_by_its_second_look(jobs, tables, recorder, rows):
    """By hand, at the worst moment: after the poll that found nothing, and before the worker shows that it is idle."""
    jobs.handler("work")(lambda session, job: None)
    light = beacons.light

    def late(connection, key):
        by_sql(rows)
        light(connection, key)

    with pytest.MonkeyPatch.context() as patch, working(jobs, tables, recorder):
        patch.setattr(beacons, "light", late)
        recorder.wait_for("job_finished", timeout=PATIENCE)


def test_a_worker_that_can_be_woken_polls_all_the_same(jobs, tables, recorder, rows):
    """Who writes a job's row by hand rings for nobody."""
    jobs.handler("work")(lambda session, job: None)
    with working(jobs, tables, recorder, polling_interval=timedelta(seconds=0.5)):
        until_idle(rows)
        by_sql(rows)
        recorder.wait_for("job_finished", timeout=PATIENCE)


def test_an_idle_worker_never_waits_longer_than_its_interval_for_a_poll(tables):
    rest = Rest(1.0, Address(None, "proletarian_job", "default"))
    with tables.connect() as connection:
        for _ in range(10):
            now = time.monotonic()
            rest.found_nothing(connection, now, hears=True)
            assert rest.until < now + 2
        rest.show_nothing(connection)


def test_a_busy_worker_shows_nothing_until_it_is_idle_again(jobs, tables, recorder, rows, watch):
    begun, go_on = threading.Event(), threading.Event()

    @jobs.handler("work")
    def work(session, job):
        begun.set()
        assert go_on.wait(PATIENCE)

    watcher = watch(idle=False)
    with working(jobs, tables, recorder):
        until_idle(rows)
        enqueue(jobs, tables)
        assert begun.wait(PATIENCE)
        until_idle(rows, 0)
        watcher.heard()
        enqueue(jobs, tables)
        assert watcher.heard() == []
        go_on.set()
        recorder.wait_for("job_finished", 2, timeout=PATIENCE)
        until_idle(rows)
    until_idle(rows, 0)
