"""What goes on now, read from the worker table: workers, how far their jobs are, and what shall be given up."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from sa_proletarian import Cancellation, ConfigurationError, RunningJob, progress, requests
from sa_proletarian.roster import is_silent

PATIENCE = 20


@pytest.fixture
def diligent(monkeypatch):
    """Let workers write at each turn, and never look for requests."""
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    monkeypatch.setattr(requests, "INTERVAL", 3600.0)


def test_workers_and_their_jobs_are_seen_and_gone_when_they_have_ended(jobs, tables, start_worker, diligent):
    free = threading.Event()

    @jobs.handler("work")
    def work(session, job):
        job.progress(1, 3, "begun")
        assert free.wait(PATIENCE)

    with Session(tables) as session, session.begin():
        job_id = jobs.enqueue(session, "work").job_id
    worker = start_worker(jobs, worker_id="me")

    def read():
        with Session(tables) as session:
            return jobs.running(session)

    while not (found := read()).jobs:
        pass
    [row] = found.jobs
    assert row == RunningJob(str(job_id), "me", 1, 3, "begun", 1, row.seen_at)
    [shown] = found.workers
    assert (shown.worker_id, shown.queue, shown.silent, shown.detail["threads"]) == ("me", "default", False, 1)
    assert shown.started_at <= shown.seen_at
    assert found.cancelling == []
    with Session(tables) as session, session.begin():
        for _ in range(2):
            assert jobs.cancel(session, job_id) is Cancellation.REQUESTED
    assert read().cancelling == [str(job_id)]
    free.set()
    worker.stop()
    assert (read().workers, read().jobs) == ([], [])


def test_a_worker_that_was_not_seen_for_long_is_silent(jobs, tables, rows):
    rows(
        "INSERT INTO proletarian_worker VALUES"
        " ('queue', 'mail', 'dead', false, '{\"lease\": 1}', now() - interval '1 day', now() - interval '10 s'),"
        " ('queue', 'mail', 'slow', true, '{\"lease\": 60}', now() - interval '1 day', now() - interval '10 s'),"
        " ('queue', 'mail', 'odd', true, '[]', now(), now()),"
        " ('job', 'x', 'odd', false, 'null', now(), now())"
    )
    with tables.connect() as connection:
        found = jobs.running(connection)
    assert [(worker.worker_id, worker.silent, worker.idle) for worker in found.workers] == [
        ("dead", True, False),
        ("odd", False, True),
        ("slow", False, True),
    ]
    assert [(job.job_id, job.done, job.total, job.attempt) for job in found.jobs] == [("x", 0, None, 1)]


@pytest.mark.parametrize("change", [datetime(2027, 3, 28, 1, tzinfo=UTC), datetime(2027, 10, 31, 1, tzinfo=UTC)])
def test_how_long_a_worker_was_not_seen_does_not_depend_on_a_change_of_clocks(change):
    def seen(seconds):
        now, then = (change + timedelta(seconds=second) for second in (1, 1 - seconds))
        berlin = ZoneInfo("Europe/Berlin")  # psycopg gives times in the session's zone
        return SimpleNamespace(now=now.astimezone(berlin), last_seen_at=then.astimezone(berlin), detail={"lease": 30})

    assert not is_silent(seen(seconds=2))
    assert is_silent(seen(seconds=600))


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_async_sessions_and_connections_run_it(jobs, tables, database_url, driver):
    async def main():
        engine = create_async_engine(database_url.set(drivername=f"postgresql+{driver}"))
        async with engine.connect() as connection:
            assert (await connection.run_sync(jobs.running)).workers == []
            with pytest.raises(TypeError, match="run_sync"):
                jobs.running(connection)
        await engine.dispose()

    asyncio.run(main())


def test_without_the_table_it_is_refused_and_the_transaction_goes_on(jobs, tables, rows):
    rows("DROP TABLE proletarian_worker")
    with Session(tables) as session, session.begin():
        with pytest.raises(ConfigurationError, match="alembic upgrade head"):
            jobs.running(session)
        jobs.enqueue(session, "work", process_in=timedelta(hours=1))
    assert rows("SELECT count(*) FROM proletarian_job") == [(1,)]


def test_what_is_no_target_is_refused(jobs, tables):
    for wrong in (tables, sessionmaker(tables), Session, None):
        with pytest.raises(TypeError, match="running takes a session or a connection"):
            jobs.running(wrong)
    with tables.connect() as connection:
        assert connection.execute(text("SELECT 1")).scalar() == 1
