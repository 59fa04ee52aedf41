"""Behind a real PgBouncer in transaction mode: every promise holds, and nothing is left on the server's connections.

Each test ends by reading the server's log of what came through the pooler. Where PgBouncer is not installed these tests are
skipped, unless ``SA_PROLETARIAN_REQUIRE_ALL`` is set: then they fail.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import URL, create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

from sa_proletarian import AsyncWorker, ConfigurationError, Retry, Worker
from sa_proletarian.connections import own_engine

ROLE = "behind_pgbouncer"
NOBODY = {"user": 65534, "group": 65534, "extra_groups": []}
POOL_SIZE = 5
OFTEN = timedelta(milliseconds=20)

# what an app makes its engine with, when PgBouncer stands between; psycopg2 needs nothing
APPS = {
    "psycopg": lambda url: create_engine(url, connect_args={"prepare_threshold": None}),
    "psycopg2": lambda url: create_engine(url.set(drivername="postgresql+psycopg2")),
    "psycopg (async)": lambda url: create_async_engine(url, connect_args={"prepare_threshold": None}),
    "asyncpg": lambda url: create_async_engine(
        url.set(drivername="postgresql+asyncpg"),
        connect_args={"statement_cache_size": 0, "server_settings": {"client_encoding": "UTF8"}},
    ),
}


class PgBouncer:
    """A PgBouncer in transaction mode on a socket of its own, as an ordinary user, in front of one server."""

    def __init__(self, program: str, behind: URL) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="sa-proletarian-pgbouncer-", dir="/tmp"))
        self._program = program
        self._behind = behind
        (self.folder / "users").write_text('"app" ""\n')
        (self.folder / "pgbouncer.ini").write_text(
            textwrap.dedent(f"""\
            [databases]
            * = host={behind.query["host"]} port=5432 user={ROLE}
            [pgbouncer]
            listen_port = 6432
            unix_socket_dir = {self.folder}
            auth_type = trust
            auth_file = {self.folder / "users"}
            pool_mode = transaction
            default_pool_size = {POOL_SIZE}
            max_client_conn = 100
            log_connections = 0
            log_disconnections = 0
            """)
        )
        if os.geteuid() == 0:  # which PgBouncer refuses to be
            for path in (self.folder, *self.folder.iterdir()):
                os.chown(path, NOBODY["user"], NOBODY["group"])
        self.start()

    def start(self) -> None:
        user = NOBODY if os.geteuid() == 0 else {}
        command = [self._program, str(self.folder / "pgbouncer.ini")]
        self._process = subprocess.Popen(command, cwd="/", stderr=subprocess.PIPE, text=True, **user)
        said = []
        for line in self._process.stderr:
            said.append(line)
            if "process up" in line:
                break
        else:
            raise AssertionError("".join(said))

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()
        for left in self.folder.glob(".s.PGSQL*"):
            left.unlink()

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.folder)

    def url(self, drivername: str = "postgresql+psycopg") -> URL:
        address = {"host": str(self.folder), "port": "6432"}
        return URL.create(drivername, "app", database=self._behind.database, query=address)


class ServerLog:
    """What the server logs of the statements that came through PgBouncer, from now on."""

    def __init__(self, path: Path) -> None:
        self._file = path.open(errors="replace")
        self._file.seek(0, os.SEEK_END)
        self._read = ""

    def statements(self) -> list[tuple[str, str]]:
        """Give each message of the protocol as its kind, with the name of the statement if it has one, and its text."""
        self._read += self._file.read()
        pattern = r"LOG:  (?:duration: [\d.]+ ms  )?(statement|(?:parse|bind|execute) [^:\n]*): ((?:.|\n(?=\t))*)"
        return re.findall(pattern, self._read)

    def lasting(self) -> list[tuple[str, str]]:
        """Give the statements that leave something on the server's connection when their transaction is over."""
        said = [(kind, sql.replace(WITHIN_ONE_STATEMENT, "")) for kind, sql in self.statements()]
        return [(kind, sql) for kind, sql in said if _is_named(kind) or LASTING.search(sql)]

    def close(self) -> None:
        self._file.close()


