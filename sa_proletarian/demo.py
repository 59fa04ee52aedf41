"""The demo: Proletarian's Example B, on a PostgreSQL server that is gone afterwards.

Ten jobs sleep and then fail half of the time; their error says when to try again, and a worker does so up to twice.
This room owns the jobs and the run. How it looks is the business of ``demo_story`` and ``demo_table``.
"""

from __future__ import annotations

import importlib
import random
import sys
import threading
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TextIO

from sqlalchemy import Engine, create_engine, func, select
from sqlalchemy.orm import Session

from . import clock
from .demo_story import Lines, Story, View
from .embedded import EmbeddedPostgres, EmbeddedPostgresError
from .embedded_given import GivenPostgres
from .models import ArchivedJob, Job, metadata
from .outcomes import Status
from .proletarian import Proletarian
from .retry import Retry
from .worker import Worker

JOBS = 10
THREADS = 5
RETRIES = 2
SHORTEST, LONGEST = 0.5, 1.5
REFRESH = 0.1

_INTRODUCTION = f"""\
{JOBS} jobs are enqueued in one transaction, and a worker with {THREADS} threads runs them.
Each sleeps for {SHORTEST} to {LONGEST} s and then fails half of the time. Its error says
when to try again (retry_after); after {RETRIES} retries it is given up, and reported.
Jobs that have ended move from the job table to the archive table.
"""


class OperationFailed(Exception):
    """What a web API answers when it is busy: try again after so many milliseconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__("This operation failed for some reason")
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Result:
    """The counts of the archive table, and how long the jobs took in seconds."""

    successful: int
    failed: int
    took: float


def main(*, plain: bool = False, url: str | None = None, chance: random.Random | None = None) -> int:
    """Run the demo and give its exit code: 0 when all jobs have ended, however they did.

    :param plain: write lines even to a terminal.
    :param url: a server to make a database on, instead of starting one.
    :param chance: decides how long jobs sleep and which fail.
    """
    began = clock.monotonic()
    what = "server" if url is None else "database"
    try:
        _say(_INTRODUCTION)
        _say(f"{'Starting a PostgreSQL' if url is None else 'Making a database'} of our own ...\n")
        _require_driver()
        postgres = EmbeddedPostgres() if url is None else GivenPostgres(url)
        result = _run(postgres, view_of(sys.stdout, plain=plain), chance or random.Random())
    except EmbeddedPostgresError as missing:
        sys.stderr.write(f"{missing}\n")
        return 1
    except KeyboardInterrupt:
        _say(f"\nInterrupted. The {what} and its data are gone.")
        raise
    _say(f"\nNumber of successful jobs: {result.successful}\nNumber of failed jobs: {result.failed}")
    _say(f"Wall time: {clock.monotonic() - began:.1f} s, of which the jobs took {result.took:.1f} s.")
    _say(f"The {what} and its data are gone.")
    return 0 if result.successful + result.failed == JOBS else 1


def retry_strategy(_: Any, error: BaseException) -> Retry | None:
    """Try again when the error says so, and after the time that it says; give up on any other error."""
    if not isinstance(error, OperationFailed):
        return None
    return Retry(RETRIES, [timedelta(milliseconds=error.retry_after)])


def sometimes_failing(chance: random.Random) -> Proletarian:
    """Make a :class:`Proletarian` whose one handler sleeps, and then fails half of the time."""
    jobs = Proletarian()

    @jobs.handler("sometimes_failing", retry=retry_strategy)
    def handler(_: Session, job: Job) -> None:
        job.sleep(timedelta(seconds=chance.uniform(SHORTEST, LONGEST)))
        if chance.random() < 0.5:
            raise OperationFailed(retry_after=chance.randrange(1000))

    return jobs


def view_of(stream: TextIO, *, plain: bool = False) -> View:
    """Give the table if ``stream`` is a terminal that can show it and ``rich`` is here, or else lines."""
    if plain or not stream.isatty():
        return Lines(stream)
    try:
        from .demo_table import table_on  # noqa: PLC0415 (rich is an extra)
    except ImportError:
        return Lines(stream)
    return table_on(stream) or Lines(stream)


def _run(postgres: EmbeddedPostgres | GivenPostgres, view: View, chance: random.Random) -> Result:
    jobs = sometimes_failing(chance)
    story = Story(view)
    with postgres as server:
        engine = create_engine(server.url())
        try:
            metadata.create_all(engine)
            began = clock.monotonic()
            _enqueue(jobs, engine, story)
            with view:
                _work(jobs, engine, story)
            return _result(engine, clock.monotonic() - began)
        finally:
            engine.dispose()


def _enqueue(jobs: Proletarian, engine: Engine, story: Story) -> None:
    with Session(engine) as session, session.begin():
        job_ids = [jobs.enqueue(session, "sometimes_failing", {"number": n}).job_id for n in range(1, JOBS + 1)]
    story.begin(job_ids)


def _work(jobs: Proletarian, engine: Engine, story: Story) -> None:
    pause = threading.Event()
    with Worker(jobs, engine, threads=THREADS, listener=story.listen, on_failed=story.reported):
        while waiting := _count(engine, Job):
            story.show(waiting, _count(engine, ArchivedJob))
            pause.wait(REFRESH)
    story.show(0, _count(engine, ArchivedJob))


def _count(engine: Engine, model: type[Job | ArchivedJob]) -> int:
    with engine.connect() as connection:
        return connection.scalar(select(func.count()).select_from(model)) or 0


def _result(engine: Engine, took: float) -> Result:
    with engine.connect() as connection:
        statuses = connection.scalars(select(ArchivedJob.status)).all()
    return Result(statuses.count(Status.SUCCESS), statuses.count(Status.FAILURE), took)


def _require_driver() -> None:
    try:
        importlib.import_module("psycopg")
    except ImportError as error:  # psycopg itself is there, but not the libpq that it needs
        message = 'psycopg does not find libpq, the client library of PostgreSQL: pip install "sa-proletarian[demo]"'
        raise EmbeddedPostgresError(message) from error


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
