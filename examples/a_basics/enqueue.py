"""Lesson A, the other terminal: enqueue one job."""

import sys
from datetime import UTC, datetime
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

from common import connect, preamble, say, show_job
from sqlalchemy.orm import Session

from sa_proletarian import Proletarian

jobs = Proletarian()


def main() -> None:
    engine = connect()
    preamble(engine)
    say("Adding new job to default queue:")
    with Session(engine) as session, session.begin():
        job = jobs.enqueue(session, "echo", {"message": "Hello world!", "timestamp": datetime.now(UTC)})
        show_job(job)


if __name__ == "__main__":
    main()
