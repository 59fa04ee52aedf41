"""F9: what handlers do to their session, their connection, their process and their exceptions; the exact end of each case.

All cases run in one worker, in random order, with well-behaved jobs between them: nobody's abuse may reach another job.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

from sa_proletarian import AsyncWorker, Cancel, Interrupted, Snooze

SCENARIO = "F9"
HERE = {}
"""``{name: case}``, filled by the decorator below."""


@dataclass
class Case:
    """One kind of abuse, and what shall come of it.

    :ivar ends: the archive's status; ``None`` when the row stays in the queue.
    :ivar effects: how many rows of it are there in the end.
    :ivar event: an event that must have been sent for it.
    :ivar error: what the archive's or the row's error contains.
    """

    act: Any
    ends: str | None = "success"
    effects: int = 0
    event: str | None = None
    error: str = ""
    only: str | None = None
    row: dict[str, Any] = field(default_factory=dict)


def case(**expected):
    def add(act):
        HERE[act.__name__] = Case(act, **expected)
        return act

    return add


def write(session, job):
    session.execute(text("INSERT INTO effect VALUES (:type)"), {"type": job.job_type})


def raw(session):
    return session.connection().connection.dbapi_connection


# with the session -----------------------------------------------------------------------------------------------------


@case(effects=1)
def commits(session, job):
    write(session, job)
    session.commit()


@case(effects=2)
def commits_often(session, job):
    for _ in range(2):
        write(session, job)
        session.commit()
    session.commit()


@case(effects=1)
def rolls_back(session, job):
    write(session, job)
    session.rollback()
    write(session, job)


@case(effects=1)
def closes(session, job):
    write(session, job)
    session.close()
    write(session, job)


@case(effects=1)
def commits_and_closes(session, job):
    write(session, job)
    session.commit()
    session.close()


@case(effects=1)
def ends_with_a_rollback(session, job):
    write(session, job)
    session.commit()
    session.rollback()


@case(effects=1)
def resets_and_expunges(session, job):
    write(session, job)
    session.commit()
    session.reset()
    session.expunge_all()


@case(effects=1)
def survives_an_error_in_a_savepoint(session, job):
    try:
        with session.begin_nested():
            write(session, job)
            session.execute(text("SELECT 1/0"))
    except Exception:
        pass
    write(session, job)


@case(effects=1)
def survives_an_error_by_rollback(session, job):
    try:
        session.execute(text("SELECT 1/0"))
    except Exception:
        session.rollback()
    write(session, job)


@case()
def leaves_a_savepoint_open(session, job):
    session.begin_nested()


@case(effects=1, only="threads")
def uses_it_from_another_thread(session, job):
    def write_quietly():
        with suppress(Exception):  # the connection may be one that another abuse has spoilt; the job runs again then
            write(session, job)

    thread = threading.Thread(target=write_quietly)
    thread.start()
    thread.join()


@case(ends="failure", event="handle_job_exception", error="25P02")
def swallows_an_error(session, job):
    write(session, job)
    try:
        session.execute(text("SELECT 1/0"))
    except Exception:
        pass


@case(ends="failure", event="handle_job_exception", error="22012")
def raises_an_sql_error(session, job):
    write(session, job)
    session.commit()
    session.execute(text("SELECT 1/0"))


@case(ends="failure", event="handle_job_exception", error="23505")
def breaks_a_constraint_when_it_commits(session, job):
    write(session, job)
    session.execute(text("INSERT INTO deferred VALUES (1), (1)"))


@case(ends="failure", error="25006")
def writes_in_a_read_only_transaction(session, job):
    session.execute(text("SET TRANSACTION READ ONLY"))
    write(session, job)


@case(effects=1)
def leaves_settings_behind(session, job):
    """The next job on this connection cannot use it; it runs again on another."""
    write(session, job)
    session.execute(text("SET default_transaction_read_only = on"))
    session.execute(text("SET search_path = nowhere"))


@case(effects=1)
def leaves_locks_and_tables_behind(session, job):
    session.execute(text("CREATE TEMP TABLE left_behind (what text)"))
    session.execute(text("SELECT pg_advisory_lock(1)"))
    session.execute(text("LISTEN something"))
    write(session, job)


@case(effects=1)
def takes_the_same_lock_and_makes_the_same_table(session, job):
    session.execute(text("SET LOCAL lock_timeout = '5s'"))
    session.execute(text("SELECT pg_advisory_lock(2)"))
    session.execute(text("CREATE TEMP TABLE left_behind_too (what text)"))
    write(session, job)


# with its own row -----------------------------------------------------------------------------------------------------


@case(ends="failure", error="deleted its own job's row")
def deletes_its_row(session, job):
    write(session, job)
    session.execute(text("DELETE FROM proletarian_job WHERE job_id = :id"), {"id": job.job_id})


@case(ends="failure", error="changed the claim")
def frees_its_row(session, job):
    write(session, job)
    session.execute(text("UPDATE proletarian_job SET claim_id = NULL WHERE job_id = :id"), {"id": job.job_id})


@case(ends=None, event="job_parked", error="could not be settled")
def archives_itself(session, job):
    write(session, job)
    session.execute(
        text(
            "INSERT INTO proletarian_archived_job (job_id, queue, job_type, payload, attempts, enqueued_at, process_at,"
            " status, finished_at)"
            " SELECT job_id, queue, job_type, payload, attempts, enqueued_at, process_at, 'success', now()"
            " FROM proletarian_job WHERE job_id = :id"
        ),
        {"id": job.job_id},
    )


@case(effects=1)
def reads_its_row(session, job):
    live = session.get(type(job), job.job_id)
    assert live.claim_id is not None
    write(session, job)


@case()
def changes_what_it_was_given(session, job):
    job.job_id = job.attempts = job.job_type = job.payload = None


@case(effects=1)
def attaches_what_it_was_given(session, job):
    write(session, job)
    session.add(job)
    session.commit()


# with the connection --------------------------------------------------------------------------------------------------


@case(effects=1, ends="failure", event="transaction_escaped")
def sends_a_commit(session, job):
    write(session, job)
    session.execute(text("COMMIT"))


@case(ends="failure", event="transaction_escaped")
def sends_a_rollback(session, job):
    write(session, job)
    session.execute(text("ROLLBACK"))


@case(effects=1, ends="failure", event="transaction_escaped", only="threads")
def commits_the_drivers_connection(session, job):
    write(session, job)
    raw(session).commit()


@case(effects=1, event="connection_died")
def has_its_connection_ended(session, job):
    write(session, job)
    session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))


@case(effects=1, event="connection_died")
def has_its_connection_ended_and_swallows_that(session, job):
    write(session, job)
    try:
        session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
    except Exception:
        pass


@case(effects=1, event="connection_died")
def has_its_connection_ended_and_fails_otherwise(session, job):
    write(session, job)
    try:
        session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
    except Exception:
        raise ValueError("something else") from None


@case(effects=1, event="connection_died", only="threads")
def closes_the_drivers_connection(session, job):
    write(session, job)
    raw(session).close()


@case(effects=1, event="connection_died")
def invalidates_the_connection(session, job):
    write(session, job)
    session.connection().invalidate()


@case(effects=1, event="connection_died")
def invalidates_the_session(session, job):
    write(session, job)
    session.invalidate()


# with exceptions ------------------------------------------------------------------------------------------------------


class Odd(BaseException):
    pass


class Mute(Exception):
    def __str__(self):
        raise RuntimeError("no words")


def raising(name, what, **expected):
    def act(session, job):
        write(session, job)
        raise what

    expected = {"ends": "failure", "event": "handle_job_exception", **expected}
    HERE[name] = Case(act, **expected)


raising("raises", ValueError("plain"), error="plain")
raising("exits", SystemExit(0), error="SystemExit")
raising("raises_keyboard_interrupt", KeyboardInterrupt(), error="KeyboardInterrupt")
raising("raises_generator_exit", GeneratorExit(), error="GeneratorExit")
raising("raises_stop_iteration", StopIteration(), error="StopIteration")
raising("raises_an_odd_one", Odd("odd"), error="odd")
raising("raises_cancelled_error", asyncio.CancelledError(), error="CancelledError")
raising("raises_memory_error", MemoryError(), error="MemoryError")
raising("raises_what_has_no_words", Mute(), error="Mute")
raising("raises_zeros", ValueError("a\0b"), error="ValueError")
raising("raises_half_characters", ValueError("\ud800"), error="ValueError")
raising("raises_a_novel", ValueError("long" * 1_000_000), error="long")
raising("raises_interrupted", Interrupted("I say so"), error="is not stopping")
raising("cancels", Cancel("enough"), ends="cancelled", event="job_cancelled", error="enough")
raising("snoozes", Snooze(timedelta(days=1)), ends=None, event="job_snoozed", row={"attempts": 0})
raising("groups_errors", BaseExceptionGroup("several", [KeyboardInterrupt(), ValueError()]), error="several")


@case(ends="cancelled", event="job_cancelled", error="enough", effects=1)
def cancels_after_a_commit(session, job):
    write(session, job)
    session.commit()
    raise Cancel("enough")


@case(ends=None, event="job_snoozed", effects=1, row={"attempts": 0})
def snoozes_after_a_commit(session, job):
    write(session, job)
    session.commit()
    raise Snooze(timedelta(days=1))


@case(ends="failure", error="RecursionError")
def recurses(session, job):
    recurses(session, job)


# with the process -----------------------------------------------------------------------------------------------------


@case(effects=1, only="threads")
def forks_a_child_that_leaves_at_once(session, job):
    write(session, job)
    if (child := os.fork()) == 0:
        os._exit(0)
    os.waitpid(child, 0)


@case(ends="failure", error="coroutine", only="threads")
def is_async_in_disguise(session, job):
    async def nothing():
        pass

    return nothing()


@case()
def closes_standard_output(session, job):
    sys.stdout.flush()


@case()
def returns_something(session, job):
    return object()


# ----------------------------------------------------------------------------------------------------------------------


NEIGHBOURS = 60


@pytest.fixture
def scene(tables, jobs, seed):
    with tables.begin() as connection:
        connection.execute(text("CREATE TABLE deferred (id int UNIQUE DEFERRABLE INITIALLY DEFERRED)"))
    return random.Random(seed)


def enqueue_all(jobs, engine, chance, form):
    cases = {name: case for name, case in HERE.items() if case.only in (None, form)}
    types = [*cases, *["neighbour"] * NEIGHBOURS]
    chance.shuffle(types)
    with Session(engine) as session, session.begin():
        ids = {name: jobs.enqueue(session, name, {}).job_id for name in types}
    return cases, ids


def misses(cases, ids, rows, recorder):
    """Give what came out otherwise than the table says."""
    archived = {row[0]: row[1:] for row in rows("SELECT job_type, status, error, attempts FROM proletarian_archived_job")}
    left = {row[0]: row[1:] for row in rows("SELECT job_type, last_error, attempts, crashes, claim_id FROM proletarian_job")}
    effects = dict(rows("SELECT what, count(*) FROM effect GROUP BY 1"))
    events = {
        name: {event.name for event in recorder.events if getattr(event, "job_id", None) == ids[name]} for name in cases
    }
    found = []
    for name, case in cases.items():
        status, error, attempts = archived.get(name, (None, None, None))
        row = {}
        if name in left:
            error, attempts, crashes, claim = left[name]
            row = {"attempts": attempts, "crashes": crashes, "claimed": claim is not None}
        expected = {"attempts": 1, "crashes": 0, "claimed": False, **case.row} if case.ends is None else {}
        seen = (status, effects.get(name, 0), row, case.event is None or case.event in events[name])
        if seen != (case.ends, case.effects, expected, True) or case.error not in (error or ""):
            found.append((name, seen, (error or "")[:200], sorted(events[name])))
    return found


def is_over(rows, cases):
    stays = [name for name, case in cases.items() if case.ends is None]
    waiting = rows("SELECT job_type FROM proletarian_job WHERE claim_id IS NOT NULL OR process_at <= now()")
    return not waiting and len(rows("SELECT 1 FROM proletarian_job")) <= len(stays)


@pytest.mark.slow
def test_each_abuse_by_threads_ends_as_the_table_says(scene, jobs, tables, start_worker, recorder, rows, trial_of_abuse):
    def neighbour(session, job):
        write(session, job)

    cases, ids = enqueue_all(jobs, tables, scene, "threads")
    for name, case in cases.items():
        jobs.handler(name)(once(case.act))
    jobs.handler("neighbour")(neighbour)
    worker = start_worker(jobs, threads=3)
    trial_of_abuse.wait_until(lambda: is_over(rows, cases))
    assert worker.stop()
    trial_of_abuse.record.faults["handler abuse (threads)"] += len(cases)
    found = misses(cases, ids, rows, recorder)
    assert not found, "\n".join(map(str, found))
    assert rows("SELECT count(*) FROM effect WHERE what = 'neighbour'") == [(NEIGHBOURS,)]


@pytest.mark.slow
def test_each_abuse_by_tasks_ends_as_the_table_says(scene, jobs, tables, database_url, recorder, rows, trial_of_abuse):
    cases, ids = enqueue_all(jobs, tables, scene, "async")

    def task(act):
        async def handler(session, job):
            await session.run_sync(act, job)

        return handler

    for name, case in cases.items():
        jobs.handler(name)(task(once(case.act)))
    jobs.handler("neighbour")(task(write))

    async def main():
        engine = create_async_engine(database_url)
        options = {"concurrency": 6, "connections": 3, "listener": recorder, "polling_interval": timedelta(milliseconds=20)}
        worker = AsyncWorker(jobs, engine, **options)
        await worker.start()
        await asyncio.to_thread(trial_of_abuse.wait_until, lambda: is_over(rows, cases))
        assert await worker.stop()
        await engine.dispose()

    asyncio.run(main())
    trial_of_abuse.record.faults["handler abuse (async)"] += len(cases)
    found = misses(cases, ids, rows, recorder)
    assert not found, "\n".join(map(str, found))
    assert rows("SELECT count(*) FROM effect WHERE what = 'neighbour'") == [(NEIGHBOURS,)]


def once(act):
    """Behave in a run that follows a crash."""

    def handler(session, job):
        return write(session, job) if job.crashes else act(session, job)

    return handler


@pytest.fixture
def trial_of_abuse(make_trial, database_url):
    return make_trial(database_url, SCENARIO, tables=False)
