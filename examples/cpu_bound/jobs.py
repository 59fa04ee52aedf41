"""A table of the rows of a picture, and the job that computes one elsewhere and writes it here."""

import os

from fractal import render
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sa_proletarian import ArchivedJobMixin, JobMixin, Proletarian, Retry

engine = create_engine(os.environ["DATABASE_URL"])


class Base(DeclarativeBase):
    pass


class Row(Base):
    __tablename__ = "picture_row"
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    points: Mapped[bytes]


class Job(JobMixin, Base):
    pass


class ArchivedJob(ArchivedJobMixin, Base):
    pass


jobs = Proletarian(Job, ArchivedJob)


@jobs.handler("row", compute=render, retry=Retry(retries=1))
def keep_row(session: Session, job: Job, points: bytes) -> None:
    session.add(Row(number=job.payload["row"], points=points))  # committed with the end of the job
