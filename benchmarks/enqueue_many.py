"""How many jobs a second go into the table: ``add_all``, ``executemany`` and ``enqueue_many``, taken in turn.

    python benchmarks/enqueue_many.py [--jobs 20000] [--runs 7] [--chunk 2000] [--postgresql 18] [--driver psycopg]

It starts a PostgreSQL of its own, which waits for the disk (fsync). Each run is one transaction with its commit; the table
is empty before it. Every way begins with the same payloads and ends with jobs that were checked and encoded, except for the
one called "ready": there the jobs were made before the clock started, so that only their way through the Session counts.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import Engine, create_engine, insert, inspect, text
from sqlalchemy.orm import Session

from sa_proletarian import Job, Proletarian, metadata
from sa_proletarian.embedded import EmbeddedPostgres

SETTINGS = {"fsync": True, "synchronous_commit": True, "full_page_writes": True}
FLUSH = 1000
jobs = Proletarian()


def payloads(count: int) -> list[Any]:
    return [{"user_id": number, "template": "welcome", "tags": ["new"]} for number in range(count)]


def add_all(session: Session, given: list[Any]) -> None:
    for start in range(0, len(given), FLUSH):
        session.add_all([Job("welcome", payload) for payload in given[start : start + FLUSH]])
        session.flush()


def add_all_ready(session: Session, given: list[Any]) -> None:
    for start in range(0, len(given), FLUSH):
        session.add_all(given[start : start + FLUSH])
        session.flush()


def executemany(session: Session, given: list[Any]) -> None:
    keys = inspect(Job).columns.keys()
    for start in range(0, len(given), FLUSH):
        made = [vars(Job("welcome", payload)) for payload in given[start : start + FLUSH]]
        rows = [{key: row[key] for key in keys if key in row} for row in made]
        session.connection().execute(insert(Job.__table__), rows)


def measure(engine: Engine, way: Callable[[Session, list[Any]], object], given: list[Any]) -> float:
    with engine.begin() as connection:
        connection.execute(text("TRUNCATE proletarian_job"))
    start = time.perf_counter()
    with Session(engine) as session, session.begin():
        way(session, given)
    spent = time.perf_counter() - start
    with engine.begin() as connection:
        assert connection.scalar(text("SELECT count(*) FROM proletarian_job")) == len(given)
    return len(given) / spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=20_000)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--chunk", type=int, default=2_000)
    parser.add_argument("--postgresql", type=int, default=18)
    parser.add_argument("--driver", choices=["psycopg", "psycopg2"], default="psycopg")
    options = parser.parse_args()

    def enqueue_many(session: Session, given: list[Any]) -> None:
        jobs.enqueue_many(session, (("welcome", payload) for payload in given), chunk_size=options.chunk)

    ways = {"add_all": add_all, "add_all, ready": add_all_ready, "executemany": executemany, "enqueue_many": enqueue_many}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    given = payloads(options.jobs)
    with EmbeddedPostgres(options.postgresql, settings=SETTINGS) as server:
        engine = create_engine(server.url(drivername=f"postgresql+{options.driver}"))
        metadata.create_all(engine)
        for name, way in ways.items():  # once without counting, for caches and files
            measure(engine, way, [Job("welcome", one) for one in given[:2000]] if name.endswith("ready") else given[:2000])
        for _ in range(options.runs):
            for name, way in ways.items():
                ready = [Job("welcome", one) for one in given] if name.endswith("ready") else given
                rates[name].append(measure(engine, way, ready))
        engine.dispose()
    print(f"{options.jobs} jobs, {options.runs} interleaved runs, {options.driver}; jobs/s: median (least to most)")
    ours = statistics.median(rates["enqueue_many"])
    for name, seen in rates.items():
        median = statistics.median(seen)
        print(f"{name:16}{median:9,.0f}  ({min(seen):,.0f} to {max(seen):,.0f})  enqueue_many: {ours / median:.1f} times")


if __name__ == "__main__":
    main()
