"""The verbs of the lifecycle over the real SQL, on three connections that one thread steps through in any order.

Hypothesis chooses the interleaving and shortens what fails; a model of a few lines says what each step must come to.
"""

from __future__ import annotations

from datetime import timedelta
from functools import cache

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test
from sqlalchemy import text

from sa_proletarian import Proletarian, outcomes
from sa_proletarian.lifecycle import Lifecycle
from sa_proletarian.transactions import FINISH_SETTINGS

SCENARIO = "stateful"
LEASES = [timedelta(hours=1), timedelta(hours=2), timedelta(hours=3)]
"""A worker's own: so it can be seen whose lease a job has."""
WORKERS = st.sampled_from(range(3))
ANY = st.integers(0, 1_000)
ERROR = ValueError("planned")
RULINGS = {
    "returned": outcomes.RETURNED,
    "gave_up": outcomes.Ruling(outcomes.Outcome.GAVE_UP, error="planned", cause=ERROR),
    "again": outcomes.Ruling(outcomes.Outcome.RETRIED, delay=timedelta(0), error="planned", cause=ERROR),
    "later": outcomes.Ruling(outcomes.Outcome.RETRIED, delay=timedelta(days=1), error="planned", cause=ERROR),
    "interrupted": outcomes.INTERRUPTED,
    # its usual second would be over at some moment of a long example
    "died": outcomes.Ruling(outcomes.Outcome.CONNECTION_DIED, delay=timedelta(days=1), error="planned", cause=ERROR),
}


lifecycle_of = cache(Lifecycle)  # to make its statements takes longer than to run them


class Model:
    """What one job should be."""

    def __init__(self):
        self.attempts = self.crashes = self.effects = 0
        self.claim = self.status = None
        self.lease = 0
        self.due = True

    @property
    def claimable(self):
        return self.status is None and self.due and (self.claim is None or self.lease == 0)


class Worker:
    """A connection, the claims that were made on it, and the job that its open transaction holds."""

    def __init__(self, engine):
        self.connection = engine.connect()
        self.claims = []
        self.held = None
        self.written = 0


