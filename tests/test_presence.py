"""The worker's row in the worker table: who is here, idle or busy; and that nothing about it ever harms work."""

from __future__ import annotations

import logging
import threading
import time
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import MetaData, Table, create_engine, event, text
from sqlalchemy.orm import DeclarativeBase, Session

from sa_proletarian import ArchivedJobMixin, Job, JobMixin, Outcome, Proletarian, events, presence

SHORT = timedelta(milliseconds=300)
ROW = "SELECT subject, worker_id, idle FROM proletarian_worker WHERE kind = 'queue' ORDER BY 1, 2"
SEEN = "SELECT started_at, last_seen_at FROM proletarian_worker"


class Changes:
    """The worker table's changes as they are committed; on them a test can wait."""

    def __init__(self, connection):
        self._connection = connection
        self.seen = []

    def wait_until(self, found, timeout=20):
        """Give what ``found`` gives once that is true; it is asked again after each change."""
        deadline = time.monotonic() + timeout
        while not (result := found()):
            notices = list(self._connection.notifies(timeout=deadline - time.monotonic(), stop_after=1))
            assert notices, f"the worker table did not change as expected; it did {self.seen[-20:]}"
            self.seen += [notice.payload for notice in notices]
        return result

    def wait_for(self, count):
        """Wait for ``count`` changes more."""
        expected = len(self.seen) + count
        self.wait_until(lambda: len(self.seen) >= expected)

    def so_far(self):
        """Give the changes that are committed by now."""
        self.seen += [notice.payload for notice in self._connection.notifies(timeout=0)]
        return self.seen


@pytest.fixture
def changes(tables, database_url):
    with tables.begin() as connection:
        connection.execute(
            text(
                "CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS"
                " $$ BEGIN PERFORM pg_notify('changes', TG_OP || ' ' || clock_timestamp()); RETURN NULL; END $$"
            )
        )
        connection.execute(
            text(
                "CREATE TRIGGER tell AFTER INSERT OR UPDATE OR DELETE ON proletarian_worker"
                " FOR EACH ROW EXECUTE FUNCTION tell()"
            )
        )
    url = database_url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("LISTEN changes")
        yield Changes(connection)


@pytest.fixture
def enqueue(jobs, tables):
    def enqueue(job_type, count=1):
        with Session(tables) as session, session.begin():
            for _ in range(count):
                jobs.enqueue(session, job_type)

    return enqueue


@pytest.fixture
def gate(jobs):
    """Return what a job of type ``wait`` waits for; how many wait is counted by the semaphore beside it."""
    opened, running = threading.Event(), threading.Semaphore(0)

    @jobs.handler("wait")
    def wait(session, job):
        running.release()
        assert opened.wait(20)

    yield opened, running
    opened.set()


def work_is_done(jobs, enqueue, recorder, count=1):
    """Assert that a worker still does what it is there for."""
    before = len(recorder.named("job_finished"))
    enqueue("plain", count)
    recorder.wait_for("job_finished", before + count)


@pytest.fixture(autouse=True)
def plain(jobs):
    jobs.handler("plain")(lambda session, job: session.execute(text("INSERT INTO effect VALUES ('x')")))


# Here, idle, busy, gone


def test_a_worker_is_in_the_table_from_its_start_to_its_stop(start_worker, jobs, changes, rows):
    [(before,)] = rows("SELECT clock_timestamp()")
    worker = start_worker(jobs, threads=3, lease=timedelta(seconds=12))
    changes.wait_until(lambda: rows(ROW))
    [found] = rows("SELECT kind, subject, worker_id, idle, detail, started_at, last_seen_at FROM proletarian_worker")
    assert found[:4] == ("queue", "default", worker.worker_id, True)
    assert {**found[4], "version": None, "tied": True} == {"lease": 12.0, "threads": 3, "version": None, "tied": True}
    assert before < found[5] == found[6]
    assert worker.stop() is True
    assert rows(ROW) == []


def test_a_worker_is_idle_as_long_as_a_job_would_start_at_once(start_worker, jobs, changes, rows, enqueue, gate):
    opened, running = gate
    worker = start_worker(jobs, threads=2, lease=SHORT)

    def says(idle):
        return rows(ROW) == [("default", worker.worker_id, idle)]

    changes.wait_until(lambda: says(True))
    enqueue("wait")
    assert running.acquire(timeout=20)
    changes.wait_for(3)
    assert says(True), "one of two threads is free"
    enqueue("wait")
    assert running.acquire(timeout=20)
    changes.wait_until(lambda: says(False))
    opened.set()
    changes.wait_until(lambda: says(True))


