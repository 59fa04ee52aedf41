"""On a real MariaDB: what is otherwise there than on PostgreSQL. The scenarios of ``conformance`` are run there as well.

Where MariaDB is not installed these tests are skipped, unless ``SA_PROLETARIAN_REQUIRE_ALL`` is set: then they fail.
``SA_PROLETARIAN_MYSQLD`` names a MySQL to run them on instead; the last test compares what the two are
told.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from uuid import uuid4

import pytest
from sqlalchemy import Column, Integer, MetaData, String, Table, create_engine, func, insert, select, text, update
from sqlalchemy.dialects.mysql import asyncmy, pymysql
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from sa_proletarian import (
    ArchivedJob,
    Cancellation,
    ConfigurationError,
    Job,
    Outcome,
    Proletarian,
    Retry,
    Snooze,
    Worker,
    cli,
    metadata,
    uuid7,
)
from sa_proletarian.clojure import ClojureProletarian
from sa_proletarian.connections import own_engine
from sa_proletarian.dialects import Trouble, trouble
from sa_proletarian.mysql.leases import MySQLLeases
from sa_proletarian.mysql.lifecycle import MySQLLifecycle
from sa_proletarian.mysql.pruning import MySQLPasses, MySQLPruning
from sa_proletarian.mysql.statements import MySQLStatements
from sa_proletarian.outcomes import INTERRUPTED

LEASE = timedelta(seconds=30)
HOUR = timedelta(hours=1)
OFTEN = timedelta(milliseconds=20)

own = MetaData()
account = Table("account", own, Column("id", Integer, primary_key=True), Column("balance", Integer, nullable=False))
effect = Table("effect", own, Column("what", String(100), nullable=False))


@pytest.fixture
def engine(mariadb_engine):
    """Return an engine on a database with the library's tables, an effect table and two accounts."""
    metadata.create_all(mariadb_engine)
    own.create_all(mariadb_engine)
    with mariadb_engine.begin() as connection:
        connection.execute(account.insert(), [{"id": 1, "balance": 0}, {"id": 2, "balance": 0}])
    return mariadb_engine


@pytest.fixture
def lifecycle():
    return MySQLLifecycle(Job, ArchivedJob)


def enqueue(jobs, engine, *items, **options):
    with Session(engine) as session, session.begin():
        return [jobs.enqueue(session, "work", item, **options).job_id for item in items or ({},)]


def rows(engine, statement):
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(statement)]


def write(session, what):
    session.execute(effect.insert().values(what=what))


def add(session, number):
    session.execute(update(account).where(account.c.id == number).values(balance=account.c.balance + 1))


# the swallowed deadlock


class Rival:
    """Another transaction, which has account 2 and wants account 1; whoever waits for the other too is in a deadlock."""

    def __init__(self, engine):
        self._engine = engine
        self.has_its_own = threading.Event()
        self.may_want_the_other = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self.has_its_own.wait(20)

    def _run(self):
        with self._engine.begin() as connection:
            # the more a transaction has changed, the less likely is it the one that is ended
            connection.execute(effect.insert(), [{"what": "rival"}] * 200)
            add(connection, 2)
            self.has_its_own.set()
            assert self.may_want_the_other.wait(20)
            add(connection, 1)

    def end(self):
        self.may_want_the_other.set()
        self._thread.join(20)


def deadlocked(rival, session):
    """Run into a deadlock with ``rival``; raises what the server says of it."""
    add(session, 1)
    rival.may_want_the_other.set()
    add(session, 2)


