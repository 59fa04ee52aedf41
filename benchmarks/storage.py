"""What the job table's storage parameters do to a no-op drain: how full its pages are, and when they are vacuumed.

    python benchmarks/storage.py [--jobs 30000] [--runs 5] [--fillfactors 100,70,50,40]
    python benchmarks/storage.py --autovacuum [--jobs 200000] [--runs 3]

With ``--autovacuum`` the server looks each second for what is to be vacuumed, so that a drain of seconds shows what would
else take minutes. WAL and processor time are worth more here than rates: they hardly depend on who else uses the machine.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass, field

from children import Drain, drained, python
from drains import OURS, text_url
from measuring import fresh_engine, server
from sqlalchemy import text
from workers.effects import Base as Effects

from sa_proletarian import Job
from sa_proletarian.embedded import EmbeddedPostgres

LOOK = text("""
    SELECT n_tup_hot_upd * 100.0 / greatest(n_tup_upd, 1) AS hot, autovacuum_count AS vacuums,
           pg_total_relation_size(relid) / 1048576.0 AS size
      FROM pg_stat_user_tables WHERE relname = :name
""")
AUTOVACUUM = {
    "as it comes": "autovacuum_enabled = on",
    "after 1,000 dead rows": "autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000",
    "after 10,000 dead rows": "autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000",
    "never": "autovacuum_enabled = off",
}


@dataclass(slots=True)
class Seen:
    """What the drains of one way gave."""

    drains: list[Drain] = field(default_factory=list)
    tables: list[tuple[float, ...]] = field(default_factory=list)

    def medians(self) -> tuple[float, ...]:
        costs = [(drain.rate, drain.server * 1000, drain.wal) for drain in self.drains]
        return tuple(statistics.median(column) for column in (*zip(*costs, strict=True), *zip(*self.tables, strict=True)))


def drain(postgres: EmbeddedPostgres, parameters: str, jobs: int, seen: Seen) -> None:
    with fresh_engine(postgres) as engine:
        Effects.metadata.create_all(engine)
        with engine.begin() as connection:
            connection.execute(text(f"ALTER TABLE {Job.__tablename__} SET ({parameters})"))
        worker = python("ours.py", text_url(postgres.url("bench")))
        seen.drains.append(drained(engine, [worker], count=jobs, left=OURS))
        with engine.begin() as connection:
            seen.tables.append(tuple(map(float, connection.execute(LOOK, {"name": Job.__tablename__}).one())))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int)
    parser.add_argument("--runs", type=int)
    parser.add_argument("--fillfactors", default="100,70,50,40")
    parser.add_argument("--autovacuum", action="store_true")
    options = parser.parse_args()
    ways = {f"fillfactor {one}": f"fillfactor = {int(one)}" for one in options.fillfactors.split(",")}
    ways = AUTOVACUUM if options.autovacuum else ways
    jobs = options.jobs or (200_000 if options.autovacuum else 30_000)
    runs = options.runs or (3 if options.autovacuum else 5)
    seen = {name: Seen() for name in ways}
    with server(settings={"autovacuum_naptime": "1s"} if options.autovacuum else None) as postgres:
        for _ in range(runs):
            for name, parameters in ways.items():
                drain(postgres, parameters, jobs, seen[name])
    print(f"{jobs:,} no-op jobs, medians of {runs} interleaved runs\n")
    columns = ("jobs/s", "server µs/job", "WAL bytes/job", "HOT claims", "vacuums", "MiB in the end")
    print(f"{'':24}" + "".join(f"{column:>16}" for column in columns))
    for name, one in seen.items():
        rate, processor, wal, hot, vacuums, size = one.medians()
        print(f"{name:24}{rate:16,.0f}{processor:16.1f}{wal:16,.0f}{hot:14.0f} %{vacuums:16.0f}{size:16.1f}")


if __name__ == "__main__":
    main()
