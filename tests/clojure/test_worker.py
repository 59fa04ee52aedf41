"""The worker on Proletarian's tables: threads, stopping, dead processes, and sharing a queue with other workers."""

from __future__ import annotations

import inspect
import os
import signal
import subprocess
import sys
import threading
from datetime import timedelta

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import sessionmaker

from sa_proletarian import Proletarian, Retry, Worker
from sa_proletarian.clojure import ClojureProletarian, ClojureWorker
from sa_proletarian.errors import ConfigurationError

WAIT = 20
UNCONNECTED = create_engine("postgresql+psycopg:///nowhere")
STATUS = "SELECT status, attempts FROM proletarian.archived_job"
LEFT = "SELECT attempts FROM proletarian.job"


@pytest.fixture
def start(tables, recorder):
    workers = []

    def start(jobs, **options):
        options = {"polling_interval": timedelta(milliseconds=20), "listener": recorder, **options}
        worker = ClojureWorker(jobs, tables, **options)
        worker.start()
        workers.append(worker)
        return worker

    yield start
    for worker in workers:
        worker.stop(timedelta(seconds=2))


def test_many_jobs_in_threads_each_once(jobs, start, rows, recorder, tables):
    @jobs.handler("my/job")
    def work(session, job):
        session.execute(text("INSERT INTO effect VALUES (:what)"), {"what": str(job.payload)})

    with tables.begin() as connection:
        for number in range(40):
            jobs.enqueue(connection, work, number)
    start(jobs, threads=3)
    start(jobs, threads=2)
    recorder.wait_for("job_finished", 40)
    assert sorted(int(what) for (what,) in rows("SELECT what FROM effect")) == list(range(40))
    assert rows(STATUS) == [(":success", 1)] * 40


def test_jobs_in_the_hands_of_another_worker_are_passed_over(jobs, start, rows, recorder, from_clojure, tables):
    taken = from_clojure(":my/job", "[]", process_at="2026-01-01")
    free = from_clojure(":my/job", "[]")
    jobs.handler("my/job")(lambda session, job: None)
    with tables.begin() as clojure:
        # as proletarian.db/get-next-job has it
        clojure.execute(
            text(
                "SELECT job_id FROM proletarian.job WHERE queue = :queue AND process_at <= now()"
                " ORDER BY process_at ASC LIMIT 1 FOR UPDATE SKIP LOCKED"
            ),
            {"queue": ":proletarian/default"},
        )
        start(jobs)
        [finished] = recorder.wait_for("job_finished")
        recorder.wait_for("polling_for_jobs", 3)
        assert (finished.job_id, len(recorder.named("job_finished"))) == (free, 1)
    assert recorder.wait_for("job_finished", 2)[1].job_id == taken


def test_a_clojure_worker_passes_over_the_job_that_python_runs(jobs, start, from_clojure, tables):
    from_clojure(":my/job", "[]")
    running, go_on = threading.Event(), threading.Event()
    jobs.handler("my/job")(lambda session, job: (running.set(), go_on.wait(WAIT)))
    start(jobs)
    assert running.wait(WAIT)
    with tables.begin() as clojure:
        next_job = text("SELECT job_id FROM proletarian.job WHERE process_at <= now() FOR UPDATE SKIP LOCKED")
        assert clojure.execute(next_job).all() == []
    go_on.set()


def test_types_without_a_handler_are_left_to_others(jobs, start, rows, recorder, from_clojure):
    from_clojure(":clojure/job", "[]", process_at="2026-01-01")
    from_clojure(":my/job", "[]")
    jobs.handler("my/job")(lambda session, job: None)
    start(jobs)
    recorder.wait_for("job_finished")
    recorder.wait_for("polling_for_jobs", 3)
    assert rows("SELECT job_type FROM proletarian.job") == [(":clojure/job",)]


def test_retries_on_failed_and_events_are_those_of_the_library(jobs, start, rows, recorder, from_clojure):
    from_clojure(":my/job", "[]")
    failed = threading.Event()
    jobs.handler("my/job")(lambda session, job: 1 / 0)
    start(jobs, retry=Retry(1), on_failed=lambda job, error: failed.set())
    assert failed.wait(WAIT)
    assert rows(STATUS) == [(":failure", 2)]
    assert recorder.names == [
        "handling_job",
        "handle_job_exception",
        "retrying",
        "handling_job",
        "handle_job_exception",
        "not_retrying",
    ]