def test_a_deadlock_that_the_handler_swallows_undoes_the_job_as_it_undoes_what_was_written(engine, jobs, recorder):
    rivals = []

    @jobs.handler("work")
    def work(session, job):
        write(session, "before the deadlock")
        if rivals:
            return
        rivals.append(Rival(engine))
        with pytest.raises(OperationalError, match="1213"):
            deadlocked(rivals[0], session)
        with suppress(OperationalError):  # its savepoint is gone
            session.rollback()
        write(session, "after the deadlock")
        session.commit()

    enqueue(jobs, engine)
    outcome = jobs.process_next(engine, listener=recorder)
    rivals[0].end()
    # not archived as a success from which half of the writes are missing: either it is called again, or it is due again
    assert outcome in (Outcome.RETURNED, Outcome.UNAVAILABLE)
    if outcome is Outcome.UNAVAILABLE:
        assert rows(engine, select(Job.attempts)) == [(0,)]
        assert rows(engine, select(effect.c.what).where(effect.c.what != "rival")) == []
        make_due(engine)
        assert jobs.process_next(engine) is Outcome.RETURNED
    assert rows(engine, select(effect.c.what).where(effect.c.what != "rival")) == [("before the deadlock",)]
    assert rows(engine, select(ArchivedJob.status, ArchivedJob.attempts)) == [("success", 1)]


def test_a_deadlock_swallowed_on_the_connection_itself_is_noticed_before_the_job_is_settled(engine, jobs, recorder):
    rivals = []

    @jobs.handler("work")
    def work(session, job):
        write(session, "before the deadlock")
        connection = session.connection()
        if not rivals:
            rivals.append(Rival(engine))
            with pytest.raises(OperationalError):
                deadlocked(rivals[0], connection)
            connection.exec_driver_sql("INSERT INTO effect VALUES ('after the deadlock')")
            session.expunge_all()
            session.close()

    enqueue(jobs, engine)
    outcome = jobs.process_next(engine, listener=recorder)
    rivals[0].end()
    assert outcome in (Outcome.RETURNED, Outcome.UNAVAILABLE)
    if outcome is Outcome.UNAVAILABLE:
        make_due(engine)
        assert jobs.process_next(engine) is Outcome.RETURNED
    assert rows(engine, select(ArchivedJob.status, ArchivedJob.attempts)) == [("success", 1)]
    assert rows(engine, select(effect.c.what).where(effect.c.what == "after the deadlock")) == []


def test_a_deadlock_that_is_swallowed_up_to_the_handlers_own_commit_counts_as_no_attempt(engine, jobs, recorder):
    rivals = []

    @jobs.handler("work")
    def work(session, job):
        write(session, "before the deadlock")
        if not rivals:
            rivals.append(Rival(engine))
            with suppress(OperationalError):
                deadlocked(rivals[0], session)
            write(session, "after the deadlock")
            with suppress(OperationalError):
                session.commit()

    enqueue(jobs, engine)
    outcome = jobs.process_next(engine, listener=recorder)
    rivals[0].end()
    assert outcome is Outcome.RETURNED
    assert recorder.named("conflict_retried")
    assert rows(engine, select(effect.c.what).where(effect.c.what != "rival")) == [("before the deadlock",)]
    assert rows(engine, select(ArchivedJob.status, ArchivedJob.attempts)) == [("success", 1)]


def test_a_deadlock_that_the_handler_lets_pass_has_it_called_again_at_once(engine, jobs, recorder):
    rivals = []

    @jobs.handler("work")
    def work(session, job):
        write(session, "written")
        if not rivals:
            rivals.append(Rival(engine))
            deadlocked(rivals[0], session)

    enqueue(jobs, engine)
    assert jobs.process_next(engine, listener=recorder) is Outcome.RETURNED
    rivals[0].end()
    assert recorder.named("conflict_retried")
    assert rows(engine, select(effect.c.what).where(effect.c.what != "rival")) == [("written",)]
    assert rows(engine, select(ArchivedJob.status, ArchivedJob.attempts)) == [("success", 1)]


def make_due(engine):
    with engine.begin() as connection:
        connection.execute(update(Job).values(process_at=Job.enqueued_at))


# what else ends a transaction