def test_a_worker_that_is_fast_and_claims_ahead_is_busy_all_the_same(start_worker, jobs, changes, rows, enqueue, gate):
    _, running = gate
    enqueue("plain", 300)
    enqueue("wait")
    worker = start_worker(jobs, lease=SHORT)
    assert running.acquire(timeout=20)
    changes.so_far()
    changes.wait_for(2)
    assert rows(ROW) == [("default", worker.worker_id, False)]


def test_a_worker_in_which_a_suspect_runs_alone_is_busy(start_worker, jobs, changes, rows, enqueue, gate):
    _, running = gate
    enqueue("wait")
    rows("UPDATE proletarian_job SET crashes = 1")
    worker = start_worker(jobs, threads=2, crash_ceiling=2, lease=SHORT)
    assert running.acquire(timeout=20)
    changes.so_far()
    changes.wait_for(2)
    assert rows(ROW) == [("default", worker.worker_id, False)]


def test_a_worker_that_winds_down_is_not_idle(start_worker, jobs, changes, rows, enqueue, gate, recorder):
    opened, running = gate
    worker = start_worker(jobs, threads=2, lease=SHORT)
    enqueue("wait")
    assert running.acquire(timeout=20)
    changes.wait_until(lambda: rows(ROW) == [("default", worker.worker_id, True)])
    stopping = threading.Thread(target=worker.stop)
    stopping.start()
    changes.wait_until(lambda: rows(ROW) == [("default", worker.worker_id, False)])
    opened.set()
    stopping.join(20)
    assert rows(ROW) == []


def test_the_row_is_kept_fresh_by_the_databases_clock(start_worker, changes, rows):
    jobs = Proletarian(clock=lambda: datetime(2001, 1, 1, tzinfo=UTC))
    jobs.handler("plain")(lambda session, job: None)
    start_worker(jobs, lease=SHORT)
    changes.wait_until(lambda: rows(ROW))
    [(started_at, first)] = rows(SEEN)
    assert started_at.year > 2001
    changes.wait_for(4)
    [(still, last)] = rows(SEEN)
    assert still == started_at
    assert last - first > 2 * SHORT / 3, "written after thirds of the lease, and not all the time"


def test_going_back_and_forth_between_idle_and_busy_is_written_about_once_a_second(
    start_worker, jobs, changes, rows, enqueue, recorder
):
    start_worker(jobs)
    changes.wait_until(lambda: rows(ROW))
    since = time.monotonic()
    for count in range(1, 41):
        enqueue("plain")
        recorder.wait_for("job_finished", count)
    assert len(changes.so_far()) <= 3 + (time.monotonic() - since)


def test_that_a_beacon_burns_for_a_worker_is_written_at_once(start_worker, jobs, changes, rows, monkeypatch):
    monkeypatch.setattr(presence, "LEAST_INTERVAL", 3600.0)
    start_worker(jobs, lease=timedelta(hours=1))
    changes.wait_until(lambda: rows("SELECT 1 FROM proletarian_worker WHERE detail ->> 'tied' = 'true'"))


def test_workers_have_a_row_each_and_remove_only_their_own(start_worker, jobs, changes, rows):
    first = start_worker(jobs, worker_id="a")
    start_worker(jobs, worker_id="b")
    start_worker(jobs, worker_id="a", queue="other")
    changes.wait_until(lambda: len(rows(ROW)) == 3)
    rows("INSERT INTO proletarian_worker VALUES ('job', 'default', 'a', false, NULL, now(), now())")
    first.stop()
    assert rows(ROW) == [("default", "b", True), ("other", "a", True)]
    assert rows("SELECT worker_id FROM proletarian_worker WHERE kind = 'job'") == [("a",)]


def test_a_worker_that_is_started_again_begins_anew(start_worker, jobs, changes, rows):
    worker = start_worker(jobs)
    changes.wait_until(lambda: rows(ROW))
    [(first, _)] = rows(SEEN)
    worker.stop()
    worker.start()
    changes.wait_until(lambda: rows(ROW))
    assert rows(SEEN)[0][0] > first


