"""One fault each, at a chosen moment: a worker killed or paused, a server that crashes, a COMMIT without an answer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from datetime import timedelta

import pytest
from sqlalchemy import create_engine, event, text
from sqlalchemy.orm import Session

from sa_proletarian import Outcome, metadata
from sa_proletarian.embedded import EmbeddedPostgres

LEASE = timedelta(seconds=1)

WORKER = """
    import os, sys
    from datetime import timedelta
    from sqlalchemy import create_engine, text
    from sa_proletarian import Proletarian, Worker

    jobs = Proletarian()

    @jobs.handler("once_held")
    def once_held(session, job):
        session.execute(text("INSERT INTO effect VALUES (:id)"), {"id": str(job.job_id)})
        session.commit()
        print("held", flush=True)
        sys.stdin.readline()

    @jobs.handler("unheld")
    def unheld(session, job):
        print("running", flush=True)
        sys.stdin.readline()
        session.execute(text("INSERT INTO effect VALUES ('first')"))

    def listener(event):
        if event.name == "claim_lost":
            print(event.name, flush=True)

    Worker(jobs, create_engine(sys.argv[1]), threads=int(sys.argv[2]), listener=listener, lease=timedelta(seconds=1),
           polling_interval=timedelta(milliseconds=20)).run()
"""


@pytest.fixture
def worker_process(database_url, tables):
    processes = []

    def start(threads=4):
        url = database_url.render_as_string(hide_password=False)
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WORKER), url, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def enqueue(jobs, tables):
    def enqueue(job_type, count=1):
        with Session(tables) as session, session.begin():
            return [jobs.enqueue(session, job_type).job_id for _ in range(count)]

    return enqueue


def test_a_job_whose_worker_is_killed_runs_again_and_takes_effect_once(
    worker_process, enqueue, jobs, start_worker, recorder, rows
):
    enqueue("once_held")
    process = worker_process()
    assert process.stdout.readline() == "held\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()

    seen = []

    @jobs.handler("once_held")
    def once_held(session, job):
        seen.append((job.attempts, job.crashes))
        session.execute(text("INSERT INTO effect VALUES ('second')"))

    start_worker(jobs, lease=LEASE)
    recorder.wait_for("job_finished")
    assert seen == [(1, 1)], "the death is a crash, and no attempt"
    assert rows("SELECT what FROM effect") == [("second",)]
    assert rows("SELECT status, attempts FROM proletarian_archived_job") == [("success", 1)]


ASYNC_WORKER = """
    import asyncio, sys, threading
    from datetime import timedelta
    from sqlalchemy import text
    from sqlalchemy.ext.asyncio import create_async_engine
    from sa_proletarian import AsyncWorker, Proletarian

    url, ending = sys.argv[1:]
    jobs = Proletarian()
    statement = text("INSERT INTO effect VALUES (:what)")

    def effect(job):
        return {"what": f"{ending} {job.job_type} {job.attempts} {job.crashes}"}

    async def wait():
        if ending == "never":
            print("inside", flush=True)
            await asyncio.sleep(3600)

    @jobs.handler("held")
    async def held(session, job):
        await session.execute(statement, effect(job))
        await session.commit()
        await wait()

    @jobs.handler("unheld")
    async def unheld(session, job):
        await wait()
        await session.execute(statement, effect(job))

    @jobs.handler("plain")
    def plain(session, job):
        session.execute(statement, effect(job))
        if ending == "never":
            print("inside", flush=True)
            threading.Event().wait(3600)

    async def main():
        await AsyncWorker(jobs, create_async_engine(url), lease=timedelta(seconds=1),
                          polling_interval=timedelta(milliseconds=20)).run()

    asyncio.run(main())
