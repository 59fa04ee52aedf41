"""A worker process for the fault suite: ``python worker.py '{"url": …}'``, with threads or on an event loop.

What a job does stands in its payload: ``does`` names a deed, ``fails`` how many of its attempts raise, ``ms`` how long it
takes. Every start and end goes into the ledger, every event into another; the first poll is told on standard output.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from sqlalchemy import create_engine, text

from machinery.ledger import Ledger
from machinery.own_tables import SPELLINGS
from sa_proletarian import AsyncWorker, Proletarian, Retry, Snooze, Worker

EFFECT = text("INSERT INTO effect (job_id, attempt) VALUES (:job_id, :attempt)")
GIVEN = json.loads(sys.argv[1])
LEDGER = Ledger(GIVEN["ledger"])
EVENTS = Ledger(GIVEN["events"])
SPELLING = SPELLINGS[GIVEN["url"].partition("+")[0]]
OFTEN = Retry(retries=20, delays=[timedelta(milliseconds=20)])


class Planned(Exception):
    """A failure that the job's payload asks for."""


def write(session, job):
    session.execute(EFFECT, {"job_id": str(job.job_id), "attempt": job.attempts})


def commits(session, job):
    write(session, job)
    session.commit()


def rolls_back(session, job):
    write(session, job)
    session.rollback()
    write(session, job)


def closes(session, job):
    write(session, job)
    session.close()
    write(session, job)


def swallows(session, job):
    """An SQL error in a savepoint, which the handler survives."""
    try:
        with session.begin_nested():
            session.execute(text(SPELLING.fail))
    except Exception:
        pass
    write(session, job)


def reads(session, job):
    session.execute(text("SELECT 1"))


def sleeps(session, job):
    """A statement that takes long, after the write."""
    write(session, job)
    session.execute(text(SPELLING.sleep), {"s": job.payload["seconds"]})


def updates(session, job):
    """Two rows in the order that the payload names: with another job that takes them the other way it deadlocks."""
    count_up(session, job)
    write(session, job)


def swallows_updates(session, job):
    """The same after a write; whatever the server says, the handler goes on to its COMMIT, which MariaDB lets it."""
    write(session, job)
    try:
        count_up(session, job)
    except Exception as error:
        LEDGER.write(what="swallowed", job=str(job.job_id), said=str(error)[:500])
    for counter in job.payload.get("then", ()):
        session.execute(text("UPDATE counter SET value = value + 1 WHERE id = :id"), {"id": counter})
    with suppress(Exception):
        session.commit()


def count_up(session, job):
    for counter in job.payload["rows"]:
        session.execute(text("UPDATE counter SET value = value + 1 WHERE id = :id"), {"id": counter})
        if "between" in job.payload:
            session.execute(text(SPELLING.sleep), {"s": job.payload["between"]})


def kills(session, job):
    write(session, job)
    os.kill(os.getpid(), signal.SIGKILL)


def takes_all_files(session, job):
    """Use up the process's file descriptors, and then the session."""
    hoard = []
    try:
        while True:
            hoard.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        pass
    try:
        write(session, job)
    finally:
        for file in hoard:
            os.close(file)


def idles(session, job):
    pass


DEEDS = {
    deed.__name__: deed
    for deed in (
        write,
        commits,
        rolls_back,
        closes,
        swallows,
        reads,
        sleeps,
        updates,
        swallows_updates,
        kills,
        takes_all_files,
        idles,
    )
}


@contextmanager
def told(job):
    """Write the start of a run and how it ended into the ledger."""
    about = {"job": str(job.job_id), "attempt": job.attempts, "crashes": job.crashes}
    LEDGER.write(what="start", **about)
    try:
        yield
    except Planned:
        LEDGER.write(what="end", how="planned", **about)
        raise
    except BaseException as error:
        LEDGER.write(what="end", how=type(error).__name__, said=str(error)[:500], **about)
        raise
    LEDGER.write(what="end", how="returned", **about)


def after(job):
    if job.attempts <= job.payload.get("fails", 0):
        raise Planned
    if job.payload.get("snoozes"):
        raise Snooze(timedelta(milliseconds=10))


def by_thread(session, job):
    with told(job):
        if "ms" in job.payload:  # under libfaketime even a sleep of no time fails
            time.sleep(job.payload["ms"] / 1000)
        DEEDS[job.payload["does"]](session, job)
        if "ms_after" in job.payload:
            time.sleep(job.payload["ms_after"] / 1000)
        after(job)


async def by_task(session, job):
    with told(job):
        await asyncio.sleep(job.payload.get("ms", 0) / 1000)
        if (deed := DEEDS[job.payload["does"]]) is not idles:
            await session.run_sync(deed, job)
        await asyncio.sleep(job.payload.get("ms_after", 0) / 1000)
        after(job)


def listen(event):
    if event.name == "polling_for_jobs":
        if not listen.polled:
            listen.polled = True
            print("up", flush=True)
        return
    error = getattr(event, "error", None)
    EVENTS.write(
        name=event.name,
        job=str(event.job_id) if hasattr(event, "job_id") else None,
        error=None if error is None else f"{type(error).__name__}: {str(error)[:300]}",
    )


listen.polled = False


def options():
    return {
        "listener": listen,
        "lease": timedelta(seconds=GIVEN.get("lease", 1.0)),
        "polling_interval": timedelta(milliseconds=20),
        "crash_ceiling": GIVEN.get("crash_ceiling", 1000),
        "termination_timeout": timedelta(seconds=GIVEN.get("termination", 2.0)),
        "retry": OFTEN,
        **({"polling_interval": timedelta(seconds=GIVEN["polling"])} if "polling" in GIVEN else {}),
    }


def engine_options():
    return {"connect_args": GIVEN.get("connect_args", {})}


def run_threads(jobs):
    engine = create_engine(GIVEN["url"], **engine_options())
    return Worker(jobs, engine, threads=GIVEN.get("slots", 4), pooler=GIVEN.get("pooler"), **options()).run()


async def run_tasks(jobs):
    from sqlalchemy.ext.asyncio import create_async_engine

    engine = create_async_engine(GIVEN["url"], **engine_options())
    slots = GIVEN.get("slots", 8)
    return await AsyncWorker(
        jobs, engine, concurrency=slots, connections=max(2, slots // 2), pooler=GIVEN.get("pooler"), **options()
    ).run()


def main():
    jobs = Proletarian()
    if GIVEN.get("form", "threads") == "threads":
        jobs.handler("job")(by_thread)
        clean = run_threads(jobs)
    else:
        jobs.handler("job")(by_task)
        clean = asyncio.run(run_tasks(jobs))
    EVENTS.write(name="run_returned", job=None, error=None, clean=clean)
    sys.exit(0 if clean else 1)


if __name__ == "__main__":
    main()
