"""Lesson C: what becomes of running jobs when their worker stops."""

import sys
import time
from datetime import timedelta
from functools import partial
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

from common import announce, connect, preamble, say, show, show_event, summary, worker_parser
from sqlalchemy.orm import Session

from sa_proletarian import Job, Proletarian, Worker

jobs = Proletarian()


@jobs.handler("blocking_job")
def blocking_job(_session: Session, job: Job) -> None:
    introduce(job)
    say(f"Sleeping for {job.payload['seconds']:g} seconds...")
    foretell("shutting_down", "job_interrupted", "completed_shutdown")
    say(f"Start the worker again, and this job (timestamp: {job.payload['timestamp']}) is picked up again.")
    say("If you don't interrupt it, it finishes and won't be run again.")
    say()
    job.sleep(timedelta(seconds=job.payload["seconds"]))
    say("Done.")


@jobs.handler("cpu_bound_job")
def cpu_bound_job(_session: Session, job: Job) -> None:
    introduce(job)
    say("It is CPU-bound and never asks whether it is interrupted, so it runs until it is finished.")
    say("A worker that is stopping waits for it, and begins no other job meanwhile.")
    say(f"Running for {job.payload['seconds']:g} seconds...")
    foretell("shutting_down", "(pause until the job finishes)", "job_finished", "completed_shutdown")
    compute(until=time.monotonic() + job.payload["seconds"])
    say("Done.")


def introduce(job: Job) -> None:
    say(f"Running job {job.job_type}. Payload:")
    show(job.payload)


def foretell(*what: str) -> None:
    say("If you press Ctrl-C now, you should observe:")
    for line in what:
        say(f"  {line}")
    say()


def compute(until: float) -> None:
    while time.monotonic() < until:
        pass


def main() -> None:
    options = worker_parser(__doc__, polling_interval=1).parse_args()
    engine = connect()
    preamble(engine)
    announce(options)
    Worker(
        jobs,
        engine,
        polling_interval=options.polling_interval,
        threads=options.threads,
        termination_timeout=timedelta(seconds=15),  # longer than the CPU-bound job takes
        on_shutdown=partial(summary, engine),
        listener=show_event,
    ).run()


if __name__ == "__main__":
    main()
