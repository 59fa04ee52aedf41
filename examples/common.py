"""What the lessons share: their database, the counts before and after, and how an event is shown."""

import argparse
import dataclasses
import os
import pprint
import sys
from datetime import datetime, timedelta
from pathlib import Path

from sqlalchemy import URL, Engine, create_engine, func, inspect, make_url, select
from sqlalchemy.orm import Session

from sa_proletarian import ArchivedJob, Job
from sa_proletarian.embedded import EmbeddedPostgresError, background_url
from sa_proletarian.events import Event

FOLDER = Path(__file__).parents[1] / ".postgresql"  # version control ignores it
INSTALL = "python examples/database.py install"
RECREATE = "python examples/database.py recreate"

sys.stdout.reconfigure(line_buffering=True)  # what happens shows at once, in a pipe as well


# The database ---------------------------------------------------------------------------------------------------------


def own_url() -> URL | None:
    """Return the database that EXAMPLES_DATABASE_URL names, if it does."""
    named = os.environ.get("EXAMPLES_DATABASE_URL")
    if not named:
        return None
    url = make_url(named)
    # what people have in their shell; SQLAlchemy 2.0 would look for psycopg2
    return url.set(drivername="postgresql+psycopg") if url.drivername in ("postgresql", "postgres") else url


def connect() -> Engine:
    """Return an engine on the example database, or end the script and say how to make one."""
    try:
        engine = create_engine(own_url() or background_url(FOLDER))
    except EmbeddedPostgresError:
        sys.exit(f"There is no example database. Make one with: {INSTALL}")
    if not inspect(engine).has_table(Job.__tablename__):
        sys.exit(f"The example database has no job table. Make it with: {INSTALL}")
    return engine


# Before and after -----------------------------------------------------------------------------------------------------


def preamble(engine: Engine) -> None:
    with Session(engine) as session:
        in_queue = session.scalar(select(func.count()).where(Job.queue == "default"))
        waiting = session.scalar(select(func.count(Job.job_id)))
        archived = session.scalar(select(func.count(ArchivedJob.job_id)))
    say(f"Number of jobs in default queue: {in_queue}")
    say(f"Number of jobs in {Job.__tablename__} table: {waiting}")
    say(f"Number of jobs in {ArchivedJob.__tablename__} table: {archived}")
    if waiting or archived:
        say(f"Jobs are already there. For accurate figures in the summary, run this first: {RECREATE}")
    say()


def announce(options: argparse.Namespace) -> None:
    say("Starting worker for default queue")
    say(f"Polling interval: {options.polling_interval.total_seconds():g} seconds. Worker threads: {options.threads}")


def summary(engine: Engine) -> None:
    with Session(engine) as session:
        archived = dict(
            session.execute(select(ArchivedJob.status, func.count()).group_by(ArchivedJob.status)).tuples().all()
        )
    say(f"Number of successful jobs: {archived.get('success', 0)}")
    say(f"Number of failed jobs: {archived.get('failure', 0)}")


# What happens ---------------------------------------------------------------------------------------------------------


def show_event(event: Event) -> None:
    """Print an event without the worker's name, which is the same on each line and long."""
    fields = {field.name: getattr(event, field.name) for field in dataclasses.fields(event)}
    del fields["worker_id"], fields["queue"]
    fields["thread"] = event.thread.removeprefix(event.worker_id + "-")
    say(" ".join([event.name, *(f"{name}={_shown(value)}" for name, value in fields.items())]))


def show_job(job: Job) -> None:
    show({"job_id": str(job.job_id), "job_type": job.job_type, "payload": job.payload})


def show(value: object) -> None:
    say(pprint.pformat(value, sort_dicts=False))


def say(text: str = "") -> None:
    sys.stdout.write(text + "\n")  # in one piece: print() writes two, and another thread may come between


def _shown(value: object) -> str:
    if isinstance(value, BaseException):
        return repr(f"{type(value).__name__}: {value}")
    if isinstance(value, datetime):
        return value.isoformat(timespec="milliseconds")
    return str(value)


# Options --------------------------------------------------------------------------------------------------------------


def worker_parser(description: str | None, *, polling_interval: float) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--polling-interval",
        type=seconds,
        default=timedelta(seconds=polling_interval),
        metavar="SECONDS",
        help=f"how long to wait when the queue was found empty (default: {polling_interval:g})",
    )
    parser.add_argument("--threads", type=at_least_one, default=1, help="how many jobs run at once (default: 1)")
    return parser


def seconds(text: str) -> timedelta:
    span = timedelta(seconds=float(text))
    if span < timedelta(milliseconds=1):
        raise argparse.ArgumentTypeError("must be at least 0.001")
    return span


def at_least_one(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return int(text)
