"""Lesson B: jobs that fail half of the time, are tried again up to twice, and are reported when that did not help."""

import random
import sys
from datetime import timedelta
from functools import partial
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

from common import announce, connect, preamble, say, show_event, summary, worker_parser
from sqlalchemy.orm import Session

from sa_proletarian import Job, Proletarian, Retry, Worker

parser = worker_parser(__doc__, polling_interval=5)
parser.add_argument("--sleep", type=float, default=1.0, help="how many seconds a job takes on average (default: 1)")
parser.add_argument("--failure-rate", type=float, default=0.5, help="the share of attempts that fail (default: 0.5)")
options = parser.parse_args()

jobs = Proletarian()


class OperationFailed(Exception):
    """What a web API answers when it is busy: try again after so many milliseconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__("This operation failed for some reason")
        self.retry_after = retry_after


def retry_strategy(_job: Job, error: BaseException) -> Retry | None:
    """Try again when the error says so, and after the time that it says; give up on any other error."""
    if not isinstance(error, OperationFailed):
        return None
    return Retry(retries=2, delays=[timedelta(milliseconds=error.retry_after)])


@jobs.handler("sometimes_failing")
def sometimes_failing(_session: Session, job: Job) -> None:
    log(job, f"Running job {job.job_type}. Payload: {job.payload}")
    log(job, f"This will fail {options.failure_rate:.0%} of the time and take {options.sleep:g} s on average:")
    do_possibly_failing_thing(job)
    log(job, "Phew, it didn't fail. Done.")


def do_possibly_failing_thing(job: Job) -> None:
    job.sleep(timedelta(seconds=random.uniform(0.5, 1.5) * options.sleep))  # ends at once when the worker stops
    if random.random() < options.failure_rate:
        raise OperationFailed(retry_after=random.randint(0, 999))


def report_failed_job(job: Job, error: BaseException) -> None:
    log(job, f"Job failed after {job.attempts} attempts (exception message: '{error}')")


def report_polling_error(error: BaseException) -> bool:
    say(f"Polling error (will retry): [{type(error).__name__}] {error}")
    return False  # True would stop the worker


def log(job: Job, text: str) -> None:
    say(f"{job.payload['batch']:3}/{job.payload['counter']}  {text}")


def main() -> None:
    engine = connect()
    preamble(engine)
    announce(options)
    Worker(
        jobs,
        engine,
        polling_interval=options.polling_interval,
        threads=options.threads,
        retry=retry_strategy,
        on_failed=report_failed_job,
        on_polling_error=report_polling_error,
        on_shutdown=partial(summary, engine),
        listener=show_event,
    ).run()


if __name__ == "__main__":
    main()
