"""F20: the version before and this one side by side, on either schema, while it is upgraded and downgraded under both."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import inspect, text
from sqlalchemy.orm import Session

from sa_proletarian import Worker, presence

OLD_CODE = Path(__file__).parents[1] / "versions" / "schema_v1.zip"
OLD = """
    import sys
    from datetime import timedelta
    from sqlalchemy import create_engine, text
    from sqlalchemy.orm import Session
    import sa_proletarian
    from sa_proletarian import Proletarian, Worker, metadata, models

    assert "schema_v1.zip" in sa_proletarian.__file__ and models.SCHEMA_VERSION == 1
    engine = create_engine(sys.argv[2])
    jobs = Proletarian()

    def effect(session, job):
        session.execute(text("INSERT INTO effect VALUES (:id, 'old')"), {"id": job.job_id})

    def held(session, job):
        effect(session, job)
        print("held", flush=True)
        sys.stdin.readline()

    jobs.handler("either")(effect)
    jobs.handler("old")(effect)
    jobs.handler("old_held")(held)

    def create():
        metadata.create_all(engine)

    def enqueue():
        with Session(engine) as session, session.begin():
            for number in range(10):
                jobs.enqueue(session, "either", {"number": number})
                jobs.enqueue(session, "new", {"number": number})

    def work():
        worker = Worker(jobs, engine, threads=2, polling_interval=timedelta(milliseconds=20))
        sys.exit(0 if worker.run() else 1)

    globals()[sys.argv[1]]()
"""


class OldCode:
    """Processes that run the version before."""

    def __init__(self, url, folder):
        self._url = url.render_as_string(hide_password=False)
        self._folder = folder

    def start(self, command):
        return subprocess.Popen(
            [sys.executable, "-P", "-c", textwrap.dedent(OLD), command, self._url],
            env={**os.environ, "PYTHONPATH": str(OLD_CODE)},
            cwd=self._folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, command):
        with self.start(command) as process:
            assert process.wait(30) == 0


@pytest.fixture
def old_code(database_url, tmp_path):
    return OldCode(database_url, tmp_path)


@pytest.fixture
def old_tables(engine, old_code):
    """Return an engine on a database that the version before has made; each archived job is a notification."""
    old_code.run("create")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE effect (job_id uuid NOT NULL, who text NOT NULL)"))
        connection.execute(
            text(
                "CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS"
                " $$ BEGIN PERFORM pg_notify('changes', TG_TABLE_NAME); RETURN NULL; END $$"
            )
        )
        connection.execute(
            text("CREATE TRIGGER tell AFTER INSERT ON proletarian_archived_job EXECUTE FUNCTION tell()"),
        )
    assert inspect(engine).get_table_comment("proletarian_job") == {"text": "sa_proletarian schema v1"}
    return engine


@pytest.fixture
def wait_until(database_url, old_tables):
    """Return a function that waits until a query gives the rows; it asks again whenever a job is archived."""
    url = database_url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("LISTEN changes")

        def wait(query, expected):
            while (found := connection.execute(query).fetchall()) != expected:
                assert list(connection.notifies(timeout=20, stop_after=1)), found

        yield wait


@pytest.fixture
def old_worker(old_code, old_tables):
    process = old_code.start("work")
    yield process
    process.kill()
    process.communicate()


@pytest.fixture
def gate():
    opened = threading.Event()
    yield opened
    opened.set()


@pytest.fixture
def new_worker(old_tables, jobs, gate, recorder, monkeypatch):
    monkeypatch.setattr(presence, "PAUSE", 0.05)

    def effect(session, job):
        session.execute(text("INSERT INTO effect VALUES (:id, 'new')"), {"id": job.job_id})

    def held(session, job):
        effect(session, job)
        recorder.held.set()
        assert gate.wait(20)

    recorder.held = threading.Event()
    jobs.handler("either")(effect)
    jobs.handler("new")(effect)
    jobs.handler("new_held")(held)
    with Worker(jobs, old_tables, threads=2, polling_interval=timedelta(milliseconds=20), listener=recorder) as worker:
        yield worker
        gate.set()


@pytest.mark.slow
def test_the_version_before_and_this_one_work_side_by_side_through_up_and_downgrade(
    old_tables, old_code, old_worker, new_worker, jobs, gate, recorder, wait_until, make_trial, database_url
):
    trial = make_trial(database_url, "F20", tables=False)
    engine = old_tables
    total = 0

    def enqueue(*job_types):
        nonlocal total
        total += len(job_types)
        with Session(engine) as session, session.begin():
            for number, job_type in enumerate(job_types):
                jobs.enqueue(session, job_type, {"number": number})

    def both_work():
        nonlocal total
        old_code.run("enqueue")
        total += 20
        enqueue(*(["either", "old"] * 10))
        wait_until("SELECT status, count(*) FROM proletarian_archived_job GROUP BY 1", [("success", total)])

    def is_registered():
        with engine.connect() as connection:
            return connection.scalars(text("SELECT worker_id FROM proletarian_worker")).all()

    def migrate(before, after):
        with engine.begin() as connection:  # without a second try: it waits for no job that is held
            operations: Any = Operations(MigrationContext.configure(connection))
            operations.proletarian_migrate(before, after, lock_timeout=timedelta(seconds=2), retries=0)
        trial.fault(f"migration from version {before} to {after} beside workers of both")

    # on version 1: this version works, and cannot be seen
    both_work()
    recorder.wait_for("presence_unavailable")

    # version 2 comes while both hold a job
    enqueue("old_held", "new_held")
    assert old_worker.stdout.readline() == "held\n"
    assert recorder.held.wait(20)
    migrate(1, 2)
    old_worker.stdin.write("\n")
    old_worker.stdin.flush()
    gate.set()
    both_work()
    recorder.wait_for("polling_for_jobs", len(recorder.named("polling_for_jobs")) + 10)
    assert is_registered() == [new_worker.worker_id]

    # and goes again
    for _ in range(trial.amount(1, 20)):
        migrate(2, 1)
        both_work()
        migrate(1, 2)
        both_work()

    old_worker.send_signal(signal.SIGTERM)
    assert old_worker.wait(20) == 0
    assert new_worker.stop() is True
    assert is_registered() == []
    assert len(recorder.named("presence_unavailable")) == 1
    with engine.connect() as connection:
        [(effects, taken)] = connection.execute(text("SELECT count(*), count(DISTINCT job_id) FROM effect"))
        trial.record.counts |= {"jobs": total, "effects": effects, "lost": total - taken, "duplicates": effects - taken}
        assert (effects, taken) == (total, total)
        by_whom = text(
            "SELECT DISTINCT job_type, who FROM effect JOIN proletarian_archived_job USING (job_id)"
            " WHERE job_type <> 'either' ORDER BY 1"
        )
        expected = [("new", "new"), ("new_held", "new"), ("old", "old"), ("old_held", "old")]
        assert connection.execute(by_whom).all() == expected