@pytest.mark.parametrize("statement", ["CREATE TABLE another (id int)", "COMMIT", "ROLLBACK"])
def test_a_transaction_ended_behind_the_sessions_back_is_told_and_fails_the_job(engine, jobs, recorder, statement):
    @jobs.handler("work")
    def work(session, job):
        write(session, "written")
        session.connection().exec_driver_sql(statement)

    enqueue(jobs, engine)
    assert jobs.process_next(engine, listener=recorder) is Outcome.GAVE_UP
    assert recorder.named("transaction_escaped")
    [(error,)] = rows(engine, select(ArchivedJob.error))
    assert error.startswith("TransactionEscaped")


@pytest.mark.parametrize("leaves", ["SET autocommit = 1", "LOCK TABLES effect WRITE"])
def test_a_connection_whose_transaction_has_escaped_serves_no_other_job(engine, jobs, recorder, leaves):
    """In autocommit its writes would be committed one by one; what LOCK TABLES has locked nobody else could write to."""

    @jobs.handler("work")
    def work(session, job):
        write(session, "written")
        session.connection().exec_driver_sql(leaves)

    @jobs.handler("neighbour")
    def neighbour(session, job):
        write(session, "neighbour")

    enqueue(jobs, engine)
    with Worker(jobs, engine, threads=1, listener=recorder, polling_interval=OFTEN):
        recorder.wait_for("not_retrying")
        with engine.begin() as connection:
            connection.exec_driver_sql("SET SESSION lock_wait_timeout = 20")
            connection.execute(insert(effect).values(what="another"))
        with Session(engine) as session, session.begin():
            jobs.enqueue(session, "neighbour")
        recorder.wait_for("job_finished")
    assert [(event.name, event.job_type) for event in recorder.named("transaction_escaped")] == [
        ("transaction_escaped", "work")
    ]
    assert sorted(rows(engine, select(effect.c.what))) == [("another",), ("neighbour",), ("written",)]


def test_a_connection_in_autocommit_is_given_to_nobody_else(mariadb_engine):
    """No claim would hold a lock there; whoever has left it so."""
    pool = own_engine(mariadb_engine, size=1)
    number = text("SELECT CONNECTION_ID()")
    with pool.connect() as connection:
        usual = connection.scalar(number)
    with pool.connect() as connection:
        assert connection.scalar(number) == usual
        connection.exec_driver_sql("SET autocommit = 1")
    with pool.connect() as connection:
        assert connection.scalar(number) != usual
        assert connection.scalar(text("SELECT @@autocommit")) == 0
    pool.dispose()


def test_a_lock_that_is_not_had_in_time_fails_the_statement_only(engine, jobs):
    @jobs.handler("work")
    def work(session, job):
        write(session, "written")
        session.execute(text("SET SESSION innodb_lock_wait_timeout = 1"))
        with pytest.raises(OperationalError, match="1205"), session.begin_nested():
            add(session, 1)

    enqueue(jobs, engine)
    with engine.connect() as other:
        add(other, 1)
        assert jobs.process_next(engine) is Outcome.RETURNED
    assert rows(engine, select(effect.c.what)) == [("written",)]


def test_a_handler_waits_for_locks_as_long_as_the_server_says(engine, jobs):
    waits = []

    @jobs.handler("work")
    def work(session, job):
        waits.append(session.scalar(text("SELECT @@innodb_lock_wait_timeout")))

    enqueue(jobs, engine, {}, {})
    assert [jobs.process_next(engine), jobs.process_next(engine)] == [Outcome.RETURNED] * 2
    [(usual,)] = rows(engine, text("SELECT @@innodb_lock_wait_timeout"))
    assert waits == [usual, usual]


# claims and fences


def claim(lifecycle, connection, limit=10):
    candidates = lifecycle.candidates(connection, queue="default", known=None, limit=limit, lease=LEASE)
    return lifecycle.take(connection, candidates, worker_id="me")


