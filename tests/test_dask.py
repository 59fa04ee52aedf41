"""A worker whose executor is a cluster of dask: a real scheduler and two worker processes."""

from __future__ import annotations

import sys
from datetime import timedelta

import dask
import pytest
from distributed import Client, LocalCluster
from sqlalchemy import text
from sqlalchemy.orm import Session

PATIENCE = 90

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.filterwarnings("ignore")]  # dask's own affairs

COMPUTATIONS = '''
import os, signal, time
from pathlib import Path

def note(payload):
    """Leave a line, as each call does that is really made; two of them meet, in two processes."""
    directory = Path(payload["directory"])
    (directory / f"{os.getpid()}").touch()
    for _ in range(600):
        if len([*directory.iterdir()]) >= 2:
            break
        time.sleep(0.1)
    with open(payload["path"], "a") as file:
        file.write("called\\n")
    return os.getpid()

def die_once(payload):
    try:
        Path(payload["path"]).touch(exist_ok=False)
    except FileExistsError:
        return "survived"
    os.kill(os.getpid(), signal.SIGKILL)
'''


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
    options, client, computations, jobs, enqueue, start_worker, recorder, rows, tmp_path
):
    (tmp_path / "met").mkdir()
    jobs.handler("work", compute=computations.note)(keep)
    enqueue(*[{"path": str(tmp_path / "calls"), "directory": str(tmp_path / "met")}] * 4)
    start_worker(jobs, threads=4, executor=lambda: client.get_executor(**options))
    recorder.wait_for("job_finished", 4, PATIENCE)
    assert len((tmp_path / "calls").read_text().splitlines()) == 4
    assert len(rows("SELECT DISTINCT what FROM effect")) == 2


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
    client, computations, jobs, enqueue, start_worker, recorder, rows, tmp_path
):
    (tmp_path / "met").mkdir()
    jobs.handler("work", compute=computations.note, timeout=timedelta(seconds=1))(keep)
    enqueue({"path": str(tmp_path / "calls"), "directory": str(tmp_path / "met")})  # nobody comes to meet it
    start_worker(jobs, executor=lambda: client.get_executor(pure=False))
    recorder.wait_for("not_retrying", 1, PATIENCE)
    (tmp_path / "met" / "somebody").touch()
    (tmp_path / "met" / "else").touch()
    assert rows("SELECT status, attempts FROM proletarian_archived_job") == [("failure", 1)]
    assert client.submit(int, 1, pure=False).result(PATIENCE) == 1
