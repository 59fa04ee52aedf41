"""Make the tables if they are not there, and enqueue a job for each row of a picture: python enqueue.py [how many]."""

import sys

from jobs import Base, engine, jobs
from sqlalchemy.orm import Session

if __name__ == "__main__":
    size = int(sys.argv[1]) if len(sys.argv) > 1 else 400
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        jobs.enqueue_many(session, (("row", {"row": row, "size": size}) for row in range(size)))
    print(f"{size} jobs enqueued")