LASTING = re.compile(
    r"""^\s*SET\s+(?!LOCAL\b|TRANSACTION\b|CONSTRAINTS\b) | \bset_config\([^)]*\bfalse\b | ^\s*(UN)?LISTEN\b
      | \bpg_(try_)?advisory_(?!xact) | ^\s*(PREPARE(?!\s+TRANSACTION)|DEALLOCATE|DISCARD|RESET)\b | \bWITH\s+HOLD\b
      | \bCREATE\s+TEMP""",
    re.IGNORECASE | re.VERBOSE,
)


# how an enqueue looks whether a worker is idle: the lock is let go by the expression that has taken it
WITHIN_ONE_STATEMENT = "WHEN pg_try_advisory_lock(key) THEN NOT pg_advisory_unlock(key)"


def _is_named(kind: str) -> bool:
    return kind != "statement" and kind.split()[1] != "<unnamed>"


@pytest.fixture(scope="session")
def program():
    found = shutil.which("pgbouncer", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))
    if found is None:
        missing = "PgBouncer is not installed (on Debian: apt-get install pgbouncer)"
        (pytest.fail if os.environ.get("SA_PROLETARIAN_REQUIRE_ALL") else pytest.skip)(missing)
    return found


@pytest.fixture
def role(program, administration, database_url):
    """The role with which PgBouncer connects: everything that it says in the database of this test is logged."""
    with administration.connect() as connection:
        connection.execute(text(f"CREATE ROLE {ROLE} LOGIN SUPERUSER"))
        for setting in ("log_statement = 'all'", "log_min_duration_statement = 0"):
            connection.execute(text(f"ALTER ROLE {ROLE} IN DATABASE {database_url.database} SET {setting}"))
    yield
    with administration.connect() as connection:
        ended = text("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = :role")
        connection.execute(ended, {"role": ROLE})
        connection.execute(text(f"DROP ROLE {ROLE}"))


@pytest.fixture
def log(database_url, role):
    log = ServerLog(Path(database_url.query["host"]) / "log")
    yield log
    log.close()


@pytest.fixture
def bouncer(program, database_url, log):
    bouncer = PgBouncer(program, database_url)
    yield bouncer
    bouncer.close()


@pytest.fixture
def clean(log):
    """Say, when the test is over, that nothing has been left on the server's connections, and that the log would show it."""
    yield
    assert any("proletarian_job" in sql for kind, sql in log.statements() if "<unnamed>" in kind or kind == "statement")
    assert sorted(set(log.lasting())) == []


@pytest.fixture(params=APPS)
def app(request, tables, bouncer):
    app = APPS[request.param](bouncer.url())
    yield app
    app.sync_engine.dispose(close=False) if hasattr(app, "sync_engine") else app.dispose()


@pytest.fixture
def enqueuer(bouncer, tables):
    engine = APPS["psycopg"](bouncer.url())
    yield engine
    engine.dispose()


@pytest.fixture
def enqueue(jobs, enqueuer):
    def enqueue(*arguments, **options):
        with Session(enqueuer) as session, session.begin():
            return jobs.enqueue(session, *arguments, **options).job_id

    return enqueue


@pytest.fixture
def start(start_worker):
    def start(jobs, engine, **options):
        return start_worker(jobs, engine, pooler="transaction", **options)

    return start


def write(session, what):
    session.execute(text("INSERT INTO effect VALUES (:what)"), {"what": str(what)})


def archive(rows):
    return rows("SELECT job_type, status, count(*) FROM proletarian_archived_job GROUP BY 1, 2 ORDER BY 1, 2")


# the promises


def test_jobs_of_all_kinds_while_others_enqueue(app, jobs, enqueue, start, recorder, rows, clean):
    """Two workers and two enqueuers on five connections of the server."""

    def write_and_fail(session, job):
        write(session, job.payload)
        if job.job_type == "failing" or job.attempts == 1:
            raise ValueError

    jobs.handler("idle")(lambda session, job: None)
    jobs.handler("writing")(lambda session, job: write(session, job.payload))
    jobs.handler("failing")(write_and_fail)
    jobs.handler("retried", retry=Retry(retries=1))(write_and_fail)
    types = ("idle", "writing", "failing", "retried")

    def enqueue_some():
        for number in range(80):
            enqueue(types[number % 4], types[number % 4])

    for number in (1, 2):
        start(jobs, app, threads=2, worker_id=f"worker {number}")
    enqueuers = [threading.Thread(target=enqueue_some) for _ in range(2)]
    for thread in enqueuers:
        thread.start()
    for thread in enqueuers:
        thread.join()
    recorder.wait_for("job_finished", 120)
    recorder.wait_for("not_retrying", 40)
    fates = {"failing": "failure", "idle": "success", "retried": "success", "writing": "success"}
    assert archive(rows) == [(job_type, fate, 40) for job_type, fate in fates.items()]
    assert rows("SELECT what, count(*) FROM effect GROUP BY 1 ORDER BY 1") == [("retried", 40), ("writing", 40)]


