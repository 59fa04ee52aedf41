"""The main path, job by job: what a handler does to its session, and what then happens to the job and to its writes."""

from __future__ import annotations

import asyncio
import json
import threading
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta

import pytest
from sqlalchemy import Text, TypeDecorator, create_engine, event, text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker

from sa_proletarian import (
    ArchivedJob,
    ArchivedJobMixin,
    ConfigurationError,
    Job,
    JobMixin,
    Outcome,
    Proletarian,
    Retry,
    SessionClosed,
    Snooze,
    metadata,
)


@pytest.fixture
def enqueue(jobs, tables):
    def enqueue(job_type, payload=None, **options):
        with Session(tables) as session, session.begin():
            job = jobs.enqueue(session, job_type, payload, **options)
            return job.job_id

    return enqueue


class Run:
    """Registers a function as the handler of ``work``, enqueues one job, runs it, and gives the outcome."""

    def __init__(self, jobs, engine, recorder, form):
        self.jobs, self.engine, self.recorder, self.form = jobs, engine, recorder, form

    def __call__(self, handler, *, retry=None, on_failed=None, **options):
        handler = handler if self.form == "threads" else awaited(handler)
        self.jobs.handler("work", retry=retry, on_failed=on_failed)(handler)
        with Session(self.engine) as session, session.begin():
            self.jobs.enqueue(session, "work", {"n": 1})
        return self.next(listener=self.recorder, **options)

    def next(self, **options):
        if self.form == "threads":
            return self.jobs.process_next(self.engine, **options)
        return asyncio.run(process_next_async(self.jobs, self.engine, **options))


@pytest.fixture(params=["threads", "asyncio"])
def run(request, jobs, tables, recorder):
    """Run one function as a handler, in each form."""
    return Run(jobs, tables, recorder, request.param)


@pytest.fixture
def run_in_thread(jobs, tables, recorder):
    """Run one function as a handler, for what only threads and their drivers' own connections can do."""
    return Run(jobs, tables, recorder, "threads")


def awaited(handler):
    """Make of a function of a session one that is ``async def``; what it does to its session stays what it was."""

    async def async_handler(session, job):
        return await session.run_sync(handler, job)

    return async_handler


async def process_next_async(jobs, engine, **options):
    app = create_async_engine(engine.url)
    if "session" in options:
        options["session"] = in_async(options["session"], app)
    try:
        return await jobs.process_next_async(app, **options)
    finally:
        await app.dispose()


def in_async(maker, app):
    kw = {**maker.kw, "bind": app if maker.kw.get("bind") is not None else None}
    return async_sessionmaker(sync_session_class=maker.class_, **kw)


def write(session, what="written"):
    session.execute(text("INSERT INTO effect VALUES (:what)"), {"what": what})


def effects(rows):
    return sorted(what for (what,) in rows("SELECT what FROM effect"))


def archive(rows):
    return rows("SELECT status, attempts FROM proletarian_archived_job")


def queue(rows):
    return rows("SELECT attempts, crashes, claim_id FROM proletarian_job")


# a handler and its session


def test_nothing_due_is_none(jobs, tables):
    assert jobs.process_next(tables) is None


def test_a_raw_commit_is_reported(run_in_thread, rows, recorder):
    def handler(session, job):
        write(session)
        session.connection().connection.driver_connection.commit()

    assert run_in_thread(handler) is Outcome.GAVE_UP
    assert archive(rows) == [("failure", 1)]
    [(error,)] = rows("SELECT error FROM proletarian_archived_job")
    assert error.startswith("TransactionEscaped")


def test_a_raw_commit_after_the_sessions_own_is_reported(run_in_thread, rows, recorder):
    def handler(session, job):
        write(session)
        raw = session.connection().connection.driver_connection
        session.commit()
        raw.commit()

    assert run_in_thread(handler) is Outcome.RETURNED
    assert recorder.named("transaction_escaped")
    assert (archive(rows), effects(rows)) == ([("success", 1)], ["written"])


