"""Enqueueing into Proletarian's tables, and one job's turn: claimed, run and settled in one transaction."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Session

from sa_proletarian import Cancel, Outcome, Retry, Snooze
from sa_proletarian.clojure import ArchivedJob, ClojureJobMixin, ClojureProletarian, Job, Keyword, TransitSerializer
from sa_proletarian.errors import Interrupted

EMAIL = '["^ ","~:email","ada@example.org"]'
NOW = datetime(2026, 2, 3, tzinfo=UTC)
JOB = "SELECT attempts, process_at - enqueued_at FROM proletarian.job"
STATUS = "SELECT status, attempts FROM proletarian.archived_job"


def put(engine, jobs, job_type="my/job", payload=None, **options):
    with Session(engine) as session, session.begin():
        return jobs.enqueue(session, job_type, payload, **options).job_id


def write(session, what):
    session.execute(text("INSERT INTO effect VALUES (:what)"), {"what": what})


@pytest.fixture
def effects(rows):
    return lambda: [what for (what,) in rows("SELECT what FROM effect")]


# enqueue --------------------------------------------------------------------------------------------------------------


def test_a_job_is_written_as_proletarian_writes_it(tables, rows):
    jobs = ClojureProletarian(clock=lambda: NOW)
    job_id = put(
        tables, jobs, "my.app/echo", {Keyword("email"): "ada@example.org"}, queue="mail", process_in=timedelta(hours=1)
    )
    [row] = rows("SELECT * FROM proletarian.job")
    assert row == (job_id, ":mail", ":my.app/echo", EMAIL, 0, NOW, NOW + timedelta(hours=1))
    assert isinstance(job_id, UUID)


def test_the_default_queue_is_proletarians(tables, jobs, rows):
    put(tables, jobs)
    assert rows("SELECT queue, process_at = enqueued_at FROM proletarian.job") == [(":proletarian/default", True)]


def test_a_job_exists_only_when_its_transaction_commits(tables, jobs, rows):
    with Session(tables) as session:
        jobs.enqueue(session, "my/job")
        session.flush()
        session.rollback()
    assert rows("SELECT * FROM proletarian.job") == []


def test_a_connection_takes_a_job(tables, jobs, rows):
    with tables.begin() as connection:
        jobs.enqueue(connection, "my/job", process_at=NOW)
    assert rows("SELECT job_type, process_at = enqueued_at FROM proletarian.job") == [(":my/job", True)]


async def enqueue_by_async_session(url, jobs):
    engine = create_async_engine(url)
    async with AsyncSession(engine) as session, session.begin():
        jobs.enqueue(session, "my/job")
    await engine.dispose()


def test_an_async_session_takes_a_job(tables, database_url, jobs, rows):
    import asyncio

    asyncio.run(enqueue_by_async_session(database_url, jobs))
    assert rows("SELECT job_type FROM proletarian.job") == [(":my/job",)]


BAD = [
    ({"payload": object()}, TypeError),
    ({"job_type": "no keyword"}, ValueError),
    ({"queue": "a/b/c"}, ValueError),
    ({"process_at": NOW, "process_in": timedelta(1)}, ValueError),
    ({"process_in": 5}, TypeError),
    ({"job_id": "x"}, TypeError),
]


def test_bad_input_leaves_the_transaction_as_it_was(tables, jobs, rows, effects):
    with Session(tables) as session, session.begin():
        write(session, "business")
        for arguments, error in BAD:
            with pytest.raises(error):
                jobs.enqueue(session, **{"job_type": "my/job", **arguments})
    assert effects() == ["business"]
    assert rows("SELECT * FROM proletarian.job") == []


class Base(DeclarativeBase):
    pass


class Upside:
    """A serializer of the app's own."""

    def encode(self, payload):
        return payload if isinstance(payload, bytes) else payload[::-1]

    def decode(self, text):
        return text[::-1]


class UpsideJob(ClojureJobMixin, Base):
    __table_args__ = {"schema": "proletarian"}  # noqa: RUF012
    serializer = Upside()


def test_a_timeout_is_refused_because_nobody_would_watch_it(jobs):
    with pytest.raises(TypeError, match="knows no timeouts"):
        jobs.handler("work", timeout=timedelta(seconds=1))