def test_retention_prunes_and_leaves_nothing_behind(app, jobs, enqueue, start, recorder, rows, clean):
    jobs.handler("idle")(lambda session, job: None)
    enqueue("idle")
    start(jobs, app, retention=timedelta(seconds=1))
    assert sum(event.rows for event in recorder.wait_for("archive_pruned")) == 1
    assert (archive(rows), recorder.named("pruning_failed")) == ([], [])


def test_a_job_that_runs_long_keeps_its_lease(jobs, enqueuer, enqueue, start, recorder, rows, clean):
    go_on = threading.Event()
    jobs.handler("long")(lambda session, job: go_on.wait(20))
    jobs.handler("short")(lambda session, job: None)
    enqueue("long")
    start(jobs, enqueuer, threads=2, lease=timedelta(milliseconds=600))
    recorder.wait_for("handling_job")
    [(before,)] = rows("SELECT claimed_until FROM proletarian_job")
    for number in range(200):
        enqueue("short")
        recorder.wait_for("job_finished", number + 1)
        [(now,)] = rows("SELECT claimed_until FROM proletarian_job WHERE job_type = 'long'")
        if now > before:
            break
    go_on.set()
    recorder.wait_for("job_finished", number + 2)
    assert now > before
    assert recorder.named("claim_lost") == []


def test_a_stop_cancels_what_runs(app, jobs, enqueue, start, recorder, rows, clean):
    running = threading.Event()

    def handler(session, job):
        write(session, "gone")
        running.set()
        session.execute(text("SELECT pg_sleep(60)"))

    jobs.handler("work")(handler)
    enqueue("work")
    worker = start(jobs, app)
    assert running.wait(20)
    worker.stop(timedelta(0))
    assert recorder.named("job_interrupted"), recorder.names
    assert rows("SELECT attempts, crashes, claim_id FROM proletarian_job") == [(0, 0, None)]
    assert rows("SELECT * FROM effect") == []


def test_a_handler_that_does_not_end_loses_its_transaction(jobs, enqueuer, enqueue, start, recorder, rows, clean):
    running = threading.Event()
    ended = []

    def stubborn(session, job):
        running.set()
        for _ in range(2):
            try:
                session.execute(text("SELECT pg_sleep(60)"))
            except Exception as error:
                ended.append(error)
                session.rollback()

    jobs.handler("work")(stubborn)
    enqueue("work")
    worker = start(jobs, enqueuer)
    assert running.wait(20)
    assert not worker.stop(timedelta(0))
    assert rows("SELECT attempts, crashes, claim_id FROM proletarian_job") == [(0, 0, None)]
    assert rows("SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(60)%' AND pid <> pg_backend_pid()") == [
        (0,)
    ]


def test_a_pooler_that_is_killed_and_comes_back(jobs, enqueuer, enqueue, bouncer, start, recorder, rows, clean):
    broken = threading.Event()

    def handler(session, job):
        write(session, job.payload)
        if job.payload == "held" and not broken.is_set():
            bouncer.kill()
            broken.set()
            session.execute(text("SELECT 1"))

    jobs.handler("work")(handler)
    enqueue("work", "held")
    start(jobs, enqueuer)
    recorder.wait_for("sql_transient_exception")
    bouncer.start()
    recorder.wait_for("job_finished")
    enqueuer.dispose()
    enqueue("work", "after")
    recorder.wait_for("job_finished", 2)
    assert rows("SELECT what FROM effect ORDER BY what") == [("after",), ("held",)]


# on an event loop


@pytest.fixture(params=["psycopg (async)", "asyncpg"])
def async_app(request, tables, bouncer):
    return APPS[request.param](bouncer.url())


