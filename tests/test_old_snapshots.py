from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from sa_proletarian import old_snapshots
from sa_proletarian.beacons import Address
from sa_proletarian.events import Emitter
from sa_proletarian.old_snapshots import OldSnapshots

PLACE = Address(None, "proletarian_job", "default")


@pytest.fixture
def soon(monkeypatch):
    monkeypatch.setattr(old_snapshots, "INTERVAL", 0.05)
    monkeypatch.setattr(old_snapshots, "OLD", 0.5)
    monkeypatch.setattr(old_snapshots, "MANY", 50)


@pytest.fixture
def work(jobs, tables):
    """Return a function that enqueues so many jobs, which leave a dead row each when they are done."""
    jobs.handler("work")(lambda session, job: None)

    def work(count):
        with Session(tables) as session, session.begin():
            for _ in range(count):
                jobs.enqueue(session, "work")

    return work


@pytest.fixture
def holding(tables):
    """Return a connection whose transaction has taken a snapshot."""
    with tables.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
        connection.execute(text("SELECT count(*) FROM proletarian_job"))
        yield connection


def test_a_worker_tells_once_whose_transaction_keeps_dead_rows(soon, holding, start_worker, jobs, work, recorder):
    pid = holding.scalar(text("SELECT pg_backend_pid()"))
    work(100)
    start_worker(jobs)
    recorder.wait_for("job_finished", 100)
    [event] = recorder.wait_for("dead_rows_kept", timeout=60)
    assert event.holder.startswith(f"transaction of pid {pid} user postgres")
    assert event.age >= timedelta(seconds=0) and event.rows >= 50
    work(1)
    recorder.wait_for("job_finished", 101)
    assert len(recorder.named("dead_rows_kept")) == 1


def test_it_needs_no_right_and_counts_what_it_has_seen(
    soon, holding, jobs, tables, work, recorder, administration, database_url
):
    pid = holding.scalar(text("SELECT pg_backend_pid()"))
    work(100)
    while jobs.process_next(tables) is not None:
        pass
    with administration.connect() as connection:
        connection.execute(text("DROP ROLE IF EXISTS looks_only"))
        connection.execute(text("CREATE ROLE looks_only LOGIN"))
    engine = create_engine(database_url.set(username="looks_only"))
    try:
        looking = SimpleNamespace(engine=engine, lifecycle=SimpleNamespace(set_local=lambda connection, **limits: None))
        alarm = OldSnapshots(looking, Emitter(recorder, worker_id="me", queue="default"), PLACE)
        with engine.connect() as connection:
            hidden = text("SELECT xact_start FROM pg_stat_activity WHERE pid = :pid")
            assert connection.scalar(hidden, {"pid": pid}) is None
            connection.rollback()
            while not recorder.named("dead_rows_kept"):
                alarm.look(connection)
    finally:
        engine.dispose()
        with administration.connect() as connection:
            connection.execute(text("DROP ROLE looks_only"))
    [event] = recorder.named("dead_rows_kept")
    assert f"pid {pid} " in event.holder


@pytest.fixture
def alarm(tables, recorder, monkeypatch):
    """Return a function that has an alarm see a holder at a moment."""
    now = [1000.0]
    monkeypatch.setattr("sa_proletarian.clock.monotonic", lambda: now[0])
    transactions = SimpleNamespace(engine=tables, lifecycle=SimpleNamespace(set_local=None))
    alarm = OldSnapshots(transactions, Emitter(recorder, worker_id="me", queue="default"), PLACE)

    def sees(at, holder, seconds=None):
        row = None if holder is None else SimpleNamespace(holder=holder, horizon="7", seconds=seconds, dead=20_000)
        alarm._saw(row, at)
        return len(recorder.named("dead_rows_kept"))

    return sees


def test_what_is_young_is_not_told_of_and_what_is_old_once_in_ten_minutes(alarm):
    assert [alarm(at, "one") for at in (0, 240, 299, 300, 360, 899, 900, 960)] == [0, 0, 0, 1, 1, 1, 2, 2]


def test_the_age_that_the_server_tells_counts(alarm):
    assert [alarm(at, "one", seconds) for at, seconds in ((0, 299.0), (1, 300.0))] == [0, 1]


def test_another_holder_is_told_of_by_itself(alarm):
    assert [alarm(0, "one", 300.0), alarm(60, "other", 360.0), alarm(120, None), alarm(180, "other", 480.0)] == [1, 2, 2, 3]


def test_views_that_were_taken_from_everybody_harm_nothing(soon, tables, recorder, monkeypatch):
    transactions = SimpleNamespace(engine=tables, lifecycle=SimpleNamespace(set_local=lambda connection, **limits: None))
    alarm = OldSnapshots(transactions, Emitter(recorder, worker_id="me", queue="default"), PLACE)
    alarm._next_look = 0.0
    monkeypatch.setattr(old_snapshots, "_LOOK", text("SELECT nothing FROM pg_class"))
    with tables.connect() as connection:
        alarm.look(connection)
        assert connection.scalar(text("SELECT 1")) == 1
    assert recorder.events == []


def test_mariadb_is_not_asked(mariadb_engine, recorder):
    transactions = SimpleNamespace(engine=mariadb_engine, lifecycle=SimpleNamespace(set_local=None))
    alarm = OldSnapshots(transactions, Emitter(recorder, worker_id="me", queue="default"), PLACE)
    assert alarm._next_look == float("inf")
