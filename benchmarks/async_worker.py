"""One async worker keeps 200 handlers waiting 50 ms each: how near to the ideal 4,000 jobs/s, on how many connections.

    python benchmarks/async_worker.py [--jobs 8000] [--runs 5] [--driver psycopg]

Beside it, in the same run and interleaved: the same handlers without any job queue, as tasks behind a semaphore of 200.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from contextlib import suppress

from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from sa_proletarian import AsyncWorker, Proletarian, metadata
from sa_proletarian.embedded import EmbeddedPostgres

CONCURRENCY, WAIT = 200, 0.05
CONNECTIONS = text(
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    " AND backend_type = 'client backend'"
)


async def bare(count: int) -> float:
    slots = asyncio.Semaphore(CONCURRENCY)

    async def one() -> None:
        async with slots:
            await asyncio.sleep(WAIT)

    begun = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(count)))
    return count / (time.perf_counter() - begun)


async def worked(engine, count: int) -> tuple[float, int]:
    jobs, done, all_done = Proletarian(), 0, asyncio.Event()

    @jobs.handler("wait")
    async def wait(session, job) -> None:
        nonlocal done
        await asyncio.sleep(WAIT)
        done += 1
        if done == count:
            all_done.set()

    async with engine.begin() as connection:
        await connection.run_sync(jobs.enqueue_many, [("wait", None)] * count)
    most = 0
    async with AsyncWorker(jobs, engine, concurrency=CONCURRENCY, connections=2, listener=lambda event: None):
        begun = time.perf_counter()
        while not all_done.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(all_done.wait(), 0.5)
            async with engine.connect() as connection:
                most = max(most, await connection.scalar(CONNECTIONS))
        took = time.perf_counter() - begun
    return count / took, most


async def main(url, count: int, runs: int) -> None:
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    ideal, ours, connections = [], [], 0
    for _ in range(runs):
        ideal.append(await bare(count))
        rate, most = await worked(engine, count)
        ours.append(rate)
        connections = max(connections, most)
    await engine.dispose()
    print(f"bare asyncio   {statistics.median(ideal):7.0f} jobs/s  ({min(ideal):.0f}-{max(ideal):.0f})")
    print(f"AsyncWorker    {statistics.median(ours):7.0f} jobs/s  ({min(ours):.0f}-{max(ours):.0f})")
    print(f"of the ideal {CONCURRENCY / WAIT:.0f} jobs/s: {statistics.median(ours) * WAIT / CONCURRENCY:.0%}; ", end="")
    print(f"at most {connections} connections of the worker")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=8000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--driver", default="psycopg", choices=["psycopg", "asyncpg"])
    arguments = parser.parse_args()
    with EmbeddedPostgres(settings={"synchronous_commit": True}) as server:
        asyncio.run(main(server.url(drivername=f"postgresql+{arguments.driver}"), arguments.jobs, arguments.runs))
