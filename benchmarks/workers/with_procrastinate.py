"""Procrastinate, with what it offers for throughput.

    python with_procrastinate.py URL [--concurrency 1]

An async task and more than one of them at once, LISTEN on (its default). It claims and finishes one job at a time: there is
no batch to set. Finished jobs stay in its table, as they do by default.
"""

from __future__ import annotations

import argparse
import asyncio
import logging

import procrastinate
from talk import BULK, FirstCall, LoopThread, serve

first = FirstCall()
logging.getLogger("procrastinate").setLevel(logging.ERROR)  # it warns of apps that are made in the main module


class Procrastinate:
    def __init__(self, url: str, concurrency: int) -> None:
        self.thread, self.concurrency = LoopThread(fast=True), concurrency
        connector = procrastinate.PsycopgConnector(conninfo=url, min_size=2, max_size=concurrency + 4)
        self.app = procrastinate.App(connector=connector)

        @self.app.task(name="work")
        async def work(i: int) -> None:
            first.note()

        self.task = work
        self.thread.run(self._prepare())

    async def _prepare(self) -> None:
        await self.app.open_async()
        found = await self.app.connector.execute_query_one_async("SELECT to_regclass('procrastinate_jobs')::text AS found")
        if found["found"] is None:
            await self.app.schema_manager.apply_schema_async()

    def fill(self, count: int) -> None:
        self.thread.run(self._fill(count))

    async def _fill(self, count: int) -> None:
        for begin in range(0, count, BULK):
            await self.task.batch_defer_async(*({"i": number} for number in range(begin, min(begin + BULK, count))))

    def start(self) -> None:
        self.running = self.thread.begin(self._work())

    async def _work(self) -> None:
        self.worker = asyncio.current_task()
        await self.app.run_worker_async(concurrency=self.concurrency, install_signal_handlers=False)

    def stop(self) -> None:
        self.thread.loop.call_soon_threadsafe(self.worker.cancel)
        try:
            self.running.result()
        except BaseException as error:
            if not isinstance(error, asyncio.CancelledError) and type(error).__name__ != "CancelledError":
                raise
        self.thread.run(self.app.close_async())


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--concurrency", type=int, default=1)
    given = parser.parse_args()
    serve(Procrastinate(given.url, given.concurrency), first)