def test_a_worker_of_a_queue_with_a_long_name_is_there_by_its_own(start_worker, jobs, changes, rows):
    worker = start_worker(jobs, queue="q" * 200)
    changes.wait_until(lambda: rows(ROW))
    assert rows(ROW) == [("q" * 200, worker.worker_id, True)]
    worker.stop()
    assert rows(ROW) == []


def test_a_worker_with_the_row_of_a_namesake_that_died_takes_it_over(start_worker, jobs, changes, rows):
    rows("INSERT INTO proletarian_worker VALUES ('queue', 'default', 'me', false, NULL, '2020-01-01', '2020-01-01')")
    start_worker(jobs, worker_id="me", threads=2)
    changes.wait_until(lambda: rows(ROW) == [("default", "me", True)])
    assert rows("SELECT started_at = last_seen_at, detail->>'threads' FROM proletarian_worker") == [(True, "2")]


def test_one_job_by_hand_registers_nobody(jobs, tables, rows, enqueue):
    enqueue("plain")
    assert jobs.process_next(tables) is Outcome.RETURNED
    assert rows("SELECT * FROM proletarian_worker") == []


# The dead


def put(rows, worker_id, seconds, detail="NULL", kind="queue"):
    """Write the row of a worker that was last seen so many seconds ago."""
    seen_at = f"now() - interval '{seconds} s'"
    rows(f"INSERT INTO proletarian_worker VALUES ('{kind}', 'q', '{worker_id}', true, {detail}, {seen_at}, {seen_at})")


def names(rows):
    return {name for (name,) in rows("SELECT concat_ws(' ', nullif(kind, 'queue'), worker_id) FROM proletarian_worker")}


def test_workers_not_seen_for_five_of_their_own_leases_are_struck_off(start_worker, jobs, changes, rows):
    put(rows, "short dead", 16, """'{"lease": 3}'""")
    put(rows, "long alive", 16, """'{"lease": 30.0}'""")
    put(rows, "long dead", 151, """'{"lease": 30.0}'""")
    for name, odd in {"null": "NULL", "json null": "'null'", "text": """'{"lease": "3"}'""", "list": "'[3]'"}.items():
        put(rows, f"{name} alive", 130, odd)
        put(rows, f"{name} dead", 151, odd)
    put(rows, "long dead", 1, kind="job")  # progress, which goes with its worker
    worker = start_worker(jobs)
    alive = {"long alive", "null alive", "json null alive", "text alive", "list alive", worker.worker_id}
    changes.wait_until(lambda: names(rows) == alive)


def test_whoever_dies_later_is_struck_off_too(start_worker, jobs, changes, rows):
    worker = start_worker(jobs, lease=SHORT)
    changes.wait_until(lambda: rows(ROW))
    put(rows, "dead", 1, """'{"lease": 0.1}'""")
    changes.wait_until(lambda: names(rows) == {worker.worker_id})


def test_a_worker_that_was_struck_off_by_mistake_comes_back(start_worker, jobs, changes, rows):
    start_worker(jobs, lease=SHORT)
    changes.wait_until(lambda: rows(ROW))
    [(started_at, _)] = rows(SEEN)
    rows("DELETE FROM proletarian_worker")
    changes.wait_until(lambda: rows(ROW))
    assert rows(SEEN)[0][0] == started_at


def test_a_worker_that_comes_back_in_that_very_moment_stays(start_worker, jobs, changes, rows, tables):
    put(rows, "slow", 1000)
    revived = []

    def revive(connection, cursor, statement, *rest):
        if "DELETE FROM proletarian_worker" in statement and not revived:
            revived.append(True)
            rows("UPDATE proletarian_worker SET last_seen_at = now() WHERE worker_id = 'slow'")

    event.listen(tables, "before_cursor_execute", revive)
    worker = start_worker(jobs, lease=SHORT)
    changes.wait_until(lambda: revived)
    changes.wait_for(4)
    assert names(rows) == {"slow", worker.worker_id}


def test_a_dead_row_that_somebody_holds_is_passed_over(start_worker, jobs, changes, rows, tables, recorder):
    put(rows, "held", 1000)
    put(rows, "dead", 1000)
    with tables.connect() as holder:
        holder.execute(text("SELECT * FROM proletarian_worker WHERE worker_id = 'held' FOR UPDATE"))
        worker = start_worker(jobs, lease=SHORT)
        changes.wait_until(lambda: names(rows) == {"held", worker.worker_id})
        changes.wait_for(4)
    changes.wait_until(lambda: names(rows) == {worker.worker_id})
    assert not recorder.named("presence_unavailable")


