"""What pruning half of a large archive does to the claims beside it: their p50 and p99, with and without, taken in turn.

    python benchmarks/prune.py [--rows 10000000] [--runs 5] [--claims 100] [--postgresql 18]

It starts a PostgreSQL of its own, which waits for the disk, and fills the archive by ``generate_series``: 28 days of jobs in
the order in which they ended. One process claims, ten jobs at a time out of 10,000 due ones, so many times a second, and
settles them. In each run it does that first alone, then beside ``jobs.prune`` in another process, which deletes the next
share of the older half. The goal: half of the archive gone, and the claim's p99 at most twice what it is alone.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from itertools import chain

from backlog import claim
from measuring import Series, aligned, figure, fresh_engine, machine, percentile, server
from sqlalchemy import Engine, text

from sa_proletarian import ArchivedJob, Job, Proletarian
from sa_proletarian.lifecycle import Lifecycle
from sa_proletarian.transactions import FINISH_SETTINGS

DAYS = 28
FILL = text(f"""
    INSERT INTO proletarian_archived_job
           (job_id, queue, job_type, payload, attempts, enqueued_at, process_at, status, finished_at)
    SELECT CAST(lpad(to_hex(CAST(extract(epoch FROM at) * 1000 AS bigint)), 12, '0') || '7' || substr(md5(n::text), 1, 3)
                || '8' || substr(md5(n::text), 4, 15) AS uuid),
           'default', 'welcome', '{{"user_id": 12345, "template": "welcome", "tags": ["new"]}}', 1, at, at, 'success', at
      FROM (SELECT n, now() - interval '{DAYS} days' + n * (interval '{DAYS} days' / :rows) AS at
              FROM generate_series(:first, :last) AS n) AS ended
""")
PRUNE = """
import sys
from datetime import timedelta
from sqlalchemy import create_engine
from sa_proletarian import Proletarian
jobs, engine = Proletarian(), create_engine(sys.argv[1])
engine.connect().close()
print("ready", flush=True)
sys.stdin.readline()
jobs.prune(engine, older_than=timedelta(seconds=float(sys.argv[2])))
"""
CHUNK = 1_000_000
DUE = 10_000


def fill(engine: Engine, rows: int) -> None:
    for first in range(1, rows + 1, CHUNK):
        with engine.begin() as connection:
            connection.execute(FILL, {"rows": rows, "first": first, "last": min(rows, first + CHUNK - 1)})
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM (ANALYZE) proletarian_archived_job"))
        connection.execute(text("CHECKPOINT"))


class Claims:
    """Claims and settles at a pace, and keeps how long each claim took, its commit included."""

    def __init__(self, engine: Engine, per_second: int) -> None:
        self._engine = engine
        self._pause = 1 / per_second
        self._lifecycle = Lifecycle(Job, ArchivedJob)
        self._jobs = Proletarian()

    def take_until(self, over: Callable[[], bool]) -> list[float]:
        spent: list[float] = []
        with self._engine.begin() as connection:
            self._jobs.enqueue_many(connection, [("welcome", {"user_id": n}) for n in range(DUE)])
        due = time.perf_counter()
        with self._engine.connect() as connection:
            while not over():
                due += self._pause
                time.sleep(max(0.0, due - time.perf_counter()))
                due = max(due, time.perf_counter() - self._pause)
                begun = time.perf_counter()
                claims = claim(self._lifecycle, connection, "welcome", 10)
                spent.append(time.perf_counter() - begun)
                with connection.begin():
                    self._lifecycle.finish_all_by_script(connection, claims, settings=FINISH_SETTINGS)
                if len(claims) < 10:
                    with connection.begin():
                        self._jobs.enqueue_many(connection, [("welcome", {"user_id": n}) for n in range(DUE)])
            with connection.begin():
                connection.execute(text("TRUNCATE proletarian_job"))
        return spent


def beside(url: str, age: timedelta, claims: Claims) -> tuple[list[float], float]:
    """Claim for as long as another process prunes; the start of that process is over before it counts."""
    command = [sys.executable, "-c", PRUNE, url, str(age.total_seconds())]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.stdin.write("go\n")
        process.stdin.flush()
        begun = time.perf_counter()
        spent = claims.take_until(lambda: process.poll() is not None)
    assert process.returncode == 0
    return spent, time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--claims", type=int, default=100)
    parser.add_argument("--postgresql", type=int, default=18)
    options = parser.parse_args()
    with server(options.postgresql) as postgres, fresh_engine(postgres) as engine:
        fill(engine, options.rows)
        claims = Claims(engine, options.claims)
        url = engine.url.render_as_string(hide_password=False)
        alone: list[list[float]] = []
        pruning: list[list[float]] = []
        seconds = 3.0
        claims.take_until(_after(3.0))  # once without counting
        for number in range(1, options.runs + 1):
            alone.append(claims.take_until(_after(max(3.0, seconds))))
            age = timedelta(days=DAYS) - timedelta(days=DAYS / 2) * number / options.runs
            spent, seconds = beside(url, age, claims)
            pruning.append(spent)
            print(f"run {number}/{options.runs}: {len(alone[-1])} claims alone, {len(spent)} in {seconds:.1f} s of pruning")
        with engine.connect() as connection:
            left = connection.scalar(text("SELECT count(*) FROM proletarian_archived_job WHERE payload ? 'template'"))
        print(f"\n{options.rows:,} archived rows, {left:,} left; {options.runs} runs; {machine(engine)}")
    rows = []
    for name, percent in (("p50", 50), ("p99", 99)):
        quiet, busy = (Series(tuple(percentile(run, percent) * 1e3 for run in runs)) for runs in (alone, pruning))
        together = percentile(chain(*pruning), percent) / percentile(chain(*alone), percent)
        rows.append([name, figure(quiet.median), figure(busy.median), figure(busy.over(quiet)), figure(together)])
    print(aligned(["claim", "alone, ms", "beside, ms", "ratio, median of runs", "ratio, all claims"], rows))


def _after(seconds: float) -> Callable[[], bool]:
    end = time.perf_counter() + seconds
    return lambda: time.perf_counter() > end


if __name__ == "__main__":
    main()
