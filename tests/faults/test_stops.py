"""A stop is over two seconds after its deadline, whatever the database does; what it could not settle runs again.

The times here are upper bounds for a busy machine; what was measured is printed, and stands in docs/promises.md.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from machinery.proxy import Proxy
from sa_proletarian import metadata
from sa_proletarian.embedded import EmbeddedPostgres

pytestmark = pytest.mark.slow

SLACK = 5.0
DEADLINE = 1.0

WORKER = """
    import asyncio, os, sys, time
    from datetime import timedelta
    from sqlalchemy import create_engine, text
    from sqlalchemy.ext.asyncio import create_async_engine
    from sa_proletarian import AsyncWorker, Proletarian, Worker

    form, url = sys.argv[1:3]
    jobs = Proletarian()
    write = text("INSERT INTO effect VALUES ('never')")
    wait = text("SELECT SLEEP(3600)" if url.startswith("m") else "SELECT pg_sleep(3600)")

    if form == "threads":
        @jobs.handler("in-SQL")
        def in_sql(session, job):
            session.execute(write)
            os.write(1, b"inside\\n")
            session.execute(wait)
    else:
        @jobs.handler("in-SQL")
        async def in_sql(session, job):
            await session.execute(write)
            os.write(1, b"inside\\n")
            await session.execute(wait)

    @jobs.handler("elsewhere")
    def elsewhere(session, job):
        os.write(1, b"inside\\n")
        time.sleep(3600)

    options = {"termination_timeout": timedelta(seconds=1), "polling_interval": timedelta(milliseconds=20)}
    engine = (create_engine if "+async" not in url and form != "tasks" else create_async_engine)(url)

    def run_threads():
        return Worker(jobs, engine, threads=3, **options).run()

    async def run_tasks():
        return await AsyncWorker(jobs, engine, **options).run()

    if __name__ == "__main__":
        sys.exit(0 if (asyncio.run(run_tasks()) if form == "tasks" else run_threads()) else 1)
"""


@pytest.fixture(scope="module")
def server(pytestconfig):
    with EmbeddedPostgres(pytestconfig.option.postgresql, tcp=True) as server:
        yield server


@pytest.fixture
def proxy(server, seed):
    engine = create_engine(server.url())
    metadata.drop_all(engine)
    metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE IF EXISTS effect"))
        connection.execute(text("CREATE TABLE effect (what text)"))
    proxy = Proxy(server.url().port, random.Random(seed))
    proxy.engine = engine
    proxy.url = server.url().set(port=proxy.port)
    yield proxy
    proxy.thaw()
    proxy.close()
    engine.dispose()


def begin(engine, jobs, command, *types):
    with Session(engine) as session, session.begin():
        for job_type in types:
            jobs.enqueue(session, job_type)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert [process.stdout.readline() for _ in types] == ["inside\n"] * len(types)
    return process


def seconds_of_stop(process):
    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(60)
    finally:
        process.kill()
        process.stdout.close()
    seconds = time.monotonic() - begun
    print(f"{seconds:.2f} s, of which {DEADLINE} s were given")
    return seconds


@pytest.mark.parametrize(
    ("form", "driver", "stalled"),
    [
        ("threads", "psycopg", True),
        ("threads", "psycopg", False),
        ("mixed", "psycopg", True),
        ("tasks", "psycopg", True),
        ("tasks", "asyncpg", True),
        ("tasks", "asyncpg", False),
    ],
)
def test_a_worker_ends_in_time_and_its_jobs_run_again(proxy, jobs, recorder, form, driver, stalled):
    url = proxy.url.set(drivername=f"postgresql+{driver}").render_as_string(hide_password=False)
    process = begin(proxy.engine, jobs, [sys.executable, "-c", textwrap.dedent(WORKER), form, url], "in-SQL", "elsewhere")
    if stalled:
        proxy.freeze()
    assert seconds_of_stop(process) < DEADLINE + 2 + SLACK
    assert process.returncode == 1, "it says that there are jobs that it had to leave"
    with proxy.engine.connect() as connection:
        left = [(row.attempts, row.claim_id) for row in connection.execute(text("SELECT * FROM proletarian_job"))]
        assert connection.scalar(text("SELECT count(*) FROM effect")) == 0
    assert stalled or left == [(0, None)] * 2, "what is not over is due at once, and no attempt"


@pytest.mark.parametrize(("form", "driver"), [("threads", "pymysql"), ("tasks", "asyncmy")])
def test_a_worker_on_mariadb_ends_in_time_though_its_server_is_stopped(own_mariadb, jobs, form, driver):
    engine = create_engine(own_mariadb.url())
    with engine.begin() as connection:
        connection.execute(text("CREATE DATABASE app"))
    engine.dispose()
    engine = create_engine(own_mariadb.url("app"))
    metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE effect (what text)"))
    url = own_mariadb.url("app", f"mariadb+{driver}").render_as_string(hide_password=False)
    process = begin(engine, jobs, [sys.executable, "-c", textwrap.dedent(WORKER), form, url], "in-SQL", "elsewhere")
    engine.dispose()
    own_mariadb.pause()
    assert seconds_of_stop(process) < DEADLINE + 2 + SLACK
    assert process.returncode == 1


APP = """
    import os, time
    from sa_proletarian import Proletarian

    jobs = Proletarian()

    @jobs.handler("elsewhere")
    def elsewhere(session, job):
        os.write(1, b"inside\\n")
        time.sleep(3600)
"""


def test_a_supervisor_ends_in_time_with_its_processes(proxy, jobs, tmp_path, monkeypatch):
    (tmp_path / "app.py").write_text(textwrap.dedent(APP))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    url = proxy.url.render_as_string(hide_password=False)
    worker = ["worker", "app:jobs", "--url", url, "--processes", "2", "--termination-timeout", f"{DEADLINE:g}"]
    process = begin(proxy.engine, jobs, [sys.executable, "-m", "sa_proletarian.cli", *worker], "elsewhere", "elsewhere")
    proxy.freeze()
    assert seconds_of_stop(process) < DEADLINE + 2 + SLACK
    assert process.returncode == 1
