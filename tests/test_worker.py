"""The threaded worker: starting, stopping, interrupting, and staying alive."""

from __future__ import annotations

import gc
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from datetime import timedelta

import pytest
from sqlalchemy import create_engine, event, text
from sqlalchemy.orm import Session, sessionmaker

from sa_proletarian import ConfigurationError, Job, Retry, Worker, metadata
from sa_proletarian.sessions import Hold
from sa_proletarian.shift import Shift
from sa_proletarian.tables import NAME_LIMIT

HOUR = timedelta(hours=1)
SOON = timedelta(milliseconds=100)


@pytest.fixture
def enqueue(jobs, tables):
    def enqueue(job_type, payload=None, count=1, **options):
        with Session(tables) as session, session.begin():
            return [jobs.enqueue(session, job_type, payload, **options).job_id for _ in range(count)]

    return enqueue


def archive(rows):
    return rows("SELECT status, count(*) FROM proletarian_archived_job GROUP BY 1 ORDER BY 1")


def waiting(rows):
    return rows("SELECT attempts, crashes, claim_id FROM proletarian_job")


# work


def test_every_job_is_run_once_and_archived(jobs, enqueue, start_worker, recorder, rows):
    seen = []
    jobs.handler("plain")(lambda session, job: seen.append(job.job_id))
    jobs.handler("writing")(
        lambda session, job: session.execute(text("INSERT INTO effect VALUES (:id)"), {"id": str(job.job_id)})
    )
    ids = enqueue("plain", count=700)
    enqueue("writing", count=100)
    start_worker(jobs, threads=4)
    recorder.wait_for("job_finished", 800)
    assert sorted(seen) == sorted(ids)
    assert rows("SELECT count(*), count(DISTINCT what) FROM effect") == [(100, 100)]
    assert (archive(rows), waiting(rows)) == ([("success", 800)], [])


def test_an_error_of_the_workers_own_ends_no_thread_and_loses_no_job(
    jobs, enqueue, start_worker, recorder, rows, monkeypatch
):
    """What no handler has raised is told, and the job that it hit runs again."""
    errors, close = [SystemExit("planned"), ValueError("planned")], Hold.close

    def close_with_an_error(hold):
        close(hold)
        if errors:
            raise errors.pop()

    monkeypatch.setattr(Hold, "close", close_with_an_error)
    jobs.handler("plain")(lambda session, job: None)
    enqueue("plain", count=3)
    start_worker(jobs, threads=1)
    recorder.wait_for("job_finished", 3)
    assert sorted(type(error.error).__name__ for error in recorder.named("job_worker_error")) == ["SystemExit", "ValueError"]
    assert archive(rows) == [("success", 3)]


def test_two_workers_share_a_queue_and_run_no_job_twice(jobs, enqueue, start_worker, recorder, rows):
    seen = []
    jobs.handler("work")(lambda session, job: seen.append(job.job_id))
    ids = enqueue("work", count=600)
    start_worker(jobs, threads=2)
    start_worker(jobs, threads=2)
    recorder.wait_for("job_finished", 600)
    assert sorted(seen) == sorted(ids)
    assert recorder.named("claim_lost") == []


def test_jobs_run_side_by_side_in_as_many_threads(jobs, enqueue, start_worker, recorder):
    barrier = threading.Barrier(3, timeout=10)
    jobs.handler("meet")(lambda session, job: barrier.wait())
    enqueue("meet", count=3)
    start_worker(jobs, threads=3)
    recorder.wait_for("job_finished", 3)
    threads = {event.thread for event in recorder.named("handling_job")}
    worker_id = recorder.events[0].worker_id
    assert threads == {f"{worker_id}-{number}" for number in (1, 2, 3)}


def test_more_handlers_hold_sessions_than_the_apps_pool_has_connections(jobs, database_url, enqueue, recorder, start_worker):
    small = create_engine(database_url, pool_size=1, max_overflow=0, pool_timeout=1)
    barrier = threading.Barrier(8, timeout=10)

    def handler(session, job):
        session.execute(text("SELECT 1"))
        with small.connect() as second:  # the app's own pool is all the handlers' own
            if job.payload == 0:
                second.execute(text("SELECT 1"))
        barrier.wait()

    jobs.handler("meet")(handler)
    enqueue("meet", count=8)
    start_worker(jobs, small, threads=8)
    recorder.wait_for("job_finished", 8)
    small.dispose()