def test_the_serializer_can_be_the_apps_own(tables, rows):
    jobs = ClojureProletarian(UpsideJob)
    seen = []
    jobs.handler("my/job")(lambda session, job: seen.append(job.payload))
    put(tables, jobs, payload="abc")
    assert rows("SELECT payload FROM proletarian.job") == [("cba",)]
    jobs.process_next(tables)
    assert seen == ["abc"]


@pytest.mark.parametrize(
    ("payload", "error"),
    [(b"bytes", TypeError), ("a\x00", ValueError), ("\ud800", ValueError), ("a" * 2_000_000, ValueError)],
)
def test_what_a_serializer_gives_is_checked(payload, error):
    with pytest.raises(error):
        UpsideJob("my/job", payload)


def test_a_jobs_payload_is_not_in_its_repr():
    assert "secret" not in repr(Job("my/job", "secret"))


# work -----------------------------------------------------------------------------------------------------------------


def test_a_job_of_clojure_is_worked_and_archived(tables, jobs, rows, effects, from_clojure):
    job_id = from_clojure(":my.app/confirm", EMAIL)

    @jobs.handler("my.app/confirm")
    def confirm(session, job):
        assert (job.job_id, job.job_type, job.queue, job.attempts) == (job_id, ":my.app/confirm", ":proletarian/default", 1)
        write(session, job.payload["email"])

    assert jobs.process_next(tables) is Outcome.RETURNED
    assert effects() == ["ada@example.org"]
    assert rows("SELECT * FROM proletarian.job") == []
    [archived] = rows("SELECT *, finished_at > process_at FROM proletarian.archived_job")
    assert (archived[:5], archived[7], archived[9]) == (
        (job_id, ":proletarian/default", ":my.app/confirm", EMAIL, 1),
        ":success",
        True,
    )


def test_nothing_due_is_none(tables, jobs, from_clojure):
    jobs.handler("my/job")(lambda session, job: None)
    from_clojure(":my/job", "[]", process_at="tomorrow")
    from_clojure(":my/job", "[]", queue=":other")
    from_clojure(":not/ours", "[]")
    assert jobs.process_next(tables) is None
    assert jobs.process_next(tables, queue="other") is Outcome.RETURNED


def test_the_oldest_is_first(tables, jobs, from_clojure):
    seen = []
    jobs.handler("*")(lambda session, job: seen.append(job.payload))
    for name, due in (("b", "2026-01-02"), ("c", "2026-01-03"), ("a", "2026-01-01")):
        from_clojure(":any/type", f'["~#\'","{name}"]', process_at=due)
    while jobs.process_next(tables):
        pass
    assert seen == ["a", "b", "c"]


def test_what_a_handler_wrote_and_committed_is_undone_when_it_fails(tables, jobs, rows, effects, from_clojure):
    from_clojure(":my/job", "[]")

    @jobs.handler("my/job", retry=Retry(1, [timedelta(hours=1)]))
    def fail(session, job):
        write(session, "undone")
        session.commit()
        raise ValueError

    assert jobs.process_next(tables) is Outcome.RETRIED
    assert effects() == []
    [(attempts, wait)] = rows(JOB)
    assert (attempts, timedelta(hours=1) <= wait < timedelta(hours=2)) == (1, True)


def test_retries_and_giving_up_are_proletarians(tables, jobs, rows, from_clojure):
    from_clojure(":my/job", EMAIL)
    failed = []

    @jobs.handler(
        "my/job", retry=Retry(2), on_failed=lambda job, error: failed.append((job.payload, job.attempts, str(error)))
    )
    def fail(session, job):
        raise ValueError(job.attempts)

    assert [jobs.process_next(tables) for _ in range(4)] == [Outcome.RETRIED, Outcome.RETRIED, Outcome.GAVE_UP, None]
    assert rows(STATUS) == [(":failure", 3)]
    assert failed == [({"email": "ada@example.org"}, 3, "3")]


def test_without_a_strategy_a_failure_is_final(tables, jobs, rows, from_clojure):
    from_clojure(":my/job", "[]")
    jobs.handler("my/job")(lambda session, job: 1 / 0)
    assert jobs.process_next(tables) is Outcome.GAVE_UP
    assert rows(STATUS) == [(":failure", 1)]


