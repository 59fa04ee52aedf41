"""F9: what handlers do to their session, their connection, their process and their exceptions; the exact end of each case.

All cases run in one worker, in random order, with well-behaved jobs between them: nobody's abuse may reach another job.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import URL, Engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

from machinery.abuse import COMMON, Cases, once, write
from machinery.abuse_mariadb import MARIADB, make_tables
from machinery.abuse_postgresql import POSTGRESQL
from machinery.trial import Trial
from sa_proletarian import AsyncWorker, metadata

NEIGHBOURS = 60


@dataclass
class Scene:
    """A database with the tables, and what is done to it.

    :ivar asyncs: its URL for a driver that waits on an event loop.
    """

    trial: Trial
    engine: Engine
    asyncs: URL
    cases: Cases
    rows: Callable[..., list[Any]]

    def only(self, form):
        return {name: case for name, case in self.cases.items() if case.only in (None, form)}


@pytest.fixture
def on_postgresql(tables, seed, make_trial, database_url, rows):
    with tables.begin() as connection:
        connection.execute(text("CREATE TABLE deferred (id int UNIQUE DEFERRABLE INITIALLY DEFERRED)"))
    trial = make_trial(database_url, "F9", tables=False)
    return Scene(trial, tables, database_url, Cases({**COMMON, **POSTGRESQL}), rows)


@pytest.fixture
def on_mariadb(mariadb_engine, seed, make_trial):
    metadata.create_all(mariadb_engine)
    with mariadb_engine.begin() as connection:
        make_tables(connection)

    def rows(statement, **parameters):
        with mariadb_engine.begin() as connection:
            return [tuple(row) for row in connection.execute(text(statement), parameters)]

    url = mariadb_engine.url
    trial = make_trial(url, "F9 MariaDB", tables=False)
    asyncs = url.set(drivername=f"{url.get_backend_name()}+asyncmy")
    return Scene(trial, mariadb_engine, asyncs, Cases({**COMMON, **MARIADB}), rows)


def enqueue_all(jobs, scene, cases):
    types = [*cases, *["neighbour"] * NEIGHBOURS]
    random.Random(scene.trial.record.seed).shuffle(types)
    with Session(scene.engine) as session, session.begin():
        return {name: jobs.enqueue(session, name, {}).job_id for name in types}


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
    due = "SELECT job_type FROM proletarian_job WHERE claim_id IS NOT NULL OR process_at <= :now"
    return not rows(due, now=datetime.now(UTC)) and len(rows("SELECT 1 FROM proletarian_job")) <= len(stays)


def run_by_threads(scene, jobs, start_worker, recorder):
    def neighbour(session, job):
        write(session, job)

    cases = scene.only("threads")
    ids = enqueue_all(jobs, scene, cases)
    for name, case in cases.items():
        jobs.handler(name)(once(case.act))
    jobs.handler("neighbour")(neighbour)
    worker = start_worker(jobs, scene.engine, threads=3)
    scene.trial.wait_until(lambda: is_over(scene.rows, cases))
    assert worker.stop()
    scene.trial.record.faults["handler abuse (threads)"] += len(cases)
    check(scene, cases, ids, recorder)


def run_by_tasks(scene, jobs, recorder):
    cases = scene.only("async")
    ids = enqueue_all(jobs, scene, cases)

    def task(act):
        async def handler(session, job):
            await session.run_sync(act, job)

        return handler

    for name, case in cases.items():
        jobs.handler(name)(task(once(case.act)))
    jobs.handler("neighbour")(task(write))

    async def main():
        engine = create_async_engine(scene.asyncs)
        options = {"concurrency": 6, "connections": 3, "listener": recorder, "polling_interval": timedelta(milliseconds=20)}
        worker = AsyncWorker(jobs, engine, **options)
        await worker.start()
        await asyncio.to_thread(scene.trial.wait_until, lambda: is_over(scene.rows, cases))
        assert await worker.stop()
        await engine.dispose()

    asyncio.run(main())
    scene.trial.record.faults["handler abuse (async)"] += len(cases)
    check(scene, cases, ids, recorder)


def check(scene, cases, ids, recorder):
    found = misses(cases, ids, scene.rows, recorder)
    assert not found, "\n".join(map(str, found))
    assert scene.rows("SELECT count(*) FROM effect WHERE what = 'neighbour'") == [(NEIGHBOURS,)]
    neighbours = scene.rows("SELECT status, count(*) FROM proletarian_archived_job WHERE job_type = 'neighbour' GROUP BY 1")
    assert neighbours == [("success", NEIGHBOURS)]


@pytest.mark.slow
def test_each_abuse_by_threads_ends_as_the_table_says(on_postgresql, jobs, start_worker, recorder):
    run_by_threads(on_postgresql, jobs, start_worker, recorder)


@pytest.mark.slow
def test_each_abuse_by_tasks_ends_as_the_table_says(on_postgresql, jobs, recorder):
    run_by_tasks(on_postgresql, jobs, recorder)


@pytest.mark.slow
def test_each_abuse_by_threads_on_mariadb_ends_as_the_table_says(on_mariadb, jobs, start_worker, recorder):
    run_by_threads(on_mariadb, jobs, start_worker, recorder)


@pytest.mark.slow
def test_each_abuse_by_tasks_on_mariadb_ends_as_the_table_says(on_mariadb, jobs, recorder):
    run_by_tasks(on_mariadb, jobs, recorder)
