"""A picture whose rows are computed by processes of the worker, or by a cluster of dask."""

from __future__ import annotations

from pathlib import Path

import pytest
from distributed import LocalCluster
from sqlalchemy import text

ROWS = 12
EXAMPLE = Path(__file__).parents[2] / "examples" / "cpu_bound"


@pytest.fixture
def scheduler(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLE))
    monkeypatch.syspath_prepend(EXAMPLE)
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        yield cluster.scheduler_address


@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore")  # dask's own affairs
@pytest.mark.parametrize("where", ["processes", "dask"])
def test_each_row_is_computed_elsewhere_and_written_once(where, start, environment, database_url, engine, request):
    environment["DATABASE_URL"] = database_url.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)
    arguments = [request.getfixturevalue("scheduler")] if where == "dask" else []
    enqueue = start("cpu_bound/enqueue.py", str(ROWS))
    enqueue.wait_for(f"{ROWS} jobs enqueued")
    enqueue.end()
    worker = start("cpu_bound/worker.py", *arguments)
    for _ in range(ROWS):
        worker.wait_for("job_finished")
    worker.terminate()
    worker.end()
    assert worker.exit_code == 0
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT number, length(points) FROM picture_row ORDER BY number")).all()
        ended = connection.execute(text("SELECT status, count(*) FROM proletarian_archived_job GROUP BY 1")).all()
    assert rows == [(row, ROWS) for row in range(ROWS)]
    assert ended == [("success", ROWS)]
