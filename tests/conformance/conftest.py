"""The forms in which a job can be run, and the database on which it is: a scenario is written once, for all of them.

A scenario's handler is a plain function of a session and a job; ``life.sleep(job, span)`` waits in it. Where the handler
has to be ``async def``, SQLAlchemy's ``run_sync`` runs the function, which is what an ``AsyncSession`` does with itself.
What is PostgreSQL's own stands in one class; a scenario asks ``life.database`` for it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any, Self
from uuid import uuid4

import pytest
from sqlalchemy import Column, Engine, MetaData, String, Table, create_engine, delete, insert, select, text, update
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.util.concurrency import await_only

from sa_proletarian import ArchivedJob, AsyncWorker, Job, Outcome, Proletarian, Worker, metadata, progress, requests

PATIENCE = 20
TEN_SECONDS = timedelta(seconds=10)

# in which event a worker tells of each outcome
ENDS = {
    "job_finished": Outcome.RETURNED,
    "retrying": Outcome.RETRIED,
    "not_retrying": Outcome.GAVE_UP,
    "job_snoozed": Outcome.SNOOZED,
    "job_cancelled": Outcome.CANCELLED,
    "job_interrupted": Outcome.INTERRUPTED,
    "connection_unavailable": Outcome.UNAVAILABLE,
    "connection_died": Outcome.CONNECTION_DIED,
    "process_died": Outcome.PROCESS_DIED,
    "job_crashed": Outcome.CRASHED,
    "claim_lost": Outcome.CLAIM_LOST,
    "job_parked": Outcome.PARKED,
}

DRIVERS = {"sync": "psycopg", "async": "psycopg", "other async": "asyncpg"}

MARIADBS = {"sync": "pymysql", "async": "asyncmy"}

own = MetaData()
effect = Table("effect", own, Column("what", String(100), nullable=False))

# the database -----------------------------------------------------------------------------------------------------------


class PostgreSQL:
    """A database with the tables of all scenarios, and what of it is PostgreSQL's own."""

    defers_constraints = True
    an_error_spoils_the_transaction = True

    def __init__(self, url: Any) -> None:
        self._url = url
        self.engine: Engine = create_engine(self.url("sync"))
        metadata.create_all(self.engine)
        own.create_all(self.engine)
        with self.engine.begin() as connection:
            connection.execute(text("CREATE TABLE parent (id int PRIMARY KEY)"))
            connection.execute(text("CREATE TABLE child (id int REFERENCES parent DEFERRABLE INITIALLY DEFERRED)"))

    def url(self, kind: str) -> Any:
        return self._url.set(drivername=f"postgresql+{DRIVERS[kind]}")

    def empty(self) -> None:
        with self.engine.begin() as connection:
            for table in (*metadata.sorted_tables, *own.sorted_tables):
                connection.execute(delete(table))

    def break_a_deferred_constraint(self, session: Session) -> str:
        """Do what only the COMMIT refuses, and give the name that the error will hold."""
        session.execute(text("INSERT INTO child VALUES (1)"))
        return "child_id_fkey"

    def id_of_process(self, session: Session) -> int:
        return session.scalars(text("SELECT pg_backend_pid()")).one()

    def kill_process(self, number: int) -> None:
        with self.engine.begin() as connection:
            connection.execute(text("SELECT pg_terminate_backend(:number)"), {"number": number})

    def wait_for_ever(self, session: Session) -> None:
        session.execute(text("SELECT pg_sleep(3600)"))

    def somebody_waits(self) -> bool:
        """Say whether the server is at such a statement: a cancel that comes before it does nothing."""
        return self._finds("SELECT 1 FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'SELECT pg_sleep(%'")

    def _finds(self, statement: str) -> bool:
        with self.engine.connect() as connection:
            return bool(connection.exec_driver_sql(statement.replace("%", "%%")).all())

    def spoil_payload(self, job_id: Any) -> None:
        """Store what this Python's ``json`` refuses to read."""
        statement = text("UPDATE proletarian_job SET payload = CAST(:payload AS jsonb) WHERE job_id = :id")
        with self.engine.begin() as connection:
            connection.execute(statement, {"payload": "1" + "0" * 5000, "id": job_id})