def test_the_session_is_of_the_apps_class(jobs, start, recorder, from_clojure, tables):
    from_clojure(":my/job", "[]")
    seen = []
    jobs.handler("my/job")(lambda session, job: seen.append(session.info))
    start(jobs, session=sessionmaker(tables, info={"app": 1}))
    recorder.wait_for("job_finished")
    assert seen == [{"app": 1}]


# stop -----------------------------------------------------------------------------------------------------------------


def test_a_stop_waits_for_what_runs(jobs, start, rows, from_clojure):
    from_clojure(":my/job", "[]")
    from_clojure(":my/job", "[]")
    running, stopped = threading.Event(), []
    worker = start(jobs, on_shutdown=lambda: stopped.append(True))

    @jobs.handler("my/job")
    def work(session, job):
        running.set()
        while not job.interrupted:
            threading.Event().wait(0.01)

    assert running.wait(WAIT)
    assert worker.stop() is True
    assert (rows(STATUS), rows(LEFT), stopped, worker.running) == ([(":success", 1)], [(0,)], [True], False)


def test_a_job_that_sleeps_is_interrupted_and_as_it_was(jobs, start, rows, recorder, from_clojure):
    from_clojure(":my/job", "[]", process_at="2026-01-01T00:00Z")
    before = rows("SELECT * FROM proletarian.job")
    running = threading.Event()

    @jobs.handler("my/job")
    def work(session, job):
        session.execute(text("INSERT INTO effect VALUES ('undone')"))
        running.set()
        job.sleep(timedelta(minutes=5))

    worker = start(jobs)
    assert running.wait(WAIT)
    assert worker.stop() is True
    assert rows("SELECT * FROM proletarian.job") == before
    assert rows("SELECT * FROM effect") == []
    assert recorder.named("job_interrupted")


def test_a_statement_that_does_not_end_is_cancelled(jobs, start, rows, recorder, from_clojure):
    from_clojure(":my/job", "[]")
    running = threading.Event()

    @jobs.handler("my/job")
    def work(session, job):
        running.set()
        session.execute(text("SELECT pg_sleep(300)"))

    worker = start(jobs)
    assert running.wait(WAIT)
    assert worker.stop(timedelta(milliseconds=100)) is True
    assert (rows(LEFT), rows(STATUS)) == ([(0,)], [])
    assert recorder.named("job_interrupted")


@pytest.mark.slow
def test_a_handler_that_does_not_end_loses_its_job(jobs, start, rows, recorder, from_clojure, tables):
    job_id = from_clojure(":my/job", "[]")
    running, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    @jobs.handler("my/job")
    def work(session, job):
        session.execute(text("INSERT INTO effect VALUES ('never')"))
        running.set()
        go_on.wait(WAIT)
        ended.set()

    worker = start(jobs)
    assert running.wait(WAIT)
    assert worker.stop(timedelta(0)) is False
    [event] = recorder.named("queue_worker_shutdown_error")
    assert event.job_ids == (job_id,)
    assert [e.job_id for e in recorder.named("job_interrupted")] == [job_id]
    with tables.begin() as other:  # it is free as soon as the server process has ended
        other.execute(text("SET LOCAL lock_timeout = '10s'"))
        assert other.execute(text("SELECT attempts FROM proletarian.job FOR UPDATE")).all() == [(0,)]
    threads = [thread for thread in threading.enumerate() if thread.name.startswith(worker.worker_id)]
    go_on.set()
    assert ended.wait(WAIT)
    for thread in threads:
        thread.join(WAIT)
    assert (rows(LEFT), rows(STATUS), rows("SELECT * FROM effect")) == ([(0,)], [], [])