def test_a_retry_without_delay_runs_at_once_although_polling_is_slow(jobs, enqueue, start_worker, recorder):
    def handler(session, job):
        if job.attempts < 4:
            raise ValueError

    jobs.handler("work", retry=Retry(3))(handler)
    enqueue("work")
    start_worker(jobs, polling_interval=HOUR)
    recorder.wait_for("job_finished")
    assert [event.attempt for event in recorder.named("handling_job")] == [1, 2, 3, 4]


def test_sys_exit_in_a_handler_fails_its_job_and_the_threads_live_on(jobs, enqueue, start_worker, recorder, rows):
    jobs.handler("exit")(lambda session, job: sys.exit(0))
    jobs.handler("work")(lambda session, job: None)
    enqueue("exit", count=5)
    enqueue("work")
    start_worker(jobs, threads=2)
    recorder.wait_for("not_retrying", 5)
    recorder.wait_for("job_finished")
    assert archive(rows) == [("failure", 5), ("success", 1)]


def test_a_slow_job_does_not_keep_small_ones_from_being_settled(jobs, enqueue, start_worker, recorder, rows):
    """A thread that has finished thirty small jobs and begun a long one need not settle anything."""
    free = threading.Event()
    jobs.handler("small")(lambda session, job: None)
    jobs.handler("long")(lambda session, job: free.wait(20))
    enqueue("small", count=30)
    enqueue("long")
    start_worker(jobs)
    recorder.wait_for("job_finished", 30)
    assert archive(rows) == [("success", 30)]
    free.set()
    recorder.wait_for("job_finished", 31)


def test_what_waits_behind_a_busy_slot_is_given_back_to_others(jobs, enqueue, start_worker, recorder, rows):
    free, begun = threading.Event(), threading.Event()

    def handler(session, job):
        if job.payload == "block":
            begun.set()
            free.wait(20)

    jobs.handler("work")(handler)
    enqueue("work", count=2000)
    enqueue("work", "block")
    enqueue("work", count=200)
    start_worker(jobs)
    assert begun.wait(20)
    other = start_worker(jobs)
    recorder.wait_for("job_finished", 2200)
    free.set()
    recorder.wait_for("job_finished", 2201)
    assert other.running


def test_leases_are_renewed_for_as_long_as_a_handler_runs(jobs, enqueue, start_worker, recorder, rows):
    free, begun = threading.Event(), threading.Event()

    def handler(session, job):
        begun.set()
        assert free.wait(60)

    jobs.handler("long")(handler)
    enqueue("long")
    start_worker(jobs, lease=timedelta(seconds=3))
    start_worker(jobs, lease=timedelta(seconds=3))
    assert begun.wait(20)
    deadline = time.monotonic() + 20
    leases = set()
    while len(leases) < 3 and len(recorder.named("handling_job")) == 1 and time.monotonic() < deadline:
        leases |= {until for (until,) in rows("SELECT claimed_until FROM proletarian_job")}
    free.set()
    recorder.wait_for("job_finished")
    assert len(recorder.named("handling_job")) == 1
    assert len(leases) == 3


def test_a_job_held_longer_than_its_lease_is_nobody_elses(jobs, enqueue, start_worker, recorder, rows):
    free, begun = threading.Event(), threading.Event()

    def handler(session, job):
        session.execute(text("INSERT INTO effect VALUES ('once')"))
        begun.set()
        assert free.wait(20)

    jobs.handler("long")(handler)
    enqueue("long")
    start_worker(jobs, lease=timedelta(milliseconds=300))
    start_worker(jobs, lease=timedelta(milliseconds=300))
    assert begun.wait(10)
    polls = len(recorder.named("polling_for_jobs"))
    recorder.wait_for("polling_for_jobs", polls + 60)
    free.set()
    recorder.wait_for("job_finished")
    assert rows("SELECT what FROM effect") == [("once",)]
    assert len(recorder.named("handling_job")) == 1


def test_types_that_nobody_here_knows_are_reported_and_left(jobs, enqueue, start_worker, recorder, rows):
    jobs.handler("known")(lambda session, job: None)
    enqueue("stranger")
    start_worker(jobs)
    [event] = recorder.wait_for("unknown_job_types")
    assert event.job_types == ("stranger",)
    assert waiting(rows) == [(0, 0, None)]


