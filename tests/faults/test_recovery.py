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
from contextlib import contextmanager
from datetime import timedelta
from types import SimpleNamespace

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from machinery import waiting
from sa_proletarian import Worker, metadata, vigil
from sa_proletarian.mysql.beacons import MySQLLife, _lock

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


@pytest.fixture
def long_job(jobs):
    """Handle ``long``, until it may ``go_on``; ``starts`` says with which attempts it has begun."""
    running = SimpleNamespace(begun=threading.Event(), go_on=threading.Event(), starts=[])

    @jobs.handler("long")
    def long(session, job):
        running.starts.append(job.attempts)
        running.begun.set()
        assert running.go_on.wait(PATIENCE)

    return running


def enqueue(jobs, engine, *job_types):
    with Session(engine) as session, session.begin():
        for job_type in job_types:
            jobs.enqueue(session, job_type)


def until(rows, statement, expected):
    waiting.until(lambda: rows(statement) == expected, PATIENCE, lambda: rows(statement))


def until_watched(worker, name):
    """Wait until ``worker`` has seen that the other lives."""
    waiting.until(lambda: name in worker._shift._feeder._vigil._seen, PATIENCE, lambda: f"{name} was not seen")


def until_back(worker, name):
    """Wait until ``worker`` no longer misses the other."""
    waiting.until(lambda: name not in worker._shift._feeder._vigil._missed, PATIENCE, lambda: f"{name} is missed")


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
    jobs, tables, database_url, long_job, start_worker, recorder, rows, monkeypatch
):
    """It has a moment to come back, which is long here: a busy machine is no death."""
    monkeypatch.setattr(vigil, "GRACE", 20.0)
    engine = create_engine(database_url, connect_args={"application_name": "the living"})
    with Worker(jobs, engine, lease=HOUR, worker_id="the living", listener=recorder):
        enqueue(jobs, tables, "long")
        assert long_job.begun.wait(PATIENCE)
        until(rows, TIED, [(1,)])
        watching = start_worker(jobs, lease=HOUR)
        until_watched(watching, "the living")
        for _ in range(2):
            backends = "FROM pg_stat_activity WHERE application_name = 'the living'"
            assert rows(f"SELECT pg_terminate_backend(pid, 5000) {backends}")
            until(
                rows, f"SELECT count(*) {backends} AND pid IN (SELECT pid FROM pg_locks WHERE locktype = 'advisory')", [(2,)]
            )
            until_back(watching, "the living")
        long_job.go_on.set()
        recorder.wait_for("job_finished", timeout=PATIENCE)
    engine.dispose()
    assert (long_job.starts, recorder.named("claim_lost")) == ([1], [])


def test_a_worker_that_lives_is_not_taken_for_dead_by_one_that_looks_often(
    jobs, tables, long_job, start_worker, recorder, rows, monkeypatch
):
    for name, seconds in (("LOOK", 0.1), ("GRACE", 0.3), ("AWAY", 0.0)):
        monkeypatch.setattr(vigil, name, seconds)
    with Worker(jobs, tables, lease=HOUR, worker_id="the living", listener=recorder):
        enqueue(jobs, tables, "long")
        assert long_job.begun.wait(PATIENCE)
        until(rows, TIED, [(1,)])
        watching, looks = start_worker(jobs, lease=HOUR)._shift._feeder._vigil, set()
        deadline = time.monotonic() + PATIENCE
        while len(looks) < 15 and len(long_job.starts) == 1:
            looks.add(watching._next_look)
            assert time.monotonic() < deadline
            threading.Event().wait(0.02)
        long_job.go_on.set()
        recorder.wait_for("job_finished", timeout=PATIENCE)
    assert (long_job.starts, recorder.named("claim_lost")) == ([1], [])


def test_a_worker_that_may_not_be_woken_is_left_to_its_lease(jobs, tables, start_worker, recorder, rows):
    """It shows no beacon, and so nobody may conclude anything from there being none."""
    with Worker(jobs, tables, wake=False, worker_id="the silent", listener=recorder):
        until(rows, "SELECT count(*) FROM proletarian_worker WHERE worker_id = 'the silent'", [(1,)])
        assert rows(TIED) == [(0,)]


def test_the_workers_of_a_server_that_crashes_keep_their_jobs_and_go_on(
    postgres, administration, jobs, tables, long_job, start_worker, recorder, rows
):
    jobs.handler("short")(lambda session, job: None)
    enqueue(jobs, tables, "long")
    start_worker(jobs, lease=HOUR)
    assert long_job.begun.wait(PATIENCE)
    start_worker(jobs, lease=HOUR)
    until(rows, TIED, [(2,)])
    rows("INSERT INTO effect VALUES ('the log is on the disk up to here')")  # else the crash may forget the claim
    postgres.crash()
    postgres.start()
    administration.dispose()
    tables.dispose()
    enqueue(jobs, tables, "short")
    recorder.wait_for("job_finished", timeout=PATIENCE)
    long_job.go_on.set()
    recorder.wait_for("job_finished", 2, timeout=PATIENCE)
    assert (long_job.starts, recorder.named("claim_lost")) == ([1], [])