def test_a_claim_locks_no_more_rows_than_it_takes_and_lets_enqueue_pass(engine, jobs, lifecycle):
    enqueue(jobs, engine, *range(6))
    own = own_engine(engine, size=3)
    with own.connect() as first, own.connect() as second, first.begin():
        mine = claim(lifecycle, first, 2)
        with second.begin():
            others = claim(lifecycle, second, 10)
            enqueue(jobs, engine)
    own.dispose()
    assert (len(mine), len(others)) == (2, 4)
    assert not {one.job_id for one in mine} & {one.job_id for one in others}


def test_an_empty_poll_locks_nothing(engine, jobs, lifecycle):
    own = own_engine(engine, size=1)
    with own.connect() as connection, connection.begin():
        assert claim(lifecycle, connection) == []
        enqueue(jobs, engine)
    own.dispose()


def test_a_claim_reads_the_index_in_its_order(engine, jobs, lifecycle):
    enqueue(jobs, engine, *range(50))
    statement = MySQLStatements(Job, ArchivedJob).candidates[True, False]
    parameters = {"in_queue": "default", "most": 3, "lease": 1}
    with engine.connect() as connection:
        compiled = statement.compile(connection.engine, compile_kwargs={"render_postcompile": True})
        plan = connection.exec_driver_sql(f"EXPLAIN {compiled}", compiled.construct_params(parameters)).mappings().one()
    assert (plan["key"], "filesort" in (plan["Extra"] or "")) == ("ix_proletarian_job_due", False)


def test_what_has_another_fence_is_neither_waited_for_nor_moved(engine, jobs, lifecycle):
    enqueue(jobs, engine)
    own = own_engine(engine, size=3)
    with own.connect() as zombie, own.connect() as thief:
        with zombie.begin():
            [late] = claim(lifecycle, zombie)
        with engine.begin() as connection:
            connection.execute(update(Job).values(claimed_until=datetime(2020, 1, 1, tzinfo=UTC)))
        with thief.begin():
            [present] = claim(lifecycle, thief)
        with thief.begin():
            held = lifecycle.hold(thief, present, lock_timeout=LEASE)
            assert held is not None
            with zombie.begin():  # it would wait for its lock for a second, and raise
                assert lifecycle.hold is not None
                assert lifecycle.settle(zombie, [(late, rule_returned())]) == {}
                lifecycle.renew(zombie, [late, present], lease=LEASE)
            lifecycle.let_go(thief, held)
    own.dispose()
    assert (present.crashes, present.attempts) == (1, 1)
    assert rows(engine, select(Job.claim_id)) == [(present.claim_id,)]


def test_what_somebody_else_has_claimed_meanwhile_is_not_settled_though_nobody_locks_it(engine, jobs, lifecycle):
    enqueue(jobs, engine, 1, 2)
    own = own_engine(engine, size=1)
    with own.begin() as connection:
        late = claim(lifecycle, connection)
    with engine.begin() as connection:
        connection.execute(update(Job).values(claimed_until=datetime(2020, 1, 1, tzinfo=UTC)))
    with own.begin() as connection:
        present = claim(lifecycle, connection)
    with own.begin() as connection:
        assert sorted(lifecycle.finish(connection, late)) == sorted(claimed.job_id for claimed in late)
        assert lifecycle.settle(connection, [(claimed, INTERRUPTED) for claimed in late]) == {}
    assert {fence for (fence,) in rows(engine, select(Job.claim_id))} == {claimed.claim_id for claimed in present}
    with own.begin() as connection:
        assert lifecycle.finish(connection, present) == []
    own.dispose()
    assert rows(engine, select(ArchivedJob.status)) == [("success",)] * 2


def rule_returned():
    from sa_proletarian.outcomes import RETURNED

    return RETURNED