def test_on_failed_of_the_worker_serves_handlers_without_their_own(jobs, enqueue, start_worker, recorder):
    calls, called = [], threading.Semaphore(0)

    def note(name):
        def on_failed(job, error):
            calls.append((name, job.payload))
            called.release()

        return on_failed

    def handler(session, job):
        raise ValueError

    jobs.handler("own", on_failed=note("own"))(handler)
    jobs.handler("plain")(handler)
    enqueue("own", 1)
    enqueue("plain", 2)
    start_worker(jobs, on_failed=note("worker"))
    assert called.acquire(timeout=10) and called.acquire(timeout=10)
    assert sorted(calls) == [("own", 1), ("worker", 2)]


def test_a_listener_that_raises_harms_nothing(jobs, enqueue, start_worker, rows, tables, caplog):
    finished = threading.Event()

    def listener(event):
        if event.name == "job_finished":
            finished.set()
        raise RuntimeError("listener")

    jobs.handler("work")(lambda session, job: None)
    enqueue("work")
    start_worker(jobs, listener=listener)
    assert finished.wait(10)
    assert "the listener failed" in caplog.text


# stop


def test_start_and_stop_are_idempotent_and_a_worker_can_be_started_again(jobs, enqueue, tables, recorder):
    jobs.handler("work")(lambda session, job: None)
    worker = Worker(jobs, tables, listener=recorder, polling_interval=timedelta(milliseconds=20))
    assert worker.stop() is True
    assert (worker.start(), worker.start(), worker.running) == (True, False, True)
    assert (worker.stop(), worker.stop(), worker.running) == (True, True, False)
    assert recorder.names == ["already_shut_down", "shutting_down", "completed_shutdown", "already_shut_down"]
    enqueue("work")
    with worker:
        recorder.wait_for("job_finished")
    assert not worker.running


def test_a_finished_stop_calls_on_shutdown_and_leaves_no_thread_and_no_connection(jobs, tables, rows, recorder):
    calls = []
    jobs.handler("work")(lambda session, job: None)
    worker = Worker(jobs, tables, threads=3, on_shutdown=lambda: calls.append(1), listener=recorder)
    worker.start()
    recorder.wait_for("polling_for_jobs", 2)
    assert worker.stop() is True
    assert calls == [1]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(worker.worker_id)]
    alone = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() HAVING count(*) = 1"
    wait_until(rows, alone)  # the server takes a moment to see a client go


def test_stop_waits_also_for_a_feeder_that_has_done_everything_but_end(jobs, tables, recorder, monkeypatch):
    feed, join, waited_for = Shift._feed, threading.Thread.join, threading.Event()

    def feed_and_linger(self):
        feed(self)
        waited_for.wait(20)

    def tell_and_join(self, timeout=None):
        if self.name == f"{worker.worker_id}-feeder":
            waited_for.set()
        join(self, timeout)

    monkeypatch.setattr(Shift, "_feed", feed_and_linger)
    monkeypatch.setattr(threading.Thread, "join", tell_and_join)
    worker = Worker(jobs, tables, listener=recorder)
    worker.start()
    assert worker.stop() is True
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(worker.worker_id)]


def test_an_on_shutdown_that_raises_is_reported(jobs, tables, recorder):
    worker = Worker(jobs, tables, on_shutdown=lambda: 1 / 0, listener=recorder)
    worker.start()
    assert worker.stop() is False
    assert recorder.names[-1] == "queue_worker_shutdown_error"


def test_sys_exit_in_callbacks_does_not_end_the_worker(jobs, tables, enqueue):
    finished = threading.Event()

    def listener(event):
        if event.name == "job_finished":
            finished.set()
        sys.exit()

    jobs.handler("work")(lambda session, job: None)
    enqueue("work")
    worker = Worker(jobs, tables, listener=listener, on_shutdown=sys.exit)
    worker.start()
    assert finished.wait(10)
    assert worker.running
    assert worker.stop() is False


