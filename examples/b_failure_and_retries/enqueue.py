"""Lesson B, the other terminal: enqueue ten jobs, and ten more for each press of Enter."""

import sys
from itertools import count
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

from common import connect, preamble, say, show_job
from sqlalchemy.orm import Session

from sa_proletarian import Proletarian

jobs = Proletarian()


def main() -> None:
    engine = connect()
    preamble(engine)
    for batch in count(1):
        say("Adding 10 new jobs to default queue:")
        with Session(engine) as session, session.begin():
            for counter in range(10):
                show_job(jobs.enqueue(session, "sometimes_failing", {"batch": batch, "counter": counter}))
        say()
        say("Press Enter to enqueue 10 more jobs (Ctrl-C to exit)")
        if not sys.stdin.readline():  # the end of the input
            return


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        say()
