"""F18: many jobs come and go beside a claim that is held for long, whose transaction keeps their dead rows in the table."""

from __future__ import annotations

import json
import math
import statistics
import time
from datetime import timedelta

import pytest
from sqlalchemy import event, text

from sa_proletarian import ArchivedJob, Job, clock, old_snapshots
from sa_proletarian.beacons import Address
from sa_proletarian.events import Emitter
from sa_proletarian.lifecycle import Lifecycle
from sa_proletarian.old_snapshots import OldSnapshots
from sa_proletarian.outcomes import RETURNED
from sa_proletarian.runs import Report
from sa_proletarian.transactions import Transactions

SCENARIO = "F18"
BATCH = 100
ENQUEUE = text("""
    INSERT INTO proletarian_job (job_id, queue, job_type, payload, attempts, enqueued_at, process_at, crashes)
    SELECT gen_random_uuid(), 'default', 'work', '{}', 0, now(), clock_timestamp(), 0 FROM generate_series(1, :count)
""")


class Churn:
    """A worker's claims and settlings, one after the other in this thread, on one connection."""

    def __init__(self, jobs, engine):
        jobs.handler("work")(lambda session, job: None)
        lifecycle = Lifecycle(Job, ArchivedJob)
        lease = timedelta(hours=1)
        self.transactions = Transactions(jobs, lifecycle, engine, "default", "me", lease, 5, lambda claim: None)
        self.connection = engine.connect()
        self.blocks = None
        self.between_sweeps = []
        event.listen(engine, "before_cursor_execute", self._explain)

    def enqueue(self, count):
        with self.connection.begin():
            self.connection.execute(ENQUEUE, {"count": count})

    def claim(self):
        """Claim ``BATCH`` jobs; give the milliseconds that it took."""
        sweeps = self.transactions.place.begin(clock.monotonic()) is None
        begun = time.perf_counter()
        runs = self.transactions.claim(self.connection, limit=BATCH, idle=False).runs
        took = (time.perf_counter() - begun) * 1000
        self.between_sweeps += [] if sweeps else [took]
        assert len(runs) == BATCH
        assert len([*self.transactions.settle(self.connection, [Report(run, RETURNED) for run in runs])]) == BATCH
        return took

    def run(self, count):
        """Have so many jobs come and go; give what their claims took."""
        took, self.between_sweeps = [], []
        while len(took) * BATCH < count:
            self.enqueue(5 * BATCH)
            took += [self.claim() for _ in range(5)]
        return took

    def blocks_of_a_claim(self, *, sweep=False):
        """How many blocks a claim looks at that sweeps, or one for which that is not due, however slow the machine is."""
        self.enqueue(2 * BATCH)
        self.claim()
        self.transactions.place._next_sweep = -math.inf if sweep else math.inf
        self.blocks = 0
        self.claim()
        blocks, self.blocks = self.blocks, None
        self.transactions.place.forget()
        return blocks

    def _explain(self, connection, cursor, statement, parameters, context, executemany):
        if self.blocks is not None and "SKIP LOCKED" in statement:
            with cursor.connection.cursor() as other:
                other.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", parameters)
                [[plan]] = other
            plan = (json.loads(plan) if isinstance(plan, str) else plan)[0]["Plan"]
            self.blocks += plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]


@pytest.mark.slow
def test_claims_do_not_step_over_the_dead_rows_that_a_held_claim_keeps(trial, jobs, enqueue_one, recorder, monkeypatch):
    churn = Churn(jobs, trial.engine)
    with churn.connection, trial.engine.connect() as holder, holder.begin():
        hold(churn, holder, enqueue_one)
        trial.fault("claim held")
        sample = trial.amount(1_000, 10_000)
        before, between_before, blocks_before = churn.run(sample), [*churn.between_sweeps], churn.blocks_of_a_claim()
        amount = trial.amount(5_000, 50_000)
        churn.run(amount)
        after, between_after, blocks_after = churn.run(sample), [*churn.between_sweeps], churn.blocks_of_a_claim()
        [alarm] = alarms(churn, recorder, monkeypatch)
        holder_pid = holder.scalar(text("SELECT pg_backend_pid()"))
        blocks_of_a_sweep = churn.blocks_of_a_claim(sweep=True)
    trial.record.counts |= {
        "churned": amount + 2 * sample,
        "alarms": 1,
        "rows_in_the_alarm": alarm.rows,
        **{f"p99_claim_ms_{when}": p99(took) for when, took in (("before", before), ("after", after))},
        **{
            f"p99_claim_ms_between_sweeps_{when}": p99(took)
            for when, took in (("before", between_before), ("after", between_after))
        },
        **{f"claim_ms_{when}": round(statistics.median(took), 2) for when, took in (("before", before), ("after", after))},
        **{f"slowest_claim_ms_{when}": round(max(took), 2) for when, took in (("before", before), ("after", after))},
        "blocks_before": blocks_before,
        "blocks_after": blocks_after,
        "blocks_of_a_sweep": blocks_of_a_sweep,
    }
    assert blocks_of_a_sweep > blocks_after + amount / 40, "the dead rows are there: some twenty in a block"
    assert f"pid {holder_pid} " in alarm.holder, "it names who holds the claim"
    assert blocks_after < 2 * blocks_before + BATCH


def p99(took):
    """Give the 99th percentile; ``None`` where a slow machine has left too few."""
    return round(statistics.quantiles(took, n=100, method="inclusive")[98], 2) if len(took) > 1 else None


def alarms(churn, recorder, monkeypatch):
    """Look for what keeps the dead rows; give what is told, as if it were old by now."""
    monkeypatch.setattr(old_snapshots, "INTERVAL", 0.0)
    monkeypatch.setattr(old_snapshots, "OLD", 0.0)
    monkeypatch.setattr(old_snapshots, "MANY", 1_000)
    emit = Emitter(recorder, worker_id="me", queue="default")
    alarm = OldSnapshots(churn.transactions, emit, Address(None, "proletarian_job", "default"))
    deadline = time.monotonic() + 60
    while not recorder.named("dead_rows_kept"):  # the server counts dead rows in its own time
        assert time.monotonic() < deadline
        alarm.look(churn.connection)
    return recorder.named("dead_rows_kept")


def hold(churn, holder, enqueue_one):
    """Claim a job and hold it in an open transaction, as its handler's session does."""
    enqueue_one()
    [run] = churn.transactions.claim(churn.connection, limit=1, idle=False).runs
    assert churn.transactions.lifecycle.hold(holder, run.claim, lock_timeout=timedelta(seconds=20)) is not None


@pytest.fixture
def enqueue_one(jobs, trial):
    def enqueue():
        with trial.engine.begin() as connection:
            jobs.enqueue(connection, "work")

    return enqueue