def test_a_stop_ends_also_when_the_feeder_hangs_in_the_network(jobs, tables, enqueue, recorder, monkeypatch):
    from sa_proletarian import overdue

    monkeypatch.setattr(overdue, "HOPELESS", 0.5)
    reachable = threading.Event()
    engine = create_engine(tables.url)
    event.listen(engine, "do_connect", lambda *args: reachable.wait(30) and None)
    worker = Worker(jobs, engine, listener=recorder)
    worker.start()
    assert worker.stop(SOON) is False
    assert recorder.names == ["shutting_down", "queue_worker_shutdown_error"]
    reachable.set()
    recorder.wait_for("completed_shutdown")
    engine.dispose()


@pytest.mark.parametrize("uses_session", [True, False])
def test_a_job_that_does_not_end_is_taken_away_and_named(jobs, enqueue, start_worker, recorder, rows, uses_session):
    free, ended = threading.Event(), threading.Event()

    def handler(session, job):
        if uses_session:
            session.execute(text("INSERT INTO effect VALUES ('lost')"))
        free.wait(30)
        ended.set()

    jobs.handler("hang")(handler)
    [job_id] = enqueue("hang")
    calls = []
    worker = start_worker(jobs, termination_timeout=SOON, on_shutdown=lambda: calls.append(1))
    recorder.wait_for("handling_job")
    if uses_session:
        wait_until(rows, "SELECT 1 FROM pg_stat_activity WHERE state = 'idle in transaction'")
    assert worker.stop() is False
    [event] = recorder.named("queue_worker_shutdown_error")
    assert (event.job_ids, calls) == ((job_id,), [])
    assert waiting(rows) == [(0, 0, None)]
    free.set()
    assert ended.wait(10)
    for thread in threading.enumerate():
        if thread.name.startswith(worker.worker_id):
            thread.join(10)
    assert (waiting(rows), archive(rows), rows("SELECT * FROM effect")) == ([(0, 0, None)], [], [])


def test_jobs_that_were_claimed_but_not_begun_are_released_on_stop(jobs, enqueue, start_worker, recorder, rows):
    def handler(session, job):
        if job.payload == "sleep":
            job.sleep(HOUR)

    jobs.handler("work")(handler)
    enqueue("work", count=1000)
    enqueue("work", "sleep")
    enqueue("work", count=300)
    worker = start_worker(jobs)
    recorder.wait_for("handling_job", 1001)
    assert worker.stop() is True
    assert set(waiting(rows)) == {(0, 0, None)}
    [(finished,)] = rows("SELECT count(*) FROM proletarian_archived_job")
    assert finished + len(waiting(rows)) == 1301


def test_a_handler_may_stop_its_own_worker(jobs, enqueue, start_worker, recorder):
    workers, results = [], []

    def handler(session, job):
        results.append(workers[0].stop())

    jobs.handler("stop")(handler)
    workers.append(start_worker(jobs))
    enqueue("stop")
    recorder.wait_for("completed_shutdown")
    assert results == [False]
    assert recorder.named("job_finished")


def test_on_failed_calls_that_are_due_are_made_before_the_worker_ends(jobs, enqueue, start_worker, recorder):
    calls = []

    def handler(session, job):
        raise ValueError

    jobs.handler("fail")(handler)
    enqueue("fail", count=50)
    worker = start_worker(jobs, on_failed=lambda job, error: calls.append(job.job_id))
    recorder.wait_for("not_retrying", 50)
    assert worker.stop() is True
    assert len(set(calls)) == len(calls) == 50


def test_a_settling_that_the_stop_cancels_is_an_interruption(jobs, enqueue, start_worker, recorder, rows, tables):
    jobs.handler("work")(lambda session, job: session.execute(text("INSERT INTO effect VALUES ('x')")))
    rows("CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(20); RETURN NEW; END $$;")
    rows("CREATE TRIGGER slow BEFORE INSERT ON proletarian_archived_job FOR EACH ROW EXECUTE FUNCTION slow()")
    enqueue("work")
    worker = start_worker(jobs, termination_timeout=SOON)
    wait_until(rows, "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'")
    assert worker.stop() is True
    assert (waiting(rows), archive(rows)) == ([(0, 0, None)], [])