def test_a_commit_on_the_sessions_connection_is_reported(run, rows, recorder):
    def handler(session, job):
        write(session)
        session.connection().commit()

    outcome = run(handler)
    assert outcome is Outcome.GAVE_UP or recorder.named("transaction_escaped")
    assert len(archive(rows)) == 1 and queue(rows) == []


def test_a_session_that_leaks_out_of_its_job_raises(run_in_thread, rows):
    leaked = []
    run_in_thread(lambda session, job: leaked.append(session))
    with pytest.raises(Exception, match="after the job was over"):
        leaked[0].execute(text("SELECT 1"))


def test_two_first_uses_at_once_open_one_connection(run_in_thread, tables, rows):
    pids = set()

    def handler(session, job):
        barrier = threading.Barrier(4)

        def use():
            barrier.wait()
            pids.add(session.get_bind().exec_driver_sql("SELECT pg_backend_pid()").scalar())

        threads = [threading.Thread(target=use) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert run_in_thread(handler) is Outcome.RETURNED
    assert len(pids) == 1


def test_the_lock_lets_rows_refer_to_the_job(run, rows, tables):
    rows("CREATE TABLE note (job_id uuid REFERENCES proletarian_job ON DELETE CASCADE)")

    def handler(session, job):
        session.execute(text("SELECT 1"))
        name = rows("SELECT current_database()")[0][0]
        rows(f"ALTER DATABASE {name} SET lock_timeout = '2s'")
        tables.dispose()
        rows("INSERT INTO note VALUES (:id)", id=job.job_id)

    assert run(handler) is Outcome.RETURNED


def test_the_handler_meets_the_servers_own_lock_timeout(run, rows):
    seen = []
    run(lambda session, job: seen.append(session.scalar(text("SHOW lock_timeout"))))
    assert seen == ["0"]


def test_the_handlers_session_is_read_committed_whatever_the_database_says(run, rows, tables):
    name = rows("SELECT current_database()")[0][0]
    rows(f"ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'")
    tables.dispose()
    seen = []
    assert run(lambda session, job: seen.append(session.scalar(text("SHOW transaction_isolation")))) is Outcome.RETURNED
    assert seen == ["read committed"]


def test_so_it_is_on_a_driver_that_takes_no_scripts(jobs, tables, enqueue, rows, database_url):
    rows(f"ALTER DATABASE {database_url.database} SET default_transaction_isolation = 'serializable'")
    engine, seen = create_engine(database_url.set(drivername="postgresql+psycopg2")), []
    jobs.handler("work")(lambda session, job: seen.append(session.scalar(text("SHOW transaction_isolation"))))
    enqueue("work")
    assert jobs.process_next(engine) is Outcome.RETURNED
    assert seen == ["read committed"]
    engine.dispose()


def test_handlers_sessions_are_of_the_apps_class_with_its_options(run, tables):
    class AppSession(Session):
        pass

    maker = sessionmaker(tables, class_=AppSession, expire_on_commit=False, autoflush=False)
    seen = []

    def handler(session, job):
        seen.append((isinstance(session, AppSession), session.expire_on_commit, session.autoflush))
        write(session)

    assert run(handler, session=maker) is Outcome.RETURNED
    assert seen == [(True, False, False)]


def test_sqlmodels_exec_works_in_a_handler(run, tables):
    sqlmodel = pytest.importorskip("sqlmodel")
    seen = []

    def handler(session, job):
        seen.append(session.exec(text("SELECT 42")).scalar())

    assert run(handler, session=sessionmaker(tables, class_=sqlmodel.Session)) is Outcome.RETURNED
    assert seen == [42]


def test_a_session_that_routes_elsewhere_keeps_its_routing(run, tables, rows, database_url):
    other = create_engine(database_url)

    class Routing(Session):
        def get_bind(self, *args, clause=None, **kwargs):
            if clause is not None and "elsewhere" in str(clause):
                return other
            return super().get_bind(*args, clause=clause, **kwargs)

    def handler(session, job):
        write(session)
        session.execute(text("INSERT INTO effect VALUES ('elsewhere')"))

    assert run(handler, session=sessionmaker(tables, class_=Routing)) is Outcome.RETURNED
    assert effects(rows) == ["elsewhere", "written"]
    other.dispose()


def test_a_sessionmaker_of_another_engine_is_refused(jobs, tables, database_url):
    with pytest.raises(Exception, match="another engine"):
        jobs.process_next(tables, session=sessionmaker(create_engine(database_url)))


# the job


def test_the_job_is_detached_and_reads_well_after_a_commit(run):
    seen = []

    def handler(session, job):
        session.execute(text("SELECT 1"))
        session.commit()
        session.close()
        seen.append((job.payload, job.attempts, job.job_type, job.queue, job.crashes, job.last_error))

    run(handler)
    assert seen == [({"n": 1}, 1, "work", "default", 0, None)]


def test_a_payload_that_the_handler_changes_is_archived_as_it_was(run, rows):
    def handler(session, job):
        job.payload["n"] = "changed"
        write(session)

    run(handler)
    assert rows("SELECT payload FROM proletarian_archived_job") == [({"n": 1},)]


def test_extra_columns_reach_the_handler_and_the_archive(tables, rows):
    class Base(DeclarativeBase):
        pass

    class TenantJob(JobMixin, Base):
        __tablename__ = "tenant_job"
        tenant_id: Mapped[int]
        note: Mapped[str | None] = mapped_column("remark")

    class TenantArchive(ArchivedJobMixin, Base):
        __tablename__ = "tenant_archive"
        tenant_id: Mapped[int]

    Base.metadata.create_all(tables)
    jobs = Proletarian(TenantJob, TenantArchive)
    seen = []
    jobs.handler("work")(lambda session, job: seen.append((job.tenant_id, job.note)))
    with Session(tables) as session, session.begin():
        jobs.enqueue(session, "work", tenant_id=7, note="x")
    assert jobs.process_next(tables) is Outcome.RETURNED
    assert seen == [(7, "x")]
    assert rows("SELECT tenant_id, status FROM tenant_archive") == [(7, "success")]


def test_a_base_that_brings_its_own_primary_key_is_refused():
    class Base(DeclarativeBase):
        id: Mapped[int] = mapped_column(primary_key=True)

    class KeyedJob(JobMixin, Base):
        __tablename__ = "keyed_job"

    with pytest.raises(TypeError, match="primary key"):
        Proletarian(KeyedJob, ArchivedJob)


class Picky(TypeDecorator):
    """A column type of the app's own that chokes on some values."""

    impl = Text
    cache_ok = True

    def process_result_value(self, value, dialect):
        if value == "poison":
            raise LookupError("cannot read this")
        return value


class ReversingSerializer:
    def encode(self, payload):
        return payload[::-1]

    def decode(self, value):
        return value[::-1]


def test_values_that_the_apps_own_types_cannot_read_fail_one_job_only(tables, rows):
    class Base(DeclarativeBase):
        pass

    class OwnJob(JobMixin, Base):
        serializer = ReversingSerializer()
        payload = mapped_column(Picky, nullable=False)
        note = mapped_column(Picky)
        __tablename__ = "own_job"

    class OwnArchive(ArchivedJobMixin, Base):
        payload = mapped_column(Text, nullable=False)
        __tablename__ = "own_archive"

    Base.metadata.create_all(tables)
    jobs = Proletarian(OwnJob, OwnArchive)
    seen = []
    jobs.handler("work")(lambda session, job: seen.append((job.payload, job.note)))
    with Session(tables) as session, session.begin():
        jobs.enqueue(session, "work", "nosiop")
        jobs.enqueue(session, "work", "good", note="poison")
        jobs.enqueue(session, "work", "good", note="fine")
    outcomes = [jobs.process_next(tables) for _ in range(3)]
    assert outcomes == [Outcome.GAVE_UP, Outcome.GAVE_UP, Outcome.RETURNED]
    assert seen == [("good", "fine")]
    assert rows("SELECT payload, status FROM own_archive ORDER BY job_id") == [
        ("poison", "failure"),
        ("doog", "failure"),
        ("doog", "success"),
    ]


# fates


def test_the_handlers_retry_wins_over_the_workers(jobs, tables, enqueue):
    def handler(session, job):
        raise ValueError

    jobs.handler("patient", retry=Retry(1, [timedelta(hours=1)]))(handler)
    jobs.handler("plain")(handler)
    enqueue("patient")
    enqueue("plain")
    outcomes = [jobs.process_next(tables, retry=Retry(1)) for _ in range(3)]
    assert outcomes == [Outcome.RETRIED, Outcome.RETRIED, Outcome.GAVE_UP]


def test_a_retry_delay_counts_from_the_finish(run, rows):
    """``now()`` stands still in the handler's transaction; the delay must not."""

    def handler(session, job):
        session.execute(text("SELECT pg_sleep(0.6)"))
        raise ValueError

    run(handler, retry=Retry(1, [timedelta(seconds=100)]))
    [(wait,)] = rows("SELECT extract(epoch FROM process_at - clock_timestamp())::float FROM proletarian_job")
    assert wait > 99.6


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York"])
def test_a_day_of_delay_is_24_hours_though_the_clocks_change_meanwhile(run, rows, tables, zone):
    """In a session's time zone the same time tomorrow may be 23 hours away, or 25."""
    name = rows("SELECT current_database()")[0][0]
    rows(f"ALTER DATABASE {name} SET timezone = '{zone}'")
    tables.dispose()
    changed = "extract(timezone FROM now()) <> extract(timezone FROM now() + make_interval(days => day))"
    [(days,)] = rows(f"SELECT min(day) FROM generate_series(2, 300) AS day WHERE {changed}")

    def handler(session, job):
        raise Snooze(timedelta(days=days))

    assert run(handler) is Outcome.SNOOZED
    [(hours,)] = rows("SELECT extract(epoch FROM process_at - now()) / 3600 FROM proletarian_job")
    assert 0 <= 24 * days - hours < 0.5


def test_a_handler_that_returns_a_coroutine_has_done_nothing(run_in_thread, rows):
    async def work():
        pass

    assert run_in_thread(lambda session, job: work()) is Outcome.GAVE_UP
    assert "coroutine" in rows("SELECT error FROM proletarian_archived_job")[0][0]


def test_ctrl_c_in_process_next_releases_the_job_and_is_raised(run, rows):
    def handler(session, job):
        write(session)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(handler)
    assert (queue(rows), effects(rows), archive(rows)) == ([(0, 0, None)], [], [])


def test_an_error_in_on_failed_is_reported_and_harms_nothing(run, rows, recorder):
    def handler(session, job):
        raise ValueError

    def on_failed(job, error):
        raise SystemExit("on_failed")

    assert run(handler, on_failed=on_failed) is Outcome.GAVE_UP
    assert recorder.names[-2:] == ["not_retrying", "on_failed_error"]


@pytest.mark.parametrize("strategy", [lambda job, error: 1 / 0, lambda job, error: "soon"])
def test_a_strategy_that_fails_gives_up_and_is_reported(run, rows, recorder, strategy):
    def handler(session, job):
        raise ValueError

    assert run(handler, retry=strategy) is Outcome.GAVE_UP
    assert "retry_strategy_error" in recorder.names


def test_a_strategy_sees_the_job_and_the_error(run, rows):
    seen = []

    def handler(session, job):
        raise ValueError("late")

    def strategy(job, error):
        seen.append((job.payload, job.attempts, str(error)))

    run(handler, retry=strategy)
    assert seen == [({"n": 1}, 1, "late")]


def test_around_surrounds_the_handler_and_cannot_make_a_failure_a_success(run, rows):
    seen = []

    @contextmanager
    def around(job):
        seen.append(("enter", job.job_type))
        try:
            yield
        except ValueError:
            seen.append("swallowed")

    def handler(session, job):
        seen.append("handler")
        raise ValueError

    assert run(handler, around=around) is Outcome.GAVE_UP
    assert seen == [("enter", "work"), "handler", "swallowed"]


def test_around_is_left_after_the_flush_of_what_the_handler_has_left_in_its_session(run, rows):
    around_left = []

    @contextmanager
    def around(job):
        yield
        around_left.append(flushed)

    def handler(session, job):
        event.listen(session, "before_flush", lambda *_: flushed.append("flushed"))
        session.add(Job("later", process_in=timedelta(hours=1)))

    flushed = []
    assert run(handler, around=around) is Outcome.RETURNED
    assert around_left == [["flushed"]]


def test_a_scoped_session_is_the_handlers_session_in_the_scope_that_around_enters(run_in_thread, rows, tables):
    scope = ContextVar("scope", default="outside")
    db = scoped_session(sessionmaker(tables), scope.get)
    before = db()

    @contextmanager
    def around(job):
        token = scope.set("inside")
        yield
        db.remove()  # as a framework does that ends its context; what is not flushed would be gone
        scope.reset(token)

    def handler(session, job):
        assert db() is session
        db.add(Job("later", process_in=timedelta(hours=1)))

    assert run_in_thread(handler, session=db, around=around) is Outcome.RETURNED
    assert rows("SELECT job_type FROM proletarian_job") == [("later",)]
    assert db() is before
    db.remove()


@pytest.mark.parametrize("used_before", [True, False])
def test_after_the_job_a_scoped_session_is_what_it_was(run_in_thread, tables, used_before):
    db = scoped_session(sessionmaker(tables))
    before = db() if used_before else None
    assert run_in_thread(lambda session, job: db().get_one(Job, job.job_id), session=db) is Outcome.RETURNED
    assert (db() if db.registry.has() else None) is before
    db.remove()


def test_a_handler_that_goes_on_with_another_session_of_its_scope_fails_in_words(run_in_thread, tables, rows):
    db = scoped_session(sessionmaker(tables))

    def handler(session, job):
        db.remove()
        db.execute(text("SELECT 1"))

    assert run_in_thread(handler, session=db) is Outcome.GAVE_UP
    [(error,)] = rows("SELECT error FROM proletarian_archived_job")
    assert "has called remove() on the scoped session" in error


def test_a_handler_may_remove_the_session_of_its_scope_when_it_is_done(run_in_thread, tables, rows):
    db = scoped_session(sessionmaker(tables))

    def handler(session, job):
        db.execute(text("INSERT INTO effect VALUES ('committed')"))
        db.commit()
        db.remove()

    assert run_in_thread(handler, session=db) is Outcome.RETURNED
    assert effects(rows) == ["committed"]


def test_a_deadlock_is_no_failure_but_another_try(run, rows, recorder):
    calls = []

    def handler(session, job):
        calls.append(1)
        write(session)
        if len(calls) < 3:
            session.execute(text("DO $$ BEGIN RAISE EXCEPTION 'crossed' USING ERRCODE = '40P01'; END $$"))

    assert run(handler) is Outcome.RETURNED
    assert (len(calls), effects(rows), archive(rows)) == (3, ["written"], [("success", 1)])
    assert len(recorder.named("conflict_retried")) == 2


def test_a_deadlock_finds_the_claim_renewed_whose_lease_has_run_out_under_the_lock(run, rows):
    valid = []

    def handler(session, job):
        valid.extend(rows("SELECT claimed_until > now() FROM proletarian_job"))
        if len(valid) == 1:
            rows("UPDATE proletarian_job SET claimed_until = now() - interval '1 s'")
            write(session)
            session.execute(text("DO $$ BEGIN RAISE EXCEPTION 'crossed' USING ERRCODE = '40P01'; END $$"))
        write(session)

    assert run(handler) is Outcome.RETURNED
    assert valid == [(True,), (True,)]
    assert (effects(rows), archive(rows)) == (["written"], [("success", 1)])


def test_a_deadlock_that_does_not_end_is_a_failure(run, rows):
    def handler(session, job):
        session.execute(text("DO $$ BEGIN RAISE EXCEPTION 'crossed' USING ERRCODE = '40001'; END $$"))

    assert run(handler) is Outcome.GAVE_UP


# the claim


def test_jobs_run_in_the_order_in_which_they_are_due(jobs, tables, enqueue):
    order = []
    jobs.handler("work")(lambda session, job: order.append(job.payload))
    for number in range(5):
        enqueue("work", number)
    enqueue("work", "later", process_in=timedelta(hours=1))
    while jobs.process_next(tables):
        pass
    assert order == [0, 1, 2, 3, 4]


def test_only_the_own_queue_and_known_types_are_claimed(jobs, tables, enqueue, rows):
    jobs.handler("work")(lambda session, job: None)
    enqueue("work", queue="mail")
    enqueue("stranger")
    assert jobs.process_next(tables) is None
    assert jobs.process_next(tables, queue="mail") is Outcome.RETURNED
    assert rows("SELECT job_type, attempts FROM proletarian_job") == [("stranger", 0)]


def test_the_star_takes_every_type_without_a_handler_of_its_own(jobs, tables, enqueue):
    seen = []
    jobs.handler("*")(lambda session, job: seen.append(("star", job.job_type)))
    jobs.handler("own")(lambda session, job: seen.append(("own", job.job_type)))
    enqueue("own")
    enqueue("other")
    while jobs.process_next(tables):
        pass
    assert seen == [("own", "own"), ("star", "other")]


@pytest.mark.parametrize("uses_session", [True, False])
def test_an_id_that_is_archived_already_parks_the_job_and_names_the_constraint(run, rows, recorder, uses_session):
    def handler(session, job):
        rows(
            "INSERT INTO proletarian_archived_job (job_id, queue, job_type, payload, attempts, enqueued_at, process_at,"
            " status, finished_at) VALUES (:id, 'q', 't', '{}', 1, now(), now(), 'success', now())",
            id=job.job_id,
        )
        if uses_session:
            write(session)

    assert run(handler) is Outcome.PARKED
    [(attempts, error, wait)] = rows(
        "SELECT attempts, last_error, extract(epoch FROM process_at - clock_timestamp())::int FROM proletarian_job"
    )
    assert attempts == 1 and "proletarian_archived_job_pkey" in error and 50 < wait < 61
    assert effects(rows) == []
    [event] = recorder.named("job_parked")
    assert event.delay == timedelta(minutes=1)


@pytest.mark.parametrize("uses_session", [True, False])
def test_a_foreign_key_that_forbids_the_deletion_parks_the_job(run, rows, uses_session, jobs, tables, recorder):
    rows("CREATE TABLE note (job_id uuid REFERENCES proletarian_job)")

    def handler(session, job):
        rows("INSERT INTO note SELECT :id WHERE NOT EXISTS (SELECT FROM note)", id=job.job_id)
        if uses_session:
            write(session)

    assert run(handler) is Outcome.PARKED
    assert "note_job_id_fkey" in rows("SELECT last_error FROM proletarian_job")[0][0]
    rows("UPDATE proletarian_job SET process_at = now()")
    assert run.next(listener=recorder) is Outcome.PARKED
    assert [event.delay for event in recorder.named("job_parked")] == [timedelta(minutes=1), timedelta(minutes=2)]
    rows("DELETE FROM note")
    rows("UPDATE proletarian_job SET process_at = now(); DROP TABLE note")


@pytest.mark.parametrize(
    "payload",
    ['"\\u0041"', "1" + "0" * 5000, "[" * 3000 + "]" * 3000],
    ids=["text", "five thousand digits", "three thousand levels"],
)
def test_a_payload_that_cannot_be_decoded_fails_its_job_and_no_other(jobs, tables, enqueue, rows, payload, recorder):
    calls = []
    jobs.handler("work", on_failed=lambda job, error: calls.append(job.payload))(lambda session, job: None)
    poisoned = enqueue("work", "first")
    enqueue("work", "second")
    rows("UPDATE proletarian_job SET payload = CAST(:payload AS jsonb) WHERE job_id = :id", payload=payload, id=poisoned)
    outcomes = [jobs.process_next(tables, listener=recorder) for _ in range(2)]
    if is_readable(payload):
        assert (outcomes, calls) == ([Outcome.RETURNED] * 2, [])
    else:
        assert (outcomes, calls) == ([Outcome.GAVE_UP, Outcome.RETURNED], [None])


def is_readable(payload):
    """Whether this Python can read it: newer ones go deeper."""
    try:
        json.loads(payload)
    except (ValueError, RecursionError):
        return False
    return True


def test_payloads_are_not_in_the_errors_of_our_own_connections(run, rows, recorder):
    """The server quotes the whole row in the DETAIL of a constraint's error; here the constraint is the archive's."""
    rows("ALTER TABLE proletarian_archived_job ADD CONSTRAINT never CHECK (payload ->> 'n' <> '1')")
    assert run(lambda session, job: write(session)) is Outcome.PARKED
    [event] = recorder.named("job_parked")
    assert "never" in str(event.error) and "DETAIL" not in str(event.error) + str(event.error.orig)
    assert '"n"' not in str(event.error) + repr(event.error.orig)


def test_a_timeout_of_the_server_is_told_and_is_a_failure(run, rows, recorder):
    def handler(session, job):
        session.execute(text("SET LOCAL statement_timeout = '20ms'"))
        session.execute(text("SELECT pg_sleep(10)"))

    assert run(handler) is Outcome.GAVE_UP
    assert recorder.names == ["handling_job", "timed_out", "handle_job_exception", "not_retrying"]
    assert "statement timeout" in str(recorder.named("timed_out")[0].error)


# what a handler leaves behind


def locked_archive(tables):
    connection = tables.connect()
    connection.execute(text("LOCK proletarian_archived_job IN SHARE MODE"))
    return connection


def test_a_locked_archive_is_no_failure_of_the_handler(run, rows, tables, jobs, recorder):
    connection = locked_archive(tables)
    assert run(lambda session, job: write(session)) is Outcome.UNAVAILABLE
    assert (queue(rows), effects(rows)) == ([(0, 0, None)], [])
    connection.close()
    rows("UPDATE proletarian_job SET process_at = now()")
    assert run.next() is Outcome.RETURNED
    assert (archive(rows), effects(rows)) == ([("success", 1)], ["written"])


def test_a_failure_is_recorded_before_the_lock_is_given_up(run, rows, tables):
    """With its lease run out, the row must never be free between the handler's failure and the record of it."""
    other = create_engine(tables.url)
    seen = []

    def handler(session, job):
        write(session)
        raise ValueError

    @event.listens_for(tables, "rollback")
    def before_rollback(connection):
        with other.connect() as looking:
            seen.append(looking.scalar(text("SELECT count(*) FROM proletarian_job WHERE claim_id IS NOT NULL")))

    assert run(handler, retry=Retry(1, [timedelta(hours=1)])) is Outcome.RETRIED
    other.dispose()
    assert set(seen) <= {0}, "nothing was rolled back before the failure was committed"
    assert effects(rows) == []


@pytest.mark.parametrize(
    "setting",
    [
        "SET LOCAL search_path = nowhere",
        "SET LOCAL statement_timeout = '500ms'",  # what takes it back must have the time for it
        "SET LOCAL ROLE nobody_much",
    ],
)
def test_settings_of_the_handler_do_not_reach_the_settling(run, rows, setting):
    rows("DROP ROLE IF EXISTS nobody_much")
    rows("CREATE ROLE nobody_much")
    if "timeout" in setting:
        rows("CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.8); RETURN NEW; END'")
        rows("CREATE TRIGGER dawdle BEFORE INSERT ON proletarian_archived_job FOR EACH ROW EXECUTE FUNCTION dawdle()")

    def handler(session, job):
        write(session)
        session.execute(text(setting))

    assert run(handler) is Outcome.RETURNED
    assert (archive(rows), effects(rows)) == ([("success", 1)], ["written"])


def test_execution_options_of_the_handler_do_not_reach_the_settling(run, rows):
    def handler(session, job):
        options = {"schema_translate_map": {None: "nowhere"}}
        session.connection(execution_options=options).execute(text("SELECT 1"))

    assert run(handler) is Outcome.RETURNED
    assert archive(rows) == [("success", 1)]


def test_a_thread_that_outlives_its_handler_cannot_join_the_settling(run_in_thread, rows):
    refused = threading.Event()
    threads = []

    def handler(session, job):
        write(session, "of the handler")

        def go_on():
            while not refused.is_set():
                try:
                    write(session, "of the thread")
                    session.rollback()
                except SessionClosed:
                    refused.set()
                except Exception:
                    continue

        threads.append(threading.Thread(target=go_on))
        threads[0].start()
        raise ValueError

    assert run_in_thread(handler) is Outcome.GAVE_UP
    threads[0].join(20)
    assert refused.is_set()
    assert effects(rows) == []


def test_a_limit_on_idle_transactions_does_not_end_a_thinking_handler(run, rows, tables):
    name = rows("SELECT current_database()")[0][0]
    rows(f"ALTER DATABASE {name} SET idle_in_transaction_session_timeout = '200ms'")
    tables.dispose()

    def handler(session, job):
        write(session)
        rows("SELECT pg_sleep(0.6)")

    assert run(handler) is Outcome.RETURNED


def test_a_handler_that_deletes_its_own_row_has_failed(run, rows):
    def handler(session, job):
        session.delete(session.get(Job, job.job_id))

    assert run(handler) is Outcome.GAVE_UP
    assert "deleted its own job" in rows("SELECT error FROM proletarian_archived_job")[0][0]


def test_a_strategy_reads_the_job_also_when_the_handler_had_attached_and_expired_it(run, rows):
    def handler(session, job):
        session.add(job)
        session.commit()
        raise ValueError

    assert run(handler, retry=lambda job, error: Retry(job.attempts + 1)) is Outcome.RETRIED


def test_a_session_on_the_engine_with_other_options_is_refused(jobs, tables):
    translated = tables.execution_options(schema_translate_map={None: "tenant"})
    with pytest.raises(ConfigurationError, match="execution options"):
        jobs.process_next(tables, session=sessionmaker(translated))


def test_an_engine_with_a_translated_schema_works_throughout(jobs, tables, rows):
    rows("CREATE SCHEMA tenant")
    tenant = tables.execution_options(schema_translate_map={None: "tenant"})
    with tenant.begin() as connection:
        metadata.create_all(connection)
    jobs.handler("work")(lambda session, job: session.add(Job("next")))
    with Session(tenant) as session, session.begin():
        jobs.enqueue(session, "work")
    assert jobs.process_next(tenant, session=sessionmaker(tenant)) is Outcome.RETURNED
    assert rows("SELECT job_type FROM tenant.proletarian_job") == [("next",)]
    assert rows("SELECT status FROM tenant.proletarian_archived_job") == [("success",)]
    assert rows("SELECT count(*) FROM proletarian_job") == [(0,)]


def test_a_connection_that_a_job_has_spoilt_is_thrown_away(tables, jobs, start_worker, recorder, rows):
    """It became read-only for good, so no later job could lock its row on it."""

    def handler(session, job):
        session.execute(text("SET SESSION default_transaction_read_only = on" if job.payload else "SELECT 1"))

    jobs.handler("work")(handler)
    with Session(tables) as session, session.begin():
        for number in (1, 0, 0):
            jobs.enqueue(session, "work", number)
    start_worker(jobs)
    recorder.wait_for("job_finished", 3)
