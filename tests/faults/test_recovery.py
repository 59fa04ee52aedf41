"""How soon somebody else has the jobs of a worker that died, and that nobody has those of one that lives.

The leases here last an hour: whatever happens sooner is not theirs. ``benchmarks/recovery.py`` prints how soon it is.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import threading
import time
from datetime import timedelta

import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from sa_proletarian import Worker, vigil

HOUR = timedelta(hours=1)
PATIENCE = 60

WORKER = """
    import sys
    from datetime import timedelta
    from sqlalchemy import create_engine, text
    from sa_proletarian import Proletarian, Worker

    jobs = Proletarian()

    @jobs.handler("idle")
    def idle(session, job):
        print("running", flush=True)
        sys.stdin.readline()

    @jobs.handler("holding")
    def holding(session, job):
        session.execute(text("INSERT INTO effect VALUES ('gone')"))
        idle(session, job)

    Worker(jobs, create_engine(sys.argv[1]), threads=2, lease=timedelta(hours=1), worker_id="the other").run()
"""
TIED = "SELECT count(*) FROM proletarian_worker WHERE detail->>'tied' = 'true'"


@pytest.fixture
def the_other(database_url, tables):
    """Return a process with a worker that runs what is enqueued before, and says so."""
    command = [sys.executable, "-c", textwrap.dedent(WORKER), database_url.render_as_string(hide_password=False)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def enqueue(jobs, engine, *job_types):
    with Session(engine) as session, session.begin():
        for job_type in job_types:
            jobs.enqueue(session, job_type)


def until(rows, statement, expected):
    deadline = time.monotonic() + PATIENCE
    while (found := rows(statement)) != expected:
        assert time.monotonic() < deadline, found


def until_watched(worker, name):
    """Wait until ``worker`` has seen that the other lives."""
    deadline = time.monotonic() + PATIENCE
    while name not in worker._shift._feeder._vigil._seen:
        assert time.monotonic() < deadline
        threading.Event().wait(0.02)


def test_the_jobs_of_a_process_that_dies_are_run_elsewhere_and_the_death_is_counted(
    jobs, tables, the_other, start_worker, recorder, rows
):
    enqueue(jobs, tables, "idle", "holding")
    assert [the_other.stdout.readline() for _ in range(2)] == ["running\n"] * 2
    until(rows, TIED, [(1,)])
    seen = []
    jobs.handler("idle")(lambda session, job: seen.append((job.job_type, job.attempts, job.crashes)))
    jobs.handler("holding")(lambda session, job: seen.append((job.job_type, job.attempts, job.crashes)))
    worker = start_worker(jobs, lease=HOUR, threads=2)
    until_watched(worker, "the other")
    the_other.send_signal(signal.SIGKILL)
    recorder.wait_for("job_finished", 2, timeout=PATIENCE)
    assert sorted(seen) == [("holding", 1, 1), ("idle", 1, 1)]
    assert rows("SELECT what FROM effect") == []
    until(rows, "SELECT count(*) FROM proletarian_worker WHERE worker_id = 'the other'", [(0,)])


def test_a_process_that_died_before_anybody_watched_it_is_not_overlooked(
    jobs, tables, the_other, start_worker, recorder, rows, monkeypatch
):
    monkeypatch.setattr(vigil, "AWAY", 3.0)
    enqueue(jobs, tables, "idle")
    assert the_other.stdout.readline() == "running\n"
    until(rows, TIED, [(1,)])
    the_other.kill()
    the_other.wait()
    jobs.handler("idle")(lambda session, job: None)
    start_worker(jobs, lease=HOUR)
    recorder.wait_for("job_finished", timeout=PATIENCE)


def test_a_worker_that_lives_keeps_its_jobs_though_all_its_connections_are_ended(
    jobs, tables, database_url, start_worker, recorder, rows, monkeypatch
):
    """It has a moment to come back, which is long here: a busy machine is no death."""
    monkeypatch.setattr(vigil, "GRACE", 20.0)
    begun, go_on, starts = threading.Event(), threading.Event(), []

    @jobs.handler("long")
    def long(session, job):
        starts.append(job.attempts)
        begun.set()
        assert go_on.wait(PATIENCE)

    engine = create_engine(database_url, connect_args={"application_name": "the living"})
    with Worker(jobs, engine, lease=HOUR, worker_id="the living", listener=recorder):
        enqueue(jobs, tables, "long")
        assert begun.wait(PATIENCE)
        until(rows, TIED, [(1,)])
        watching = start_worker(jobs, lease=HOUR)
        until_watched(watching, "the living")
        for _ in range(2):
            backends = "FROM pg_stat_activity WHERE application_name = 'the living'"
            assert rows(f"SELECT pg_terminate_backend(pid, 5000) {backends}")
            until(
                rows, f"SELECT count(*) {backends} AND pid IN (SELECT pid FROM pg_locks WHERE locktype = 'advisory')", [(2,)]
            )
            watched = watching._shift._feeder._vigil
            deadline = time.monotonic() + PATIENCE
            while "the living" in watched._missed:
                assert time.monotonic() < deadline
        go_on.set()
        recorder.wait_for("job_finished", timeout=PATIENCE)
    engine.dispose()
    assert (starts, recorder.named("claim_lost")) == ([1], [])


def test_a_worker_that_may_not_be_woken_is_left_to_its_lease(jobs, tables, start_worker, recorder, rows):
    """It shows no beacon, and so nobody may conclude anything from there being none."""
    with Worker(jobs, tables, wake=False, worker_id="the silent", listener=recorder):
        until(rows, "SELECT count(*) FROM proletarian_worker WHERE worker_id = 'the silent'", [(1,)])
        assert rows(TIED) == [(0,)]


def test_the_workers_of_a_server_that_crashes_keep_their_jobs_and_go_on(
    postgres, administration, jobs, tables, start_worker, recorder, rows
):
    begun, go_on, starts = threading.Event(), threading.Event(), []

    @jobs.handler("long")
    def long(session, job):
        starts.append(job.attempts)
        begun.set()
        assert go_on.wait(PATIENCE)

    jobs.handler("short")(lambda session, job: None)
    enqueue(jobs, tables, "long")
    start_worker(jobs, lease=HOUR)
    assert begun.wait(PATIENCE)
    start_worker(jobs, lease=HOUR)
    until(rows, TIED, [(2,)])
    rows("INSERT INTO effect VALUES ('the log is on the disk up to here')")  # else the crash may forget the claim
    postgres.crash()
    postgres.start()
    administration.dispose()
    tables.dispose()
    enqueue(jobs, tables, "short")
    recorder.wait_for("job_finished", timeout=PATIENCE)
    go_on.set()
    recorder.wait_for("job_finished", 2, timeout=PATIENCE)
    assert (starts, recorder.named("claim_lost")) == ([1], [])
