"""What a handler's end makes of its job: each line of the table of fates, in every form."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from sa_proletarian import Cancel, Job, Outcome, Retry, Snooze

HOUR = timedelta(hours=1)


def test_a_returning_handler_is_archived_as_success_with_what_it_wrote(life):
    seen = []

    def handler(session, job):
        life.write(session)
        seen.append((job.payload, job.attempts, job.job_type, job.queue, job.crashes, job.last_error))

    assert life(handler) is Outcome.RETURNED
    assert (life.archive, life.effects, life.queue) == ([("success", 1)], ["written"], [])
    assert seen == [({"n": 1}, 1, "work", "default", 0, None)]
    assert life.told == ["handling_job", "job_finished"]


@pytest.mark.parametrize("uses_session", [True, False])
def test_a_failed_job_is_archived_without_what_it_wrote_and_then_on_failed_is_called_once(life, uses_session):
    calls = []

    def handler(session, job):
        if uses_session:
            life.write(session)
        raise ValueError("no")

    def on_failed(job, error):
        calls.append((job.payload, type(error), life.archive))

    assert life(handler, on_failed=on_failed) is Outcome.GAVE_UP
    assert (life.archive, life.effects, life.queue) == ([("failure", 1)], [], [])
    assert calls == [({"n": 1}, ValueError, [("failure", 1)])]
    assert life.error.startswith("ValueError: no") and "in handler" in life.error
    assert "sa_proletarian/execution" not in life.error
    assert life.told == ["handling_job", "handle_job_exception", "not_retrying"]


@pytest.mark.parametrize("error", [SystemExit(0), GeneratorExit(), RecursionError()])
def test_whatever_a_handler_raises_is_a_failure(life, error):
    def handler(session, job):
        raise error

    assert life(handler) is Outcome.GAVE_UP
    assert life.archive == [("failure", 1)]


def test_a_retried_job_runs_again_after_its_delay_and_says_why(life):
    def handler(session, job):
        life.write(session)
        raise ValueError(f"attempt {job.attempts}")

    assert life(handler, retry=Retry(1, [HOUR])) is Outcome.RETRIED
    assert (life.queue, life.effects) == ([(1, 0, None)], [])
    assert life.error.startswith("ValueError: attempt 1")
    [event] = life.recorder.named("retrying")
    assert event.retries_left == 1
    assert HOUR - timedelta(minutes=1) < life.due_at - datetime.now(UTC) <= HOUR
    life.make_due()
    assert life.run() is Outcome.GAVE_UP
    assert life.archive == [("failure", 2)]


def test_snooze_is_no_attempt_and_keeps_what_was_committed(life):
    def handler(session, job):
        life.write(session, "committed")
        session.commit()
        life.write(session, "not committed")
        raise Snooze(HOUR)

    assert life(handler) is Outcome.SNOOZED
    assert (life.queue, life.effects, life.archive) == ([(0, 0, None)], ["committed"], [])


def test_cancel_archives_as_cancelled_with_its_reason(life):
    def handler(session, job):
        raise Cancel("the user is gone")

    assert life(handler) is Outcome.CANCELLED
    assert (life.archive, life.error) == ([("cancelled", 1)], "Cancel: the user is gone")


def test_a_payload_that_cannot_be_decoded_fails_its_job_and_no_other(life):
    calls = []
    life.handle(lambda session, job: life.write(session), on_failed=lambda job, error: calls.append(job.payload))
    life.database.spoil_payload(life.enqueue())
    assert life.run() is Outcome.GAVE_UP
    life.enqueue()
    assert life.run() is Outcome.RETURNED
    assert (sorted(life.archive), calls, life.effects) == ([("failure", 1), ("success", 1)], [None], ["written"])


def test_a_type_that_nobody_here_knows_is_left_to_others(life):
    life.handle(lambda session, job: None)
    life.enqueue("stranger")
    life.enqueue(queue="elsewhere")
    assert life.finds_nothing()
    assert (life.queue, life.archive) == ([(0, 0, None)], [])


# deaths


def test_an_expired_claim_is_taken_again_as_a_crash_with_the_same_attempt(life):
    seen = []
    life.handle(lambda session, job: seen.append((job.attempts, job.crashes)))
    life.enqueue()
    life.change(attempts=1, claim_id=uuid4(), claimed_until=Job.enqueued_at)
    assert life.run() is Outcome.RETURNED
    assert seen == [(1, 1)]


def test_a_reported_outcome_sets_the_crashes_back(life):
    def handler(session, job):
        raise ValueError

    life.handle(handler, retry=Retry(5, [HOUR]))
    life.enqueue()
    life.change(attempts=1, claim_id=uuid4(), claimed_until=Job.enqueued_at)
    assert life.run() is Outcome.RETRIED
    assert life.queue == [(1, 0, None)]


def test_a_job_under_which_processes_died_is_archived_as_crashed_at_the_ceiling(life):
    calls = []
    life.handle(lambda session, job: 1 / 0, on_failed=lambda job, error: calls.append((job.payload, str(error))))
    life.enqueue(payload="killer")
    life.change(attempts=1, crashes=4, claim_id=uuid4(), claimed_until=Job.enqueued_at)
    assert life.run() is Outcome.CRASHED
    assert (life.archive, life.told) == ([("crashed", 1)], ["job_crashed"])
    assert len(calls) == 1 and calls[0][0] == "killer" and "died 5 times" in calls[0][1]
