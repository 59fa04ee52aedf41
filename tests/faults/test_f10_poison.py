"""F10: poison. Rows that no API wrote must harm nobody; what the API is given either comes back equal or is refused."""

from __future__ import annotations

import random
from datetime import timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from machinery import poison
from machinery.fuzz import alike, random_value, rounded
from machinery.own_tables import business, effect
from sa_proletarian import Worker

SCENARIO = "F10"
ENDS = text("SELECT status, count(*) FROM proletarian_archived_job GROUP BY status")


@pytest.mark.slow
def test_rows_behind_the_apis_back_harm_nobody(trial_on_either, jobs, recorder):
    """Also those that a server of MariaDB takes which is not strict."""
    trial = trial_on_either
    given = poison.BY_DIALECT[trial.engine.dialect.name]
    refused = {before: set() for before in given.refused}
    jobs.handler("poison")(lambda session, job: None)
    jobs.handler("neighbour")(write)
    for before, names in refused.items():
        for name, values in given.corpus.items():
            trial.fault("poison row")
            try:
                insert(trial.engine, before, {**given.good, **values})
            except SQLAlchemyError:
                names.add(name)
            with Session(trial.engine) as session, session.begin():
                jobs.enqueue(session, "neighbour")
    with working(trial, jobs, recorder):
        trial.wait_for(
            "SELECT count(*) = 0 FROM proletarian_job WHERE queue = 'default' AND job_type IN ('poison', 'neighbour')", 150
        )
    trial.wait_for(f"SELECT count(*) = {len(refused) * len(given.corpus)} FROM effect", 1)
    errors = [(event.name, str(event.error)) for event in recorder.named("job_worker_error")]
    assert errors == [], "no poll fails"
    assert refused == given.refused


def working(trial, jobs, recorder):
    return Worker(jobs, trial.engine, threads=2, listener=recorder, polling_interval=timedelta(milliseconds=20))


def insert(engine, before, row):
    with engine.begin() as connection:
        connection.exec_driver_sql(before)
        connection.exec_driver_sql(f"INSERT INTO proletarian_job ({', '.join(row)}) VALUES ({', '.join(row.values())})")


def write(session, job):
    session.execute(effect.insert(), {"job_id": str(job.job_id), "attempt": job.attempts})


@pytest.mark.slow
def test_what_is_enqueued_comes_back_equal_or_is_refused_before_any_sql(trial_on_either, jobs, recorder):
    trial = trial_on_either
    chance, given, came, refused = random.Random(trial.record.seed), {}, {}, 0
    jobs.handler("fuzz")(lambda session, job: came.__setitem__(job.job_id, job.payload))
    with Session(trial.engine) as session, session.begin():
        for _ in range(trial.amount(500, 50_000)):
            value = random_value(chance)
            try:
                given[jobs.enqueue(session, "fuzz", value, process_in=-timedelta(hours=1)).job_id] = value
            except (TypeError, ValueError):
                refused += 1
        session.execute(business.insert(), {"job_id": "of the app"})  # nothing has harmed its transaction
    trial.record.counts["payloads"] = len(given) + refused
    with working(trial, jobs, recorder):
        trial.wait_for("SELECT count(*) = 0 FROM proletarian_job", 1800 if trial.long else 300)
    with trial.engine.connect() as connection:
        assert connection.execute(ENDS).all() == [("success", len(given))]
    assert came.keys() == given.keys()
    if trial.engine.dialect.name == "mysql":
        given, came = ({job_id: rounded(value) for job_id, value in values.items()} for values in (given, came))
    assert [(value, came[job_id]) for job_id, value in given.items() if not alike(value, came[job_id])] == []
    assert refused > 0 and len(given) > refused / 4
