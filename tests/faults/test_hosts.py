"""F4: workers on several hosts: they share the work, and the jobs of a host that vanishes come free in the promised time.

A host is a network namespace here, made by root with Debian's iproute2. Elsewhere the test that needs one is skipped,
unless ``SA_PROLETARIAN_REQUIRE_ALL`` is set: then it fails.
"""

from __future__ import annotations

import os
import secrets
import statistics
import subprocess
import sys
import textwrap
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import URL, text
from sqlalchemy.orm import Session

from machinery.mariadb import required_program
from machinery.waiting import until
from sa_proletarian import Worker, metadata

PROMISE, SLACK = 15.0, 5.0  # seconds
SERVER_ADDRESS, WORKER_ADDRESS = "10.77.0.1", "10.77.0.2"

SERVER = """
    import sys
    from sqlalchemy import create_engine, text
    from sa_proletarian.embedded import EmbeddedPostgres

    settings = {"listen_addresses": "*", "synchronous_commit": True}
    with EmbeddedPostgres(int(sys.argv[1]), tcp=True, settings=settings) as server:
        engine = create_engine(server.url())
        with engine.connect() as connection:
            with open(connection.scalar(text("SHOW hba_file")), "a") as rules:
                rules.write("host all all 10.77.0.0/24 scram-sha-256\\n")
            connection.execute(text("SELECT pg_reload_conf()"))
            folder = connection.scalar(text("SHOW unix_socket_directories"))
        engine.dispose()
        url = server.url()
        print(folder, url.port, url.password, flush=True)
        sys.stdin.readline()
"""

MARIADB = """
    import sys
    from sqlalchemy import create_engine, text
    sys.path.insert(0, sys.argv[1])
    from machinery.mariadb import MariaDB

    server = MariaDB(sys.argv[2], address=sys.argv[3])
    engine = create_engine(server.url())
    with engine.connect() as connection:
        connection.execute(text("CREATE DATABASE app"))
        connection.execute(text("CREATE USER app@'%' IDENTIFIED BY 'secret'"))
        connection.execute(text("GRANT ALL ON app.* TO app@'%'"))
    engine.dispose()
    print(server.url().drivername, server.folder / "socket", flush=True)
    sys.stdin.readline()
    server.close()
"""

WORKER = """
    import os, sys, threading
    from datetime import timedelta
    from sqlalchemy import create_engine, text
    from sa_proletarian import Proletarian, Worker

    url, worker_id = sys.argv[1:]
    jobs = Proletarian()
    go_on = threading.Event()

    def say(*words):
        os.write(1, f"{' '.join(words)}\\n".encode())  # in one piece: several threads say something

    def listener(event):
        if event.name == "claim_lost":
            say(event.name)

    def write(session, job):
        session.execute(text("INSERT INTO effect VALUES (:what)"), {"what": f"{worker_id} {job.job_id}"})

    jobs.handler("short")(write)

    @jobs.handler("idle-in-its-transaction")
    def idle(session, job):
        write(session, job)
        say("inside")
        go_on.wait()

    @jobs.handler("busy-with-a-statement")
    def busy(session, job):
        write(session, job)
        say("inside")
        session.execute(text("SELECT SLEEP(3600)" if url.startswith("m") else "SELECT pg_sleep(3600)"))

    @jobs.handler("before-its-first-use")
    def unheld(session, job):
        say("inside")
        go_on.wait()
        write(session, job)

    engine = create_engine(url, connect_args={"connect_timeout": 2})
    with Worker(jobs, engine, worker_id=worker_id, threads=3, listener=listener):
        say("started")
        sys.stdin.readline()
        go_on.set()
        sys.stdin.readline()
"""


def reads(process, line, count=1):
    for _ in range(count):
        assert process.stdout.readline() == f"{line}\n"


def go_on(process):
    process.stdin.write("\n")
    process.stdin.flush()


@pytest.fixture
def start():
    """Return a function that starts a Python program; it is killed at the end."""
    processes = []

    def start(program, *arguments, on=()):
        command = [*on, sys.executable, "-c", textwrap.dedent(program), *arguments]
        processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        return processes[-1]

    yield start
    for process in reversed(processes):
        process.kill()
        process.communicate()


def enqueue(jobs, engine, *job_types):
    with Session(engine) as session, session.begin():
        return {jobs.enqueue(session, job_type).job_id: job_type for job_type in job_types}


# several hosts' worth of processes


@pytest.mark.slow
def test_processes_of_two_hosts_share_the_work_and_one_finishes_what_the_other_leaves(
    start, jobs, tables, database_url, rows
):
    url = database_url.render_as_string(hide_password=False)
    hosts = {host: [start(WORKER, url, f"{host}:{number}") for number in (1, 2)] for host in ("one", "two")}
    processes = [process for host in hosts.values() for process in host]
    for process in processes:
        reads(process, "started")
    expected = enqueue(jobs, tables, *["short"] * 200)
    while len(rows("SELECT DISTINCT split_part(what, ' ', 1) FROM effect")) < len(processes):
        expected |= enqueue(jobs, tables, *["short"] * 20)
    expected |= enqueue(jobs, tables, *["idle-in-its-transaction"] * 3 * len(processes))
    for process in processes:
        reads(process, "inside", 3)
    for process in hosts["one"]:
        process.kill()
        process.wait()
    for process in hosts["two"]:
        go_on(process)
    until(lambda: rows("SELECT count(*) FROM proletarian_job") == [(0,)], 120, lambda: "the queue is not empty")
    effects = [what.split() for (what,) in rows("SELECT what FROM effect")]
    assert Counter(job_id for _, job_id in effects) == {str(job_id): 1 for job_id in expected}
    assert {worker_id for worker_id, _ in effects} == {"one:1", "one:2", "two:1", "two:2"}
    idle = {str(job_id) for job_id, job_type in expected.items() if job_type != "short"}
    assert {worker_id.split(":")[0] for worker_id, job_id in effects if job_id in idle} == {"two"}


