"""What one writes first: a loop over one ORM transaction for each job, on the same two models.

python naive.py URL [--handler noop|write]
"""

from __future__ import annotations

import argparse
import threading
from typing import Any

from effects import Effect
from sqlalchemy import create_engine, func, make_url, select
from sqlalchemy.orm import Session
from talk import FirstCall, serve

from sa_proletarian import ArchivedJob, Job, Proletarian

COPIED = ("job_id", "queue", "job_type", "payload", "attempts", "enqueued_at", "process_at")
first = FirstCall()


def noop(session: Session, job: Job) -> None:
    first.note()


def write(session: Session, job: Job) -> None:
    first.note()
    session.add(Effect(number=job.payload["i"]))


class Naive:
    def __init__(self, url: str, handler: Any) -> None:
        self.engine, self.handler, self.done = create_engine(url), handler, threading.Event()
        due = select(Job).where(Job.queue == "default", Job.process_at <= func.now(), Job.claimed_until.is_(None))
        self.next = due.order_by(Job.process_at, Job.job_id).limit(1).with_for_update(skip_locked=True)
        self.thread = threading.Thread(target=self._work, daemon=True)

    def fill(self, count: int) -> None:
        with self.engine.begin() as connection:
            Proletarian().enqueue_many(connection, (("work", {"i": number}) for number in range(count)))

    def start(self) -> None:
        self.thread.start()

    def _work(self) -> None:
        while not self.done.is_set():
            with Session(self.engine) as session, session.begin():
                job = session.scalar(self.next)
                if job is None:
                    return
                self.handler(session, job)
                copied = {name: getattr(job, name) for name in COPIED}
                session.add(ArchivedJob(**copied, status="success", finished_at=func.clock_timestamp()))
                session.delete(job)

    def stop(self) -> None:
        self.done.set()
        self.thread.join()
        self.engine.dispose()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--handler", choices=["noop", "write"], default="noop")
    given = parser.parse_args()
    url = make_url(given.url).set(drivername="postgresql+psycopg")
    serve(Naive(url.render_as_string(hide_password=False), {"noop": noop, "write": write}[given.handler]), first)