class Interleavings(RuleBasedStateMachine):
    engine = witness = None
    steps = 0

    @initialize()
    def begin(self):
        self.jobs = Proletarian()
        self.verbs = lifecycle_of(self.jobs.job_model, self.jobs.archived_model)
        self.model = {}
        self.witness.execute(text("DELETE FROM effect"))
        self.witness.execute(text("DELETE FROM proletarian_job"))
        self.witness.execute(text("DELETE FROM proletarian_archived_job"))
        self.workers = [Worker(self.engine) for _ in range(3)]

    def teardown(self):
        for worker in getattr(self, "workers", ()):
            worker.connection.close()

    # steps ------------------------------------------------------------------------------------------------------------

    @rule(count=st.integers(1, 3))
    def enqueue(self, count):
        for _ in range(count):
            self.model[self.jobs.enqueue(self.witness, "job").job_id] = Model()

    @rule(number=WORKERS, limit=st.integers(1, 4), by_script=st.booleans())
    def claim(self, number, limit, by_script):
        worker = self.workers[number]
        if worker.held is not None:
            return
        locked = {other.held.job_id for other in self.workers if other.held is not None}
        claimable = {job_id for job_id, job in self.model.items() if job.claimable and job_id not in locked}
        claims = self._claim_by_script(worker, number, limit) if by_script else None
        if claims is None:
            claims = self._claim_by_candidates(worker, number, limit)
        claimed = {claim.job_id for claim in claims}
        assert claimed <= claimable
        assert len(claimed) == min(limit, len(claimable))
        for claim in claims:
            job = self.model[claim.job_id]
            job.attempts += job.claim is None
            job.crashes += job.claim is not None
            job.claim, job.lease = claim, number + 1
            assert (claim.attempts, claim.crashes) == (job.attempts, job.crashes)
        worker.claims += claims

    def _claim_by_candidates(self, worker, number, limit):
        lease = LEASES[number]
        with worker.connection.begin():
            candidates = self.verbs.candidates(worker.connection, queue="default", known=["job"], limit=limit, lease=lease)
            return self.verbs.take(worker.connection, candidates, worker_id=str(number))

    def _claim_by_script(self, worker, number, limit):
        """Claim in one round trip; ``None``, and nothing is claimed, where a suspect is among what is due."""
        about = {"queue": "default", "known": ["job"], "limit": limit, "lease": LEASES[number], "worker_id": str(number)}
        assert self.verbs.claims_by_script(worker.connection)
        with worker.connection.begin():
            claims = self.verbs.claim_by_script(worker.connection, settings={}, **about)
        suspects = [job for job in self.model.values() if job.claimable and (job.crashes or job.claim is not None)]
        assert claims is not None or suspects
        return claims

    @precondition(lambda self: any(worker.claims for worker in self.workers))
    @rule(number=WORKERS, which=ANY)
    def hold(self, number, which):
        worker = self.workers[number]
        if not worker.claims or worker.held is not None:
            return
        claim = worker.claims[which % len(worker.claims)]
        worker.connection.begin()
        held = self.verbs.hold(worker.connection, claim, lock_timeout=timedelta(milliseconds=500))
        assert (held is not None) == self._is_valid(claim)
        if held is None:
            worker.connection.rollback()
            worker.claims.remove(claim)
        else:
            worker.held, worker.written = claim, 0

    @precondition(lambda self: any(worker.held for worker in self.workers))
    @rule(number=WORKERS)
    def write(self, number):
        worker = self.workers[number]
        if worker.held is not None:
            parameters = {"id": str(worker.held.job_id)}
            worker.connection.execute(text("INSERT INTO effect VALUES (:id)"), parameters)
            worker.written += 1

    @precondition(lambda self: any(worker.claims for worker in self.workers))
    @rule(number=WORKERS, which=ANY, how=st.sampled_from(list(RULINGS)))
    def settle(self, number, which, how):
        """Settle what is held, in that transaction and with what was written; else some claim, by itself."""
        worker, ruling = self.workers[number], RULINGS[how]
        if not worker.claims:
            return
        claim = worker.held or worker.claims[which % len(worker.claims)]
        if worker.held is None:
            if any(other.held is not None and other.held.job_id == claim.job_id for other in self.workers):
                return  # it would wait, as it should
            worker.connection.begin()
        if how == "returned" and worker.held is None:
            moved = {claim.job_id} - set(self.verbs.finish(worker.connection, [claim]))
        else:
            moved = self.verbs.settle(worker.connection, [(claim, ruling)])
        assert (claim.job_id in moved) == self._is_valid(claim)
        if moved or worker.held is None:
            worker.connection.commit()
        else:
            worker.connection.rollback()
        if moved:
            job = self.model[claim.job_id]
            job.effects += worker.written
            self._settled(job, ruling)
        worker.claims.remove(claim)
        worker.held, worker.written = None, 0

    @precondition(lambda self: any(worker.claims for worker in self.workers))
    @rule(number=WORKERS, which=ANY, count=st.integers(1, 4))
    def finish_all(self, number, which, count):
        """Archive several jobs in one round trip, as a worker does whose handlers have not used their sessions."""
        worker = self.workers[number]
        locked = {other.held.job_id for other in self.workers if other.held is not None}
        free = [claim for claim in worker.claims if claim.job_id not in locked]
        if worker.held is not None or not free:
            return
        first = which % len(free)
        claims = {claim.job_id: claim for claim in (free[first:] + free[:first])[:count]}
        assert self.verbs.finishes_by_script(worker.connection)
        with worker.connection.begin():
            missing = self.verbs.finish_all_by_script(worker.connection, [*claims.values()], settings=FINISH_SETTINGS)
        assert set(missing) == {job_id for job_id, claim in claims.items() if not self._is_valid(claim)}
        for job_id, claim in claims.items():
            worker.claims.remove(claim)
            if job_id not in missing:
                self._settled(self.model[job_id], outcomes.RETURNED)

    def _settled(self, job, ruling):
        fate = ruling.fate
        job.claim = None
        if fate.status is not None:
            job.status = str(fate.status)
            return
        job.attempts -= not fate.attempt
        job.crashes = 0 if fate.reported else job.crashes + fate.crash
        job.due = ruling.delay in (None, timedelta(0))

    @precondition(lambda self: any(worker.claims for worker in self.workers))
    @rule(number=WORKERS)
    def crash(self, number):
        """The process dies: its transaction with it, and all that it knew."""
        connection = self.workers[number].connection
        pid = connection.connection.dbapi_connection.info.backend_pid
        connection.invalidate()
        connection.close()
        self.witness.execute(text("SELECT pg_terminate_backend(:pid, 20000)"), {"pid": pid})  # its locks go with it
        self.workers[number] = Worker(self.engine)

    @precondition(lambda self: any(worker.claims for worker in self.workers))
    @rule(number=WORKERS)
    def renew(self, number):
        worker = self.workers[number]
        if worker.held is not None or not worker.claims:
            return
        locked = {other.held.job_id for other in self.workers if other.held is not None}
        with worker.connection.begin():
            self.verbs.renew(worker.connection, worker.claims, lease=LEASES[number])
        for claim in worker.claims:
            if self._is_valid(claim) and claim.job_id not in locked:
                self.model[claim.job_id].lease = number + 1

    @precondition(lambda self: any(job.claim is not None for job in self.model.values()))
    @rule(which=ANY)
    def let_a_lease_run_out(self, which):
        claimed = [job_id for job_id, job in self.model.items() if job.claim is not None]
        self._change(claimed[which % len(claimed)], "claimed_until = now() - interval '1 s'", lease=0)

    @precondition(lambda self: any(job.claim is not None for job in self.model.values()))
    @rule(number=WORKERS, which=ANY)
    def lose_a_claim(self, number, which):
        """Let a lease run out and a worker claim what there is: who had it before may still come to settle it."""
        self.let_a_lease_run_out(which)
        self.claim(number, 4, False)

    @precondition(lambda self: any(not job.due for job in self.model.values()))
    @rule(which=ANY)
    def let_a_job_become_due(self, which):
        waiting = [job_id for job_id, job in self.model.items() if not job.due]
        self._change(waiting[which % len(waiting)], "process_at = now()", due=True)

    def _change(self, job_id, what, **model):
        """Let time pass for one job; for one that is held, only once it is not."""
        free = "(SELECT job_id FROM proletarian_job WHERE job_id = :id FOR UPDATE SKIP LOCKED)"
        done = self.witness.execute(text(f"UPDATE proletarian_job SET {what} WHERE job_id = {free}"), {"id": job_id})
        if done.rowcount:
            vars(self.model[job_id]).update(model)

    def _is_valid(self, claim):
        return self.model[claim.job_id].status is None and self.model[claim.job_id].claim is claim

    # what holds after each step ---------------------------------------------------------------------------------------

    @invariant()
    def the_tables_are_what_the_model_says(self):
        if not hasattr(self, "model"):
            return
        type(self).steps += 1
        sql = (
            "SELECT job_id, attempts, crashes, claim_id, NULL AS status,"
            " ceil(extract(epoch FROM claimed_until - now()) / 3600) AS lease,"
            " (SELECT count(*) FROM effect WHERE what = job_id::text) AS effects FROM proletarian_job"
            " UNION ALL SELECT job_id, attempts, NULL, NULL, status, NULL,"
            " (SELECT count(*) FROM effect WHERE what = job_id::text) FROM proletarian_archived_job"
        )
        rows = self.witness.execute(text(sql)).all()
        assert len(rows) == len(self.model)
        for row in rows:
            job = self.model[row.job_id]
            assert (row.attempts, row.status, row.effects) == (job.attempts, job.status, job.effects)
            if job.status is None:
                claim_id, lease = (None, None) if job.claim is None else (job.claim.claim_id, job.lease)
                assert (row.crashes, row.claim_id, row.lease) == (job.crashes, claim_id, lease)


@pytest.mark.slow
def test_whatever_the_order_of_steps_the_tables_are_what_the_model_says(
    make_trial, database_url, tables, administration, pytestconfig
):
    trial = make_trial(database_url, SCENARIO, tables=False)
    with administration.connect() as connection:  # one thread steps through all: who waited for a lock would wait for ever
        connection.execute(text(f"ALTER DATABASE {database_url.database} SET lock_timeout = '500ms'"))
    tables.dispose()
    proving = pytestconfig.getoption("turns", 0) > 0  # the suite, by mutants.py: it need not be short, nor explain itself
    examples = 100 if proving else trial.amount(25, 5_000)
    Interleavings.engine, Interleavings.steps = tables, 0
    with tables.execution_options(isolation_level="AUTOCOMMIT").connect() as Interleavings.witness:
        run_state_machine_as_test(
            seed(trial.record.seed)(Interleavings),
            settings=settings(
                max_examples=examples,
                stateful_step_count=40,
                deadline=None,
                database=None,
                report_multiple_bugs=not proving,
                phases=(Phase.generate,) if proving else tuple(Phase),
                suppress_health_check=list(HealthCheck),
            ),
        )
    trial.record.counts |= {"examples": examples, "steps": Interleavings.steps}