# a host that vanishes


class Network:
    """Two hosts and the wire between them."""

    def __init__(self):
        word = secrets.token_hex(4)
        self._server, self._worker = (f"sa-proletarian-{which}-{word}" for which in ("server", "worker"))
        self.server, self.worker = (("ip", "netns", "exec", host) for host in (self._server, self._worker))

    def build(self):
        for host in (self._server, self._worker):
            _ip("netns", "add", host)
        _ip("link", "add", "wire", "netns", self._server, "type", "veth", "peer", "name", "wire", "netns", self._worker)
        for host, address in ((self._server, SERVER_ADDRESS), (self._worker, WORKER_ADDRESS)):
            _ip("-n", host, "address", "add", f"{address}/24", "dev", "wire")
            _ip("-n", host, "link", "set", "lo", "up")
            _ip("-n", host, "link", "set", "wire", "up")

    def cut(self):
        _ip("-n", self._worker, "link", "set", "wire", "down")

    def mend(self):
        _ip("-n", self._worker, "link", "set", "wire", "up")

    def tear_down(self):
        for host in (self._server, self._worker):
            subprocess.run(["ip", "netns", "delete", host], check=False, capture_output=True)


def _ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@pytest.fixture
def network():
    network = Network()
    try:
        network.build()
    except (OSError, subprocess.CalledProcessError) as error:
        network.tear_down()
        missing = f"network namespaces need root and Debian's iproute2: {getattr(error, 'stderr', error)}"
        (pytest.fail if os.environ.get("SA_PROLETARIAN_REQUIRE_ALL") else pytest.skip)(missing)
    yield network
    network.tear_down()


@pytest.fixture
def far_server(start, network, pytestconfig):
    """Return the URLs by which a server on a host of its own is reached: over the wire, and from here."""
    server = start(SERVER, str(pytestconfig.option.postgresql), on=network.server)
    folder, port, password = server.stdout.readline().split()
    wire = URL.create("postgresql+psycopg", "postgres", password, SERVER_ADDRESS, int(port), "postgres")
    here = URL.create("postgresql+psycopg", "postgres", database="postgres", query={"host": folder, "port": port})
    yield wire, here
    go_on(server)
    server.wait(60)


@pytest.fixture
def far_mariadb(start, network):
    """Return the URLs by which a MariaDB on a host of its own is reached: over the wire, and from here."""
    server = start(MARIADB, str(Path(__file__).parent), required_program(), SERVER_ADDRESS, on=network.server)
    driver, path = server.stdout.readline().split()
    wire = URL.create(driver, "app", "secret", SERVER_ADDRESS, 3306, "app")
    yield wire, URL.create(driver, "app", "secret", "localhost", database="app", query={"unix_socket": path})
    go_on(server)
    server.wait(60)


@pytest.mark.slow
@pytest.mark.parametrize(("server", "scenario"), [("far_server", "F4"), ("far_mariadb", "F4 MariaDB")])
def test_the_jobs_of_a_host_that_vanishes_run_elsewhere_in_time_and_take_effect_once(
    start, network, server, scenario, request, jobs, recorder, make_trial, rows_on
):
    wire, here = request.getfixturevalue(server)
    trial = make_trial(here, scenario, tables=False)
    metadata.create_all(trial.engine)
    with trial.engine.begin() as connection:
        connection.execute(text("CREATE TABLE effect (what varchar(200))"))

    def instead(session, job):
        what = f"here {job.job_id} {job.attempts} {job.crashes}"
        session.execute(text("INSERT INTO effect VALUES (:what)"), {"what": what})

    rows = rows_on(trial.engine)
    kinds = ["idle-in-its-transaction", "busy-with-a-statement", "before-its-first-use"]
    for kind in kinds:
        jobs.handler(kind)(instead)
    expected, waited = {}, []
    for number in range(trial.amount(1, 20 if server == "far_server" else 10)):
        expected |= enqueue(jobs, trial.engine, *kinds)
        worker_id = f"lost {number}"
        lost = start(WORKER, wire.render_as_string(hide_password=False), worker_id, on=network.worker)
        reads(lost, "started")
        reads(lost, "inside", 3)
        tied = (
            f"SELECT 1 FROM proletarian_worker WHERE worker_id = '{worker_id}' AND CAST(detail AS char(200)) LIKE '%tied%'"
        )
        # its first moment, in which others do not know yet by what they would see that it is gone
        until(partial(rows, tied), 120, lambda: "nobody could see it go")
        network.cut()
        trial.fault("host that vanishes")
        cut_at = time.monotonic()
        with Worker(jobs, trial.engine, threads=3, listener=recorder):
            recorder.wait_for("job_finished", len(expected), timeout=90)
            waited.append(time.monotonic() - cut_at)
        network.mend()
        go_on(lost)
        reads(lost, "claim_lost", 3)
        lost.kill()
    effects = sorted(what for (what,) in rows("SELECT what FROM effect"))
    taken = {what.split()[1] for what in effects}
    trial.record.counts |= {
        "jobs": len(expected),
        "effects": len(effects),
        "lost": len({str(job_id) for job_id in expected} - taken),
        "duplicates": len(effects) - len(taken),
        "seconds_to_empty": round(max(waited), 2),
        "seconds_to_empty_median": round(statistics.median(waited), 2),
    }
    assert effects == sorted(f"here {job_id} 1 1" for job_id in expected)
    assert max(waited) <= PROMISE + SLACK
