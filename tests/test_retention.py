"""Retention: workers prune their archive in the background, one at a time, and never in the way of work."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

from sa_proletarian import ArchivedJob, AsyncWorker, Job, Worker, clojure, pruning
from sa_proletarian.grants import grants
from sa_proletarian.pruning import Passes

DAY, SECOND, SOON = timedelta(days=1), timedelta(seconds=1), timedelta(milliseconds=20)
OLD = """
    INSERT INTO proletarian_archived_job (job_id, queue, job_type, payload, attempts, enqueued_at, process_at, status,
                                          finished_at)
    SELECT gen_random_uuid(), 'other', 'work', '1', 1, now(), now(), 'success', now() - interval '15 days'
      FROM generate_series(1, 3000)
"""
MARK = "SELECT subject, worker_id FROM proletarian_worker WHERE kind = 'prune'"


def until(condition, patience=20):
    """Ask the database again and again, where no event tells."""
    pause = threading.Event()
    for _ in range(int(patience / 0.05)):
        if condition():
            return
        pause.wait(0.05)
    raise AssertionError(f"not in {patience} s")


def test_a_worker_prunes_what_is_there_and_what_becomes_old(jobs, tables, start_worker, recorder, rows):
    rows(OLD)
    jobs.handler("work")(lambda session, job: None)
    with Session(tables) as session, session.begin():
        jobs.enqueue(session, "work")
    start_worker(jobs, retention=SECOND)
    recorder.wait_for("job_finished")
    until(lambda: rows("SELECT count(*) FROM proletarian_archived_job") == [(0,)])
    until(lambda: sum(event.rows for event in recorder.named("archive_pruned")) == 3001)
    assert recorder.named("pruning_failed") == []


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_an_async_worker_does_so_too(jobs, tables, recorder, rows, driver):
    rows(OLD)

    async def prune():
        engine = create_async_engine(tables.url.set(drivername=f"postgresql+{driver}"))
        async with AsyncWorker(jobs, engine, polling_interval=SOON, listener=recorder, retention=14 * DAY):
            await asyncio.to_thread(recorder.wait_for, "archive_pruned")
        await engine.dispose()

    asyncio.run(prune())
    assert recorder.named("archive_pruned")[0].rows == 3000
    assert rows("SELECT count(*) FROM proletarian_archived_job") == [(0,)]


def test_without_retention_nothing_is_pruned_and_no_thread_started(jobs, start_worker, rows):
    rows(OLD)
    worker = start_worker(jobs)
    assert not [thread for thread in threading.enumerate() if thread.name == f"{worker.worker_id}-retention"]
    assert rows(MARK) == []


def test_a_pass_is_begun_by_one_worker_in_an_interval(tables, rows):
    mine, theirs = (Passes(Job, ArchivedJob, 14 * DAY) for _ in range(2))
    longer = Passes(Job, ArchivedJob, 30 * DAY)
    with tables.begin() as connection:
        assert mine.begin(connection, DAY)
    with tables.begin() as connection:
        assert (mine.begin(connection, DAY), theirs.begin(connection, DAY)) == (False, False)
        assert longer.begin(connection, DAY)
    rows("UPDATE proletarian_worker SET last_seen_at = now() - interval '25 hours' WHERE kind = 'prune'")
    with tables.begin() as connection:
        assert theirs.begin(connection, DAY)
        assert not mine.begin(connection, DAY)
        theirs.give_back(connection)
    with tables.begin() as connection:
        assert mine.begin(connection, DAY)


def test_a_model_without_a_worker_table_has_nowhere_to_write_it_down(tables):
    passes = Passes(clojure.Job, clojure.ArchivedJob, 14 * DAY)
    with tables.begin() as connection:
        assert passes.begin(connection, DAY) and passes.begin(connection, DAY)
        passes.give_back(connection)


def test_a_stop_within_a_pass_leaves_it_to_the_next_worker(jobs, tables, start_worker, recorder, rows, monkeypatch):
    monkeypatch.setitem(pruning.LIMITS, "lock_timeout", "20ms")
    monkeypatch.setattr(pruning, "PATIENCE", 1_000_000)
    rows(OLD)
    with tables.connect() as holder:
        holder.execute(text("SELECT FROM proletarian_archived_job LIMIT 1 FOR UPDATE"))
        worker = start_worker(jobs, retention=14 * DAY)
        until(lambda: rows(MARK) == [("proletarian_archived_job 1209600", "")])
        assert worker.stop()
        until(lambda: rows(MARK) == [])
        holder.rollback()
    assert recorder.named("archive_pruned") == []
    start_worker(jobs, retention=14 * DAY)
    assert recorder.wait_for("archive_pruned")[0].rows == 3000


def test_a_worker_that_may_not_prune_says_so_and_works(jobs, tables, administration, recorder, rows):
    rows(OLD)
    name = f"worker_{tables.url.database}"
    rows(f"CREATE ROLE {name} LOGIN")
    given = grants("worker", to=name)
    for statement in given.statements():
        rows(statement)
    jobs.handler("work")(lambda session, job: None)
    with Session(tables) as session, session.begin():
        jobs.enqueue(session, "work")
    engine = create_engine(tables.url.set(username=name))
    options = {"polling_interval": SOON, "listener": recorder, "retention": 14 * DAY}
    try:
        with Worker(jobs, engine, **options):
            recorder.wait_for("job_finished")
            assert "permission denied" in str(recorder.wait_for("pruning_failed")[0].error)
        rows(MARK.replace("SELECT subject, worker_id", "DELETE"))
        rows(next(note for note in given.notes if "DELETE" in note))
        with Worker(jobs, engine, **options):
            assert recorder.wait_for("archive_pruned")[0].rows == 3000
    finally:
        engine.dispose()
        rows(f"DROP OWNED BY {name}")
        rows(f"DROP ROLE {name}")


@pytest.mark.parametrize("retention", [14, -DAY, timedelta(0), timedelta(milliseconds=999)])
def test_a_retention_that_is_none_is_refused(jobs, tables, retention):
    with pytest.raises((TypeError, ValueError), match="retention must be"):
        Worker(jobs, tables, retention=retention)
    async_engine = create_async_engine(tables.url)
    with pytest.raises((TypeError, ValueError), match="retention must be"):
        AsyncWorker(jobs, async_engine, retention=retention)