def test_ends_the_connection_that_holds_a_job_and_no_other(engine, jobs, lifecycle):
    enqueue(jobs, engine)
    own = own_engine(engine, size=2)
    with own.connect() as handler, own.connect() as feeder:
        with handler.begin():
            [claimed] = claim(lifecycle, handler)
        handler.begin()
        held = lifecycle.hold(handler, claimed, lock_timeout=LEASE)
        lifecycle.let_go(handler, held)
        lifecycle.end_backend(feeder, held)  # that one is over
        assert handler.scalar(text("SELECT 1")) == 1
        handler.rollback()
        handler.begin()
        held = lifecycle.hold(handler, claimed, lock_timeout=LEASE)
        lifecycle.end_backend(feeder, held)
        with pytest.raises(OperationalError) as caught:
            handler.execute(text("SELECT 1"))
        assert trouble(caught.value) is Trouble.DISCONNECTED
        assert handler.invalidated
    own.dispose()


# values


def test_instants_are_utc_in_the_table_and_aware_in_python(engine, jobs):
    zone = timezone(timedelta(hours=9))
    moment = datetime(2030, 1, 2, 3, 4, 5, 678901, tzinfo=zone)
    enqueue(jobs, engine, process_at=moment)
    assert rows(engine, text("SELECT CAST(process_at AS char) FROM proletarian_job")) == [("2030-01-01 18:04:05.678901",)]
    assert rows(engine, select(Job.process_at)) == [(moment,)]
    assert rows(engine, select(Job.queue).where(Job.process_at == moment)) == [("default",)]
    with Session(engine) as session:
        [job] = session.scalars(select(Job))
        assert job.process_at.tzinfo is UTC


def test_names_are_told_apart_by_their_case(engine, jobs):
    @jobs.handler("Work")
    def other(session, job):
        raise AssertionError("another type")

    enqueue(jobs, engine, {}, queue="Mail")
    assert jobs.process_next(engine, queue="Mail") is None
    jobs.handler("work")(lambda session, job: None)
    assert jobs.process_next(engine, queue="mail") is None
    assert jobs.process_next(engine, queue="Mail") is Outcome.RETURNED


def test_any_payload_comes_back_as_it_was(engine, jobs):
    payload = {"text": "ü € 😀 \\ ' \" %s :x", "n": 2**70, "f": 0.1, "list": [None, True, {}], "": {"a": {"b": []}}}
    seen = []
    jobs.handler("work")(lambda session, job: seen.append(job.payload))
    enqueue(jobs, engine, payload)
    with engine.begin() as connection:
        assert len(jobs.enqueue_many(connection, [("work", payload)] * 3)) == 3
    assert [jobs.process_next(engine) for _ in range(4)] == [Outcome.RETURNED] * 4
    assert seen == [payload] * 4


# the worker


def test_a_worker_runs_retries_snoozes_and_archives(engine, jobs, recorder):
    @jobs.handler("work", retry=Retry(1, [timedelta(0)]))
    def work(session, job):
        write(session, f"{job.payload} {job.attempts}")
        if job.payload == "fails":
            raise ValueError("no")
        if job.payload == "snoozes" and job.process_at == job.enqueued_at:
            raise Snooze(timedelta(milliseconds=1))

    enqueue(jobs, engine, "fails", "snoozes", *range(20))
    with Worker(jobs, engine, threads=3, polling_interval=OFTEN, listener=recorder):
        recorder.wait_for("job_finished", 21)
        recorder.wait_for("not_retrying")
    archive = rows(engine, select(ArchivedJob.status, ArchivedJob.attempts))
    assert sorted(archive) == sorted([("failure", 2), *[("success", 1)] * 21])
    assert sorted(rows(engine, select(effect.c.what))) == sorted(
        [("snoozes 1",), *[(f"{number} 1",) for number in range(20)]]
    )
    assert rows(engine, text("SELECT kind FROM proletarian_worker")) == []  # it has struck itself off