def test_snooze_is_no_attempt_and_keeps_what_was_written(tables, jobs, rows, effects, from_clojure):
    from_clojure(":my/job", "[]")

    @jobs.handler("my/job")
    def wait(session, job):
        write(session, "kept")
        session.commit()
        raise Snooze(timedelta(hours=1))

    assert jobs.process_next(tables) is Outcome.SNOOZED
    [(attempts, delay)] = rows(JOB)
    assert (attempts, delay >= timedelta(hours=1), effects()) == (0, True, ["kept"])


def test_cancel_is_archived_under_a_status_that_clojure_knows(tables, jobs, rows, from_clojure):
    from_clojure(":my/job", "[]")
    failed = []

    @jobs.handler("my/job", on_failed=lambda job, error: failed.append(job))
    def cancel(session, job):
        raise Cancel

    assert jobs.process_next(tables) is Outcome.CANCELLED
    assert (rows(STATUS), failed) == ([(":failure", 1)], [])


@pytest.mark.parametrize("end", ["commit", "rollback", "close"])
def test_the_row_stays_locked_whatever_the_handler_does_to_its_session(tables, jobs, from_clojure, end):
    from_clojure(":my/job", "[]")
    seen = []

    @jobs.handler("my/job")
    def work(session, job):
        write(session, "x")
        getattr(session, end)()
        with tables.connect() as other:
            seen.extend(other.execute(text("SELECT 1 FROM proletarian.job FOR UPDATE SKIP LOCKED")))

    assert jobs.process_next(tables) is Outcome.RETURNED
    assert seen == []


def test_a_swallowed_error_of_the_database_does_not_spoil_the_settling(tables, jobs, rows, effects, from_clojure):
    from_clojure(":my/job", "[]")

    @jobs.handler("my/job")
    def work(session, job):
        try:
            with session.begin_nested():
                write(session, None)
        except IntegrityError:
            write(session, "went on")

    assert jobs.process_next(tables) is Outcome.RETURNED
    assert (effects(), rows(STATUS)) == (["went on"], [(":success", 1)])


def test_a_commit_that_the_database_refuses_is_a_failure_of_the_job(tables, jobs, rows, effects, from_clojure):
    rows("CREATE TABLE one (id int PRIMARY KEY)")
    rows("CREATE TABLE child (id int REFERENCES one DEFERRABLE INITIALLY DEFERRED)")
    from_clojure(":my/job", "[]")

    @jobs.handler("my/job", retry=Retry(1))
    def work(session, job):
        write(session, "undone")
        session.execute(text("INSERT INTO child VALUES (1)"))

    assert [jobs.process_next(tables) for _ in range(3)] == [Outcome.RETRIED, Outcome.GAVE_UP, None]
    assert (effects(), rows(STATUS)) == ([], [(":failure", 2)])


def test_a_job_whose_connection_dies_is_due_again_and_was_no_attempt(tables, jobs, rows, from_clojure):
    from_clojure(":my/job", "[]")

    @jobs.handler("my/job")
    def die(session, job):
        pid = session.scalar(text("SELECT pg_backend_pid()"))
        with tables.begin() as other:
            other.execute(text("SELECT pg_terminate_backend(:pid, 10000)"), {"pid": pid})
        session.execute(text("SELECT 1"))

    assert jobs.process_next(tables) is Outcome.CONNECTION_DIED
    assert [attempts for attempts, _ in rows(JOB)] == [0]


def test_a_failure_is_recorded_though_its_connection_has_died(tables, jobs, rows, from_clojure):
    from_clojure(":my/job", "[]")

    @jobs.handler("my/job")
    def die(session, job):
        pid = session.scalar(text("SELECT pg_backend_pid()"))
        with tables.begin() as other:
            other.execute(text("SELECT pg_terminate_backend(:pid, 10000)"), {"pid": pid})
        raise ValueError("of its own")

    assert jobs.process_next(tables) is Outcome.GAVE_UP
    assert rows(STATUS) == [(":failure", 1)]


