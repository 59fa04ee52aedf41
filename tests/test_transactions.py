"""What a worker makes of a COMMIT that was not answered, once it looks again."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from sa_proletarian import ArchivedJob, Job, Outcome
from sa_proletarian.claims import Held
from sa_proletarian.connections import own_engine
from sa_proletarian.lifecycle import Lifecycle
from sa_proletarian.outcomes import RETURNED, connection_died
from sa_proletarian.runs import Report
from sa_proletarian.sessions import Hold
from sa_proletarian.transactions import Transactions


@pytest.fixture
def settled_again(jobs, tables, rows):
    """Return a function that settles a job whose handler's COMMIT was not answered, and whose row is gone by now."""
    engine = own_engine(tables, size=2)

    def settled_again(*, committed):
        jobs.handler("work")(lambda session, job: None)
        with Session(tables) as session, session.begin():
            jobs.enqueue(session, "work")
        lifecycle = Lifecycle(Job, ArchivedJob)
        transactions = Transactions(
            jobs, lifecycle, engine, "default", "me", timedelta(seconds=30), 5, lambda claim: Hold(engine, lifecycle, claim)
        )
        with engine.connect() as connection, tables.connect() as holder:
            [run] = transactions.claim(connection, limit=1, idle=True).runs
            pid, number = holder.execute(text("SELECT pg_backend_pid(), CAST(pg_current_xact_id() AS text)")).one()
            holder.execute(text("DELETE FROM proletarian_job"))
            holder.commit() if committed else holder.rollback()
            rows("DELETE FROM proletarian_job")
            run.hold.held = Held(pid, number)
            report = Report(run, connection_died(ConnectionError("no answer")), committed=RETURNED)
            [settled] = transactions.settle(connection, [report])
        return settled

    yield settled_again
    engine.dispose()


def test_a_commit_that_was_carried_out_has_settled_the_job(settled_again):
    settled = settled_again(committed=True)
    assert (settled.ruling, settled.certain) == (RETURNED, False)


def test_a_commit_that_was_not_carried_out_has_not_and_somebody_else_has_had_the_job(settled_again):
    assert settled_again(committed=False).ruling.outcome is Outcome.CLAIM_LOST
