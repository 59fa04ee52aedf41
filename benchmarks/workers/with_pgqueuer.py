"""PGQueuer, as its page on performance tuning advises.

    python with_pgqueuer.py URL [--batch 10]

One asyncpg connection of its own for the QueueManager, uvloop, its settings for autovacuum, its default durability
("durable": every table is logged), and a batch size above its default of 10, as the page says for short jobs.
"""

from __future__ import annotations

import argparse
from typing import Any

import asyncpg
from pgqueuer.db import AsyncpgDriver
from pgqueuer.qm import QueueManager
from pgqueuer.queries import Queries
from talk import BULK, FirstCall, LoopThread, serve

first = FirstCall()


class PGQueuer:
    def __init__(self, url: str, batch: int) -> None:
        self.thread, self.batch = LoopThread(fast=True), batch
        self.thread.run(self._prepare(url))

    async def _prepare(self, url: str) -> None:
        self.connection = await asyncpg.connect(url)
        driver = AsyncpgDriver(self.connection)
        self.queries = Queries(driver)
        if not await self.queries.schema_is_installed():
            await self.queries.install()
            await self.queries.optimize_autovacuum()
        self.manager = QueueManager(self.queries)

        @self.manager.entrypoint("work")
        async def work(job: Any) -> None:
            first.note()

    def fill(self, count: int) -> None:
        self.thread.run(self._fill(count))

    async def _fill(self, count: int) -> None:
        for begin in range(0, count, BULK):
            numbers = range(begin, min(begin + BULK, count))
            payloads = [b'{"i": %d}' % number for number in numbers]
            await self.queries.enqueue(["work"] * len(numbers), payloads, [0] * len(numbers))

    def start(self) -> None:
        self.running = self.thread.begin(self.manager.run(batch_size=self.batch))

    def stop(self) -> None:
        self.thread.loop.call_soon_threadsafe(self.manager.shutdown.set)
        self.running.result()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--batch", type=int, default=10)
    given = parser.parse_args()
    serve(PGQueuer(given.url, given.batch), first)