@pytest.mark.slow
def test_a_stop_ends_though_the_database_takes_no_connections(jobs, start, rows, recorder, from_clojure, administration):
    job_id = from_clojure(":my/job", "[]")
    [(name,)] = rows("SELECT current_database()")
    running, go_on = threading.Event(), threading.Event()
    jobs.handler("my/job")(lambda session, job: (running.set(), go_on.wait(WAIT)))
    worker = start(jobs)
    assert running.wait(WAIT)
    with administration.connect() as connection:
        connection.execute(text(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false"))
        try:
            assert worker.stop(timedelta(0)) is False
        finally:
            connection.execute(text(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true"))
            go_on.set()
    [event] = recorder.named("queue_worker_shutdown_error")
    assert event.job_ids == (job_id,)
    assert recorder.named("job_worker_error")


def test_stopping_twice_and_starting_again(jobs, start, recorder, from_clojure):
    jobs.handler("my/job")(lambda session, job: None)
    worker = start(jobs)
    assert worker.start() is False
    assert worker.stop() is True
    assert worker.stop() is True
    assert worker.start() is True
    from_clojure(":my/job", "[]")
    recorder.wait_for("job_finished")


# trouble --------------------------------------------------------------------------------------------------------------


def test_a_missing_table_is_said_once_and_waited_for(jobs, start, rows, recorder, from_clojure):
    jobs.handler("my/job")(lambda session, job: None)
    rows("ALTER TABLE proletarian.job RENAME TO gone")
    start(jobs, threads=2)
    recorder.wait_for("polling_for_jobs", 6)
    assert len(recorder.named("job_worker_error")) == 1
    rows("ALTER TABLE proletarian.gone RENAME TO job")
    from_clojure(":my/job", "[]")
    recorder.wait_for("job_finished")


def test_a_polling_error_stops_the_worker_where_the_app_wants_it(jobs, start, rows, recorder):
    rows("ALTER TABLE proletarian.job RENAME TO gone")
    errors = []
    start(jobs, on_polling_error=lambda error: errors.append(error) or True)
    recorder.wait_for("completed_shutdown")
    assert len(errors) == 1


PROGRAM = """
import sys
from sqlalchemy import create_engine, text
from sa_proletarian.clojure import ClojureProletarian, ClojureWorker
jobs = ClojureProletarian()
@jobs.handler("my/job")
def work(session, job):
    session.execute(text("INSERT INTO effect VALUES ('x')"))
    print("running", flush=True)
    {then}
ClojureWorker(jobs, create_engine(sys.argv[1]), polling_interval=__import__("datetime").timedelta(milliseconds=20)).run()
"""


def start_program(database_url, then):
    url = database_url.render_as_string(hide_password=False)
    return subprocess.Popen([sys.executable, "-c", PROGRAM.format(then=then), url], stdout=subprocess.PIPE, text=True)


def test_a_job_whose_process_is_killed_is_due_again_at_once(tables, database_url, jobs, start, rows, recorder, from_clojure):
    from_clojure(":my/job", "[]")
    jobs.handler("my/job")(lambda session, job: session.execute(text("INSERT INTO effect VALUES ('y')")))
    with start_program(database_url, "__import__('time').sleep(60)") as process:
        assert process.stdout.readline() == "running\n"
        os.kill(process.pid, signal.SIGKILL)
    start(jobs)
    [finished] = recorder.wait_for("job_finished")
    assert finished.attempt == 1
    assert rows("SELECT what FROM effect") == [("y",)]


def test_sigterm_stops_the_worker(tables, database_url, rows, from_clojure):
    from_clojure(":my/job", "[]")
    with start_program(database_url, "job.sleep(__import__('datetime').timedelta(60))") as process:
        assert process.stdout.readline() == "running\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT) == 0
    assert (rows(LEFT), rows("SELECT what FROM effect")) == ([(0,)], [])


# arguments ------------------------------------------------------------------------------------------------------------


def test_the_arguments_are_the_workers_but_for_what_its_tables_cannot_have():
    ours, theirs = (inspect.signature(worker).parameters for worker in (ClojureWorker, Worker))
    assert set(ours) == set(theirs) - {"lease", "crash_ceiling", "timeout", "executor", "retention", "wake"}
    defaults = {name for name in ours if ours[name].default != theirs[name].default}
    assert defaults == {"queue"}


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"queue": "a/b/c"}, ValueError),
        ({"threads": 0}, ValueError),
        ({"polling_interval": 5}, TypeError),
        ({"retry": 5}, TypeError),
        ({"on_failed": 5}, TypeError),
        ({"termination_timeout": 5}, TypeError),
        ({"session": 5}, TypeError),
        ({"worker_id": ""}, ValueError),
    ],
)
def test_wrong_arguments_are_refused_before_anything_starts(jobs, options, error):
    with pytest.raises(error):
        ClojureWorker(jobs, UNCONNECTED, **options)


def test_a_worker_takes_the_registry_of_its_kind(jobs):
    with pytest.raises(TypeError, match="ClojureProletarian"):
        ClojureWorker(Proletarian(), UNCONNECTED)
    with pytest.raises(TypeError, match="Proletarian"):
        Worker(jobs, UNCONNECTED)


def test_an_autocommit_engine_is_refused():
    with pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
        ClojureWorker(ClojureProletarian(), UNCONNECTED.execution_options(isolation_level="AUTOCOMMIT"))


def test_queue_and_id_are_in_the_stored_form(jobs):
    worker = ClojureWorker(jobs, UNCONNECTED, queue="mail")
    assert worker.queue == ":mail"
    assert worker.worker_id.startswith("proletarian[:mail]@")
