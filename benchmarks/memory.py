"""The resident memory of a worker process over many jobs.

    python benchmarks/memory.py [--jobs 1000000]

Fifty thousand jobs at a time: filled in, drained, and then looked at. Growth is that from the first of these to the largest.
"""

from __future__ import annotations

import argparse
import time

from backlog import fill
from children import children, python
from measuring import fresh_engine, server
from sqlalchemy import text

from sa_proletarian.embedded import EmbeddedPostgres

CHUNK = 50_000


def resident(postgres: EmbeddedPostgres, *, jobs: int, chunk: int = CHUNK) -> list[float]:
    """MiB after every ``chunk`` of jobs."""
    seen = []
    left = text("SELECT EXISTS (SELECT FROM proletarian_job)")
    url = postgres.url("bench").set(drivername="postgresql").render_as_string(hide_password=False)
    with fresh_engine(postgres) as engine, children(python("ours.py", url)) as [worker]:
        worker.go()
        for _ in range(max(2, jobs // chunk)):
            fill(engine, chunk)
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                while connection.scalar(left):
                    worker.check()
                    time.sleep(0.02)
            seen.append(worker.resident())
        worker.stop()
    return seen


def growth(seen: list[float]) -> float:
    """By how many percent of what it was after the first chunk."""
    return (max(seen) / seen[0] - 1) * 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1_000_000)
    options = parser.parse_args()
    with server() as postgres:
        seen = resident(postgres, jobs=options.jobs)
    print(f"MiB: {', '.join(f'{one:.1f}' for one in seen)}; growth {growth(seen):.1f} %")


if __name__ == "__main__":
    main()
