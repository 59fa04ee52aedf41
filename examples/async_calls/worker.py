"""The worker: up to 100 calls at once, in one process and with few connections, until SIGTERM or Ctrl-C."""

import asyncio
import logging

from jobs import client, engine, jobs

from sa_proletarian import AsyncWorker


async def main() -> None:
    async with client:
        await AsyncWorker(jobs, engine, concurrency=100).run()
    await engine.dispose()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    asyncio.run(main())