# No harm


class Failures:
    """The errors that statements of the worker's own connections met."""

    def __init__(self, engine):
        self._count, self._changed = 0, threading.Condition()
        event.listen(engine, "handle_error", self._note)

    def _note(self, context):
        with self._changed:
            self._count += 1
            self._changed.notify_all()

    def wait_for(self, count):
        with self._changed:
            assert self._changed.wait_for(lambda: self._count >= count, 20)


@pytest.fixture
def impatient(monkeypatch):
    """Try again soon, where a worker would wait for a minute."""
    monkeypatch.setattr(presence, "PAUSE", 0.05)
    monkeypatch.setattr(presence, "LOCK_PAUSE", 0.05)


def test_without_the_table_a_worker_works_says_so_once_and_registers_when_it_is_there(
    start_worker, jobs, changes, rows, tables, enqueue, recorder, impatient
):
    rows("ALTER TABLE proletarian_worker RENAME TO not_yet")
    failures = Failures(tables)
    worker = start_worker(jobs)
    failures.wait_for(5)
    work_is_done(jobs, enqueue, recorder, 10)
    [told] = recorder.named("presence_unavailable")
    assert isinstance(told.error.orig, psycopg.errors.UndefinedTable)
    assert events.level_of(told) == logging.INFO
    rows("ALTER TABLE not_yet RENAME TO proletarian_worker")
    changes.wait_until(lambda: rows(ROW) == [("default", worker.worker_id, True)])
    assert worker.stop() is True
    assert (rows(ROW), recorder.named("job_worker_error")) == ([], [])


def test_a_worker_without_the_table_tries_again_after_a_minute_only(start_worker, jobs, rows, tables, enqueue, recorder):
    statements = []
    rows("DROP TABLE proletarian_worker")
    event.listen(tables, "before_cursor_execute", lambda *given: statements.append(given[2]))
    start_worker(jobs, lease=SHORT)
    work_is_done(jobs, enqueue, recorder)
    recorder.wait_for("polling_for_jobs", 2 * round(SHORT / timedelta(milliseconds=20)))
    assert len([statement for statement in statements if "proletarian_worker" in statement]) == 1


@pytest.fixture
def role(tables, administration, database_url):
    """Return an engine of a role that may work on jobs, but has no right to the worker table."""
    name = f"role_{uuid4().hex}"
    with administration.connect() as connection:
        connection.execute(text(f"CREATE ROLE {name} LOGIN PASSWORD 'secret'"))
    with tables.begin() as connection:
        connection.execute(text(f"GRANT ALL ON proletarian_job, proletarian_archived_job, effect TO {name}"))
    engine = create_engine(database_url.set(username=name, password="secret"))
    yield engine, name
    engine.dispose()
    with tables.begin() as connection:
        connection.execute(text(f"DROP OWNED BY {name}"))
    with administration.connect() as connection:
        connection.execute(text(f"DROP ROLE {name}"))


def test_without_a_right_to_the_table_a_worker_works_and_says_so_once(
    start_worker, jobs, enqueue, recorder, role, impatient
):
    engine, _ = role
    failures = Failures(engine)
    worker = start_worker(jobs, engine)
    failures.wait_for(5)
    work_is_done(jobs, enqueue, recorder, 10)
    assert worker.stop() is True
    [told] = recorder.named("presence_unavailable")
    assert isinstance(told.error.orig, psycopg.errors.InsufficientPrivilege)


def test_without_the_right_to_delete_a_worker_is_seen_and_stops_cleanly(
    start_worker, jobs, changes, enqueue, recorder, role, rows
):
    engine, name = role
    rows(f"GRANT SELECT, INSERT, UPDATE ON proletarian_worker TO {name}")
    worker = start_worker(jobs, engine)
    changes.wait_until(lambda: rows(ROW))
    work_is_done(jobs, enqueue, recorder)
    changes.wait_until(lambda: rows(ROW) == [("default", worker.worker_id, True)])
    assert worker.stop() is True
    assert rows(ROW) == [("default", worker.worker_id, True)], "left to a worker that may"
    assert [type(told.error.orig) for told in recorder.named("presence_unavailable")] == [
        psycopg.errors.InsufficientPrivilege
    ]


