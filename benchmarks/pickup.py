"""How soon an idle worker begins a job, and what looking for an idle worker costs while all are busy.

    python benchmarks/pickup.py [--runs 5] [--jobs 200] [--transactions 1500]

Pick-up is from calling ``enqueue`` to the first line of the handler, with pauses that do not fall into step with the polls,
woken and polling (each 100 ms) in turn; and under load: beside a thread that enqueues all the time. The throughput is that
of 8 threads that enqueue one job per transaction, beside a worker whose only thread is busy, with wake-ups on and off in
turn.
"""

from __future__ import annotations

import argparse
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from measuring import Series, aligned, emptied, figure, fresh_engine, interleaved, percentile, server, table
from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import DeclarativeBase, Session

from sa_proletarian import Proletarian, Worker, models_for

THREADS = 8


class Base(DeclarativeBase):
    pass


Silent, SilentArchive = models_for(Base, prefix="silent")


def quiet(event: object) -> None:
    """Listen to no event: a log is not what is measured."""


def enqueue(jobs: Any, engine: Engine, job_type: str, payload: Any = None) -> None:
    with Session(engine) as session, session.begin():
        jobs.enqueue(session, job_type, payload)


@contextmanager
def load(jobs: Any, engine: Engine, *, on: bool) -> Iterator[None]:
    """Enqueue 50 jobs a second of another kind while the context lasts."""
    over = threading.Event()

    def go_on() -> None:
        while not over.wait(random.expovariate(50)):
            enqueue(jobs, engine, "other")

    thread = threading.Thread(target=go_on)
    if on:
        thread.start()
    yield
    over.set()
    if on:
        thread.join()


def pick_up(engine: Engine, app: Engine, jobs: Any, count: int, *, loaded: bool, wake: bool) -> list[float]:
    """Give the milliseconds of each pick-up; ``app`` is another engine than the worker's, as another process has it."""
    begun, first_line = threading.Event(), [0.0]

    def handler(session: Any, job: Any) -> None:
        first_line[0] = time.perf_counter()
        begun.set()

    worked = Proletarian(jobs.job_model, jobs.archived_model)
    worked.handler("work")(handler)
    worked.handler("other")(lambda session, job: None)
    taken = []
    with Worker(worked, engine, threads=4, wake=wake, listener=quiet), load(jobs, app, on=loaded):
        time.sleep(0.5)
        for _ in range(count):
            time.sleep(random.uniform(0.02, 0.09))
            begun.clear()
            before = time.perf_counter()
            enqueue(jobs, app, "work")
            begun.wait(30)
            taken.append((first_line[0] - before) * 1000)
    return taken


def throughput(engine: Engine, jobs: Any, count: int) -> float:
    """Give the transactions per second of several threads that enqueue while a worker is busy."""
    busy, over = threading.Event(), threading.Event()

    def handler(session: Any, job: Any) -> None:
        busy.set()
        over.wait(120)

    worked = Proletarian(jobs.job_model, jobs.archived_model, wake=jobs.wake)
    worked.handler("busy")(handler)
    with Worker(worked, engine, listener=quiet):
        enqueue(jobs, engine, "busy")
        busy.wait(30)
        start = threading.Barrier(THREADS + 1)

        def work() -> None:
            start.wait()
            for number in range(count // THREADS):
                enqueue(jobs, engine, "other", {"number": number})

        threads = [threading.Thread(target=work) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        start.wait()
        before = time.perf_counter()
        for thread in threads:
            thread.join()
        took = time.perf_counter() - before
        over.set()
    emptied(engine, Silent.__tablename__, SilentArchive.__tablename__)
    return count // THREADS * THREADS / took


def main(runs: int, count: int, transactions: int) -> None:
    with server() as postgres, fresh_engine(postgres, pool_size=THREADS) as engine:
        Base.metadata.create_all(engine)
        app = create_engine(engine.url, pool_size=THREADS)
        on, off = Proletarian(), Proletarian(Silent, SilentArchive, wake=False)
        rows = []
        for loaded in (False, True):
            seen: dict[bool, list[float]] = {True: [], False: []}
            for _ in range(runs):
                for wake in (True, False):
                    seen[wake] += pick_up(engine, app, on, count // runs, loaded=loaded, wake=wake)
            for wake, values in seen.items():
                name = f"{'woken' if wake else 'polling'}, {'under load' if loaded else 'idle'}"
                rows.append([name, *(figure(percentile(values, percent)) for percent in (50, 95, 99))])
        print(aligned(["pick-up, ms", "p50", "p95", "p99"], rows), end="\n\n")
        ways = {
            "wake-ups off": lambda: throughput(app, off, transactions),
            "wake-ups on": lambda: throughput(app, on, transactions),
        }
        series: dict[str, Series] = interleaved(runs, ways)
        print(table("enqueues/s", series, against="wake-ups off"))
        app.dispose()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=200, help="jobs of each kind of pick-up")
    parser.add_argument("--transactions", type=int, default=1500, help="per run")
    arguments = parser.parse_args()
    main(arguments.runs, arguments.jobs, arguments.transactions)
