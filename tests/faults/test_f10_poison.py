"""F10: poison. Rows that no API wrote must harm nobody; what the API is given either comes back equal or is refused."""

from __future__ import annotations

import random
from datetime import timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from machinery.fuzz import alike, random_value

SCENARIO = "F10"
GOOD = {
    "job_id": "gen_random_uuid()",
    "queue": "'default'",
    "job_type": "'poison'",
    "payload": "'null'",
    "attempts": "0",
    "crashes": "0",
    "enqueued_at": "now()",
    "process_at": "now() - interval '1 hour'",
}
CORPUS = {
    "a number beyond floats": {"payload": "'1e5000'"},
    "a number with more digits than Python reads": {"payload": "('9' || repeat('0', 5000))::jsonb"},
    "nested 1,500 deep": {"payload": "(repeat('[', 1500) || repeat(']', 1500))::jsonb"},
    "nested 100,000 deep": {"payload": "(repeat('[', 100000) || repeat(']', 100000))::jsonb"},
    "a NUL": {"payload": r"""'"\u0000"'"""},
    "half a character": {"payload": r"""'"\ud800"'"""},
    "half a character in a key": {"payload": r"""'{"\udfff": 1}'"""},
    "the same key twice": {"payload": """'{"a": 1, "a": 2}'"""},
    "much space": {"payload": "('[' || repeat(' ', 1000000) || ']')::jsonb"},
    "ten megabytes": {"payload": "to_jsonb(repeat('x', 10000000))"},
    "not JSON": {"payload": "'{'"},
    "NaN": {"payload": "'NaN'"},
    "nothing": {"payload": "NULL"},
    "the most attempts": {"attempts": "2147483647"},
    "almost the most attempts": {"attempts": "2147483646"},
    "negative attempts": {"attempts": "-1"},
    "the most crashes": {"crashes": "2147483647"},
    "negative crashes": {"crashes": "-1"},
    "due since for ever": {"process_at": "'-infinity'"},
    "due never": {"process_at": "'infinity'"},
    "due before Christ": {"process_at": "'4000-01-01 BC'"},
    "due after the years that Python knows": {"process_at": "'20000-01-01'"},
    "due in the first year": {"process_at": "'0001-01-01 00:00+00'"},
    "due in the second year": {"process_at": "'0002-01-02 00:00+00'"},
    "enqueued since for ever": {"enqueued_at": "'-infinity'"},
    "enqueued before Christ": {"enqueued_at": "'4000-01-01 BC'"},
    "enqueued far away": {"enqueued_at": "'20000-01-01'"},
    "claimed for ever, long ago": {"claim_id": "gen_random_uuid()", "claimed_until": "'-infinity'"},
    "claimed before Christ": {"claim_id": "gen_random_uuid()", "claimed_until": "'4000-01-01 BC'"},
    "claimed without a claim": {"claimed_until": "now() - interval '1 day'"},
    "a claim without a lease": {"claim_id": "gen_random_uuid()"},
    "claimed by a novel": {"claim_id": "gen_random_uuid()", "claimed_by": "repeat('x', 1000000)"},
    "an error of ten megabytes": {"last_error": "repeat('x', 10000000)"},
    "an empty type": {"job_type": "''"},
    "a type that is no name": {"job_type": r"E'\x1b[31m\n; DROP TABLE'"},
    "a type nobody knows": {"job_type": "'unknown'"},
    "a type too long": {"job_type": "repeat('x', 201)"},
    "an empty queue": {"queue": "''"},
    "a queue that is no name": {"queue": r"E'\n'"},
    "no id": {"job_id": "NULL"},
    "the id of zeros": {"job_id": "'00000000-0000-0000-0000-000000000000'"},
}
REFUSED = {
    "not JSON",
    "NaN",
    "nothing",
    "no id",
    "a type too long",
    "negative attempts",
    "negative crashes",
    "due since for ever",
    "due never",
    "due before Christ",
    "due after the years that Python knows",
    "due in the first year",
    "nested 100,000 deep",
    "a NUL",
    "half a character",
    "half a character in a key",
    "enqueued since for ever",
    "enqueued before Christ",
    "enqueued far away",
    "claimed for ever, long ago",
    "claimed before Christ",
}
"""What the tables refuse by themselves."""


@pytest.fixture
def trial(make_trial, database_url):
    return make_trial(database_url, SCENARIO, tables=False)


@pytest.mark.slow
def test_rows_behind_the_apis_back_harm_nobody(trial, jobs, tables, start_worker, recorder, rows):
    refused = set()
    jobs.handler("poison")(lambda session, job: rows("INSERT INTO effect VALUES ('poison')"))
    jobs.handler("neighbour")(lambda session, job: session.execute(text("INSERT INTO effect VALUES ('neighbour')")))
    for name, values in CORPUS.items():
        row = {**GOOD, **values}
        trial.fault("poison row")
        try:
            insert(tables, row)
        except SQLAlchemyError:
            refused.add(name)
        with Session(tables) as session, session.begin():
            jobs.enqueue(session, "neighbour")
    worker = start_worker(jobs, threads=2)
    trial.wait_for(
        "SELECT count(*) = 0 FROM proletarian_job WHERE queue = 'default' AND job_type IN ('poison', 'neighbour')", 90
    )
    assert worker.stop()
    assert rows("SELECT count(*) FROM effect WHERE what = 'neighbour'") == [(len(CORPUS),)]
    errors = [(event.name, str(event.error)) for event in recorder.named("job_worker_error")]
    assert errors == [], "no poll fails"
    assert refused == REFUSED


def insert(engine, row):
    with engine.begin() as connection:
        connection.exec_driver_sql(f"INSERT INTO proletarian_job ({', '.join(row)}) VALUES ({', '.join(row.values())})")


@pytest.mark.slow
def test_what_is_enqueued_comes_back_equal_or_is_refused_before_any_sql(trial, jobs, tables, start_worker, rows):
    chance, given, came, refused = random.Random(trial.record.seed), {}, {}, 0
    jobs.handler("fuzz")(lambda session, job: came.__setitem__(job.job_id, job.payload))
    with Session(tables) as session, session.begin():
        for _ in range(trial.amount(500, 50_000)):
            value = random_value(chance)
            try:
                given[jobs.enqueue(session, "fuzz", value, process_in=-timedelta(hours=1)).job_id] = value
            except (TypeError, ValueError):
                refused += 1
        session.execute(text("INSERT INTO effect VALUES ('the business')"))
    trial.record.counts["payloads"] = len(given) + refused
    worker = start_worker(jobs, threads=2)
    trial.wait_for("SELECT count(*) = 0 FROM proletarian_job", 1800 if trial.long else 300)
    assert worker.stop()
    assert rows("SELECT status, count(*) FROM proletarian_archived_job GROUP BY 1") == [("success", len(given))]
    different = [(given[job_id], came[job_id]) for job_id in given if not alike(given[job_id], came[job_id])]
    assert different == []
    assert refused > 0 and len(given) > refused / 4
