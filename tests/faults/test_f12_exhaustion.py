"""F12: no connection left, no file descriptor left, no room on the disk; the app's own pool used up."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from contextlib import ExitStack

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from machinery import ledger
from sa_proletarian.embedded_cluster import _hand_over

SCENARIO = "F12"
SECONDS = 3.0


def tries(trial):
    """How often the workers have told of the database's trouble."""
    return sum(event["name"] == "sql_transient_exception" for event in ledger.read(trial.events.path))


def spend(trial, seconds=SECONDS):
    """Let the trouble last; a worker that runs hot meanwhile would tell of it much more often than five times a second."""
    before, begun = tries(trial), time.monotonic()
    trial.pause(seconds, seconds)
    rate = (tries(trial) - before) / (time.monotonic() - begun)
    assert rate < 10, f"{rate} tries a second, of two workers"


@pytest.mark.slow
def test_a_server_without_a_free_connection_is_asked_now_and_then(make_trial, own_server):
    server = own_server(max_connections=14)
    trial = make_trial(server.url(), SCENARIO)
    enqueuer = trial.enqueuer()
    workers = [trial.start(form, slots=2) for form in ("threads", "async")]
    for _ in range(trial.amount(1, 5)):
        for _ in range(200):
            enqueuer.put()
        engine = create_engine(server.url(), pool_size=20, max_overflow=0)
        with ExitStack() as hoard, trial.engine.connect() as ours:
            # whoever loses its connection from now on does not get another
            end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = '' AND pid <> ALL(:ours)"
            mine = [ours.scalar(text("SELECT pg_backend_pid()"))]
            for _ in range(30):
                try:
                    connection = hoard.enter_context(engine.connect())
                except Exception:
                    ours.execute(text(end), {"ours": mine})
                    ours.commit()
                else:
                    mine.append(connection.scalar(text("SELECT pg_backend_pid()")))
            trial.fault("all connections taken")
            spend(trial)
        engine.dispose()
        trial.unlocked |= {worker.pid for worker in workers}
    trial.finish()
    trial.check()


@pytest.mark.slow
def test_an_app_that_uses_its_pool_up_takes_nothing_from_the_worker(
    make_trial, database_url, jobs, tables, start_worker, recorder
):
    trial = make_trial(database_url, SCENARIO, tables=False)
    engine = trial.make_engine(database_url, pool_size=1, max_overflow=0, pool_timeout=1)
    jobs.handler("job")(lambda session, job: session.execute(text("SELECT 1")))
    for times in range(1, trial.amount(1, 3) + 1):
        with Session(tables) as session, session.begin():
            for _ in range(50):
                jobs.enqueue(session, "job")
        with engine.connect():
            trial.fault("the app's pool used up")
            worker = start_worker(jobs, engine, threads=3)
            recorder.wait_for("job_finished", 50 * times)
            assert worker.stop()


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("prlimit"), reason="prlimit is not here")
def test_a_process_without_a_free_file_descriptor_loses_nothing(trial):
    enqueuer = trial.enqueuer()
    for number in range(trial.amount(40, 400)):
        enqueuer.put({"does": "takes_all_files", "ms": 5} if number % 4 == 0 else None)
        trial.record.faults["file descriptors used up"] += number % 4 == 0
    trial.start(wrapper=("prlimit", "--nofile=64:64"))
    trial.finish()
    trial.unlocked |= {process.pid for process in trial.processes}
    trial.check()


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="to mount a file system of a chosen size needs root")
def test_a_full_disk_keeps_jobs_from_ending_until_there_is_room(trial, postgres):
    folder = postgres._cluster.folder / f"small{trial.record.seed}"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)], check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        _hand_over(folder)
        autocommit = trial.engine.execution_options(isolation_level="AUTOCOMMIT")
        space = f"small{trial.record.seed}"
        with autocommit.connect() as connection:
            connection.execute(text(f"CREATE TABLESPACE {space} LOCATION '{folder}'"))
            connection.execute(text(f"ALTER TABLE proletarian_archived_job SET TABLESPACE {space}"))
            connection.execute(text(f"ALTER INDEX proletarian_archived_job_pkey SET TABLESPACE {space}"))
        workers = [trial.start(form) for form in ("threads", "async")]
        trial.unlocked |= {worker.pid for worker in workers}  # a settling that was refused is begun again
        enqueuer = trial.enqueuer()
        for _ in range(trial.amount(1, 3)):
            with autocommit.connect() as connection:
                connection.execute(text(f"CREATE TABLE ballast (what text) TABLESPACE {space}"))
                for rows in (1000, 100, 10, 1):
                    while fits(connection, rows):
                        pass
            trial.fault("disk full")
            for _ in range(300):
                enqueuer.put()
            trial.wait_until(lambda: tries(trial) > 0)
            spend(trial)
            with autocommit.connect() as connection:
                connection.execute(text("DROP TABLE ballast"))
        trial.finish(stop=False)
        trial.stop()
        trial.check()
    finally:
        with trial.engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
            connection.execute(text("DROP TABLE IF EXISTS ballast, proletarian_archived_job"))
            connection.execute(text(f"DROP TABLESPACE IF EXISTS small{trial.record.seed}"))
        subprocess.run(["umount", str(folder)], check=True)
        folder.rmdir()


def fits(connection, rows):
    try:
        sql = "INSERT INTO ballast SELECT repeat(md5(random()::text), 30) FROM generate_series(1, :rows)"
        connection.execute(text(sql), {"rows": rows})
    except Exception:
        return False
    return True
