"""Claims against what lies in the table: many due rows, many future rows, and dead rows that a held snapshot keeps.

    python benchmarks/backlog.py [--rows 1000000] [--finished 100000] [--runs 5]

The first part claims ten jobs at a time by the worker's own statements. The second times the claims of a real worker, which
remembers where it was: at a steady trickle of jobs, before and after it has finished many beside an open snapshot.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any

from measuring import Series, fresh_engine, server, table
from sqlalchemy import Connection, Engine, text
from workers.quiet import quiet_jobs

from sa_proletarian import ArchivedJob, Job, Worker
from sa_proletarian.embedded import EmbeddedPostgres
from sa_proletarian.lifecycle import Claim, Lifecycle
from sa_proletarian.transactions import CLAIM_SETTINGS, FINISH_SETTINGS

FILL = text("""
    INSERT INTO proletarian_job (job_id, queue, job_type, payload, attempts, enqueued_at, process_at, crashes)
    SELECT gen_random_uuid(), 'default', 'work', jsonb_build_object('i', n), 0, now(),
           now() + CAST(:first AS interval) + n * interval '10 microseconds', 0
      FROM generate_series(0, :count - 1) AS n
""")
DUE, FUTURE = timedelta(hours=-1), timedelta(days=1)
AT_ONCE = 10


def fill(engine: Engine, count: int, first: timedelta = DUE) -> None:
    """Put ``count`` jobs into the table, due from ``first`` on, seen from now; leave nothing for autovacuum to do."""
    with engine.begin() as connection:
        connection.execute(FILL, {"count": count, "first": first})
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE proletarian_job"))
        connection.execute(text("CHECKPOINT"))


def claims_by_backlog(postgres: EmbeddedPostgres, *, rows: int, runs: int, small: int = 1_000) -> dict[str, Series]:
    """The median of each run's claims, in ms, for each backlog; the runs are taken in turn, and use up the small one."""
    claims = small // AT_ONCE // (runs + 1)
    backlogs = {
        f"{small:,} due": [(small, DUE)],
        f"{rows // 10:,} due": [(rows // 10, DUE)],
        f"{rows:,} due": [(rows, DUE)],
        f"{small:,} due, {rows:,} future": [(small, DUE), (rows, FUTURE)],
    }
    with _engines(postgres, backlogs) as engines:
        seen: dict[str, list[float]] = {name: [] for name in backlogs}
        for number in range(-1, runs):
            for name, engine in engines.items():
                median = statistics.median(_claims(engine, claims)) * 1000
                if number >= 0:
                    seen[name].append(median)
    return {name: Series(tuple(values)) for name, values in seen.items()}


@contextmanager
def _engines(postgres: EmbeddedPostgres, backlogs: dict[str, Any]) -> Iterator[dict[str, Engine]]:
    """A database for each backlog, filled."""
    with ExitStack() as stack:
        engines = {}
        for number, (name, parts) in enumerate(backlogs.items()):
            engines[name] = stack.enter_context(fresh_engine(postgres, f"backlog_{number}"))
            for count, first in parts:
                fill(engines[name], count, first)
        yield engines


def claim(lifecycle: Lifecycle, connection: Connection, job_type: str, limit: int) -> list[Claim]:
    """Claim as a worker does."""
    with connection.begin():
        claims = lifecycle.claim_by_script(
            connection,
            queue="default",
            known=[job_type],
            limit=limit,
            lease=timedelta(seconds=30),
            worker_id="benchmark",
            settings=CLAIM_SETTINGS,
        )
    assert claims is not None, "a suspect is due"
    return claims


def _claims(engine: Engine, count: int) -> list[float]:
    """Claim and settle; the seconds that each claim took, with its commit."""
    lifecycle, spent = Lifecycle(Job, ArchivedJob), []
    with engine.connect() as connection:
        for _ in range(count):
            begun = time.perf_counter()
            claimed = claim(lifecycle, connection, "work", AT_ONCE)
            spent.append(time.perf_counter() - begun)
            with connection.begin():
                lifecycle.finish_all_by_script(connection, claimed, settings=FINISH_SETTINGS)
    return spent


def beside_a_snapshot(postgres: EmbeddedPostgres, *, finished: int, trickle: int = 300) -> tuple[float, float]:
    """The median of a worker's claims in ms, before and after it has finished so many jobs beside an open snapshot."""
    jobs, done = quiet_jobs(), threading.Semaphore(0)

    @jobs.handler("work")
    def work(session: Any, job: Any) -> None:
        done.release()

    def drops(engine: Engine) -> float:
        """A job every few milliseconds: claims of one job or two."""
        with timed_claims() as claims:
            for number in range(trickle):
                with engine.begin() as connection:
                    jobs.enqueue(connection, "work", {"i": number})
                time.sleep(0.004)
            _await(done, trickle)
        return statistics.median(claims) * 1000

    with fresh_engine(postgres) as engine, engine.connect() as connection:
        snapshot = connection.execution_options(isolation_level="REPEATABLE READ")
        with Worker(jobs, engine, polling_interval=timedelta(milliseconds=10)):
            drops(engine)
            before = drops(engine)
            snapshot.execute(text("SELECT count(*) FROM proletarian_job"))
            fill_only(engine, finished)
            _await(done, finished)
            after = drops(engine)
    return before, after


def fill_only(engine: Engine, count: int) -> None:
    with engine.begin() as connection:
        connection.execute(FILL, {"count": count, "first": DUE})


def _await(done: threading.Semaphore, count: int) -> None:
    for _ in range(count):
        if not done.acquire(timeout=120):
            raise RuntimeError("the worker has stopped working")


@contextmanager
def timed_claims() -> Iterator[list[float]]:
    """The seconds of every claim of this process that found something."""
    spent: list[float] = []
    claim_by_script = Lifecycle.claim_by_script

    def timed(*args: Any, **kwargs: Any) -> list[Claim] | None:
        begun = time.perf_counter()
        claims = claim_by_script(*args, **kwargs)
        if claims:
            spent.append(time.perf_counter() - begun)
        return claims

    Lifecycle.claim_by_script = timed  # type: ignore[method-assign]
    try:
        yield spent
    finally:
        Lifecycle.claim_by_script = claim_by_script  # type: ignore[method-assign]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--finished", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    with server() as postgres:
        seen = claims_by_backlog(postgres, rows=options.rows, runs=options.runs)
        print(table("claim p50, ms", seen, against=next(iter(seen))))
        before, after = beside_a_snapshot(postgres, finished=options.finished)
        print(f"beside a snapshot, claim p50: {before:.2f} ms before, {after:.2f} ms after {options.finished:,} jobs")


if __name__ == "__main__":
    main()