@pytest.mark.parametrize("lock", ["SELECT * FROM proletarian_worker FOR UPDATE", "LOCK TABLE proletarian_worker"])
def test_a_worker_whose_row_somebody_holds_works_on_and_is_fresh_again_afterwards(
    start_worker, jobs, changes, rows, tables, enqueue, recorder, impatient, lock
):
    start_worker(jobs, lease=SHORT)
    changes.wait_until(lambda: rows(ROW))
    failures = Failures(tables)
    with tables.connect() as holder:
        holder.execute(text(lock))
        [(_, frozen)] = holder.execute(text(SEEN)).all()
        failures.wait_for(2)
        work_is_done(jobs, enqueue, recorder, 10)
    [told] = recorder.named("presence_unavailable")
    assert isinstance(told.error.orig, psycopg.errors.LockNotAvailable)
    changes.wait_until(lambda: rows(SEEN)[0][1] > frozen)


def test_a_worker_whose_row_somebody_holds_stops_all_the_same(start_worker, jobs, changes, rows, tables):
    worker = start_worker(jobs)
    changes.wait_until(lambda: rows(ROW))
    with tables.connect() as holder:
        holder.execute(text("SELECT * FROM proletarian_worker FOR UPDATE"))
        assert worker.stop() is True
        assert rows(ROW) == [("default", worker.worker_id, True)]


def test_a_connection_that_dies_here_is_replaced_as_everywhere(
    start_worker, jobs, changes, rows, tables, recorder, administration
):
    killed = []

    def kill(connection, cursor, statement, *rest):
        if "INSERT INTO proletarian_worker" in statement and not killed:
            killed.append(cursor.connection.info.backend_pid)
            with administration.connect() as other:
                other.execute(text("SELECT pg_terminate_backend(:pid, 10000)"), {"pid": killed[0]})

    event.listen(tables, "before_cursor_execute", kill)
    worker = start_worker(jobs)
    changes.wait_until(lambda: rows(ROW) == [("default", worker.worker_id, True)])
    assert killed
    assert recorder.named("sql_transient_exception")
    assert not recorder.named("presence_unavailable")


def test_a_model_of_a_given_table_has_no_worker_table_and_nothing_is_said(start_worker, tables, recorder, rows):
    class Base(DeclarativeBase):
        pass

    class GivenJob(JobMixin, Base):
        __table__ = Table("proletarian_job", Base.metadata, autoload_with=tables)

    class GivenArchivedJob(ArchivedJobMixin, Base):
        __table__ = Table("proletarian_archived_job", Base.metadata, autoload_with=tables)

    jobs = Proletarian(GivenJob, GivenArchivedJob)
    jobs.handler("plain")(lambda session, job: None)
    with Session(tables) as session, session.begin():
        jobs.enqueue(session, "plain")
    worker = start_worker(jobs)
    recorder.wait_for("job_finished")
    assert worker.stop() is True
    assert (rows(ROW), recorder.named("presence_unavailable")) == ([], [])


def test_the_worker_table_is_found_where_the_app_has_put_it(engine, start_worker, recorder):
    jobs = Proletarian(*models_in(engine, "queues"))
    jobs.handler("plain")(lambda session, job: None)
    worker = start_worker(jobs, engine)
    recorder.wait_for("polling_for_jobs", 2)
    with engine.connect() as connection:
        assert connection.scalars(text("SELECT worker_id FROM queues.proletarian_worker")).all() == [worker.worker_id]
        translated = connection.execution_options(schema_translate_map={None: "queues"})
        assert translated.scalars(Job.__worker_table__.select().with_only_columns(Job.__worker_table__.c.subject)).all()


def models_in(engine, schema):
    """Make models and tables in a schema of the app."""
    Base = type("Base", (DeclarativeBase,), {"metadata": MetaData(schema=schema)})  # noqa: N806
    models = type("AppJob", (JobMixin, Base), {}), type("AppArchivedJob", (ArchivedJobMixin, Base), {})
    with engine.begin() as connection:
        connection.execute(text(f"CREATE SCHEMA {schema}"))
    Base.metadata.create_all(engine)
    return models
