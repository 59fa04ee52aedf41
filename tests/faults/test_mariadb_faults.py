"""The core of the suite on MariaDB, at half the counts: F1, F2 and F8 with the same workers, ledgers and checker.

F3, F4, F9, F10, F11 and F13 are told in files of their own, for both databases.

What is otherwise there: a deadlock undoes the whole transaction, also where the handler swallows the error; a lock that is
not had in time undoes one statement only; what a dead worker had claimed comes back by its lease, or some
seconds after the server has ended its session.
"""

from __future__ import annotations

import gc
import threading
from contextlib import contextmanager

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import SQLAlchemyError

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
