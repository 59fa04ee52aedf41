"""One job that kills its process: when its last permitted run comes, and what happens beside it."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
from sqlalchemy import create_engine, event, text
from sqlalchemy.orm import Session

from sa_proletarian.runs import Claimed
from sa_proletarian.solitude import Solitude

HOUR = timedelta(hours=1)


@pytest.fixture
def enqueue(jobs, tables):
    def enqueue(payload, count=1, **options):
        with Session(tables) as session, session.begin():
            return [jobs.enqueue(session, "work", payload, **options).job_id for _ in range(count)]

    return enqueue


@pytest.fixture
def enqueue_suspect(enqueue, rows):
    """Return a function that enqueues a job with one run left: three deaths are counted, and its claim tells of another."""

    def enqueue_suspect():
        [suspect] = enqueue("suspect")
        rows(
            "UPDATE proletarian_job SET attempts = 1, crashes = 3, claim_id = gen_random_uuid(), claimed_until = now()"
            " WHERE job_id = :id",
            id=suspect,
        )
        return suspect

    return enqueue_suspect


@pytest.fixture
def let_others_poll(jobs, start_worker, recorder):
    """Return a function that waits while an idle worker polls 30 times: whoever wants to poll does it meanwhile."""

    def wait():
        idle = type(recorder)()
        start_worker(jobs, queue="elsewhere", listener=idle)
        idle.wait_for("polling_for_jobs", 30)

    return wait


class Blocking:
    """A handler that notes the payloads in the order of their runs, and holds up one of them."""

    def __init__(self, held_up):
        self.order = []
        self.begun, self.free = threading.Event(), threading.Event()
        self._held_up = held_up

    def __call__(self, session, job):
        self.order.append(job.payload)
        if job.payload == self._held_up:
            self.begun.set()
            assert self.free.wait(30)


def test_a_suspects_last_permitted_run_is_alone(jobs, enqueue, enqueue_suspect, start_worker, recorder):
    running, together = set(), []
    lock = threading.Lock()

    def handler(session, job):
        with lock:
            running.add(job.job_id)
            together.append((job.payload, len(running)))
        job.sleep(timedelta(milliseconds=20))
        with lock:
            running.discard(job.job_id)

    jobs.handler("work")(handler)
    enqueue("mate", count=20)
    enqueue_suspect()
    enqueue("mate", count=20)
    start_worker(jobs, threads=4)
    recorder.wait_for("job_finished", 41)
    assert [count for payload, count in together if payload == "suspect"] == [1]
    assert max(count for _, count in together) > 1


def test_nothing_is_claimed_while_a_suspect_runs_alone(
    jobs, enqueue, enqueue_suspect, start_worker, recorder, let_others_poll
):
    handler = Blocking("suspect")
    jobs.handler("work")(handler)
    enqueue_suspect()
    start_worker(jobs, threads=2)
    assert handler.begun.wait(10)
    enqueue("mate", count=3)
    let_others_poll()
    assert handler.order == ["suspect"]
    handler.free.set()
    recorder.wait_for("job_finished", 4)


def test_a_worker_that_waits_for_solitude_claims_nothing_else(
    jobs, database_url, tables, enqueue, enqueue_suspect, start_worker, recorder, let_others_poll
):
    """Else a poll that meets the suspect locked by another worker's would pass over it, and the wait would begin anew."""
    handler, waits = Blocking("first"), threading.Event()
    engine = create_engine(database_url)

    @event.listens_for(engine, "commit")
    def after_the_poll_that_finds_the_suspect(connection):
        if len(recorder.named("polling_for_jobs")) >= 2:
            waits.set()

    jobs.handler("work")(handler)
    enqueue("first")
    suspect = enqueue_suspect()
    start_worker(jobs, engine, threads=2, lease=HOUR)
    assert handler.begun.wait(10) and waits.wait(10)
    with tables.begin() as another_worker:
        another_worker.execute(text("SELECT 1 FROM proletarian_job WHERE job_id = :id FOR UPDATE"), {"id": suspect})
        enqueue("mate", count=3)
        let_others_poll()
        assert handler.order == ["first"]
    handler.free.set()
    recorder.wait_for("job_finished", 5)
    assert handler.order == ["first", "suspect", "mate", "mate", "mate"]


def test_one_long_job_keeps_the_others_waiting_for_a_suspect_no_longer_than_a_lease(
    jobs, enqueue, enqueue_suspect, start_worker, recorder
):
    handler = Blocking("long")
    jobs.handler("work")(handler)
    enqueue("long")
    enqueue_suspect()
    enqueue("mate", count=3)
    start_worker(jobs, threads=2, lease=timedelta(milliseconds=600))
    recorder.wait_for("job_finished", 3)
    assert handler.order == ["long", "mate", "mate", "mate"]
    handler.free.set()
    recorder.wait_for("job_finished", 5)
    assert handler.order[4:] == ["suspect"]


def test_a_steady_stream_does_not_keep_a_suspect_from_its_run(jobs, enqueue, enqueue_suspect, start_worker):
    """A long job lets others go first after a lease; they overlap without a gap, and yet the suspect's turn comes."""
    newest, changed, suspect_ran = [0], threading.Condition(), threading.Event()

    def handler(session, job):
        if job.payload == "suspect":
            suspect_ran.set()
        elif job.payload == "long":
            with changed:
                changed.wait_for(lambda: newest[0] > 0, 20)
        elif not suspect_ran.is_set():
            succeed(job.payload)

    def succeed(number):
        enqueue(number + 1)
        with changed:
            newest[0] = number
            changed.notify_all()
            changed.wait_for(lambda: newest[0] > number, 0.3)  # in vain while the worker lets nobody in

    jobs.handler("work")(handler)
    enqueue("long")
    enqueue_suspect()
    enqueue(1)
    start_worker(jobs, threads=2, lease=timedelta(milliseconds=300))
    assert suspect_ran.wait(20)


# the same in numbers


@pytest.fixture
def wanted():
    """Return the solitude that a suspect has asked for at second 0, in a worker with a lease of 30 seconds."""
    solitude = Solitude(30)
    solitude.claimed(Claimed(wants_solitude=True), 0, idle=False)
    return solitude


@pytest.mark.parametrize(
    ("now", "forbids", "passes_over"), [(0, True, False), (30, True, False), (31, False, True), (60, False, True)]
)
def test_others_wait_for_a_lease_and_then_go_first_for_one(wanted, now, forbids, passes_over):
    assert (wanted.forbids({"mate"}, {}, now), wanted.passes_over(now, idle=False)) == (forbids, passes_over)


def test_after_two_leases_the_suspect_asks_again(wanted):
    assert wanted.passes_over(61, idle=False) is False
    wanted.claimed(Claimed(wants_solitude=True), 61, idle=False)
    assert wanted.forbids({"mate"}, {}, 62) is True


@pytest.mark.parametrize("now", [1, 45])
def test_a_worker_that_has_become_idle_claims_and_passes_over_nobody(wanted, now):
    assert wanted.forbids(set(), {}, now) is False
    assert wanted.passes_over(now, idle=True) is False


@pytest.mark.parametrize("run", [({"suspect"}, {}), (set(), {"suspect": "report"})], ids=["running", "to be settled"])
def test_a_suspect_is_alone_until_it_is_settled(wanted, run):
    wanted.claimed(Claimed(["suspect"], solo=True), 1, idle=True)
    assert wanted.forbids(*run, 2) is True
    assert wanted.forbids({"mate"}, {}, 2) is False, "afterwards nobody waits any more"
