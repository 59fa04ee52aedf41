"""Make the tables if they are not there, and enqueue a job for each item: python enqueue.py [how many]."""

import asyncio
import sys

from jobs import Base, engine, jobs


async def main(count: int) -> None:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.run_sync(jobs.enqueue_many, (("fetch_price", item) for item in range(1, count + 1)))
    await engine.dispose()
    print(f"{count} jobs enqueued")


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 100))
