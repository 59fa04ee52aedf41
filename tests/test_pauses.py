"""What a process begins after it stood still: nothing whose lease may be over, for that is somebody else's by now.

The clock that a worker paces itself by is moved on here; ``faults/test_f13_pauses.py`` stops whole processes.
"""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

from sa_proletarian import AsyncWorker, Outcome, Retry, Worker, clock, feeder
from sa_proletarian.execution import Execution
from sa_proletarian.lifecycle import Lifecycle

LEASE = timedelta(minutes=10)
PATIENCE = 20


@pytest.fixture
def pause(monkeypatch):
    """Return a function that lets so many seconds have gone by, for this process's own clock."""
    passed = [0.0]
    monkeypatch.setattr(clock, "monotonic", lambda: time.monotonic() + passed[0])

    def pause(seconds):
        passed[0] += seconds

    return pause


@pytest.fixture
def before_the_next_run(monkeypatch):
    """Return a function that has something happen between the claim of the next run and its begin."""
    waiting = []
    perform = Execution.perform

    def perform_after(execution, run):
        if waiting:
            waiting.pop()(execution)
        return perform(execution, run)

    monkeypatch.setattr(Execution, "perform", perform_after)
    return waiting.append


@pytest.fixture
def within_the_next(monkeypatch):
    """Return a function that has something happen when the statement of the next such verb has been carried out."""
    waiting = {}

    def watch(name):
        verb = getattr(Lifecycle, name)

        def watched(*args, **options):
            result = verb(*args, **options)
            if name in waiting:
                waiting.pop(name)()
            return result

        monkeypatch.setattr(Lifecycle, name, watched)

    watch("take")
    watch("claim_by_script")
    watch("renew")
    return waiting.__setitem__


@pytest.fixture
def enqueue(jobs, tables):
    def enqueue(*job_types):
        with Session(tables) as session, session.begin():
            for job_type in job_types:
                jobs.enqueue(session, job_type)

    return enqueue


@pytest.fixture
def starts(jobs):
    """Register a handler that fails once; return the numbers of the attempts that were begun."""
    numbers = []

    @jobs.handler("fails_once", retry=Retry(retries=5, delays=[timedelta(0)]))
    def fails_once(session, job):
        numbers.append(job.attempts)
        if job.attempts == 1:
            raise ValueError("planned")

    return numbers


def pause_of(share, pause):
    return lambda execution: pause(share * execution.transactions.lease.total_seconds())


def test_a_job_whose_lease_is_nearly_over_is_released_instead_of_begun(
    jobs, tables, enqueue, rows, starts, pause, before_the_next_run
):
    enqueue("fails_once")
    before_the_next_run(pause_of(0.9, pause))
    assert jobs.process_next(tables) is Outcome.INTERRUPTED
    assert starts == []
    assert rows("SELECT attempts, crashes, claim_id FROM proletarian_job WHERE process_at <= now()") == [(0, 0, None)]
    before_the_next_run(pause_of(0.7, pause))
    assert jobs.process_next(tables) is Outcome.RETRIED
    assert starts == [1]


@pytest.mark.parametrize("verb", ["claim_by_script", "take"])
def test_the_age_of_a_claim_counts_from_before_it_was_made(
    jobs, tables, enqueue, rows, starts, pause, within_the_next, monkeypatch, verb
):
    """The answer may have lain there for as long as this process stood still."""
    enqueue("fails_once")
    if verb == "take":
        monkeypatch.setattr(Lifecycle, "claims_by_script", lambda lifecycle, connection: False)
    within_the_next(verb, lambda: pause(timedelta(days=1).total_seconds()))
    assert jobs.process_next(tables) is Outcome.INTERRUPTED
    assert starts == []
    assert rows("SELECT attempts, crashes, claim_id FROM proletarian_job") == [(0, 0, None)]


def test_no_attempt_is_begun_after_a_later_one(jobs, tables, enqueue, rows, starts, pause, before_the_next_run):
    """While one process stood still before its first start, the lease ran out and another has begun twice."""

    def others_meanwhile(execution):
        rows("UPDATE proletarian_job SET claimed_until = now()")
        assert jobs.process_next(tables) is Outcome.RETRIED
        assert jobs.process_next(tables) is Outcome.RETURNED
        pause_of(1.1, pause)(execution)

    enqueue("fails_once")
    before_the_next_run(others_meanwhile)
    assert jobs.process_next(tables) is Outcome.CLAIM_LOST
    assert starts == [1, 2]
    assert rows("SELECT status, attempts FROM proletarian_archived_job") == [("success", 2)]


def until(rows, statement, expected):
    deadline = time.monotonic() + PATIENCE
    while (found := rows(statement)) != expected:
        assert time.monotonic() < deadline, found
        threading.Event().wait(0.02)


@asynccontextmanager
async def worker_with_one_place(form, jobs, tables, url, recorder):
    options = {"lease": LEASE, "listener": recorder, "polling_interval": timedelta(milliseconds=20)}
    if form == "threads":
        with Worker(jobs, tables, threads=1, **options):
            yield
    else:
        engine = create_async_engine(url)
        async with AsyncWorker(jobs, engine, concurrency=1, **options):
            yield
        await engine.dispose()


@pytest.mark.parametrize("form", ["threads", "async"])
@pytest.mark.parametrize("renewing", [False, True], ids=["a pause", "a pause while its lease was renewed"])
def test_after_a_pause_what_waits_behind_a_running_job_is_given_back_and_not_renewed(
    jobs, tables, database_url, enqueue, rows, recorder, pause, within_the_next, monkeypatch, renewing, form
):
    monkeypatch.setattr(feeder, "wanted", lambda slots, outstanding, per_second: 0 if recorder.named("handling_job") else 2)
    monkeypatch.setattr(feeder, "LONGEST_WAIT", 1e6)  # how long it has waited is not the question here
    begun, go_on, calls = threading.Event(), threading.Event(), []

    def first(session, job):
        begun.set()
        assert go_on.wait(PATIENCE)

    def second(session, job):
        calls.append(job.attempts)

    def as_task(function):
        async def handler(session, job):
            await asyncio.to_thread(function, session, job)

        return handler

    for function in (first, second):
        jobs.handler(function.__name__)(function if form == "threads" else as_task(function))

    async def main():
        async with worker_with_one_place(form, jobs, tables, database_url, recorder):
            assert await asyncio.to_thread(begun.wait, PATIENCE)
            assert rows("SELECT count(*) FROM proletarian_job WHERE claim_id IS NOT NULL") == [(2,)]
            if renewing:
                within_the_next("renew", lambda: pause(0.9 * LEASE.total_seconds()))
            pause((0.5 if renewing else 0.9) * LEASE.total_seconds())
            await asyncio.to_thread(until, rows, given_back, [("second", 0)])
            go_on.set()
            await asyncio.to_thread(recorder.wait_for, "job_finished", timeout=PATIENCE)

    given_back = "SELECT job_type, attempts FROM proletarian_job WHERE claim_id IS NULL"
    enqueue("first", "second")
    asyncio.run(main())
    assert calls == []
    assert rows("SELECT job_type FROM proletarian_archived_job") == [("first",)]
