"""What handlers say of their progress: seen by others at once, written seldom, gone with the run."""

from __future__ import annotations

import asyncio
import threading
import time
from datetime import timedelta

import psycopg
import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

from sa_proletarian import AsyncWorker, Job, Outcome, progress

PATIENCE = 20
# a worker rests for a third of its lease
OPTIONS = {"lease": timedelta(milliseconds=600), "worker_id": "me"}
ROWS = "SELECT subject, worker_id, idle, detail FROM proletarian_worker WHERE kind = 'job' ORDER BY detail->>'done'"


@pytest.fixture
def enqueue(jobs, tables):
    def enqueue(*job_types):
        with Session(tables) as session, session.begin():
            return [jobs.enqueue(session, job_type).job_id for job_type in job_types]

    return enqueue


@pytest.fixture(params=["psycopg", "asyncpg"])
def url(request, database_url):
    return database_url.set(drivername=f"postgresql+{request.param}")


@pytest.fixture
def diligent(monkeypatch):
    """Let workers write at each turn."""
    monkeypatch.setattr(progress, "INTERVAL", 0.0)


@pytest.fixture
def until(tables, database_url):
    """Return a function that waits until something is found, asking after each change of the worker table."""
    with tables.begin() as connection:
        connection.execute(
            text(
                "CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS"
                " $$ BEGIN PERFORM pg_notify('changes', TG_OP); RETURN NULL; END $$"
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

        def until(found):
            deadline = time.monotonic() + PATIENCE
            while not (result := found()):
                assert list(connection.notifies(timeout=deadline - time.monotonic(), stop_after=1))
            return result

        yield until


def detail(done, total=None, note=None, attempt=1):
    return {"done": done, "total": total, "note": note, "attempt": attempt}


# threads


def test_progress_is_seen_while_the_handlers_transaction_is_open_and_gone_when_it_ends(
    jobs, enqueue, start_worker, recorder, rows, diligent, until
):
    steps = [threading.Event() for _ in range(2)]

    @jobs.handler("work")
    def work(session, job):
        session.get(Job, job.job_id, with_for_update=True)  # others who wrote to it would wait
        job.progress(1, 3, "begun")
        assert steps[0].wait(PATIENCE)
        job.progress(2.5, total=3)
        assert steps[1].wait(PATIENCE)

    [job_id] = enqueue("work")
    start_worker(jobs, **OPTIONS)
    until(lambda: rows(ROWS) == [(str(job_id), "me", False, detail(1, 3, "begun"))])
    [(since, seen)] = rows("SELECT started_at, last_seen_at FROM proletarian_worker WHERE kind = 'job'")
    steps[0].set()
    until(lambda: rows(ROWS) == [(str(job_id), "me", False, detail(2.5, 3))])
    [(still, later)] = rows("SELECT started_at, last_seen_at FROM proletarian_worker WHERE kind = 'job'")
    assert since == still == seen < later
    steps[1].set()
    until(lambda: rows(ROWS) == [])
    recorder.wait_for("job_finished")


def test_each_job_has_its_own_and_each_attempt_says_which_it_is(
    jobs, enqueue, start_worker, recorder, rows, diligent, until
):
    free = threading.Event()

    @jobs.handler("work")
    def work(session, job):
        job.progress(job.attempts)
        assert free.wait(PATIENCE)

    one, two = enqueue("work", "work")
    rows("UPDATE proletarian_job SET attempts = 4 WHERE job_id = :id", id=two)
    start_worker(jobs, threads=2, **OPTIONS)
    expected = [(str(one), "me", False, detail(1)), (str(two), "me", False, detail(5, attempt=5))]
    until(lambda: rows(ROWS) == expected)
    free.set()
    recorder.wait_for("job_finished", 2)
    until(lambda: rows(ROWS) == [])


def test_it_is_written_once_a_second_at_most_and_the_latest_wins(jobs, enqueue, start_worker, rows, tables, until):
    written, free = [], threading.Event()

    @event.listens_for(tables, "before_cursor_execute")
    def note(connection, cursor, statement, parameters, *rest):
        if "INSERT INTO proletarian_worker" in statement and "'kind': 'job'" in str(parameters):
            written.append(time.monotonic())

    @jobs.handler("work")
    def work(session, job):
        done = 0
        while not free.is_set():
            done += 1
            job.progress(done)

    enqueue("work")
    start_worker(jobs, **OPTIONS)
    until(lambda: len(written) >= 3)
    free.set()
    gaps = [later - earlier for earlier, later in zip(written, written[1:], strict=False)]
    assert min(gaps) > 0.9
    until(lambda: rows(ROWS) == [])


def test_what_has_not_changed_is_not_written_again(jobs, enqueue, start_worker, rows, tables, diligent, until):
    written, free = [], threading.Event()

    @event.listens_for(tables, "before_cursor_execute")
    def note(connection, cursor, statement, parameters, *rest):
        if "INSERT INTO proletarian_worker" in statement:
            written.append("'kind': 'job'" in str(parameters))

    @jobs.handler("work")
    def work(session, job):
        job.progress(1)
        assert free.wait(PATIENCE)

    enqueue("work")
    start_worker(jobs, **OPTIONS)
    until(lambda: rows(ROWS))
    before = written.count(False)
    until(lambda: written.count(False) >= before + 3)  # so often the worker's own row was written meanwhile
    assert written.count(True) == 1
    free.set()


def test_a_note_may_be_anything_and_is_cut(jobs, enqueue, start_worker, rows, diligent, until):
    free = threading.Event()

    @jobs.handler("work")
    def work(session, job):
        job.progress(1, None, "a\x00b\ud800" + "x" * 1000)
        assert free.wait(PATIENCE)

    enqueue("work")
    start_worker(jobs, **OPTIONS)
    [(_, _, _, found)] = until(lambda: rows(ROWS))
    assert found["note"] == "a\\x00b\\ud800" + "x" * 496
    free.set()


@pytest.mark.parametrize("wrong", [("1",), (None,), (True,), (1, "2"), (1, 2, 3), (float("nan"),), (1, float("inf"))])
def test_what_is_no_progress_is_refused(wrong):
    with pytest.raises((TypeError, ValueError), match="must be"):
        Job("work").progress(*wrong)


def test_outside_of_a_worker_nothing_happens(jobs, tables, enqueue, rows):
    @jobs.handler("work")
    def work(session, job):
        job.progress(1)

    Job("work").progress(1)
    enqueue("work")
    assert jobs.process_next(tables) is Outcome.RETURNED
    assert rows("SELECT * FROM proletarian_worker") == []


def test_without_the_table_the_job_is_done_all_the_same(jobs, enqueue, start_worker, recorder, rows, diligent):
    rows("DROP TABLE proletarian_worker")
    jobs.handler("work")(lambda session, job: job.progress(1))
    enqueue("work", "work")
    start_worker(jobs, **OPTIONS)
    recorder.wait_for("job_finished", 2)
    assert len(recorder.named("presence_unavailable")) == 1


def test_what_a_stuck_job_has_said_is_gone_when_its_worker_stops(jobs, enqueue, start_worker, rows, diligent, until):
    free = threading.Event()

    @jobs.handler("work")
    def work(session, job):
        job.progress(1)
        assert free.wait(PATIENCE)

    enqueue("work")
    worker = start_worker(jobs, **OPTIONS)
    until(lambda: rows(ROWS))
    assert not worker.stop(timedelta(0))
    assert rows("SELECT * FROM proletarian_worker") == []
    free.set()


def test_the_rows_of_workers_that_are_gone_are_removed_and_others_stay(jobs, start_worker, rows, until):
    def put(kind, subject, worker_id, age):
        rows(
            "INSERT INTO proletarian_worker (kind, subject, worker_id, idle, detail, started_at, last_seen_at) VALUES"
            f" (:kind, :subject, :worker_id, false, '{{\"lease\": 30}}', now(), now() - interval '{age}')",
            kind=kind,
            subject=subject,
            worker_id=worker_id,
        )

    put("job", "1", "gone", "1 s")
    put("job", "2", "there", "1 day")
    put("queue", "default", "there", "1 s")
    start_worker(jobs, **OPTIONS)
    until(lambda: len(rows(ROWS)) == 1)
    assert rows(ROWS)[0][:2] == ("2", "there")


# asyncio


def test_handlers_of_an_async_worker_say_it_likewise(url, jobs, enqueue, recorder, rows, diligent, until):
    free = threading.Event()

    @jobs.handler("task")
    async def task(session, job):
        await session.get(Job, job.job_id, with_for_update=True)
        job.progress(1, 2, "a task")
        await asyncio.to_thread(free.wait, PATIENCE)

    @jobs.handler("thread")
    def thread(session, job):
        job.progress(2, 2, "a thread")
        assert free.wait(PATIENCE)

    one, two = enqueue("task", "thread")

    async def main():
        engine = create_async_engine(url)
        async with AsyncWorker(jobs, engine, listener=recorder, **OPTIONS):
            expected = [(str(one), "me", False, detail(1, 2, "a task")), (str(two), "me", False, detail(2, 2, "a thread"))]
            await asyncio.to_thread(until, lambda: rows(ROWS) == expected)
            free.set()
            await asyncio.to_thread(until, lambda: rows(ROWS) == [])
            await asyncio.to_thread(recorder.wait_for, "job_finished", 2)
        await engine.dispose()

    asyncio.run(main())