def test_leases_are_renewed_while_many_jobs_cannot_be_settled(jobs, enqueue, start_worker, recorder, rows, tables):
    """Settling row by row against a locked archive must not keep the feeder from renewing what runs."""
    begun, free = threading.Event(), threading.Event()

    def long(session, job):
        begun.set()
        assert free.wait(30)

    jobs.handler("small")(lambda session, job: None)
    jobs.handler("long")(long)
    connection = tables.connect()
    connection.execute(text("LOCK proletarian_archived_job IN SHARE MODE"))
    enqueue("long")
    start_worker(jobs, threads=2, lease=timedelta(seconds=9))
    assert begun.wait(10)
    enqueue("small", count=30)
    recorder.wait_for("job_worker_error", 3, timeout=40)
    [(left,)] = rows("SELECT extract(epoch FROM claimed_until - now())::float FROM proletarian_job WHERE job_type = 'long'")
    connection.close()
    free.set()
    recorder.wait_for("job_finished", 31)
    assert left > 0
    assert len(recorder.named("handling_job")) == 31


# signals, in a process of its own

PROCESS = """
    import sys, threading
    from datetime import timedelta
    from sqlalchemy import create_engine, text
    from sa_proletarian import Proletarian, Worker
    jobs = Proletarian()

    @jobs.handler("sleep")
    def sleep(session, job):
        job.sleep(timedelta(hours=1))

    @jobs.handler("hang")
    def hang(session, job):
        threading.Event().wait(3600)

    def listener(event):
        print(event.name, getattr(event, "signal", ""), flush=True)

    worker = Worker(jobs, create_engine(sys.argv[1]), listener=listener, polling_interval=timedelta(milliseconds=20),
                    on_shutdown=lambda: print("on_shutdown", flush=True))
    {ending}
"""


@pytest.fixture
def process(database_url, tables):
    processes = []

    def start(ending):
        code = textwrap.dedent(PROCESS).format(ending=ending)
        url = database_url.render_as_string(hide_password=False)
        process = subprocess.Popen([sys.executable, "-c", code, url], stdout=subprocess.PIPE, text=True)
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


def read_until(process, wanted):
    lines = []
    for line in process.stdout:
        lines.append(line.strip())
        if lines[-1].startswith(wanted):
            return lines
    raise AssertionError(f"no {wanted} in {lines[-30:]}")


def rest_of(process):
    lines = [line.strip() for line in process.stdout if not line.startswith("polling")]
    return lines, process.wait(20)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_stops_gracefully(process, enqueue, rows, number):
    enqueue("sleep")
    worker = process("sys.exit(0 if worker.run() else 3)")
    read_until(worker, "handling_job")
    worker.send_signal(number)
    lines, code = rest_of(worker)
    assert lines == [
        f"worker_interrupted {number.name}",
        "shutting_down",
        "job_interrupted",
        "completed_shutdown",
        "on_shutdown",
    ]
    assert (code, waiting(rows)) == (0, [(0, 0, None)])


def test_a_second_signal_releases_at_once(process, enqueue, rows):
    enqueue("hang")
    worker = process("sys.exit(0 if worker.run() else 3)")
    read_until(worker, "handling_job")
    worker.send_signal(signal.SIGTERM)
    read_until(worker, "shutting_down")
    before = time.monotonic()
    worker.send_signal(signal.SIGINT)
    lines, code = rest_of(worker)
    assert time.monotonic() - before < 8, "the termination timeout of 10 s is not waited for"
    assert lines == ["interrupted_while_shutting_down SIGINT", "job_interrupted", "queue_worker_shutdown_error"]
    assert (code, waiting(rows)) == (3, [(0, 0, None)])


def test_the_echo_of_a_signal_is_not_a_second_one(process, enqueue, rows):
    """A wrapper forwards the Ctrl-C that the terminal has sent to everybody in its group already."""
    enqueue("sleep")
    worker = process("sys.exit(0 if worker.run() else 3)")
    read_until(worker, "handling_job")
    worker.send_signal(signal.SIGINT)
    worker.send_signal(signal.SIGINT)
    lines, code = rest_of(worker)
    assert "interrupted_while_shutting_down SIGINT" not in lines
    assert code == 0


def test_a_forgotten_worker_does_not_keep_the_interpreter_from_exiting(process, enqueue):
    enqueue("hang")
    worker = process("worker.start(); sys.stdin.read() if False else threading.Event().wait(1); print('end', flush=True)")
    lines, code = rest_of(worker)
    assert code == 0 and "end" in lines


