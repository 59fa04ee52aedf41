"""The core of the suite on MariaDB, at half the counts: F1, F2, F8 and F10 with the same workers, ledgers and checker.

F3, F11 and F13 are told once for both databases, in files of their own.

What is otherwise there: a deadlock undoes the whole transaction, also where the handler swallows the error; a lock that is
not had in time undoes one statement only; what a dead worker had claimed comes back by its lease.
"""

from __future__ import annotations

import gc
import json
import random
import threading
from contextlib import contextmanager
from datetime import timedelta

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from machinery.fuzz import alike, random_value
from sa_proletarian import Proletarian, Worker

pytestmark = [
    pytest.mark.slow,
    # PyMySQL leaves a socket open when the server dies while it connects
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
]

FORMS = ("threads", "async")
OTHERS = text(
    "SELECT id FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID() AND command <> 'Killed'"
)


@pytest.fixture
def make(make_trial, mariadb_engine):
    return lambda scenario: make_trial(mariadb_engine.url, f"{scenario} MariaDB")


def test_killed_workers_lose_nothing_and_double_nothing(make):
    trial = make("F1")
    workers = [trial.start(form, up=False) for form in [*FORMS] * (2 if trial.long else 1)]
    kills, jobs = trial.amount(3, 100), trial.amount(1, 50_000)
    with trial.filled(500 if trial.long else 100, together=25 if trial.long else 1) as enqueuer:
        for number in range(kills):
            trial.wait_until(lambda due=jobs * number // kills: enqueuer.count >= due, 600)
            victim = trial.chance.choice(workers)
            victim.wait_until_up()
            trial.pause(0.05, 0.5)
            victim.kill()
            trial.fault("kill -9 of a worker")
            workers[workers.index(victim)] = trial.start(victim.form, up=False)
    trial.finish()
    trial.check()
    assert trial.record.counts["starts"] > trial.record.counts["jobs"], "the kills have hit running jobs"


def crash(trial, server):
    trial.fault("crash of the server")
    server.kill()
    server.start()


def kill_connection(trial, server):
    trial.wait_until(lambda: kill_one(trial))
    trial.fault("connection killed")


def kill_one(trial):
    """Kill somebody's connection, if just now there is one."""
    with trial.engine.connect() as connection:
        ids = list(connection.scalars(OTHERS))
        try:
            connection.execute(text("KILL CONNECTION :id"), {"id": trial.chance.choice(ids)})
        except (IndexError, SQLAlchemyError):
            return False
    return True


def test_a_server_that_crashes_loses_nothing_and_doubles_nothing(make_trial, own_mariadb):
    administration = create_engine(own_mariadb.url())
    with administration.connect() as connection:
        connection.execute(text("CREATE DATABASE trial"))
    administration.dispose()
    trial = make_trial(own_mariadb.url("trial"), "F2 MariaDB")
    workers = [trial.start(form, slots=4) for form in FORMS]
    trial.unlocked |= {worker.pid for worker in workers}  # its lease may end before its lost connection is noticed
    faults = [crash] * trial.amount(1, 25) + [kill_connection] * trial.amount(5, 30)
    trial.suffer(faults, own_mariadb, trial.enqueuer(most_ms=60))
    trial.finish()
    trial.check()
    gc.collect()  # PyMySQL's sockets: afterwards nobody ignores them


def test_deadlocks_take_no_half_of_a_job(make):
    """Also where the handler swallows what the server says: by then the first half of what it wrote is gone."""
    trial = make("F8")
    enqueuer = trial.enqueuer()
    deeds = [trial.chance.choice(["updates", "swallows_updates", "swallows_updates"]) for _ in range(trial.amount(80, 2500))]
    for does in deeds:
        then = [20] if does == "swallows_updates" else []
        enqueuer.put({"does": does, "rows": trial.chance.sample(range(1, 6), 2), "between": 0.02, "then": then})
    for form in FORMS:
        trial.start(form, slots=2)  # more of them would deadlock some job more often than it is called again
    trial.finish(1800 if trial.long else 120)
    trial.check_but_for_beaten(len(deeds) / 20)
    silent = swallowed(trial, "1213")
    trial.record.faults["deadlock"] += max(0, names(trial).count("conflict_retried") - silent)
    trial.record.faults["deadlock, swallowed"] += silent
    assert all(trial.record.faults.values()) or not trial.long, "both have happened"
    trial.wait_for(f"SELECT value = {deeds.count('swallows_updates')} FROM counter WHERE id = 20", 1)


def test_a_lock_not_had_in_time_takes_one_statement_and_nothing_else(make):
    trial = make("F8")
    enqueuer = trial.enqueuer()
    for _ in range(trial.amount(12, 100)):
        enqueuer.put({"does": "swallows_updates", "rows": [10]})
        enqueuer.put({"does": "write"})
    options = {"connect_args": {"init_command": "SET SESSION innodb_lock_wait_timeout = 1"}}
    with somebody_has(trial, 10):
        for form in FORMS:
            trial.start(form, **options)
        trial.wait_for("SELECT count(*) = 0 FROM proletarian_job", 300)
    trial.finish()
    trial.check()
    trial.record.faults["lock not had in time"] += swallowed(trial, "1205")
    assert trial.record.faults.total() or not trial.long, "it has happened"


def names(trial):
    return [event["name"] for event in trial.history().events]


def swallowed(trial, number):
    return sum(line["what"] == "swallowed" and number in line["said"] for line in trial.history().ledger)


@contextmanager
def somebody_has(trial, number):
    """Have that row locked for longer than a worker waits, again and again, for as long as the context lasts."""
    stop, has_it = threading.Event(), threading.Event()

    def hold():
        while not stop.is_set():
            with trial.engine.begin() as connection:
                connection.execute(text("UPDATE counter SET value = value + 1 WHERE id = :id"), {"id": number})
                has_it.set()
                stop.wait(1.5)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert has_it.wait(60)
        yield
    finally:
        stop.set()
        thread.join()


UUID = "REPLACE(UUID(), '-', '')"  # MySQL keeps it so
GOOD = {
    "job_id": UUID,
    "queue": "'default'",
    "job_type": "'poison'",
    "payload": "'null'",
    "attempts": "0",
    "crashes": "0",
    "enqueued_at": "UTC_TIMESTAMP(6)",
    "process_at": "UTC_TIMESTAMP(6) - INTERVAL 1 HOUR",
}
CORPUS = {
    "a number beyond floats": {"payload": "'1e5000'"},
    "a number with more digits than Python reads": {"payload": "CONCAT('9', REPEAT('0', 5000))"},
    "nested 1,500 deep": {"payload": "CONCAT(REPEAT('[', 1500), REPEAT(']', 1500))"},
    "a NUL": {"payload": r"""'"\\u0000"'"""},
    "half a character": {"payload": r"""'"\\ud800"'"""},
    "the same key twice": {"payload": """'{"a": 1, "a": 2}'"""},
    "much space": {"payload": "CONCAT('[', REPEAT(' ', 1000000), ']')"},
    "ten megabytes": {"payload": "JSON_QUOTE(REPEAT('x', 10000000))"},
    "not JSON": {"payload": "'{'"},
    "NaN": {"payload": "'NaN'"},
    "nothing": {"payload": "NULL"},
    "the most attempts": {"attempts": "2147483647"},
    "negative attempts": {"attempts": "-1"},
    "the most crashes": {"crashes": "2147483647"},
    "negative crashes": {"crashes": "-1"},
    "due at no time": {"process_at": "'0000-00-00'"},
    "due on no day": {"process_at": "'2020-02-00'"},
    "due in the first year": {"process_at": "'0001-01-01'"},
    "due when time ends": {"process_at": "'9999-12-31 23:59:59.999999'"},
    "enqueued at no time": {"enqueued_at": "'0000-00-00'"},
    "enqueued when time ends": {"enqueued_at": "'9999-12-31 23:59:59.999999'"},
    "claimed at no time": {"claim_id": UUID, "claimed_until": "'0000-00-00'"},
    "claimed without a claim": {"claimed_until": "UTC_TIMESTAMP(6) - INTERVAL 1 DAY"},
    "a claim without a lease": {"claim_id": UUID},
    "claimed by a novel": {"claim_id": UUID, "claimed_by": "REPEAT('x', 60000)"},
    "a long error": {"last_error": "REPEAT('x', 65535)"},
    "an empty type": {"job_type": "''"},
    "a type that is no name": {"job_type": r"'\x1b[31m\n; DROP TABLE'"},
    "a type nobody knows": {"job_type": "'unknown'"},
    "a type too long": {"job_type": "REPEAT('x', 201)"},
    "a queue that is no name": {"queue": r"'\n'"},
    "no id": {"job_id": "NULL"},
    "the id of zeros": {"job_id": "REPEAT('0', 32)"},
    "an id that is none": {"job_id": "'id'"},
}


REFUSED = {
    "NaN",
    "an id that is none",
    "claimed at no time",
    "due at no time",
    "due in the first year",
    "due when time ends",
    "enqueued at no time",
    "enqueued when time ends",
    "half a character",
    "negative attempts",
    "negative crashes",
    "nested 1,500 deep",
    "no id",
    "not JSON",
    "nothing",
}
"""What the tables refuse by themselves, also where the server is not strict."""
REFUSED_BY_MYSQL = {"a number beyond floats", "a number with more digits than Python reads"}
"""What it refuses besides: its JSON is more than text."""


def test_rows_behind_the_apis_back_harm_nobody(make, recorder):
    """Also those that a server takes which is not strict."""
    trial = make("F10")
    jobs, done, refused = Proletarian(), [], {"STRICT_TRANS_TABLES": set(), "": set()}
    jobs.handler("poison")(lambda session, job: None)
    jobs.handler("neighbour")(lambda session, job: done.append(session.execute(text("SELECT 1")).scalar()))
    for mode in ("STRICT_TRANS_TABLES", ""):
        for name, values in CORPUS.items():
            row = {**GOOD, **values}
            insert = f"INSERT INTO proletarian_job ({', '.join(row)}) VALUES ({', '.join(row.values())})"
            trial.fault("poison row")
            try:
                with trial.engine.begin() as connection:
                    connection.exec_driver_sql(f"SET SESSION sql_mode = '{mode}'")
                    connection.exec_driver_sql(insert)
            except SQLAlchemyError:
                refused[mode].add(name)
            with Session(trial.engine) as session, session.begin():
                jobs.enqueue(session, "neighbour")
    due = "queue = 'default' AND job_type IN ('poison', 'neighbour')"
    with Worker(jobs, trial.engine, threads=2, listener=recorder, polling_interval=timedelta(milliseconds=20)):
        trial.wait_for(f"SELECT count(*) = 0 FROM proletarian_job WHERE {due}", 90)
    assert done == [1] * 2 * len(CORPUS)
    errors = [(event.name, str(event.error)) for event in recorder.named("job_worker_error")]
    assert errors == [], "no poll fails"
    always = REFUSED if trial.engine.dialect.is_mariadb else REFUSED | REFUSED_BY_MYSQL
    assert refused == {"STRICT_TRANS_TABLES": always | {"a type too long"}, "": always | {"the id of zeros"}}, (
        "that of zeros is there by then"
    )


def test_what_is_enqueued_comes_back_equal_or_is_refused_before_any_sql(make, recorder):
    trial = make("F10")
    chance, jobs, given, came, refused = random.Random(trial.record.seed), Proletarian(), {}, {}, 0
    jobs.handler("fuzz")(lambda session, job: came.__setitem__(job.job_id, job.payload))
    with Session(trial.engine) as session, session.begin():
        for _ in range(trial.amount(300, 25_000)):
            value = random_value(chance)
            try:
                given[jobs.enqueue(session, "fuzz", value, process_in=-timedelta(hours=1)).job_id] = value
            except (TypeError, ValueError):
                refused += 1
    trial.record.counts["payloads"] = len(given) + refused
    with Worker(jobs, trial.engine, threads=2, listener=recorder, polling_interval=timedelta(milliseconds=20)):
        trial.wait_for("SELECT count(*) = 0 FROM proletarian_job", 1800 if trial.long else 120)
    assert came.keys() == given.keys()
    if not trial.engine.dialect.is_mariadb:
        given, came = ({job_id: rounded(value) for job_id, value in values.items()} for values in (given, came))
    assert [(value, came[job_id]) for job_id, value in given.items() if not alike(value, came[job_id])] == []
    trial.wait_for(f"SELECT count(*) = {len(given)} FROM proletarian_archived_job WHERE status = 'success'", 1)
    assert refused > 0 and len(given) > refused / 4


def rounded(value):
    """Give a value as far as MySQL's JSON keeps it: integers beyond 64 bits are floats, not always the nearest."""

    def about(digits):
        return float(f"{float(digits):.12g}")

    def number(digits):
        return int(digits) if int(digits) in range(-(2**63), 2**64) else about(digits)

    return json.loads(json.dumps(value), parse_int=number, parse_float=about)
