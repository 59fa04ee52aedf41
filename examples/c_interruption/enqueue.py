"""Lesson C, the other terminal: enqueue a job that sleeps and can be interrupted, or one that computes and cannot."""

import argparse
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

from common import connect, preamble, say, seconds, show_job
from sqlalchemy.orm import Session

from sa_proletarian import Proletarian

jobs = Proletarian()

JOB_TYPES = {"blocking": "blocking_job", "cpu-bound": "cpu_bound_job"}


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=JOB_TYPES)
    parser.add_argument(
        "--seconds", type=seconds, default=timedelta(seconds=10), help="how long the job takes (default: 10)"
    )
    return parser.parse_args()


def main() -> None:
    chosen = options()
    engine = connect()
    preamble(engine)
    say(f"Adding new {chosen.kind} job to default queue:")
    payload = {"seconds": chosen.seconds.total_seconds(), "timestamp": datetime.now(UTC)}
    with Session(engine) as session, session.begin():
        show_job(jobs.enqueue(session, JOB_TYPES[chosen.kind], payload))


if __name__ == "__main__":
    main()