# refusals


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"threads": 0}, ValueError),
        ({"threads": 1.5}, TypeError),
        ({"queue": "no spaces"}, ValueError),
        ({"polling_interval": 0.1}, TypeError),
        ({"polling_interval": timedelta(0)}, ValueError),
        ({"termination_timeout": timedelta(seconds=-1)}, ValueError),
        ({"lease": timedelta(0)}, ValueError),
        ({"crash_ceiling": 1}, ValueError),
        ({"retry": 3}, TypeError),
        ({"on_failed": 3}, TypeError),
        ({"session": Session}, TypeError),
        ({"worker_id": ""}, ValueError),
    ],
)
def test_bad_arguments_are_refused_before_anything_starts(jobs, tables, options, error):
    with pytest.raises(error):
        Worker(jobs, tables, **options)


def test_an_autocommit_engine_is_refused(jobs, database_url):
    with pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
        Worker(jobs, create_engine(database_url, isolation_level="AUTOCOMMIT"))


def test_an_autocommit_driver_connection_stops_the_worker_with_the_reason(jobs, database_url, recorder, tables):
    engine = create_engine(database_url, connect_args={"autocommit": True})
    jobs.handler("work")(lambda session, job: None)
    worker = Worker(jobs, engine, listener=recorder)
    worker.start()
    [event] = recorder.wait_for("job_worker_error")
    assert isinstance(event.error, ConfigurationError)
    recorder.wait_for("completed_shutdown")


def test_other_databases_are_refused(jobs):
    with pytest.raises(ConfigurationError, match="sqlite"):
        Worker(jobs, create_engine("sqlite://"))


# trouble


def test_a_missing_table_is_said_once_and_polling_goes_on(jobs, engine, recorder):
    jobs.handler("work")(lambda session, job: None)
    worker = Worker(jobs, engine, listener=recorder, polling_interval=timedelta(milliseconds=20))
    worker.start()
    [error] = recorder.wait_for("job_worker_error")
    assert "alembic upgrade head" in error.hint
    polls = len(recorder.named("polling_for_jobs"))
    recorder.wait_for("polling_for_jobs", polls + 2)
    metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        jobs.enqueue(session, "work")
    recorder.wait_for("job_finished")
    assert len(recorder.named("job_worker_error")) == 1
    assert worker.stop() is True


def test_on_polling_error_may_stop_the_worker(jobs, engine, recorder):
    seen = []
    worker = Worker(jobs, engine, listener=recorder, on_polling_error=lambda error: seen.append(error) or True)
    worker.start()
    recorder.wait_for("completed_shutdown")
    assert len(seen) == 1


@pytest.mark.parametrize("threads", [1, 20])
def test_a_worker_that_is_told_to_stop_at_its_first_error_ends(jobs, recorder, threads, tmp_path):
    engine = create_engine(f"postgresql+psycopg://nobody@/none?host={tmp_path}")
    worker = Worker(jobs, engine, threads=threads, listener=recorder, on_polling_error=lambda error: True)
    worker.start()
    recorder.wait_for("completed_shutdown")
    assert worker.stop() is True
    assert not worker.running


