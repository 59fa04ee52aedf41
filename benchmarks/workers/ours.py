"""This library: one worker with its default settings.

    python ours.py URL [--handler noop|write|nap|clock] [--threads 1] [--concurrency 0] [--driver psycopg]

``--concurrency`` makes it an AsyncWorker, whose handlers are coroutines. ``nap`` takes five milliseconds; ``clock``
remembers when the job of each number was begun.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from effects import Effect
from sqlalchemy import create_engine, make_url
from sqlalchemy.ext.asyncio import create_async_engine
from talk import FirstCall, LoopThread, serve

from sa_proletarian import AsyncWorker, Proletarian, Worker

first = FirstCall()
jobs = Proletarian()


def noop(session: Any, job: Any) -> None:
    first.note()


def write(session: Any, job: Any) -> None:
    first.note()
    session.add(Effect(number=job.payload["i"]))


def nap(session: Any, job: Any) -> None:
    first.note()
    time.sleep(0.005)


def clock(session: Any, job: Any) -> None:
    first.calls[job.payload["i"]] = time.monotonic()


async def noop_async(session: Any, job: Any) -> None:
    first.note()


async def write_async(session: Any, job: Any) -> None:
    first.note()
    session.add(Effect(number=job.payload["i"]))


HANDLERS = {"noop": noop, "write": write, "nap": nap, "clock": clock}
ASYNC = {"noop": noop_async, "write": write_async}


class Threaded:
    def __init__(self, url: str, threads: int) -> None:
        self.engine = create_engine(url)
        self.worker = Worker(jobs, self.engine, threads=threads)

    def fill(self, count: int) -> None:
        with self.engine.begin() as connection:
            jobs.enqueue_many(connection, (("work", {"i": number}) for number in range(count)))

    def start(self) -> None:
        self.worker.start()

    def stop(self) -> None:
        self.worker.stop()
        self.engine.dispose()


class Async(Threaded):
    def __init__(self, url: str, concurrency: int, driver: str) -> None:
        super().__init__(url, 1)
        self.thread = LoopThread()
        self.async_engine = create_async_engine(make_url(url).set(drivername=f"postgresql+{driver}"))
        self.async_worker = AsyncWorker(jobs, self.async_engine, concurrency=concurrency)

    def start(self) -> None:
        self.thread.run(self.async_worker.start())

    def stop(self) -> None:
        self.thread.run(self.async_worker.stop())
        self.thread.run(self.async_engine.dispose())
        self.engine.dispose()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--handler", choices=[*HANDLERS], default="noop")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--concurrency", type=int, default=0)
    parser.add_argument("--driver", default="psycopg")
    given = parser.parse_args()
    jobs.handler("work")((ASYNC if given.concurrency else HANDLERS)[given.handler])
    url = make_url(given.url).set(drivername="postgresql+psycopg").render_as_string(hide_password=False)
    serve(Async(url, given.concurrency, given.driver) if given.concurrency else Threaded(url, given.threads), first)


if __name__ == "__main__":
    main()