@pytest.fixture
def run_async(async_app, recorder):
    """Return a function that runs an async worker through the pooler for as long as ``what`` takes."""

    def run(jobs, what, **options):
        async def main():
            worker = AsyncWorker(jobs, async_app, pooler="transaction", connections=1, listener=recorder, **options)
            async with worker:
                await asyncio.to_thread(what)
                await worker.stop(timedelta(0))
            await async_app.dispose()

        asyncio.run(main())

    return run


async def write_async(session, what):
    await session.execute(text("INSERT INTO effect VALUES (:what)"), {"what": str(what)})


def test_an_async_worker_runs_jobs_of_all_kinds(jobs, enqueue, run_async, recorder, rows, clean):
    async def write_and_fail(session, job):
        await write_async(session, job.payload)
        if job.job_type == "failing" or job.attempts == 1:
            raise ValueError

    @jobs.handler("idle")
    async def idle(session, job):
        await asyncio.sleep(0)

    jobs.handler("plain")(lambda session, job: write(session, job.payload))
    jobs.handler("failing")(write_and_fail)
    jobs.handler("retried", retry=Retry(retries=1))(write_and_fail)
    types = ("idle", "plain", "failing", "retried")
    for number in range(80):
        enqueue(types[number % 4], types[number % 4])

    def what():
        recorder.wait_for("job_finished", 60)
        recorder.wait_for("not_retrying", 20)

    run_async(jobs, what, concurrency=10)
    fates = {"failing": "failure", "idle": "success", "plain": "success", "retried": "success"}
    assert archive(rows) == [(job_type, fate, 20) for job_type, fate in fates.items()]
    assert rows("SELECT what, count(*) FROM effect GROUP BY 1 ORDER BY 1") == [("plain", 20), ("retried", 20)]


def test_a_job_of_an_async_worker_that_runs_long_keeps_its_lease(jobs, enqueue, run_async, recorder, rows, clean):
    go_on = threading.Event()

    @jobs.handler("long")
    async def long(session, job):
        while not go_on.is_set():
            await job.sleep_async(OFTEN)

    enqueue("long")

    def what():
        recorder.wait_for("handling_job")
        before = rows("SELECT claimed_until FROM proletarian_job")
        while rows("SELECT claimed_until FROM proletarian_job") == before:
            pass
        go_on.set()
        recorder.wait_for("job_finished")

    run_async(jobs, what, lease=timedelta(seconds=3))
    assert archive(rows) == [("long", "success", 1)]
    assert recorder.named("claim_lost") == []


def test_the_stop_of_an_async_worker_cancels_what_runs(jobs, enqueue, run_async, recorder, rows, clean):
    running = threading.Event()

    @jobs.handler("work")
    async def work(session, job):
        await write_async(session, "gone")
        running.set()
        await session.execute(text("SELECT pg_sleep(60)"))

    enqueue("work")
    run_async(jobs, lambda: running.wait(20))
    assert recorder.named("job_interrupted"), recorder.names
    assert rows("SELECT attempts, crashes, claim_id FROM proletarian_job") == [(0, 0, None)]
    assert rows("SELECT * FROM effect") == []


COMMAND = """
import os
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy import text
from sa_proletarian import Proletarian

jobs = Proletarian()
engine = create_async_engine(os.environ["APP_URL"])

@jobs.handler("work")
async def work(session, job):
    for _ in range(20):  # psycopg would name a statement at its fifth use
        await session.execute(text("INSERT INTO effect VALUES (:what)"), {"what": "written"})
    print("written", flush=True)
"""