def test_a_run_that_was_recorded_elsewhere_is_not_recorded_again(tables, jobs, rows, from_clojure):
    from_clojure(":my/job", "[]")

    @jobs.handler("my/job")
    def die(session, job):
        pid = session.scalar(text("SELECT pg_backend_pid()"))
        with tables.begin() as other:
            other.execute(text("SELECT pg_terminate_backend(:pid, 10000)"), {"pid": pid})
            # another worker has taken it meanwhile, and failed
            other.execute(text("UPDATE proletarian.job SET attempts = attempts + 1"))
        raise ValueError

    assert jobs.process_next(tables) is Outcome.CLAIM_LOST
    assert [attempts for attempts, _ in rows(JOB)] == [1]


def test_a_deadlock_is_tried_again_in_the_same_attempt(tables, jobs, rows, effects, from_clojure):
    from_clojure(":my/job", "[]")
    calls = []

    @jobs.handler("my/job")
    def work(session, job):
        calls.append(job.attempts)
        write(session, f"call {len(calls)}")
        if len(calls) == 1:
            session.execute(text("DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '40P01'; END $$"))

    assert jobs.process_next(tables) is Outcome.RETURNED
    assert (calls, effects(), rows(STATUS)) == ([1, 1], ["call 2"], [(":success", 1)])


def test_an_id_that_is_archived_already_parks_the_job(tables, jobs, rows, recorder, from_clojure):
    job_id = from_clojure(":my/job", "[]")
    rows("INSERT INTO proletarian.archived_job SELECT *, :status, now() FROM proletarian.job", status=":success")
    jobs.handler("my/job")(lambda session, job: None)
    assert jobs.process_next(tables, listener=recorder) is Outcome.PARKED
    [event] = recorder.named("job_parked")
    assert (event.job_id, "archived_job_pkey" in str(event.error)) == (job_id, True)
    [(attempts, delay)] = rows(JOB)
    assert (attempts, delay >= timedelta(minutes=1)) == (1, True)


def test_an_interrupted_job_is_as_it_was(tables, jobs, rows, from_clojure):
    from_clojure(":my/job", "[]", process_at="2026-01-01T00:00Z")
    before = rows("SELECT * FROM proletarian.job")

    @jobs.handler("my/job")
    def work(session, job):
        write(session, "undone")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        jobs.process_next(tables)
    assert rows("SELECT * FROM proletarian.job") == before


def test_interrupted_without_a_stop_is_a_failure(tables, jobs, rows, from_clojure):
    from_clojure(":my/job", "[]")

    @jobs.handler("my/job")
    def work(session, job):
        raise Interrupted

    assert jobs.process_next(tables) is Outcome.GAVE_UP


UNREADABLE = ["not json", '["~#set"', '["~uno"]', '["^ ","a",1,"~:a",2]', "[" * 100_000]


def test_a_payload_that_cannot_be_read_fails_its_job_and_no_other(tables, jobs, from_clojure):
    seen = []
    jobs.handler("my/job", on_failed=lambda job, error: seen.append(job.payload))(lambda session, job: seen.append("run"))
    for payload in UNREADABLE:
        from_clojure(":my/job", payload, process_at="2026-01-01")
    from_clojure(":my/job", "[]")
    assert [jobs.process_next(tables) for _ in range(7)] == [*[Outcome.GAVE_UP] * 5, Outcome.RETURNED, None]
    assert seen == [*[None] * 5, "run"]


def test_instants_beyond_the_calendar_do_not_stop_the_queue(tables, jobs, rows, from_clojure):
    from_clojure(":my/job", "[]", process_at="-infinity")
    rows("UPDATE proletarian.job SET enqueued_at = 'infinity'")
    seen = []
    jobs.handler("my/job")(lambda session, job: seen.append((job.enqueued_at.year, job.process_at.year)))
    assert jobs.process_next(tables) is Outcome.RETURNED
    assert seen == [(9999, 1)]
    assert rows("SELECT process_at::text, enqueued_at::text FROM proletarian.archived_job") == [("-infinity", "infinity")]


@pytest.mark.parametrize("attempts", [2**31 - 1, -5])
def test_odd_attempts_do_not_stop_the_queue(tables, jobs, rows, from_clojure, attempts):
    from_clojure(":my/job", "[]")
    rows(f"UPDATE proletarian.job SET attempts = {attempts}")
    jobs.handler("my/job", retry=Retry(1))(lambda session, job: 1 / 0)
    assert jobs.process_next(tables) is Outcome.GAVE_UP


