"""What a handler does to its session, and what then happens to the job and to its writes, in every form."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

import pytest
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from sa_proletarian import ArchivedJob, Job, Outcome, Retry

HOUR = timedelta(hours=1)


def test_an_unused_session_holds_nothing(life):
    seen = []

    def handler(session, job):
        seen.append((session.in_transaction(), life.jobs_that_are_not_locked() == [job.job_id]))

    assert life(handler) is Outcome.RETURNED
    assert seen == [(False, True)]


def test_the_row_is_locked_while_the_handler_works_with_its_session(life):
    seen = []

    def handler(session, job):
        live = session.get(Job, job.job_id)
        seen.append((live is not job, live.attempts, life.jobs_that_are_not_locked()))

    assert life(handler) is Outcome.RETURNED
    assert seen == [(True, 1, [])]


def test_what_is_only_added_to_the_session_is_written_too(life):
    def handler(session, job):
        session.add(Job("later", process_in=HOUR))

    assert life(handler) is Outcome.RETURNED
    with life.database.engine.connect() as connection:
        assert [*connection.scalars(select(Job.job_type))] == ["later"]


@pytest.mark.parametrize("ending", ["commit", "close", "commit commit", "commit close"])
def test_a_handler_may_commit_or_close_and_its_writes_appear_when_the_job_ends(life, ending):
    seen = []

    def handler(session, job):
        life.write(session)
        for step in ending.split():
            getattr(session, step)()
        seen.append(life.effects)

    assert life(handler) is Outcome.RETURNED
    assert seen == [[]], "nothing is visible while the job runs"
    assert life.archive == [("success", 1)]
    assert life.effects == ([] if ending == "close" else ["written"])


def test_a_handler_may_roll_back_and_go_on(life):
    def handler(session, job):
        life.write(session, "dropped")
        session.rollback()
        life.write(session, "kept")

    assert life(handler) is Outcome.RETURNED
    assert life.effects == ["kept"]


def test_committed_work_is_gone_when_the_handler_then_fails(life):
    def handler(session, job):
        life.write(session)
        session.commit()
        raise ValueError

    assert life(handler) is Outcome.GAVE_UP
    assert (life.archive, life.effects) == ([("failure", 1)], [])


def test_a_handler_may_catch_a_sql_error_in_a_nested_transaction(life):
    def handler(session, job):
        with pytest.raises(IntegrityError), session.begin_nested():
            life.write(session, None)
        life.write(session)

    assert life(handler) is Outcome.RETURNED
    assert life.effects == ["written"]


def test_a_swallowed_sql_error_is_a_failure(life):
    def handler(session, job):
        life.write(session)
        with pytest.raises(IntegrityError):
            life.write(session, None)

    if not life.database.an_error_spoils_the_transaction:  # it undoes its own statement, and no more
        assert life(handler) is Outcome.RETURNED
        assert (life.archive, life.effects) == ([("success", 1)], ["written"])
        return
    assert life(handler) is Outcome.GAVE_UP
    assert (life.archive, life.effects) == ([("failure", 1)], [])


def test_a_flush_error_is_a_failure_and_the_bookkeeping_is_kept(life):
    def handler(session, job):
        session.add(ArchivedJob())
        session.flush()

    assert life(handler, retry=Retry(1, [HOUR])) is Outcome.RETRIED
    assert life.queue == [(1, 0, None)]


def test_a_broken_deferred_constraint_is_a_failure(life):
    if not life.database.defers_constraints:
        pytest.skip("this database has no constraints that only the COMMIT checks")
    names = []

    def handler(session, job):
        life.write(session)
        names.append(life.database.break_a_deferred_constraint(session))

    assert life(handler) is Outcome.GAVE_UP
    assert (life.archive, life.effects) == ([("failure", 1)], [])
    assert names[0] in life.error


# the claim


def test_a_claim_that_was_lost_writes_nothing_even_if_the_handler_swallows_it(life):
    """Another worker took the job over between our claim and our first use of the session."""
    thief = uuid4()

    def handler(session, job):
        life.change(claim_id=thief)
        try:
            life.write(session)
        except Exception:
            pass

    assert life(handler) is Outcome.CLAIM_LOST
    assert (life.queue, life.archive, life.effects) == ([(1, 0, thief)], [], [])
    assert life.told[-1] == "claim_lost"


def test_a_claim_that_was_lost_unnoticed_is_not_settled(life):
    thief = uuid4()
    assert life(lambda session, job: life.change(claim_id=thief)) is Outcome.CLAIM_LOST
    assert (life.queue, life.archive) == ([(1, 0, thief)], [])


# the connection


def test_a_server_process_that_is_killed_under_a_job_is_a_crash_and_the_job_runs_again(life):
    calls = []

    def handler(session, job):
        calls.append(job.attempts)
        life.write(session)
        if len(calls) == 1:
            life.database.kill_process(life.database.id_of_process(session))
            life.write(session)

    assert life(handler) is Outcome.CONNECTION_DIED
    assert (life.queue, life.archive, life.effects) == ([(0, 1, None)], [], [])
    life.make_due()
    assert life.run() is Outcome.RETURNED
    assert (calls, life.archive, life.effects) == ([1, 1], [("success", 1)], ["written"])


def test_a_handler_that_swallows_the_death_of_its_connection_has_not_succeeded(life):
    def handler(session, job):
        life.database.kill_process(life.database.id_of_process(session))
        try:
            life.write(session)
        except Exception:
            pass

    assert life(handler) is Outcome.CONNECTION_DIED
    assert life.queue == [(0, 1, None)]


def test_a_handlers_own_failure_counts_although_its_connection_died(life):
    def handler(session, job):
        life.database.kill_process(life.database.id_of_process(session))
        try:
            life.write(session)
        except Exception:
            pass
        raise ValueError("of its own")

    assert life(handler) is Outcome.GAVE_UP
    assert "of its own" in life.error


def test_a_death_that_only_the_settling_notices_is_a_crash(life):
    def handler(session, job):
        number = life.database.id_of_process(session)
        session.commit()
        life.database.kill_process(number)

    assert life(handler) is Outcome.CONNECTION_DIED
    assert life.queue == [(0, 1, None)]