def test_a_database_that_comes_back_is_worked_with_again(jobs, enqueue, start_worker, recorder, rows):
    jobs.handler("work")(lambda session, job: None)
    start_worker(jobs)
    recorder.wait_for("polling_for_jobs", 2)
    rows(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    recorder.wait_for("sql_transient_exception")
    enqueue("work")
    recorder.wait_for("job_finished")


def test_a_claim_that_loses_a_deadlock_is_no_fault_of_the_worker_and_is_made_again(
    jobs, enqueue, start_worker, recorder, rows
):
    rows("CREATE SEQUENCE updates")
    rows(
        "CREATE FUNCTION lose() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF nextval('updates') = 1 THEN RAISE SQLSTATE '40P01'; END IF; RETURN NEW; END $$"
    )
    rows("CREATE TRIGGER lose BEFORE UPDATE ON proletarian_job FOR EACH ROW EXECUTE FUNCTION lose()")
    jobs.handler("work")(lambda session, job: None)
    enqueue("work")
    start_worker(jobs)
    recorder.wait_for("job_finished")
    assert len(recorder.named("sql_transient_exception")) == 1
    assert recorder.named("job_worker_error") == []


def test_a_job_that_cannot_be_settled_for_now_does_not_hold_up_the_others(
    jobs, enqueue, start_worker, recorder, rows, tables
):
    """The handler left an uncommitted row that refers to the job in a connection of its own."""
    rows("CREATE TABLE note (job_id uuid REFERENCES proletarian_job ON DELETE CASCADE)")
    connection = tables.connect()

    def handler(session, job):
        if job.payload == "leave":
            connection.execute(text("INSERT INTO note VALUES (:id)"), {"id": job.job_id})

    jobs.handler("work")(handler)
    enqueue("work", "leave")
    start_worker(jobs, lease=timedelta(seconds=3))
    recorder.wait_for("job_worker_error")
    enqueue("work", count=20)
    recorder.wait_for("job_finished", 20)
    connection.commit()
    connection.close()
    recorder.wait_for("job_finished", 21)
    assert len(recorder.named("handling_job")) == 21


def test_payloads_stay_out_of_logs_also_when_things_go_wrong(jobs, enqueue, start_worker, recorder, rows, caplog):
    from sa_proletarian.events import log_event

    caplog.set_level(logging.DEBUG)
    canary = "canary-4711"

    def listener(event):
        log_event(event)
        recorder(event)

    def handler(session, job):
        session.execute(text("INSERT INTO effect SELECT NULL WHERE :canary <> ''"), {"canary": job.payload["secret"]})

    jobs.handler("fail", retry=Retry(1))(handler)
    enqueue("fail", {"secret": canary})
    start_worker(jobs, listener=listener)
    recorder.wait_for("not_retrying")
    assert "not_retrying" in caplog.text and canary not in caplog.text
    assert canary not in rows("SELECT error FROM proletarian_archived_job")[0][0]


# the app's own


def test_the_workers_connections_are_made_as_the_engines_are(jobs, database_url, enqueue, start_worker, recorder, tables):
    engine = create_engine(database_url, connect_args={"application_name": "the app"})
    connects, begins, names = [], [], []
    event.listen(engine, "do_connect", lambda *args: connects.append(1))
    event.listen(engine, "begin", lambda connection: begins.append(1))
    jobs.handler("work")(
        lambda session, job: names.append(session.scalar(text("SELECT current_setting('application_name')")))
    )
    enqueue("work")
    start_worker(jobs, engine, wake=False)
    recorder.wait_for("job_finished")
    assert names == ["the app"] and len(connects) == 2 and begins
    assert engine.pool.checkedin() == engine.pool.checkedout() == 0
    engine.dispose()


def test_sessions_are_made_by_the_apps_sessionmaker(jobs, tables, enqueue, start_worker, recorder):
    class AppSession(Session):
        pass

    seen = []
    jobs.handler("work")(lambda session, job: seen.append(isinstance(session, AppSession)))
    enqueue("work")
    start_worker(jobs, session=sessionmaker(tables, class_=AppSession))
    recorder.wait_for("job_finished")
    assert seen == [True]


def test_session_add_is_as_good_as_enqueue(jobs, tables, start_worker, recorder):
    seen = []
    jobs.handler("work")(lambda session, job: seen.append(job.payload))
    with Session(tables) as session, session.begin():
        session.add(Job("work", {"by": "add"}))
    start_worker(jobs)
    recorder.wait_for("job_finished")
    assert seen == [{"by": "add"}]


def test_default_worker_ids_are_unique_and_say_where(jobs, tables):
    first, second = Worker(jobs, tables), Worker(jobs, tables)
    assert first.worker_id != second.worker_id
    assert first.worker_id.startswith("proletarian[default]@") and f":{os.getpid()}:" in first.worker_id


def test_a_default_worker_id_has_room_on_the_roster_however_long_the_queues_name(jobs, tables):
    assert len(Worker(jobs, tables, queue="q" * NAME_LIMIT).worker_id) <= NAME_LIMIT


def test_finished_jobs_are_not_kept_in_memory(jobs, enqueue, start_worker, recorder):
    import weakref

    alive = weakref.WeakSet()
    jobs.handler("work")(lambda session, job: alive.add(job))
    enqueue("work", count=200)
    start_worker(jobs)
    recorder.wait_for("job_finished", 200)
    polls = len(recorder.named("polling_for_jobs"))
    recorder.wait_for("polling_for_jobs", polls + 3)
    gc.collect()
    assert len(alive) <= 1


def wait_until(rows, statement):
    deadline = time.monotonic() + 10
    while not rows(statement):
        assert time.monotonic() < deadline, statement
