"""How soon a job runs again after its worker's process was killed, and how soon a worker works after its server came back.

    python benchmarks/recovery.py [--runs 10]

Leases are an hour long, so that nothing here is theirs. It takes about five seconds a run.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import contextmanager
from datetime import timedelta

from measuring import Series, aligned, figure, percentile, server
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from sa_proletarian import Proletarian, Worker, metadata

HOUR = timedelta(hours=1)
VICTIM = """
    import sys, threading
    from datetime import timedelta
    from sqlalchemy import create_engine
    from sa_proletarian import Proletarian, Worker

    jobs = Proletarian()

    @jobs.handler("work")
    def work(session, job):
        print("running", flush=True)
        threading.Event().wait()

    Worker(jobs, create_engine(sys.argv[1]), lease=timedelta(hours=1)).run()
"""


def killed(engine) -> float:
    """Seconds from the death of a process to the handler's first line in another."""
    jobs, again = Proletarian(), threading.Event()
    jobs.handler("work")(lambda session, job: again.set())
    with Session(engine) as session, session.begin():
        jobs.enqueue(session, "work")
    command = [sys.executable, "-c", textwrap.dedent(VICTIM), engine.url.render_as_string(hide_password=False)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as victim:
        assert victim.stdout is not None
        assert victim.stdout.readline() == "running\n"
        with Worker(jobs, engine, lease=HOUR, listener=lambda event: None):
            time.sleep(3)  # by then both have met
            begun = time.perf_counter()
            victim.send_signal(signal.SIGKILL)
            if not again.wait(60):
                raise SystemExit("the job has not come back in 60 s")
            return time.perf_counter() - begun


@contextmanager
def working(jobs, engine):
    with Worker(jobs, engine, lease=HOUR, listener=lambda event: None) as worker:
        time.sleep(1)
        yield worker


def restarted(postgres, engine, away: float) -> float:
    """Seconds from the moment in which the server takes a write again to the handler's first line."""
    jobs, done = Proletarian(), threading.Event()
    jobs.handler("work")(lambda session, job: done.set())
    with working(jobs, engine):
        postgres.crash()
        time.sleep(away)
        postgres.start()
        engine.dispose()
        with Session(engine) as session, session.begin():
            jobs.enqueue(session, "work")
        begun = time.perf_counter()
        if not done.wait(60):
            raise SystemExit("the worker has not come back in 60 s")
        return time.perf_counter() - begun


def main(runs: int) -> None:
    with server() as postgres:
        engine = create_engine(postgres.url())  # in the server's own database: the server goes, and all with it
        metadata.create_all(engine)
        seen = {
            "a process is killed": [killed(engine) for _ in range(runs)],
            "a server is back after 5 s": [restarted(postgres, engine, 5) for _ in range(max(1, runs // 2))],
        }
        engine.dispose()
    rows = []
    for name, values in seen.items():
        series = Series(tuple(values))
        rows.append([name, figure(series.median), figure(percentile(values, 95)), figure(series.most)])
    print(aligned(["seconds until a job runs", "median", "p95", "most"], rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=10)
    main(parser.parse_args().runs)