def test_a_handler_that_hangs_in_sql_is_ended_by_its_timeout(engine, jobs, recorder):
    @jobs.handler("work", timeout=timedelta(milliseconds=100))
    def work(session, job):
        write(session, "never")
        session.execute(text("SELECT SLEEP(3600) FROM information_schema.plugins"))  # without: as if it were over, on MySQL

    enqueue(jobs, engine)
    with Worker(jobs, engine, polling_interval=OFTEN, listener=recorder):
        recorder.wait_for("not_retrying")
    assert rows(engine, select(effect.c.what)) == []
    [(error,)] = rows(engine, select(ArchivedJob.error))
    assert error.startswith("JobTimeout")


def test_stop_ends_what_hangs_in_sql_and_gives_its_attempt_back(engine, jobs, recorder):
    @jobs.handler("work")
    def work(session, job):
        write(session, "never")
        session.execute(text("SELECT SLEEP(3600) FROM information_schema.plugins"))  # without: as if it were over, on MySQL

    enqueue(jobs, engine)
    worker = Worker(jobs, engine, polling_interval=OFTEN, listener=recorder)
    worker.start()
    recorder.wait_for("handling_job")
    worker.stop(timedelta(milliseconds=100))
    assert rows(engine, select(Job.attempts, Job.claim_id)) == [(0, None)]
    assert rows(engine, select(effect.c.what)) == []


def test_cancelling_waits_for_nobody_also_in_a_transaction_of_repeatable_read(engine, jobs, recorder):
    begun = threading.Event()

    @jobs.handler("work")
    def work(session, job):
        write(session, "never")
        begun.set()
        job.sleep(HOUR)

    first, second = enqueue(jobs, engine, 1, 2)
    with Worker(jobs, engine, polling_interval=OFTEN, listener=recorder):
        assert begun.wait(20)
        with engine.begin() as connection:
            assert jobs.cancel(connection, uuid7()) is Cancellation.NOT_FOUND
            assert jobs.cancel(connection, first) is Cancellation.REQUESTED
        recorder.wait_for("job_cancelled")
    with engine.begin() as connection:
        found = jobs.cancel(connection, second, reason="no more")
    assert found in (Cancellation.CANCELLED, Cancellation.NOT_FOUND, Cancellation.REQUESTED)
    assert ("cancelled",) in rows(engine, select(ArchivedJob.status))
    assert rows(engine, select(effect.c.what)) == []


def test_an_archived_job_can_be_enqueued_again(engine, jobs):
    jobs.handler("work")(lambda session, job: None)
    enqueue(jobs, engine, {"a": 1})
    jobs.process_next(engine)
    with Session(engine) as session, session.begin():
        jobs.requeue(session, session.scalars(select(ArchivedJob)).one())
    assert jobs.process_next(engine) is Outcome.RETURNED
    assert len(rows(engine, select(ArchivedJob.job_id))) == 2


def test_a_job_whose_worker_is_gone_is_taken_again_until_the_ceiling(engine, jobs, lifecycle):
    jobs.handler("work")(lambda session, job: None)
    enqueue(jobs, engine)
    own = own_engine(engine, size=1)
    for _ in range(5):
        with own.begin() as connection:
            assert claim(lifecycle, connection)
        with engine.begin() as connection:
            connection.execute(update(Job).values(claimed_until=datetime(2020, 1, 1, tzinfo=UTC)))
    own.dispose()
    assert rows(engine, select(Job.attempts, Job.crashes)) == [(1, 4)]
    assert jobs.process_next(engine) is Outcome.CRASHED
    assert rows(engine, select(ArchivedJob.status)) == [("crashed",)]


# pruning

DAY = timedelta(days=1)


@pytest.fixture
def archive(engine):
    """Return a function that writes rows that ended so long ago into the archive."""

    def archive(count, age, queue="default", status="success"):
        ended = {"queue": queue, "job_type": "work", "payload": None, "attempts": 1, "status": status}
        at = datetime.now(UTC) - age
        instants = dict.fromkeys(("enqueued_at", "process_at", "finished_at"), at)
        with engine.begin() as connection:
            connection.execute(insert(ArchivedJob), [{"job_id": uuid4(), **ended, **instants} for _ in range(count)])

    return archive