@pytest.mark.slow
def test_the_command_takes_a_pooler_with_async(enqueue, bouncer, rows, tmp_path, clean):
    (tmp_path / "app.py").write_text(COMMAND)
    enqueue("work")
    command = [sys.executable, "-m", "sa_proletarian.cli", "worker", "app:jobs", "--async", "--engine", "app:engine"]
    environment = {**os.environ, "APP_URL": bouncer.url().render_as_string(hide_password=False)}
    with subprocess.Popen(
        [*command, "--pooler", "transaction"], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "written\n"
        process.terminate()
    assert process.returncode == 0
    assert archive(rows) == [("work", "success", 1)]


CRASHING = """
    import sys, threading
    from datetime import timedelta
    from sqlalchemy import create_engine, text
    from sa_proletarian import Proletarian, Worker

    jobs = Proletarian()

    @jobs.handler("*")
    def handler(session, job):
        if job.job_type == "holding":
            session.execute(text("INSERT INTO effect VALUES ('gone')"))
        print("running", flush=True)
        threading.Event().wait(60)

    Worker(jobs, create_engine(sys.argv[1]), threads=2, lease=timedelta(seconds=1), pooler="transaction").run()
"""


@pytest.mark.slow
def test_a_worker_that_is_killed_loses_no_job_and_no_effect(jobs, enqueuer, enqueue, bouncer, start, recorder, rows, clean):
    enqueue("holding")
    enqueue("idle")
    command = [sys.executable, "-c", textwrap.dedent(CRASHING), bouncer.url().render_as_string(hide_password=False)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert [process.stdout.readline() for _ in range(2)] == ["running\n", "running\n"]
        process.send_signal(signal.SIGKILL)
    jobs.handler("holding")(lambda session, job: write(session, f"run again, crashes {job.crashes}"))
    jobs.handler("idle")(lambda session, job: None)
    start(jobs, enqueuer)
    recorder.wait_for("job_finished", 2)
    assert archive(rows) == [("holding", "success", 1), ("idle", "success", 1)]
    assert rows("SELECT what FROM effect") == [("run again, crashes 1",)]


# what reaches the server


def test_the_worker_names_no_statement_although_the_apps_engine_would(jobs, bouncer, enqueue, start, recorder, clean):
    app = create_engine(bouncer.url())
    jobs.handler("work")(lambda session, job: [session.scalar(text("SELECT :one"), {"one": 1}) for _ in range(20)])
    for _ in range(20):
        enqueue("work")
    start(jobs, app)
    recorder.wait_for("job_finished", 20)
    app.dispose()


def test_without_the_switch_psycopg_names_them_and_the_log_shows_it(jobs, bouncer, enqueue, start_worker, recorder, log):
    app = create_engine(bouncer.url())
    jobs.handler("work")(lambda session, job: [session.scalar(text("SELECT :one"), {"one": 1}) for _ in range(20)])
    enqueue("work")
    start_worker(jobs, app)
    recorder.wait_for("job_finished")
    app.dispose()
    # by its own names, or by those of a PgBouncer from 1.21 on
    assert any("_pg3_" in kind or "PGBOUNCER_" in kind for kind, _ in log.lasting()), log.statements()


@pytest.mark.parametrize(
    "statement",
    [
        "SET statement_timeout = 0",
        "LISTEN jobs",
        "SELECT pg_advisory_lock(1)",
        "SELECT set_config('search_path', 'x', false)",
        "CREATE TEMP TABLE t ()",
    ],
)
def test_the_log_shows_what_lasts(enqueuer, log, statement):
    with enqueuer.begin() as connection:
        connection.execute(text("SET LOCAL statement_timeout = '1s'"))
        connection.execute(text("SELECT pg_advisory_xact_lock(1), set_config('lock_timeout', '1s', true)"))
        connection.execute(text(statement))
    assert [sql for _, sql in log.lasting() if sql.strip() != statement] == []
    assert log.lasting() != []


def test_asyncpg_that_keeps_statements_is_refused_and_the_worker_stops(jobs, tables, bouncer, start, recorder):
    """Its cache is filled before anything of the worker's could prevent it."""
    app = create_async_engine(bouncer.url("postgresql+asyncpg"))
    worker = start(jobs, app)
    recorder.wait_for("completed_shutdown")
    errors = [error.error for error in recorder.named("job_worker_error")]
    assert isinstance(errors[0], ConfigurationError) and "'statement_cache_size': 0" in str(errors[0])
    assert not worker.running


def test_an_unknown_kind_of_pooler_is_refused(jobs, engine):
    with pytest.raises(ValueError, match='pooler is "transaction" or None'):
        Worker(jobs, engine, pooler="session")
    with pytest.raises(ValueError, match='pooler is "transaction" or None'):
        AsyncWorker(jobs, create_async_engine(engine.url), pooler="session")
    with pytest.raises(ValueError, match="pooler"):
        own_engine(engine, size=1, pooler=True)