def test_a_server_that_limits_idle_transactions_does_not_end_a_thinking_handler(tables, jobs, rows, from_clojure):
    [(name,)] = rows("SELECT current_database()")
    rows(f"ALTER DATABASE {name} SET idle_in_transaction_session_timeout = 200")
    from_clojure(":my/job", "[]")

    @jobs.handler("my/job")
    def think(session, job):
        with tables.connect() as other:
            other.execute(text("SELECT pg_sleep(0.5)"))
        write(session, "thought")

    assert jobs.process_next(tables) is Outcome.RETURNED


def test_the_rights_that_proletarians_script_grants_are_enough(tables, database_url, jobs, rows, from_clojure):
    role = f"clojure_{uuid4().hex}"
    rows(f"CREATE ROLE {role} LOGIN PASSWORD 'x'")
    rows(f"GRANT USAGE ON SCHEMA proletarian TO {role}")
    rows(f"GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON proletarian.job TO {role}")
    rows(f"GRANT SELECT, INSERT, TRUNCATE ON proletarian.archived_job TO {role}")
    from_clojure(":my/job", "[]")
    from_clojure(":my/job", "[]")
    jobs.handler("my/job", retry=Retry(1))(lambda session, job: 1 / 0)
    engine = create_engine(database_url.set(username=role, password="x"))
    try:
        outcomes = [jobs.process_next(engine) for _ in range(4)]
    finally:
        engine.dispose()
        rows(f"DROP OWNED BY {role}")
        rows(f"DROP ROLE {role}")
    assert sorted(outcomes) == ["gave_up", "gave_up", "retried", "retried"]


def test_events_are_the_librarys_and_hold_no_payload(tables, jobs, recorder, caplog, from_clojure):
    from_clojure(":my/job", '["~#\'","secret"]')
    jobs.handler("my/job")(lambda session, job: None)
    jobs.process_next(tables, listener=recorder)
    assert recorder.names == ["handling_job", "job_finished"]
    assert recorder.events[0].queue == ":proletarian/default"
    from_clojure(":my/job", '["~usecret"]')
    with caplog.at_level(logging.DEBUG):
        jobs.process_next(tables)
    assert "not_retrying" in caplog.text
    assert "secret" not in caplog.text


def test_archived_payloads_can_be_read(tables, jobs, from_clojure):
    from_clojure(":my/job", EMAIL)
    jobs.handler("my/job")(lambda session, job: None)
    jobs.process_next(tables)
    with Session(tables) as session:
        archived = session.query(ArchivedJob).one()
        assert TransitSerializer().decode(archived.payload) == {Keyword("email"): "ada@example.org"}


# handlers -------------------------------------------------------------------------------------------------------------


def test_a_handler_is_found_however_its_type_is_written(jobs):
    jobs.handler(":my/job")(lambda session, job: None)
    with pytest.raises(ValueError, match="already"):
        jobs.handler("my/job")(lambda session, job: None)


def test_a_handlers_function_names_its_type(tables, jobs, rows):
    @jobs.handler("my/job")
    def work(session, job):
        pass

    put(tables, jobs, work)
    assert rows("SELECT job_type FROM proletarian.job") == [(":my/job",)]


def test_async_handlers_are_refused(tables, jobs):
    @jobs.handler("my/job")
    async def work(session, job):
        pass

    with pytest.raises(TypeError, match="async"):
        jobs.process_next(tables)


# drivers --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_an_async_engine_of_the_app_works_too(tables, database_url, jobs, rows, from_clojure, driver):
    from_clojure(":my/job", EMAIL)

    @jobs.handler("my/job", retry=Retry(1, [timedelta(0)]))
    def work(session, job):
        write(session, job.payload["email"])
        if job.attempts == 1:
            raise ValueError

    engine = create_async_engine(database_url.set(drivername=f"postgresql+{driver}"))
    assert [jobs.process_next(engine) for _ in range(3)] == [Outcome.RETRIED, Outcome.RETURNED, None]
    assert (rows(STATUS), rows("SELECT what FROM effect")) == ([(":success", 2)], [("ada@example.org",)])