"""


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_the_jobs_of_an_async_worker_that_is_killed_run_again_and_take_effect_once(
    driver, database_url, tables, enqueue, rows
):
    url = database_url.set(drivername=f"postgresql+{driver}").render_as_string(hide_password=False)
    kinds = ["held", "plain", "unheld"]
    for kind in kinds:
        enqueue(kind)
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(ASYNC_WORKER), url, "never"], stdout=subprocess.PIPE, text=True
    ) as killed:
        assert [killed.stdout.readline() for _ in kinds] == ["inside\n"] * 3
        killed.kill()
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(ASYNC_WORKER), url, "again"]) as other:
        wait_until(lambda: finished(rows) == 3, other)
        other.terminate()
    assert rows("SELECT what FROM effect ORDER BY what") == [(f"again {kind} 1 1",) for kind in kinds]
    assert rows("SELECT status, attempts, count(*) FROM proletarian_archived_job GROUP BY 1, 2") == [("success", 1, 3)]


@pytest.mark.slow
def test_a_server_that_crashes_under_a_job_loses_nothing(pytestconfig, jobs, recorder):
    import threading

    from sa_proletarian import Worker

    settings = {"synchronous_commit": True}
    begun, restarted = threading.Event(), threading.Event()
    attempts = []

    @jobs.handler("work")
    def work(session, job):
        attempts.append(job.attempts)
        session.execute(text("INSERT INTO effect VALUES (:id)"), {"id": str(job.job_id)})
        if len(attempts) == 1:
            begun.set()
            assert restarted.wait(30)
        session.execute(text("SELECT 1"))

    with EmbeddedPostgres(pytestconfig.option.postgresql, settings=settings) as server:
        engine = create_engine(server.url())
        metadata.create_all(engine)
        with Session(engine) as session, session.begin():
            session.execute(text("CREATE TABLE effect (what text)"))
            job_id = jobs.enqueue(session, "work").job_id
        worker = Worker(jobs, engine, lease=LEASE, listener=recorder, polling_interval=timedelta(milliseconds=20))
        with worker:
            assert begun.wait(10)
            server.crash()
            server.start()
            restarted.set()
            recorder.wait_for("job_finished", timeout=30)
        engine.dispose()
        with engine.connect() as connection:
            assert connection.scalars(text("SELECT what FROM effect")).all() == [str(job_id)]
            assert connection.scalars(text("SELECT status FROM proletarian_archived_job")).all() == ["success"]
        engine.dispose()
    assert set(attempts) == {1}, "a crash of the server is no attempt"


def break_at_commit(engine, armed, rows, *, committed):
    """End the connection whose pid is ``armed``, just after or just before the server has its COMMIT."""

    def end(connection):
        raw = connection.connection.driver_connection
        if armed and raw.info.backend_pid == armed[0]:
            armed.clear()
            if committed:  # by a script it may be by now, and then this says nothing
                raw.commit()
            rows("SELECT pg_terminate_backend(:pid, 5000)", pid=raw.info.backend_pid)
            raw.close()

    @event.listens_for(engine, "before_cursor_execute")
    def before_the_server_has_it(connection, cursor, statement, *_):
        if not committed and statement.endswith("COMMIT"):  # it travels behind the settling
            end(connection)

    event.listen(engine, "commit", end)


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"], ids=["by script", "by itself"])
@pytest.mark.parametrize("committed", [True, False])
def test_an_unanswered_commit_is_looked_into(jobs, tables, database_url, enqueue, rows, recorder, committed, driver):
    """The connection dies under the COMMIT, just after or just before the server has carried it out."""
    armed, calls = [], []

    @jobs.handler("work")
    def work(session, job):
        session.execute(text("INSERT INTO effect VALUES ('x')"))
        calls.append(job.attempts)
        if len(calls) == 1:
            armed.append(session.scalar(text("SELECT pg_backend_pid()")))

    engine = create_engine(database_url.set(drivername=f"postgresql+{driver}"))
    break_at_commit(engine, armed, rows, committed=committed)
    enqueue("work")
    outcome = jobs.process_next(engine, listener=recorder)
    if committed:
        assert outcome is Outcome.RETURNED
        assert recorder.names == ["handling_job", "job_finished"]
    else:
        assert outcome is Outcome.CONNECTION_DIED
        assert rows("SELECT attempts, crashes, claim_id FROM proletarian_job") == [(0, 1, None)]
        rows("UPDATE proletarian_job SET process_at = now()")
        assert jobs.process_next(engine, listener=recorder) is Outcome.RETURNED
    assert rows("SELECT what FROM effect") == [("x",)]
    assert rows("SELECT status, attempts FROM proletarian_archived_job") == [("success", 1)]
    engine.dispose()


@pytest.mark.parametrize("with_session", [True, False], ids=["in the handler's transaction", "by the feeder"])
@pytest.mark.parametrize("committed", [True, False])
def test_on_failed_is_called_at_most_once_when_the_commit_of_a_failure_is_unanswered(
    jobs, tables, enqueue, rows, recorder, database_url, start_worker, committed, with_session
):
    """Who recorded the failure, this worker or another that took the job over meanwhile, cannot be known afterwards."""
    calls, armed = [], [True]
    ours, others = create_engine(database_url), create_engine(database_url)

    @jobs.handler("work")
    def work(session, job):
        if with_session:
            session.execute(text("INSERT INTO effect VALUES ('x')"))
        raise ValueError("for good")

    def run_elsewhere():
        rows("UPDATE proletarian_job SET claimed_until = now()")
        jobs.process_next(others, listener=type(recorder)(), on_failed=lambda job, error: calls.append("another"))

    @event.listens_for(ours, "commit")
    def before_commit(connection):
        raw = connection.connection.driver_connection
        if armed and raw.execute("SELECT count(*) FROM proletarian_archived_job").fetchone() == (1,):
            armed.clear()
            if committed:
                raw.commit()
            rows("SELECT pg_terminate_backend(:pid, 5000)", pid=raw.info.backend_pid)
            raw.close()
            if not committed:
                run_elsewhere()

    enqueue("work")
    worker = start_worker(jobs, ours, on_failed=lambda job, error: calls.append("ours"))
    recorder.wait_for("not_retrying")
    assert worker.stop() is True
    assert calls == ([] if committed else ["another"])
    assert rows("SELECT status, count(*) FROM proletarian_archived_job GROUP BY 1") == [("failure", 1)]
    assert rows("SELECT count(*) FROM effect") == [(0,)]


def test_a_paused_worker_finds_that_it_lost_its_claim(worker_process, enqueue, jobs, start_worker, recorder, rows):
    """SIGSTOP beyond the lease: another worker runs the job, and the first one's late settling changes nothing."""
    enqueue("unheld")
    process = worker_process()
    assert process.stdout.readline() == "running\n"
    process.send_signal(signal.SIGSTOP)
    jobs.handler("unheld")(lambda session, job: session.execute(text("INSERT INTO effect VALUES ('second')")))
    start_worker(jobs, lease=LEASE)
    recorder.wait_for("job_finished")
    process.send_signal(signal.SIGCONT)
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "claim_lost\n"
    assert rows("SELECT what FROM effect") == [("second",)]
    assert rows("SELECT status, attempts FROM proletarian_archived_job") == [("success", 1)]


def finished(rows):
    return rows("SELECT count(*) FROM proletarian_archived_job")[0][0]


def wait_until(condition, process):
    while not condition():
        assert process.poll() is None, "the worker ended by itself"
