"""What it costs to keep the job table's pages more or less full: rates, processor time and WAL of a no-op drain.

    python benchmarks/storage.py [--jobs 30000] [--runs 5] [--fillfactors 100,70,50,40]

WAL and processor time are worth more here than rates: they hardly depend on who else uses the machine.
"""

from __future__ import annotations

import argparse
import statistics

from children import Drain, drained, python
from drains import OURS, text_url
from measuring import fresh_engine, server
from sqlalchemy import text
from workers.effects import Base as Effects

from sa_proletarian import Job

HOT = text("SELECT n_tup_hot_upd * 100.0 / greatest(n_tup_upd, 1) FROM pg_stat_user_tables WHERE relname = :name")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=30_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--fillfactors", default="100,70,50,40")
    options = parser.parse_args()
    seen: dict[int, list[tuple[Drain, float]]] = {int(one): [] for one in options.fillfactors.split(",")}
    with server() as postgres:
        for _ in range(options.runs):
            for fillfactor, drains in seen.items():
                with fresh_engine(postgres) as engine:
                    Effects.metadata.create_all(engine)
                    with engine.begin() as connection:
                        connection.execute(text(f"ALTER TABLE {Job.__tablename__} SET (fillfactor = {fillfactor})"))
                    worker = python("ours.py", text_url(postgres.url("bench")))
                    drain = drained(engine, [worker], count=options.jobs, left=OURS)
                    with engine.begin() as connection:
                        drains.append((drain, float(connection.scalar(HOT, {"name": Job.__tablename__}) or 0)))
    print(f"{options.jobs} no-op jobs, medians of {options.runs} interleaved runs\n")
    print("fillfactor   jobs/s   server µs/job   WAL bytes/job   claims that no index learns of")
    for fillfactor, drains in seen.items():
        rate, processor, wal = (
            statistics.median(getattr(drain, what) for drain, _ in drains) for what in ("rate", "server", "wal")
        )
        hot = statistics.median(hot for _, hot in drains)
        print(f"{fillfactor:10} {rate:8,.0f} {processor * 1000:15.1f} {wal:15,.0f} {hot:28.0f} %")


if __name__ == "__main__":
    main()
