"""Settling on a second connection, while the feeder claims on its own."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from datetime import timedelta

import pytest
from sqlalchemy import event, text

from sa_proletarian import ArchivedJob, Job, Outcome
from sa_proletarian.connections import own_engine
from sa_proletarian.lifecycle import Lifecycle
from sa_proletarian.meanwhile import MANY, Meanwhile
from sa_proletarian.outcomes import RETURNED
from sa_proletarian.runs import Report
from sa_proletarian.sessions import Hold
from sa_proletarian.transactions import Transactions

COUNT = 2 * MANY
BATCH = 1_000


@pytest.fixture
def make_transactions(jobs, tables):
    """Return a function that makes the transactions of a worker, on a pool of so many connections."""
    engines = []
    jobs.handler("work")(lambda session, job: None)

    def make_transactions(*, size=3, **options):
        engine = own_engine(tables, size=size, timeout=0.1, **options)
        engines.append(engine)
        lifecycle = Lifecycle(Job, ArchivedJob)
        return Transactions(
            jobs, lifecycle, engine, "default", "me", timedelta(seconds=30), 5, lambda claim: Hold(engine, lifecycle, claim)
        )

    yield make_transactions
    for engine in engines:
        engine.dispose()


@pytest.fixture
def transactions(make_transactions):
    return make_transactions()


@pytest.fixture
def second(transactions, opened):
    """Settling on a second connection, which is there."""
    second = opened(transactions)
    yield second
    second.close()


@pytest.fixture
def opened():
    """Return a function that has a second connection opened, and waits until it is."""

    def opened(transactions):
        second = Meanwhile(transactions)
        second._open()
        return second

    return opened


@pytest.fixture
def connection(transactions):
    with transactions.engine.connect() as connection:
        yield connection


@pytest.fixture
def enqueue_many(jobs, tables):
    def enqueue_many(count=COUNT):
        with tables.begin() as connection:
            jobs.enqueue_many(connection, [("work", {"i": number}) for number in range(count)])

    return enqueue_many


def claimed(transactions, connection, count=COUNT):
    return [Report(run, RETURNED) for run in transactions.claim(connection, limit=count, idle=True).runs]


def outcomes(settled: Iterable) -> list:
    return [one.ruling.outcome for one in settled]


def test_a_claim_does_not_wait_for_the_settling(transactions, second, connection, enqueue_many, tables, rows):
    enqueue_many(2 * COUNT)
    reports = claimed(transactions, connection)
    with tables.connect() as other:
        other.execute(text("SELECT 1 FROM proletarian_job WHERE claim_id IS NOT NULL FOR UPDATE"))
        second.send(connection, reports)
        assert second.under_way == reports
        assert len(claimed(transactions, connection)) == COUNT
        assert rows("SELECT count(*) FROM proletarian_archived_job") == [(0,)]
        other.rollback()
    assert outcomes(second.wait()) == [Outcome.RETURNED] * COUNT
    assert rows("SELECT status, count(*) FROM proletarian_archived_job GROUP BY 1") == [("success", COUNT)]
    assert not second.under_way


def test_a_claim_that_is_lost_is_told_from_those_that_are_not(transactions, second, connection, enqueue_many, rows):
    enqueue_many()
    reports = claimed(transactions, connection)
    lost = reports[3].run.claim.job_id
    rows(f"UPDATE proletarian_job SET claim_id = gen_random_uuid() WHERE job_id = '{lost}'")
    second.send(connection, reports)
    assert outcomes(second.wait()) == [Outcome.CLAIM_LOST if number == 3 else Outcome.RETURNED for number in range(COUNT)]
    assert rows("SELECT job_id FROM proletarian_job") == [(lost,)]


def test_what_the_second_connection_does_not_settle_the_first_does(
    transactions, second, connection, enqueue_many, tables, rows
):
    enqueue_many()
    reports = claimed(transactions, connection)
    with tables.connect() as other:
        other.execute(text("SELECT 1 FROM proletarian_job FOR UPDATE"))
        second.send(connection, reports)
        pid = second._connection.connection.driver_connection.info.backend_pid
        other.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
        assert [*second.wait()] == []
        other.rollback()
    assert rows("SELECT count(*) FROM proletarian_archived_job") == [(0,)]
    assert outcomes(transactions.settle(connection, reports)) == [Outcome.RETURNED] * COUNT
    second.send(connection, claimed(transactions, connection))  # and there is none any more, but no error either
    assert not second.under_way


def test_an_answer_that_was_lost_is_looked_for(transactions, second, connection, enqueue_many, rows):
    enqueue_many()
    reports = claimed(transactions, connection)
    second.send(connection, reports)
    second._sent.missing()  # it was carried out, and nobody heard of it
    second._sent = None
    settled = [*transactions.settle(connection, reports)]
    assert outcomes(settled) == [Outcome.RETURNED] * COUNT
    assert not any(one.certain for one in settled)
    assert rows("SELECT count(*) FROM proletarian_archived_job") == [(COUNT,)]


def test_few_jobs_are_settled_where_the_claim_is_made(transactions, second, connection, enqueue_many):
    enqueue_many()
    second.send(connection, claimed(transactions, connection)[: MANY - 1])
    assert not second.under_way


def test_where_there_is_no_place_for_one_more_it_goes_without(make_transactions, opened, enqueue_many):
    transactions = make_transactions(size=1)
    enqueue_many()
    with transactions.engine.connect() as connection:
        second = opened(transactions)
        reports = claimed(transactions, connection)
        second.send(connection, reports)
        assert not second.under_way
        assert outcomes(transactions.settle(connection, reports)) == [Outcome.RETURNED] * COUNT
    second.close()


@pytest.mark.parametrize("what", ["a pooler", "a listener"])
def test_there_is_no_second_connection_where_one_might_wait_for_it_or_listens(
    what, tables, make_transactions, opened, enqueue_many
):
    if what == "a listener":
        event.listen(tables, "before_cursor_execute", lambda *given: None)
    transactions = make_transactions(pooler="transaction" if what == "a pooler" else None)
    enqueue_many()
    with transactions.engine.connect() as connection:
        second = opened(transactions)
        second.send(connection, claimed(transactions, connection))
        assert not second.under_way
    second.close()


def test_a_connection_that_is_there_too_late_is_closed(transactions):
    second = Meanwhile(transactions)
    second.close()
    second._open()
    assert transactions.engine.pool.checkedout() == 0


def test_a_connection_without_use_is_given_back(transactions, second, connection, enqueue_many, monkeypatch):
    enqueue_many()
    second.send(connection, claimed(transactions, connection))
    assert len([*second.wait()]) == COUNT
    second.send(connection, [])
    assert transactions.engine.pool.checkedout() == 2
    monkeypatch.setattr(second, "_until", 0.0)
    second.send(connection, [])
    assert transactions.engine.pool.checkedout() == 1


def test_a_worker_with_much_to_do_settles_meanwhile(jobs, enqueue_many, start_worker, recorder, monkeypatch, rows):
    settled, starts, all_begun = [], [], threading.Semaphore(0)
    its_own = Meanwhile.wait

    def wait(self):
        found = [*its_own(self)]
        settled.extend(found)
        return found

    monkeypatch.setattr(Meanwhile, "wait", wait)

    @jobs.handler("work")
    def work(session, job):
        starts.append(job.job_id)
        if len(starts) % BATCH == 0:
            all_begun.release()

    worker = start_worker(jobs)
    for _ in range(100):
        enqueue_many(BATCH)
        assert all_begun.acquire(timeout=60)
        if settled:
            break
    worker.stop()
    assert settled
    assert {*recorder.names} == {"job_finished", "handling_job", "shutting_down", "completed_shutdown"}
    assert len(starts) == len({*starts})
    assert rows("SELECT count(*), min(attempts), max(attempts) FROM proletarian_archived_job") == [(len(starts), 1, 1)]
    assert rows("SELECT count(*) FROM proletarian_job") == [(0,)]
