"""How soon an enqueued job is begun, and what wake-ups cost those who enqueue while workers are busy.

    python benchmarks/pickups.py [--jobs 200] [--seconds 1] [--runs 9]

The worker is a process of its own with default settings. Latency is that from calling ``enqueue`` in a fresh session, its
COMMIT included, to the handler's first line.
"""

from __future__ import annotations

import argparse
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from children import children, python
from measuring import Series, aligned, fresh_engine, interleaved, percentile, server, table
from sqlalchemy import Engine, event
from sqlalchemy.orm import DeclarativeBase, Session
from workers.quiet import quiet_jobs

from sa_proletarian import ArchivedJobMixin, JobMixin, Proletarian
from sa_proletarian.embedded import EmbeddedPostgres

PROBE, LOAD = "work", -1


class _Base(DeclarativeBase):
    pass


class LoudJob(JobMixin, _Base):
    """The same table by another model: wake-ups are a matter of the model, and the default one stays quiet here."""


class LoudArchived(ArchivedJobMixin, _Base):
    pass


quiet = quiet_jobs()
loud = Proletarian(LoudJob, LoudArchived)


def latencies(postgres: EmbeddedPostgres, *, jobs: int, load: int = 0) -> list[float]:
    """Milliseconds of each probe; ``load`` other jobs a second keep the worker busy meanwhile."""
    url = postgres.url("bench").set(drivername="postgresql").render_as_string(hide_password=False)
    called: dict[str, float] = {}
    with (
        fresh_engine(postgres, pool_size=4) as engine,
        children(python("ours.py", url, "--handler", "clock")) as [worker],
        loaded(engine, load),
    ):
        worker.go()
        for number in range(-5, jobs):  # the first few are for caches
            time.sleep(random.uniform(0.02, 0.12))
            begun = time.monotonic()
            with Session(engine) as session, session.begin():
                loud.enqueue(session, PROBE, {"i": max(number, LOAD)})
            called[str(number)] = begun
        time.sleep(1.0)
        begun_at: dict[str, float] = worker.stop()["calls"]
    return [(begun_at[name] - begun) * 1000 for name, begun in called.items() if int(name) >= 0]


@contextmanager
def loaded(engine: Engine, per_second: int) -> Iterator[None]:
    """Enqueue other jobs at a steady pace, one a transaction, for as long as the block lasts."""
    over = threading.Event()

    def enqueue() -> None:
        while not over.wait(1 / per_second):
            with Session(engine) as session, session.begin():
                loud.enqueue(session, PROBE, {"i": LOAD})

    threads = [threading.Thread(target=enqueue)] if per_second else []
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def while_busy(postgres: EmbeddedPostgres, *, seconds: float, runs: int, threads: int = 4) -> dict[str, Series]:
    """Transactions a second of several threads, one job in each, while the worker has more than enough to do."""
    url = postgres.url("bench").set(drivername="postgresql").render_as_string(hide_password=False)
    command = python("ours.py", url, "--handler", "nap")
    with fresh_engine(postgres, pool_size=threads) as engine, children(command) as [worker]:
        worker.fill(2_000)
        worker.go()
        ways: dict[str, Callable[[], float]] = {
            "wake-ups off": lambda: concurrently(engine, quiet, seconds, threads),
            "wake-ups on": lambda: concurrently(engine, loud, seconds, threads),
        }
        seen = interleaved(runs, ways)
        worker.check()
    return seen


def concurrently(engine: Engine, jobs: Proletarian[Any, Any], seconds: float, threads: int) -> float:
    counts = [0] * threads
    end = time.perf_counter() + seconds

    def enqueue(place: int) -> None:
        while time.perf_counter() < end:
            with Session(engine) as session, session.begin():
                jobs.enqueue(session, "work", {"i": 1})
            counts[place] += 1

    begun = time.perf_counter()
    started = [threading.Thread(target=enqueue, args=(place,)) for place in range(threads)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    return sum(counts) / (time.perf_counter() - begun)


def statements_each(postgres: EmbeddedPostgres, *, transactions: int = 50) -> dict[str, float]:
    """Statements of a transaction that enqueues one job, counted by SQLAlchemy: with wake-ups off and on."""
    seen = {}
    with fresh_engine(postgres) as engine:
        for name, jobs in {"wake-ups off": quiet, "wake-ups on": loud}.items():
            count = 0

            def executed(*_: Any) -> None:
                nonlocal count
                count += 1

            event.listen(engine, "before_cursor_execute", executed)
            for _ in range(transactions):
                with Session(engine) as session, session.begin():
                    jobs.enqueue(session, "work", {"i": 1})
                time.sleep(0.01)  # longer than a process remembers that nobody was idle
            event.remove(engine, "before_cursor_execute", executed)
            seen[name] = count / transactions
    return seen


def summary(seen: dict[str, list[float]]) -> str:
    rows = [[name, *(f"{percentile(values, percent):.2f}" for percent in (50, 95, 99))] for name, values in seen.items()]
    return aligned(["pick-up, ms", "p50", "p95", "p99"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--runs", type=int, default=9)
    options = parser.parse_args()
    with server() as postgres:
        idle = latencies(postgres, jobs=options.jobs)
        print(summary({"idle worker": idle, "200 jobs/s": latencies(postgres, jobs=options.jobs, load=200)}))
        seen = while_busy(postgres, seconds=options.seconds, runs=options.runs)
        print(table("transactions/s", seen, against="wake-ups off"))
        print(statements_each(postgres))


if __name__ == "__main__":
    main()