class MariaDB(PostgreSQL):
    """The same on MariaDB."""

    defers_constraints = False
    an_error_spoils_the_transaction = False

    def __init__(self, url: Any) -> None:
        self._url = url
        self.engine = create_engine(self.url("sync"))
        metadata.create_all(self.engine)
        own.create_all(self.engine)

    def url(self, kind: str) -> Any:
        return self._url.set(drivername=f"{self._url.get_backend_name()}+{MARIADBS[kind]}")

    def id_of_process(self, session: Session) -> int:
        return session.scalars(text("SELECT CONNECTION_ID()")).one()

    def kill_process(self, number: int) -> None:
        with self.engine.begin() as connection:
            connection.execute(text("KILL CONNECTION :number"), {"number": number})

    def wait_for_ever(self, session: Session) -> None:
        # by itself it would say to MySQL's KILL QUERY that it has slept well
        session.execute(text("SELECT SLEEP(3600) FROM information_schema.tables"))

    def somebody_waits(self) -> bool:
        return self._finds("SELECT 1 FROM information_schema.processlist WHERE info LIKE 'SELECT SLEEP(%'")

    def spoil_payload(self, job_id: Any) -> None:
        if self.engine.dialect.name == "mysql":
            pytest.skip("MySQL takes no number that Python would not read")
        statement = text("UPDATE proletarian_job SET payload = :payload WHERE job_id = :id")
        with self.engine.begin() as connection:
            connection.execute(statement, {"payload": "1" + "0" * 5000, "id": job_id.hex})


@pytest.fixture(scope="session")
def given_database(postgres: Any, administration: Engine) -> Iterator[PostgreSQL]:
    name = f"test_{uuid4().hex}"
    with administration.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    database = PostgreSQL(postgres.url(name))
    yield database
    database.engine.dispose()
    with administration.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture(scope="session")
def given_mariadb(mariadb: Any) -> Iterator[MariaDB]:
    name = f"test_{uuid4().hex}"
    administration = create_engine(mariadb.url())
    with administration.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    administration.dispose()
    database = MariaDB(mariadb.url(name))
    yield database
    database.engine.dispose()


# the forms --------------------------------------------------------------------------------------------------------------


class RunningThreads:
    """A worker in threads, while the context lasts."""

    def __init__(self, jobs: Proletarian, database: PostgreSQL, **options: Any) -> None:
        self._worker = Worker(jobs, database.engine, **options)

    def __enter__(self) -> Self:
        self._worker.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def begin_stop(self, timeout: timedelta = TEN_SECONDS) -> None:
        """Claim no more from now on; any thread may say so."""
        self._worker._shift.begin_stop(timeout)

    def stop(self, timeout: timedelta = TEN_SECONDS) -> bool:
        self.begin_stop(timeout)
        return self._worker._shift.wait()


class RunningTasks:
    """An async worker on an event loop in a thread of its own, while the context lasts."""

    def __init__(self, jobs: Proletarian, database: PostgreSQL, kind: str = "async", **options: Any) -> None:
        self._url = database.url(kind)
        self._make = lambda engine: AsyncWorker(jobs, engine, **options)
        self._begun = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._clean = False

    async def _run(self) -> None:
        engine = create_async_engine(self._url)
        self._worker = self._make(engine)
        await self._worker.start()
        self._begun.set()
        self._clean = await self._worker.run()
        await engine.dispose()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._begun.wait(PATIENCE)
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def begin_stop(self, timeout: timedelta = TEN_SECONDS) -> None:
        self._worker._shift.begin_stop(timeout)

    def stop(self, timeout: timedelta = TEN_SECONDS) -> bool:
        self.begin_stop(timeout)
        self._thread.join(PATIENCE)
        return self._clean and not self._thread.is_alive()


