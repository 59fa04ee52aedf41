"""The verbs of the lifecycle over the real SQL, on three connections that one thread steps through in any order.

Hypothesis chooses the interleaving and shortens what fails; a model of a few lines says what each step must come to.
"""

from __future__ import annotations

from contextlib import nullcontext
from datetime import timedelta
from functools import cache

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError

from sa_proletarian import Proletarian, outcomes, scripts, simple_protocol
from sa_proletarian.lifecycle import Lifecycle
from sa_proletarian.scripts import HeldConnection
from sa_proletarian.sessions import _SAVEPOINTS
from sa_proletarian.transactions import FINISH_SETTINGS, SETTLE_LIMITS

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


class Held:
    """A transaction that holds a job, on a connection of its own, with the savepoint from which it can be undone.

    Its handler may have ended it behind everybody's back: it holds nothing then, and what follows is another one.
    """

    def __init__(self, connection, claim, told, *, by_script):
        self.connection = connection
        self.claim = claim
        self.told = told
        self.by_script = by_script
        self.savepoint = connection.begin_nested()
        self.escaped = False
        self.written = 0


class Worker:
    """A connection, the claims that were made on it, and what the transaction holds in which a handler of it runs."""

    def __init__(self, engine):
        self.connection = engine.connect()
        self.claims = []
        self.held = None

    @property
    def connections(self):
        return [self.connection] if self.held is None else [self.connection, self.held.connection]

    def let_go(self):
        self.held.connection.close()
        self.held = None


