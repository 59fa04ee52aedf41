"""Make the tables if they are not there, and enqueue an import that lasts: python enqueue.py [how many seconds]."""

import sys

from jobs import CHUNK, SECONDS_FOR_A_CHUNK, Base, Import, engine, jobs
from sqlalchemy.orm import Session


def main(seconds: int) -> None:
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        session.add(Import(source="meter 7", total=int(seconds / SECONDS_FOR_A_CHUNK) * CHUNK))
        jobs.enqueue(session, "import_readings", {"source": "meter 7"})
    engine.dispose()
    print(f"an import of about {seconds} s enqueued")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3600)
