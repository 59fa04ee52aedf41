"""What ends a handler from outside: its time, its worker's stop, somebody who cancels the job. In every form."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from sa_proletarian import Cancellation, Job, Outcome, Retry, Snooze

HOUR = timedelta(hours=1)
MOMENT = timedelta(milliseconds=50)
NO_TIME = timedelta(0)
PATIENCE = 20


def sleeping(life):
    """Make a handler that sleeps, once it has written something, until it is made to end."""

    def handler(session, job):
        life.write(session, "never")
        life.sleep(job, HOUR)

    return handler


def watching(life, end):
    """Make a handler that looks at ``job.interrupted`` until that is true, and then does ``end()``."""

    def handler(session, job):
        life.write(session, "committed")
        session.commit()
        while not job.interrupted:
            pass
        end()

    return handler


# its time is over


def test_a_handler_whose_time_is_over_has_failed_by_a_timeout(life):
    assert life(sleeping(life), timeout=MOMENT, retry=Retry(1, [HOUR])) is Outcome.RETRIED
    assert (life.queue, life.effects) == ([(1, 0, None)], [])
    assert life.error.startswith("JobTimeout")
    assert life.told == ["handling_job", "timed_out", "handle_job_exception", "retrying"]


def test_a_handler_that_is_overdue_and_returns_has_returned(life):
    def handler(session, job):
        while not job.interrupted:
            try:
                life.sleep(job, HOUR)
            except BaseException:
                continue

    assert life(handler, timeout=MOMENT) is Outcome.RETURNED
    assert life.archive == [("success", 1)]


# its worker stops


@pytest.mark.by_workers
def test_a_sleeping_job_is_released_keeps_its_place_and_runs_again(life):
    life.handle(sleeping(life))
    life.enqueue()
    place = life.due_at
    for _ in range(2):
        with life.working() as worker:
            life.recorder.wait_for("handling_job", len(life.recorder.named("handling_job")) + 1)
            assert worker.stop()
        assert (life.queue, life.effects) == ([(0, 0, None)], [])
    assert life.due_at == place
    assert life.told == ["handling_job", "job_interrupted"] * 2


@pytest.mark.by_workers
def test_a_job_that_looks_at_interrupted_may_finish(life):
    life.handle(watching(life, lambda: None))
    life.enqueue()
    with life.working() as worker:
        life.recorder.wait_for("handling_job")
        assert worker.stop()
    assert (life.archive, life.effects) == ([("success", 1)], ["committed"])


@pytest.mark.by_workers
def test_a_job_can_snooze_itself_over_a_deploy(life):
    def snooze():
        raise Snooze(NO_TIME)

    life.handle(watching(life, snooze))
    life.enqueue()
    with life.working() as worker:
        life.recorder.wait_for("handling_job")
        assert worker.stop()
    assert (life.queue, life.effects, life.archive) == ([(0, 0, None)], ["committed"], [])
    assert life.told == ["handling_job", "job_snoozed"]


@pytest.mark.by_workers
def test_an_error_after_an_interruption_is_an_interruption(life):
    def stumble():
        raise ValueError("in the clean-up")

    life.handle(watching(life, stumble))
    life.enqueue()
    with life.working() as worker:
        life.recorder.wait_for("handling_job")
        assert worker.stop()
    assert (life.queue, life.effects, life.archive) == ([(0, 0, None)], [], [])
    assert life.told == ["handling_job", "handle_job_exception_with_interrupt", "job_interrupted"]


@pytest.mark.by_workers
def test_a_statement_that_still_runs_when_the_stop_shall_be_over_is_cancelled(life):
    inside = threading.Event()

    def handler(session, job):
        life.write(session, "never")
        inside.set()
        life.database.wait_for_ever(session)

    life.handle(handler)
    life.enqueue()
    with life.working() as worker:
        assert inside.wait(PATIENCE)
        life.until(life.database.somebody_waits)
        assert worker.stop(NO_TIME)
    assert (life.queue, life.effects) == ([(0, 0, None)], [])


# somebody cancels the job


@pytest.mark.by_workers
def test_a_job_that_is_cancelled_while_it_runs_ends_in_the_archive(life):
    life.handle(sleeping(life))
    job_id = life.enqueue()
    with life.working():
        life.recorder.wait_for("handling_job")
        with Session(life.database.engine) as session, session.begin():
            assert life.jobs.cancel(session, job_id, reason="no longer wanted") is Cancellation.REQUESTED
        life.recorder.wait_for("job_cancelled")
    assert (life.archive, life.effects, life.error) == ([("cancelled", 1)], [], "Cancel: no longer wanted")


# it says how far it is


@pytest.mark.by_workers
def test_progress_is_seen_while_the_handlers_transaction_is_open_and_gone_when_it_has_ended(life):
    seen = threading.Event()

    def handler(session, job):
        life.write(session)
        job.progress(1, 3, "begun")
        while not seen.is_set():
            life.sleep(job, MOMENT)

    def shown():
        row = Job.__worker_table__.c
        with life.database.engine.connect() as connection:
            return [*connection.scalars(select(row.detail).where(row.kind == "job", row.subject == str(job_id)))]

    life.handle(handler)
    job_id = life.enqueue()
    with life.working():
        life.until(lambda: shown() == [{"done": 1, "total": 3, "note": "begun", "attempt": 1}])
        seen.set()
        life.recorder.wait_for("job_finished")
        life.until(lambda: shown() == [])
    assert life.effects == ["written"]