class Interleavings(RuleBasedStateMachine):
    engine = witness = None
    steps = 0
    holding = ()

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
        for connection in [*(worker.connection for worker in getattr(self, "workers", ())), *self.holding]:
            connection.close()  # also where a step has failed halfway
        self.holding = ()

    # steps ------------------------------------------------------------------------------------------------------------

    @rule(count=st.integers(1, 3))
    def enqueue(self, count):
        for _ in range(count):
            self.model[self.jobs.enqueue(self.witness, "job").job_id] = Model()

    @rule(number=WORKERS, limit=st.integers(1, 4), by_script=st.booleans())
    def claim(self, number, limit, by_script):
        worker, locked = self.workers[number], self._locked()
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

    def _locked(self):
        """Give the jobs whose rows are locked from one step to the next."""
        holding = [worker.held for worker in self.workers if worker.held is not None]
        return {held.claim.job_id for held in holding if not held.escaped}

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
    @rule(number=WORKERS, which=ANY, by_script=st.booleans())
    def hold(self, number, which, by_script):
        idle = [worker for worker in self.workers if worker.claims and worker.held is None]
        if not idle:
            return
        worker = idle[number % len(idle)]
        self._hold(worker, worker.claims[which % len(worker.claims)], by_script)

    def _hold(self, worker, claim, by_script):
        connection, limit = HeldConnection(self.engine), timedelta(milliseconds=500)
        self.holding = [connection, *(one for one in self.holding if not one.closed)]
        if by_script:
            assert simple_protocol.understands(connection)
            told = self.verbs.hold_by_script(connection, claim, lock_timeout=limit, savepoints=_SAVEPOINTS)
            connection.made = [*_SAVEPOINTS]
        else:
            connection.begin()
            told = self.verbs.hold(connection, claim, lock_timeout=limit)
        assert (told is not None) == self._is_valid(claim)
        if told is None:
            connection.close()
            worker.claims.remove(claim)
        else:
            worker.held = Held(connection, claim, told, by_script=by_script)

    @precondition(lambda self: any(worker.held for worker in self.workers))
    @rule(number=WORKERS)
    def write(self, number):
        """Write as a session does, within a savepoint; its release waits for what is said next, after a hold by script."""
        held = self._holding(number).held
        with held.connection.begin_nested() if not held.escaped else nullcontext():
            held.connection.execute(text("INSERT INTO effect VALUES (:id)"), {"id": str(held.claim.job_id)})
            held.connection.delays_releases = held.by_script and not held.escaped
        held.written += 1

    @precondition(lambda self: any(worker.held for worker in self.workers))
    @rule(number=WORKERS, by=WORKERS, lost=st.booleans())
    def escape(self, number, by, lost):
        """Commit behind everybody's back, as a handler may with the driver's connection; with the job ``lost``, return."""
        held = self._holding(number).held
        held.connection.to_release.clear()
        held.connection.connection.driver_connection.commit()
        held.escaped = True
        self.model[held.claim.job_id].effects += held.written
        held.written = 0
        if lost and self._is_valid(held.claim):
            self._change(held.claim.job_id, "claimed_until = now() - interval '1 s'", lease=0)
            self.claim(by, 4, False)
            self.settle_held(number, "returned", False)

    @precondition(lambda self: any(worker.held for worker in self.workers))
    @rule(number=WORKERS, how=st.sampled_from(["returned"] * 4 + list(RULINGS)), undone=st.booleans())
    def settle_held(self, number, how, undone):
        """Settle what is held, in that transaction, with what was written or with that undone."""
        worker, ruling = self._holding(number), RULINGS[how]
        held = worker.held
        if held.escaped and held.claim.job_id in self._locked():
            return  # it would wait, as it should
        if undone and not held.escaped:
            held.connection.to_release.clear()
            held.savepoint.rollback()
            held.written = 0
        if how == "returned" and held.by_script and not undone:
            moved = self._finish_by_script(held)
        else:
            held.connection.send_releases()
            self.verbs.prepare_settling(held.connection, held.told, **SETTLE_LIMITS)
            moved = self.verbs.settle(held.connection, [(held.claim, ruling)])
        assert (held.claim.job_id in moved) == self._is_valid(held.claim)
        if moved:
            assert (moved[held.claim.job_id] == held.told.transaction_id) == (not held.escaped)
            held.connection.commit()
            job = self.model[held.claim.job_id]
            job.effects += held.written
            self._settled(job, ruling)
        worker.claims.remove(held.claim)
        worker.let_go()

    def _holding(self, number):
        holding = [worker for worker in self.workers if worker.held is not None]
        return holding[number % len(holding)]

    def _finish_by_script(self, held):
        try:
            transaction_id = self.verbs.finish_by_script(held.connection, held.claim, held.told, limits=SETTLE_LIMITS)
        except DBAPIError as error:
            if scripts.says_not_moved(error):
                return {}
            raise
        assert simple_protocol.has_ended(held.connection)
        return {held.claim.job_id: transaction_id}

    @precondition(lambda self: any(worker.claims for worker in self.workers))
    @rule(number=WORKERS, which=ANY, how=st.sampled_from(list(RULINGS)))
    def settle(self, number, which, how):
        """Settle some claim by itself."""
        worker, ruling = self.workers[number], RULINGS[how]
        free = self._free_claims(worker)
        if not free:
            return
        claim = free[which % len(free)]
        with worker.connection.begin():
            if how == "returned":
                moved = {claim.job_id} - set(self.verbs.finish(worker.connection, [claim]))
            else:
                moved = self.verbs.settle(worker.connection, [(claim, ruling)])
        assert (claim.job_id in moved) == self._is_valid(claim)
        if moved:
            self._settled(self.model[claim.job_id], ruling)
        worker.claims.remove(claim)

    @precondition(lambda self: any(worker.claims for worker in self.workers))
    @rule(number=WORKERS, which=ANY, count=st.integers(1, 4), ahead=st.sampled_from([None, False, True]))
    def finish_all(self, number, which, count, ahead):
        """Archive several jobs in one round trip, as a worker does whose handlers have not used their sessions.

        :param ahead: whether it claims while it waits for that: by script or not; ``None`` where it does not.
        """
        worker = self.workers[number]
        free = self._free_claims(worker)
        if ahead is not None:  # of two that are after one job, either may be sooner: no step for what is to be repeated
            free = [claim for claim in free if not self.model[claim.job_id].claimable]
        if not free:
            return
        first = which % len(free)
        claims = {claim.job_id: claim for claim in (free[first:] + free[:first])[:count]}
        if ahead is None:
            assert self.verbs.finishes_by_script(worker.connection)
            with worker.connection.begin():
                missing = self.verbs.finish_all_by_script(worker.connection, [*claims.values()], settings=FINISH_SETTINGS)
        else:
            with self.engine.connect() as second:
                assert self.verbs.sends_ahead(second)
                answer = self.verbs.send_finish_all(second, [*claims.values()], settings=FINISH_SETTINGS)
                self.claim(number, 4, ahead)
                missing = answer()
        assert set(missing) == {job_id for job_id, claim in claims.items() if not self._is_valid(claim)}
        for job_id, claim in claims.items():
            worker.claims.remove(claim)
            if job_id not in missing:
                self._settled(self.model[job_id], outcomes.RETURNED)

    def _free_claims(self, worker):
        """Give the claims of a worker that can be settled without waiting, apart from the one whose handler runs."""
        locked = self._locked()
        running = worker.held.claim if worker.held is not None else None
        return [claim for claim in worker.claims if claim is not running and claim.job_id not in locked]

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
        """The process dies: its transactions with it, and all that it knew."""
        for connection in self.workers[number].connections:
            pid = connection.connection.dbapi_connection.info.backend_pid
            connection.invalidate()
            connection.close()
            # its locks go with it
            self.witness.execute(text("SELECT pg_terminate_backend(:pid, 20000)"), {"pid": pid})
        self.workers[number] = Worker(self.engine)

    @precondition(lambda self: any(worker.claims for worker in self.workers))
    @rule(number=WORKERS)
    def renew(self, number):
        worker, locked = self.workers[number], self._locked()
        if not worker.claims:
            return
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
    @rule(number=WORKERS, which=ANY, comes=st.sampled_from([None, False, True]))
    def lose_a_claim(self, number, which, comes):
        """Let a lease run out and a worker claim what there is: who had it before may still come for it.

        :param comes: whether it comes at once to hold what it has lost: by script or not; ``None`` where it does not.
        """
        self.let_a_lease_run_out(which)
        self.claim(number, 4, False)
        idle = [worker for worker in self.workers if worker.held is None]
        lost = [(worker, claim) for worker in idle for claim in worker.claims if not self._is_valid(claim)]
        if comes is not None and lost:
            self._hold(*lost[which % len(lost)], comes)

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
    # on a rollback the driver throws away what it has prepared by itself, and what the scripts have with it: so let it not
    engine = create_engine(database_url, connect_args={"prepare_threshold": 1_000_000})
    with administration.connect() as connection:  # one thread steps through all: who waited for a lock would wait for ever
        connection.execute(text(f"ALTER DATABASE {database_url.database} SET lock_timeout = '500ms'"))
    tables.dispose()
    proving = pytestconfig.getoption("turns", 0) > 0  # the suite, by mutants.py: it need not be short, nor explain itself
    examples = 100 if proving else trial.amount(25, 5_000)
    Interleavings.engine, Interleavings.steps = engine, 0
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as Interleavings.witness:
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
    engine.dispose()
    trial.record.counts |= {"examples": examples, "steps": Interleavings.steps}