class InWorker:
    """Jobs are run by a worker, which is stopped at once when the first has ended."""

    is_worker = True

    def __init__(self, running: Any, *, is_async: bool, on: str = "given_database", **options: Any) -> None:
        self._running, self.is_async, self.on, self._options = running, is_async, on, options

    def working(self, jobs: Proletarian, database: PostgreSQL, listener: Any, **options: Any) -> Any:
        options = {"polling_interval": timedelta(milliseconds=20), **self._options, **options}
        return self._running(jobs, database, listener=listener, **options)

    def run_one(self, jobs: Proletarian, database: PostgreSQL, listener: Any, **options: Any) -> Outcome:
        ends: list[Outcome] = []
        over = threading.Event()

        def stop_at_the_end(event: Any) -> None:
            listener(event)
            if event.name in ENDS and not ends:
                ends.append(ENDS[event.name])
                worker.begin_stop()  # here, lest a job that is due again be begun again
                over.set()

        worker = self.working(jobs, database, stop_at_the_end, **options)
        with worker:
            assert over.wait(PATIENCE)
            assert worker.stop()
        return ends[0]

    def finds_nothing(self, jobs: Proletarian, database: PostgreSQL, recorder: Any) -> bool:
        with self.working(jobs, database, recorder):
            recorder.wait_for("polling_for_jobs", len(recorder.named("polling_for_jobs")) + 3)
        return not recorder.named("handling_job")


class Inline:
    """Jobs are run one by one by ``process_next`` or, on an event loop, by ``process_next_async``."""

    is_worker = False

    def __init__(self, kind: str, on: str = "given_database") -> None:
        self._kind, self.is_async, self.on = kind, kind != "sync", on

    def run_one(self, jobs: Proletarian, database: PostgreSQL, listener: Any, **options: Any) -> Outcome | None:
        if not self.is_async:
            return jobs.process_next(database.engine, listener=listener, **options)

        async def main() -> Outcome | None:
            engine = create_async_engine(database.url(self._kind))
            try:
                return await jobs.process_next_async(engine, listener=listener, **options)
            finally:
                await engine.dispose()

        return asyncio.run(main())

    def finds_nothing(self, jobs: Proletarian, database: PostgreSQL, recorder: Any) -> bool:
        return self.run_one(jobs, database, recorder) is None


ONCE = pytest.mark.slow  # whatever the version of PostgreSQL

FORMS = [
    pytest.param(InWorker(RunningThreads, is_async=False), id="Worker"),
    pytest.param(InWorker(RunningThreads, is_async=True), id="Worker-async"),
    pytest.param(InWorker(RunningTasks, is_async=True), id="AsyncWorker"),
    pytest.param(InWorker(RunningTasks, is_async=True, kind="other async"), id="AsyncWorker-asyncpg"),
    pytest.param(InWorker(RunningTasks, is_async=False), id="AsyncWorker-def", marks=pytest.mark.slow),
    pytest.param(Inline("sync"), id="process_next"),
    pytest.param(Inline("other async"), id="process_next_async", marks=pytest.mark.slow),
    pytest.param(InWorker(RunningThreads, is_async=False, on="given_mariadb"), id="Worker-MariaDB", marks=ONCE),
    pytest.param(Inline("sync", on="given_mariadb"), id="process_next-MariaDB", marks=ONCE),
    pytest.param(InWorker(RunningTasks, is_async=True, on="given_mariadb"), id="AsyncWorker-MariaDB", marks=ONCE),
]

# a job's life -----------------------------------------------------------------------------------------------------------


