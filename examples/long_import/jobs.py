"""A table of readings, and the job that imports them for an hour: chunk by chunk, each committed for good."""

import os
import time
from datetime import timedelta

from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sa_proletarian import ArchivedJobMixin, JobMixin, Proletarian, Snooze

CHUNK = 100
SECONDS_FOR_A_CHUNK = 0.1

engine = create_engine(os.environ["DATABASE_URL"])


class Base(DeclarativeBase):
    pass


class Import(Base):
    """One import: how many readings its source has, and how many of them are here."""

    __tablename__ = "import"
    source: Mapped[str] = mapped_column(primary_key=True)
    total: Mapped[int]
    done: Mapped[int] = mapped_column(default=0)
    complete: Mapped[bool] = mapped_column(default=False)


class Reading(Base):
    __tablename__ = "reading"
    id: Mapped[int] = mapped_column(primary_key=True)
    source: Mapped[str]
    line: Mapped[int]


class Job(JobMixin, Base):
    pass


class ArchivedJob(ArchivedJobMixin, Base):
    pass


jobs = Proletarian(Job, ArchivedJob)


@jobs.handler("import_readings")
def import_readings(session: Session, job: Job) -> None:
    source = job.payload["source"]
    while import_chunk(job, source):
        if job.interrupted:  # a deploy, a timeout, or nobody wants it any more
            raise Snooze(timedelta(0))  # no attempt; whoever runs it next goes on where this one stopped
    session.get_one(Import, source).complete = True  # the job's own session: this commits with the end of the job


def import_chunk(job: Job, source: str) -> bool:
    """Import the next chunk in a session of its own; give whether anything is left.

    The readings and the mark of how far they go are one transaction, so each is imported once, whenever a process dies.
    The lock is for the worst case: a host comes back from a long sleep and goes on, while another has taken its job over.
    """
    with Session(engine) as own, own.begin():
        state = own.get_one(Import, source, with_for_update=True)
        lines = range(state.done + 1, min(state.done + CHUNK, state.total) + 1)
        own.add_all(Reading(source=source, line=line) for line in lines)
        state.done += len(lines)
        done, total = state.done, state.total
    job.progress(done, total, f"readings of {source}")
    time.sleep(SECONDS_FOR_A_CHUNK)  # the source is slow
    return done < total
