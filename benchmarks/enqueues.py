"""What an enqueue costs: one in a transaction beside a plain model's ``session.add``, and many at once.

    python benchmarks/enqueues.py [--jobs 20000] [--transactions 500] [--runs 5]

The plain model is mapped to the very table of our jobs, so that the database does the same work for both; it checks nothing
and encodes nothing. Wake-ups are off. One-by-one enqueues alternate call by call; the bulk ways run one after the other.
"""

from __future__ import annotations

import argparse
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from measuring import Series, alternating, emptied, fresh_engine, interleaved, server, table
from sqlalchemy import Engine
from sqlalchemy.orm import DeclarativeBase, Session
from workers.quiet import quiet_jobs

from sa_proletarian import Job

jobs = quiet_jobs()
PLAIN, ONE = "session.add of a plain model", "jobs.enqueue"
ADD_ALL, MANY = "session.add_all", "jobs.enqueue_many"


class _Base(DeclarativeBase):
    pass


class PlainJob(_Base):
    """What an app would write that only wants the same row."""

    __table__ = Job.__table__.to_metadata(_Base.metadata)


def payload(number: int) -> dict[str, Any]:
    return {"user_id": number, "template": "welcome", "tags": ["new"]}


def plain_job(number: int) -> PlainJob:
    now = datetime.now(UTC)
    return PlainJob(
        job_id=uuid.uuid4(),
        queue="default",
        job_type="welcome",
        payload=payload(number),
        attempts=0,
        enqueued_at=now,
        process_at=now,
        crashes=0,
    )


def one_each(engine: Engine, *, transactions: int, runs: int) -> dict[str, Series]:
    """Transactions a second, each with one job."""

    def plain() -> None:
        with Session(engine) as session, session.begin():
            session.add(plain_job(1))

    def enqueue() -> None:
        with Session(engine) as session, session.begin():
            jobs.enqueue(session, "welcome", payload(1))

    emptied(engine)
    return alternating(runs, transactions, {PLAIN: plain, ONE: enqueue})


def in_bulk(engine: Engine, *, count: int, runs: int) -> dict[str, Series]:
    """Jobs a second in one transaction with its commit, the table empty before it."""

    def add_all(session: Session) -> None:
        for start in range(0, count, 1000):
            session.add_all([Job("welcome", payload(number)) for number in range(start, min(start + 1000, count))])
            session.flush()

    def enqueue_many(session: Session) -> None:
        jobs.enqueue_many(session, (("welcome", payload(number)) for number in range(count)))

    def timed(way: Callable[[Session], None]) -> float:
        emptied(engine)
        begun = time.perf_counter()
        with Session(engine) as session, session.begin():
            way(session)
        return count / (time.perf_counter() - begun)

    ways = {ADD_ALL: lambda: timed(add_all), MANY: lambda: timed(enqueue_many)}
    return interleaved(runs, ways)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=20_000)
    parser.add_argument("--transactions", type=int, default=500)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    with server() as postgres, fresh_engine(postgres) as engine:
        seen = one_each(engine, transactions=options.transactions, runs=options.runs)
        print(table("transactions/s", seen, against=PLAIN))
        print(table("jobs/s", in_bulk(engine, count=options.jobs, runs=options.runs), against=ADD_ALL))


if __name__ == "__main__":
    main()
