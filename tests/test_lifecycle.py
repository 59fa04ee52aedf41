"""The verbs on rows: claims and fences."""

from __future__ import annotations

import uuid
from datetime import timedelta

import pytest
from sqlalchemy import NullPool, create_engine, text
from sqlalchemy.orm import Session

from sa_proletarian import ArchivedJob, Job
from sa_proletarian.lifecycle import Lifecycle
from sa_proletarian.outcomes import INTERRUPTED, RETURNED, Outcome, Ruling, connection_died

LEASE = timedelta(seconds=30)


@pytest.fixture
def lifecycle():
    return Lifecycle(Job, ArchivedJob)


@pytest.fixture
def enqueue(jobs, tables):
    def enqueue(count=1, job_type="work", **options):
        with Session(tables) as session, session.begin():
            return [jobs.enqueue(session, job_type, **options).job_id for _ in range(count)]

    return enqueue


def claim(lifecycle, engine, limit=10, **options):
    options = {"queue": "default", "known": ["work"], "lease": LEASE, **options}
    with engine.begin() as connection:
        candidates = lifecycle.candidates(connection, limit=limit, **options)
        return lifecycle.take(connection, candidates, worker_id="me")


def settle(lifecycle, engine, *rulings):
    with engine.begin() as connection:
        return lifecycle.settle(connection, rulings)


def test_a_claim_leases_the_row_under_a_fence_of_its_own(lifecycle, tables, enqueue, rows):
    enqueue(2)
    first, second = claim(lifecycle, tables)
    assert first.claim_id == second.claim_id
    assert (
        rows(
            "SELECT attempts, crashes, claim_id, claimed_by, claimed_until BETWEEN now() + interval '29 s'"
            " AND now() + interval '30 s' FROM proletarian_job"
        )
        == [(1, 0, first.claim_id, "me", True)] * 2
    )
    assert claim(lifecycle, tables) == []


def test_every_claim_has_a_new_fence(lifecycle, tables, enqueue, rows):
    enqueue()
    [first] = claim(lifecycle, tables)
    rows("UPDATE proletarian_job SET claimed_until = now()")
    [second] = claim(lifecycle, tables)
    assert first.claim_id != second.claim_id
    assert (second.attempts, second.crashes) == (1, 1)


def test_what_others_hold_is_passed_over(lifecycle, tables, enqueue):
    ids = enqueue(3)
    with tables.begin() as other:
        other.execute(text("SELECT 1 FROM proletarian_job WHERE job_id = :id FOR UPDATE"), {"id": ids[0]})
        impatient = create_engine(tables.url, poolclass=NullPool, connect_args={"options": "-c lock_timeout=1s"})
        assert [claimed.job_id for claimed in claim(lifecycle, impatient)] == ids[1:]


@pytest.mark.parametrize("ruling", [RETURNED, INTERRUPTED, Ruling(Outcome.GAVE_UP, error="no"), connection_died(OSError())])
def test_no_settling_touches_what_has_another_fence(lifecycle, tables, enqueue, rows, ruling):
    enqueue()
    [claimed] = claim(lifecycle, tables)
    thief = uuid.uuid4()
    rows("UPDATE proletarian_job SET claim_id = :thief", thief=thief)
    assert settle(lifecycle, tables, (claimed, ruling)) == {}
    assert rows("SELECT claim_id, attempts FROM proletarian_job") == [(thief, 1)]
    assert rows("SELECT count(*) FROM proletarian_archived_job") == [(0,)]


def test_no_hold_and_no_end_in_a_group_takes_what_has_another_fence(lifecycle, tables, enqueue, rows):
    enqueue(2)
    mine, lost = claim(lifecycle, tables)
    rows("UPDATE proletarian_job SET claim_id = gen_random_uuid() WHERE job_id = :id", id=lost.job_id)
    with tables.begin() as connection:
        assert lifecycle.hold(connection, lost, lock_timeout=LEASE) is None
        assert list(lifecycle.finish(connection, [mine, lost])) == [lost.job_id]
    assert rows("SELECT job_id FROM proletarian_job") == [(lost.job_id,)]


def test_a_settling_that_is_repeated_does_nothing(lifecycle, tables, enqueue, rows):
    enqueue()
    [claimed] = claim(lifecycle, tables)
    assert list(settle(lifecycle, tables, (claimed, RETURNED))) == [claimed.job_id]
    assert settle(lifecycle, tables, (claimed, RETURNED)) == {}
    assert rows("SELECT status FROM proletarian_archived_job") == [("success",)]


def test_one_statement_settles_many_fates(lifecycle, tables, enqueue, rows):
    enqueue(4)
    success, failure, retry, release = claim(lifecycle, tables)
    settle(
        lifecycle,
        tables,
        (success, RETURNED),
        (failure, Ruling(Outcome.GAVE_UP, error="broken")),
        (retry, Ruling(Outcome.RETRIED, delay=timedelta(hours=1), error="later")),
        (release, INTERRUPTED),
    )
    assert rows("SELECT job_id, status, error, attempts FROM proletarian_archived_job ORDER BY job_id") == [
        (success.job_id, "success", None, 1),
        (failure.job_id, "failure", "broken", 1),
    ]
    assert rows("SELECT job_id, attempts, last_error, process_at > now(), claimed_by FROM proletarian_job ORDER BY 1") == [
        (retry.job_id, 1, "later", True, None),
        (release.job_id, 0, None, False, None),
    ]


def test_renewals_skip_what_a_handler_holds_and_name_the_fence(lifecycle, tables, enqueue, rows):
    enqueue(3)
    claims = claim(lifecycle, tables)
    rows("UPDATE proletarian_job SET claimed_until = now()")
    rows("UPDATE proletarian_job SET claim_id = gen_random_uuid() WHERE job_id = :id", id=claims[2].job_id)
    with tables.begin() as handler, tables.begin() as feeder:
        assert lifecycle.hold(handler, claims[0], lock_timeout=LEASE) is not None
        lifecycle.renew(feeder, claims, lease=LEASE)
    renewed = "SELECT job_id FROM proletarian_job WHERE claimed_until > now() + interval '20 s'"
    assert rows(renewed) == [(claims[1].job_id,)]


def test_attempts_at_the_end_of_their_range_still_count_on(lifecycle, tables, enqueue, rows):
    enqueue()
    rows("UPDATE proletarian_job SET attempts = 2147483647")
    [claimed] = claim(lifecycle, tables)
    assert claimed.attempts == 2147483647
    assert rows("SELECT attempts FROM proletarian_job") == [(2147483647,)]


def test_unknown_types_are_found_among_due_jobs(lifecycle, tables, enqueue):
    enqueue(2, "stranger")
    enqueue(1, "later", process_in=timedelta(hours=1))
    enqueue()
    with tables.begin() as connection:
        assert lifecycle.unknown_types(connection, queue="default", known=["work"]) == ["stranger"]


def test_only_the_transaction_that_holds_the_job_is_ended(lifecycle, tables, enqueue, rows):
    enqueue()
    [claimed] = claim(lifecycle, tables)
    with tables.connect() as handler, tables.connect() as feeder:
        held = lifecycle.hold(handler, claimed, lock_timeout=LEASE)
        handler.rollback()
        handler.execute(text("SELECT 1"))  # the same server process, in another transaction
        lifecycle.end_backend(feeder, held)
        assert handler.execute(text("SELECT 1")).scalar() == 1
