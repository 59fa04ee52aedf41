"""F7: the timeouts that an administrator may set for a whole database, all much shorter than some jobs."""

from __future__ import annotations

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from sa_proletarian import Retry

SCENARIO = "F7"
LIMIT = "1s"
WRITE = text("INSERT INTO effect VALUES (:type)")


def quick(session, job):
    session.execute(WRITE, {"type": job.job_type})


def thinks(session, job):
    """Holds its transaction without a word for longer than the limit."""
    session.execute(WRITE, {"type": job.job_type})
    outlast(job)


def asks(session, job):
    """Has one statement that takes longer than the limit."""
    session.execute(WRITE, {"type": job.job_type})
    session.execute(text("SELECT pg_sleep(2.5)"))


def waits(session, job):
    """Waits for a lock longer than the limit, in its first attempt."""
    session.execute(WRITE, {"type": job.job_type})
    session.execute(text("UPDATE locked SET id = id"))


def idles(session, job):
    outlast(job)


def outlast(job):
    """Return when the limit is over by the server's own clock, as it tells a session that has none."""
    with PATIENT[0].connect() as connection:
        connection.execute(text("SELECT pg_sleep(2.5)"))


PATIENT = []
"""An engine on whose sessions no limit is set."""


ACTS = (quick, thinks, asks, waits, idles)
ENDS = {
    "statement_timeout": {"asks": "failure", "waits": "success"},
    "lock_timeout": {"waits": "success"},
    "idle_in_transaction_session_timeout": {},
    "idle_session_timeout": {},
    "transaction_timeout": {"thinks": "crashed", "asks": "crashed"},
}
"""What does not simply succeed: a job that the limit never lets finish is a failure, or crashed where the connection dies.

What waits for a lock gets it in a later attempt.
"""

HIT = {
    "statement_timeout": (asks, waits),
    "lock_timeout": (waits,),
    "idle_in_transaction_session_timeout": (thinks,),
    "idle_session_timeout": (idles,),
    "transaction_timeout": (thinks, asks),
}
"""What takes longer than the limit allows."""


@pytest.mark.slow
@pytest.mark.parametrize("setting", ENDS)
def test_a_timeout_of_the_server_fails_what_it_cannot_let_finish_and_nothing_else(
    make_trial, database_url, administration, pytestconfig, jobs, tables, start_worker, recorder, rows, setting
):
    if setting == "transaction_timeout" and pytestconfig.option.postgresql < 17:
        pytest.skip("PostgreSQL 17 has brought transaction_timeout")
    trial = make_trial(database_url, SCENARIO, tables=False)
    rows("CREATE TABLE locked (id int)")
    rows("INSERT INTO locked VALUES (1)")
    with administration.connect() as connection:
        connection.execute(text(f"ALTER DATABASE {database_url.database} SET {setting} = '{LIMIT}'"))
    for act in ACTS:
        jobs.handler(act.__name__, retry=Retry(retries=4))(act)
    repeats = trial.amount(1, 20)
    with Session(tables) as session, session.begin():
        for _ in range(repeats):
            for act in ACTS:
                jobs.enqueue(session, act.__name__)
    engine = create_engine(database_url)
    patient = create_engine(database_url, connect_args={"options": f"-c {setting}=0"}, max_overflow=-1)
    PATIENT[:] = [patient]
    with patient.connect() as blocker:
        blocker.execute(text("SELECT 1 FROM locked FOR UPDATE"))
        worker = start_worker(jobs, engine, threads=4, crash_ceiling=3)
        recorder.wait_for(
            "handle_job_exception" if setting in ("statement_timeout", "lock_timeout") else "job_finished", timeout=90
        )
        blocker.rollback()
    trial.wait_for("SELECT count(*) = 0 FROM proletarian_job", 900 if trial.long else 180)
    assert worker.stop()
    trial.record.faults[setting] += repeats * len(HIT[setting])
    ends = {(act.__name__, ENDS[setting].get(act.__name__, "success"), repeats) for act in ACTS}
    assert set(rows("SELECT job_type, status, count(*) FROM proletarian_archived_job GROUP BY 1, 2")) == ends
    effects = {(name, count) for name, status, count in ends if status == "success" and name != "idles"}
    assert set(rows("SELECT what, count(*) FROM effect GROUP BY 1")) == effects
    engine.dispose()
    patient.dispose()
