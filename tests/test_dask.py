"""A worker whose executor is a cluster of dask: a real scheduler and two worker processes."""

from __future__ import annotations

import queue
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from datetime import timedelta

import dask
import pytest
from distributed import Client, LocalCluster
from sqlalchemy import text
from sqlalchemy.orm import Session

PATIENCE = 90

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.filterwarnings("ignore")]  # dask's own affairs

COMPUTATIONS = '''
import os, signal, socket
from pathlib import Path

def call_in(payload):
    """Say that a call is really made, and by whom, and wait to be let go."""
    with socket.create_connection(payload["desk"]) as line:
        line.sendall(f"{os.getpid()}\\n".encode())
        line.recv(1)
    return os.getpid()

def die_once(payload):
    try:
        Path(payload["path"]).touch(exist_ok=False)
    except FileExistsError:
        return "survived"
    os.kill(os.getpid(), signal.SIGKILL)
'''


class Desk:
    """Where computations call in; they wait there until the desk is closed."""

    def __init__(self):
        self._callers = queue.SimpleQueue()
        self._lines = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.payload = {"desk": self._socket.getsockname()}
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def next_caller(self):
        return self._callers.get(timeout=PATIENCE)

    def let_go(self):
        """Let those go who wait, and from now on everybody at once."""
        lines, self._lines = self._lines, None
        for line in lines:
            line.close()

    def close(self):
        if self._lines is not None:
            self.let_go()
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def _serve(self):
        with suppress(OSError):
            while True:
                line, _ = self._socket.accept()
                with line.makefile() as file:
                    caller = file.readline().strip()
                line.close() if self._lines is None else self._lines.append(line)
                self._callers.put(caller)


@pytest.fixture
def desk():
    desk = Desk()
    yield desk
    desk.close()


@pytest.fixture(scope="module")
def computations(tmp_path_factory):
    directory = tmp_path_factory.mktemp("computations")
    (directory / "dask_computations.py").write_text(COMPUTATIONS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(directory)
        patch.setenv("PYTHONPATH", str(directory))
        import dask_computations

        yield dask_computations
    del sys.modules["dask_computations"]


@pytest.fixture(scope="module")
def client(computations):
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.fixture
def enqueue(jobs, tables):
    def enqueue(*payloads):
        with Session(tables) as session, session.begin():
            for payload in payloads:
                jobs.enqueue(session, "work", payload)

    return enqueue


def keep(session, job, result):
    session.execute(text("INSERT INTO effect VALUES (:what)"), {"what": str(result)})


@pytest.mark.parametrize("options", [{}, {"pure": False}], ids=["by default", "pure=False"])
def test_equal_jobs_are_each_computed_and_on_several_workers(
    options, client, computations, jobs, enqueue, start_worker, recorder, rows, desk
):
    jobs.handler("work", compute=computations.call_in)(keep)
    enqueue(*[desk.payload] * 4)
    start_worker(jobs, threads=4, executor=lambda: client.get_executor(**options))
    callers = [desk.next_caller(), desk.next_caller()]  # they wait for each other, so that one cannot do all
    desk.let_go()
    recorder.wait_for("job_finished", 4, PATIENCE)
    callers += [desk.next_caller(), desk.next_caller()]
    assert len({*callers[:2]}) == 2
    assert sorted(what for (what,) in rows("SELECT what FROM effect")) == sorted(callers)


def test_a_job_whose_dask_worker_was_lost_runs_again(
    client, computations, jobs, enqueue, start_worker, recorder, rows, tmp_path
):
    jobs.handler("work", compute=computations.die_once)(keep)
    enqueue({"path": str(tmp_path / "once")})
    start_worker(jobs, executor=lambda: client.get_executor(pure=False))
    recorder.wait_for("process_died", 1, PATIENCE)
    recorder.wait_for("job_finished", 1, PATIENCE)
    assert rows("SELECT what FROM effect") == [("survived",)]
    assert rows("SELECT status, attempts FROM proletarian_archived_job") == [("success", 1)]
    assert "executor_replaced" not in recorder.names  # the cluster has replaced its worker itself


def test_a_call_that_is_given_up_is_cancelled_on_the_cluster(
    client, computations, jobs, enqueue, start_worker, recorder, rows, desk
):
    jobs.handler("work", compute=computations.call_in, timeout=timedelta(seconds=1))(keep)
    enqueue(desk.payload)
    start_worker(jobs, executor=lambda: client.get_executor(pure=False))
    recorder.wait_for("not_retrying", 1, PATIENCE)
    desk.let_go()
    assert rows("SELECT status, attempts FROM proletarian_archived_job") == [("failure", 1)]
    assert client.submit(int, 1, pure=False).result(PATIENCE) == 1


# a scheduler in a process of its own


@pytest.fixture
def start(computations):
    """Return a function that starts a scheduler, or a worker of one; they are killed at the end."""
    processes = []

    def start(*arguments):
        command = [sys.executable, "-m", "dask", *map(str, arguments), "--no-dashboard"]
        processes.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


@pytest.mark.parametrize("comes_back", [True, False], ids=["and comes back", "and another takes over"])
def test_a_job_whose_dask_scheduler_was_killed_is_neither_lost_nor_stuck(
    comes_back, request, start, computations, jobs, enqueue, start_worker, recorder, rows, desk
):
    """A client waits for its scheduler to come back, for as long as it was told, and then closes itself."""
    ports, clients = [free_port()], []
    request.addfinalizer(lambda: [client.close() for client in clients])

    def start_cluster():
        address = f"tcp://127.0.0.1:{ports[-1]}"
        start("worker", address, "--nworkers", 1, "--nthreads", 1, "--no-nanny")
        return start("scheduler", "--host", "127.0.0.1", "--port", ports[-1])

    def connect():
        clients.append(Client(f"tcp://127.0.0.1:{ports[-1]}", timeout=PATIENCE))
        return clients[-1].get_executor(pure=False)

    scheduler = start_cluster()
    jobs.handler("work", compute=computations.call_in)(keep)
    enqueue(desk.payload)
    start_worker(jobs, executor=connect)
    first = desk.next_caller()
    if not comes_back:
        clients[0]._timeout = 1  # an argument as well; but to connect, a busy machine needs longer
    scheduler.kill()
    scheduler.wait()
    recorder.wait_for("connection_unavailable", 1, PATIENCE)
    if not comes_back:
        ports.append(free_port())
    start_cluster()
    second = desk.next_caller()
    assert second != first
    desk.let_go()
    recorder.wait_for("job_finished", 1, PATIENCE)
    assert rows("SELECT what FROM effect") == [(second,)]
    assert rows("SELECT status, attempts FROM proletarian_archived_job") == [("success", 1)]
    assert ("executor_replaced" in recorder.names) is not comes_back