class Life:
    """The life of jobs of the type ``work``, in one form and on one database."""

    def __init__(self, form: Any, database: PostgreSQL, jobs: Proletarian, recorder: Any) -> None:
        self.form, self.database, self.jobs, self.recorder = form, database, jobs, recorder

    def __call__(self, handler: Any, **registration: Any) -> Outcome:
        """Register ``handler``, enqueue a job for it, and run that."""
        self.handle(handler, **registration)
        self.enqueue()
        return self.run()

    def handle(self, handler: Any, **registration: Any) -> None:
        self.jobs.handler("work", **registration)(awaited(handler) if self.form.is_async else handler)

    def enqueue(self, job_type: str = "work", payload: Any = None, **options: Any) -> Any:
        with Session(self.database.engine) as session, session.begin():
            return self.jobs.enqueue(session, job_type, {"n": 1} if payload is None else payload, **options).job_id

    def run(self, **options: Any) -> Outcome:
        """Run the next job, once; give what it came to."""
        return self.form.run_one(self.jobs, self.database, self.recorder, **options)

    def finds_nothing(self) -> bool:
        return self.form.finds_nothing(self.jobs, self.database, self.recorder)

    def working(self, **options: Any) -> Any:
        """Give a context in which a worker runs."""
        return self.form.working(self.jobs, self.database, self.recorder, **options)

    def sleep(self, job: Job, span: timedelta) -> None:
        """Sleep in a handler, as it does in this form."""
        if self.form.is_async:
            await_only(job.sleep_async(span))
        else:
            job.sleep(span)

    def write(self, session: Session, what: str | None = "written") -> None:
        session.execute(insert(effect).values(what=what))

    # what can be seen of it from another connection

    @property
    def effects(self) -> list[str]:
        return sorted(row.what for row in self._rows(select(effect.c.what)))

    @property
    def archive(self) -> list[tuple[str, int]]:
        return [(row.status, row.attempts) for row in self._rows(select(ArchivedJob.status, ArchivedJob.attempts))]

    @property
    def queue(self) -> list[tuple[int, int, Any]]:
        """Attempts, crashes and claim of each job that waits or runs."""
        columns = select(Job.attempts, Job.crashes, Job.claim_id).where(Job.job_type == "work")
        return [(row.attempts, row.crashes, row.claim_id) for row in self._rows(columns)]

    @property
    def error(self) -> str:
        """The error of the one job that is there."""
        found = [*self._rows(select(Job.last_error)), *self._rows(select(ArchivedJob.error))]
        [(error,)] = found
        return error

    @property
    def due_at(self) -> datetime:
        [(instant,)] = self._rows(select(Job.process_at))
        return instant

    @property
    def told(self) -> list[str]:
        """The events about jobs, in order."""
        return [event.name for event in self.recorder.events if hasattr(event, "job_id")]

    def jobs_that_are_not_locked(self) -> list[Any]:
        with Session(self.database.engine) as session:
            return [*session.scalars(select(Job.job_id).with_for_update(skip_locked=True))]

    def change(self, **values: Any) -> None:
        """Change the row of every job there is."""
        with self.database.engine.begin() as connection:
            connection.execute(update(Job).values(**values))

    def make_due(self) -> None:
        self.change(process_at=Job.enqueued_at)

    def until(self, condition: Any) -> None:
        """Wait until ``condition`` holds, which only looking again and again can tell."""
        for _ in range(PATIENCE * 50):
            if condition():
                return
            threading.Event().wait(0.02)
        raise AssertionError("what was waited for did not come")

    def _rows(self, statement: Any) -> list[Any]:
        with Session(self.database.engine) as session:
            return [*session.execute(statement)]


def awaited(handler: Any) -> Any:
    async def async_handler(session: Any, job: Job) -> None:
        await session.run_sync(handler, job)

    return async_handler


@pytest.fixture
def life(form: Any, request: pytest.FixtureRequest, recorder: Any, monkeypatch: pytest.MonkeyPatch) -> Life:
    """Return a life in one form; its database is empty, and workers look at the worker table at each turn."""
    monkeypatch.setattr(requests, "INTERVAL", 0.0)
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    database: PostgreSQL = request.getfixturevalue(form.on)
    database.empty()
    return Life(form, database, Proletarian(), recorder)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Let every scenario be run in each form, or only by workers where it says so."""
    if "form" in metafunc.fixturenames:
        only_workers = metafunc.definition.get_closest_marker("by_workers") is not None
        metafunc.parametrize("form", [form for form in FORMS if form.values[0].is_worker or not only_workers])