def left(engine):
    counted = select(ArchivedJob.queue, ArchivedJob.status, func.count()).group_by(ArchivedJob.queue, ArchivedJob.status)
    return sorted(rows(engine, counted))


def test_old_rows_go_batch_by_batch_and_young_ones_stay(engine, jobs, archive, monkeypatch):
    monkeypatch.setattr(MySQLPruning, "first_size", 40)
    monkeypatch.setattr(MySQLPruning, "most_size", 80)
    archive(300, 15 * DAY)
    archive(200, 13 * DAY)
    archive(10, 15 * DAY, queue="mail", status="failure")
    said, visible = [], []

    def progress(count, share):
        said.append((count, share))
        visible.append(510 - sum(rest for *_, rest in left(engine)))

    assert jobs.prune(engine, older_than=14 * DAY, dry_run=True) == 310
    assert jobs.prune(engine, older_than=14 * DAY, queue="mail", status="success") == 0
    assert jobs.prune(engine, older_than=14 * DAY, progress=progress) == 310
    assert left(engine) == [("default", "success", 200)]
    assert len(said) > 5 and said == sorted(said) and said[-1] == (310, 1.0)
    assert visible == [count for count, _ in said]
    assert jobs.prune(engine, older_than=timedelta.max) == 0
    assert jobs.prune(engine, older_than=timedelta(0), queue="default") == 200
    assert jobs.prune(engine, older_than=timedelta(0)) == 0


def test_jobs_end_beside_a_batch_whose_transaction_lasts(engine, jobs, archive, recorder):
    """What is deleted locks no key between two others: random ids of new rows go there."""
    jobs.handler("work")(lambda session, job: None)
    archive(100, 15 * DAY)
    pruning = MySQLPruning(ArchivedJob)
    own = own_engine(engine, size=1)
    with pruning.limited(own) as connection:
        before = pruning.cutoff(connection, DAY)
        assert pruning.part(connection, before, pruning.begin(0), 1000, 0, dry_run=False).count == 100
        for number in range(30):
            enqueue(jobs, engine, number, job_id=uuid4())
        assert [jobs.process_next(engine) for _ in range(30)] == [Outcome.RETURNED] * 30
    own.dispose()
    assert left(engine) == [("default", "success", 30)]


def test_the_command_prunes(mariadb_engine, engine, archive, capsys):
    archive(30, 15 * DAY)
    url = mariadb_engine.url.render_as_string(hide_password=False)
    assert cli.main(["prune", "--older-than", "14d", "--url", url]) == 0
    assert "30 rows pruned" in capsys.readouterr().out
    assert left(engine) == []


def test_a_worker_prunes_in_the_background(engine, jobs, archive, recorder):
    archive(30, 15 * DAY)
    archive(3, HOUR)
    with Worker(jobs, engine, retention=14 * DAY, listener=recorder):
        [event] = recorder.wait_for("archive_pruned", timeout=60)
    assert event.rows == 30
    assert left(engine) == [("default", "success", 3)]
    # by then it is written down that this was done
    with engine.begin() as connection:
        passes = MySQLPasses(Job, ArchivedJob, 14 * DAY)
        assert not passes.begin(connection, HOUR)
        assert MySQLPasses(Job, ArchivedJob, DAY).begin(connection, HOUR)
        connection.execute(text("UPDATE proletarian_worker SET last_seen_at = last_seen_at - INTERVAL 2 HOUR"))
        assert [passes.begin(connection, HOUR) for _ in range(2)] == [True, False]
        passes.give_back(connection)
        assert passes.begin(connection, HOUR)


# several processes


