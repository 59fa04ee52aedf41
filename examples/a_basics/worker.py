"""Lesson A: a worker that looks for jobs every 5 seconds and echoes their payload."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

from common import announce, connect, preamble, say, show, show_event, worker_parser
from sqlalchemy.orm import Session

from sa_proletarian import Job, Proletarian, Worker

jobs = Proletarian()


@jobs.handler("echo")
def echo(_session: Session, job: Job) -> None:
    say(f"Running job {job.job_type}. Payload:")
    show(job.payload)


def main() -> None:
    options = worker_parser(__doc__, polling_interval=5).parse_args()
    engine = connect()
    preamble(engine)
    announce(options)
    Worker(
        jobs,
        engine,
        polling_interval=options.polling_interval,
        threads=options.threads,
        listener=show_event,
    ).run()


if __name__ == "__main__":
    main()