# on MariaDB


@pytest.fixture
def there(mariadb_engine, rows_on):
    """Return an engine on a MariaDB that has the tables, and a function that gives its rows."""
    metadata.create_all(mariadb_engine)
    rows = rows_on(mariadb_engine)
    rows("CREATE TABLE effect (what varchar(100))")
    return mariadb_engine, rows


@contextmanager
def killed(process):
    """Let nobody wait for a process that goes on where the test does not."""
    try:
        yield
    finally:
        process.kill()


TIED_THERE = "SELECT worker_id FROM proletarian_worker WHERE CAST(detail AS CHAR(200)) LIKE '%tied%'"


@pytest.mark.slow
def test_on_mariadb_too_the_jobs_of_a_process_that_dies_are_run_elsewhere(jobs, there, recorder):
    engine, rows = there
    command = [sys.executable, "-c", textwrap.dedent(WORKER), engine.url.render_as_string(hide_password=False)]
    enqueue(jobs, engine, "idle", "holding")
    seen = []
    for job_type in ("idle", "holding"):
        jobs.handler(job_type)(lambda session, job: seen.append((job.job_type, job.attempts, job.crashes)))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process, killed(process):
        assert [process.stdout.readline() for _ in range(2)] == ["running\n"] * 2
        until(rows, TIED_THERE, [("the other",)])
        with Worker(jobs, engine, lease=HOUR, threads=2, listener=recorder) as worker:
            until_watched(worker, "the other")
            process.kill()
            recorder.wait_for("job_finished", 2, timeout=PATIENCE)
            until(rows, "SELECT count(*) FROM proletarian_worker WHERE worker_id = 'the other'", [(0,)])
    assert sorted(seen) == [("holding", 1, 1), ("idle", 1, 1)]
    assert rows("SELECT what FROM effect") == []


@pytest.mark.slow
def test_on_mariadb_a_worker_that_lives_keeps_its_jobs_though_its_feeders_connection_is_killed(
    jobs, there, recorder, monkeypatch
):
    monkeypatch.setattr(MySQLLife, "grace", 20.0)
    engine, rows = there
    begun, go_on = threading.Event(), threading.Event()

    @jobs.handler("long")
    def long(session, job):
        session.execute(text("INSERT INTO effect VALUES ('once')"))
        begun.set()
        assert go_on.wait(PATIENCE)

    enqueue(jobs, engine, "long")
    with Worker(jobs, engine, lease=HOUR, worker_id="the living", listener=recorder) as living:
        assert begun.wait(PATIENCE)
        until(rows, TIED_THERE, [("the living",)])
        with Worker(jobs, engine, lease=HOUR, worker_id="watching", listener=recorder) as watching:
            until_watched(watching, "the living")
            lock = _lock(living._shift._feeder._connection, living._shift._feeder._vigil._place_of("the living"))
            [(feeder,)] = rows(f"SELECT IS_USED_LOCK('{lock}')")
            rows(f"KILL CONNECTION {feeder}")
            until(rows, f"SELECT IS_USED_LOCK('{lock}') <> {feeder}", [(1,)])
            until_back(watching, "the living")
            go_on.set()
            recorder.wait_for("job_finished", timeout=PATIENCE)
    assert recorder.named("claim_lost") == []
    assert rows("SELECT what FROM effect") == [("once",)]


@pytest.mark.slow
def test_on_mariadb_the_server_ends_the_session_of_a_worker_that_says_nothing_more(jobs, there, recorder, monkeypatch):
    """Nothing else there would tell a host that is gone from one that has nothing to say."""
    monkeypatch.setattr("sa_proletarian.mysql.beacons.SILENCE", 1)
    monkeypatch.setattr(vigil, "LOOK", 0.2)
    engine, rows = there
    with Worker(jobs, engine, lease=HOUR, worker_id="the quiet", listener=recorder, polling_interval=HOUR) as worker:
        until(rows, TIED_THERE, [("the quiet",)])
        lock = _lock(worker._shift._feeder._connection, worker._shift._feeder._vigil._place_of("the quiet"))
        [(feeder,)] = rows(f"SELECT IS_USED_LOCK('{lock}')")
        monkeypatch.setattr(vigil, "LOOK", 3600.0)
        until(rows, f"SELECT count(*) FROM information_schema.processlist WHERE id = {feeder}", [(0,)])