def test_the_leases_of_the_dead_end_and_those_that_somebody_holds_are_counted(engine, jobs, lifecycle):
    enqueue(jobs, engine, 1, 2, 3)
    own = own_engine(engine, size=2)
    leases = MySQLLeases(Job)
    with own.connect() as handler, own.connect() as other:
        with handler.begin():
            [first, second, _] = claim(lifecycle, handler)
        with handler.begin():
            assert lifecycle.hold(handler, first, lock_timeout=LEASE) is not None
            with other.begin():
                assert leases.end(other, ["nobody"]) == (0, 0)
                assert leases.end(other, ["me"]) == (2, 1)
        with other.begin():
            assert leases.end(other, ["me"]) == (1, 0)
            assert leases.end(other, ["me"]) == (0, 0)
        with other.begin():
            assert {claimed.crashes for claimed in claim(lifecycle, other)} == {1}
    own.dispose()
    assert second.crashes == 0


APP = """
    import os, signal
    from sqlalchemy import text
    from sa_proletarian import Proletarian

    jobs = Proletarian()

    @jobs.handler("work")
    def work(session, job):
        session.execute(text("INSERT INTO effect VALUES (:what)"), {"what": f"{job.crashes}"})
        if not job.crashes:
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_processes_are_kept_alive_and_what_the_dead_had_claimed_is_handed_back(engine, jobs, tmp_path):
    (tmp_path / "app.py").write_text(textwrap.dedent(APP))
    url = engine.url.render_as_string(hide_password=False)
    command = [sys.executable, "-m", "sa_proletarian.cli", "worker", "app:jobs", "--url", url, "--processes", "2"]
    enqueue(jobs, engine, 1, 2, 3)
    process = subprocess.Popen(
        [*command, "--lease", "3600", "--polling-interval", "0.05"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    try:
        deadline = time.monotonic() + 120
        while rows(engine, select(func.count()).select_from(ArchivedJob)) != [(3,)]:
            assert time.monotonic() < deadline and process.poll() is None
            threading.Event().wait(0.05)
    finally:
        process.terminate()
        assert process.wait(60) == 0
    assert rows(engine, select(effect.c.what)) == [("1",)] * 3


# what it refuses


def test_refuses_an_autocommit_engine(mariadb):
    engine = create_engine(mariadb.url(), connect_args={"autocommit": True})
    with pytest.raises(ConfigurationError, match="AUTOCOMMIT"), own_engine(engine, size=1).connect():
        pass
    engine.dispose()


def test_refuses_a_pooler():
    with pytest.raises(ConfigurationError, match="no pooler"):
        Worker(Proletarian(), create_engine("mysql+pymysql://"), pooler="transaction")


def test_refuses_what_is_not_made_for_it_yet():
    engine = create_engine("mariadb+pymysql://")
    with pytest.raises(ConfigurationError, match="a ClojureProletarian needs PostgreSQL"):
        ClojureProletarian().process_next(engine)


def test_refuses_async_handlers_where_the_driver_cannot_be_cancelled():
    async def work(session, job):
        raise AssertionError("never called")

    jobs = Proletarian()
    jobs.handler("work")(work)
    with pytest.raises(ConfigurationError, match="asyncmy"):
        Worker(jobs, create_engine("mariadb+pymysql://")).start()


# MySQL


@pytest.mark.parametrize("driver", [pymysql.MySQLDialect_pymysql, asyncmy.MySQLDialect_asyncmy])
def test_mysql_is_told_what_mariadb_is_told(driver):
    def told(dialect):
        statements = MySQLStatements(Job, ArchivedJob)
        every = {**vars(statements), **{f"candidates {key}": one for key, one in statements.candidates.items()}}
        return {key: str(one.compile(dialect=dialect)) for key, one in every.items() if hasattr(one, "compile")}

    mysql = driver()
    mysql._set_mariadb(False, (8, 0, 36))
    mariadb = driver()
    mariadb._set_mariadb(True, (10, 11, 19))
    assert len(told(mysql)) >= 13
    assert told(mysql) == told(mariadb)
    assert not any(word in sql for sql in told(mysql).values() for word in ("RETURNING", "unnest", "::", "ANY("))
