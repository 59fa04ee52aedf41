"""A table of prices, and the job that fetches one: an API client whose calls wait side by side."""

import os
from datetime import timedelta

import httpx
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sa_proletarian import ArchivedJobMixin, Cancel, JobMixin, Proletarian, exponential

PRICES = os.environ.get("PRICES_URL", "http://localhost:8000/prices")

engine = create_async_engine(os.environ["DATABASE_URL"])


class Base(DeclarativeBase):
    pass


class Price(Base):
    __tablename__ = "price"
    item: Mapped[int] = mapped_column(primary_key=True)
    cents: Mapped[int]


class Job(JobMixin, Base):
    pass


class ArchivedJob(ArchivedJobMixin, Base):
    pass


jobs = Proletarian(Job, ArchivedJob)
client = httpx.AsyncClient(timeout=30, limits=httpx.Limits(max_connections=None))


@jobs.handler("fetch_price", retry=exponential(retries=5, initial=timedelta(seconds=1)))
async def fetch_price(session: AsyncSession, job: Job) -> None:
    answer = await client.get(f"{PRICES}/{job.payload}")  # no connection of the database is held while this waits
    if answer.status_code == httpx.codes.NOT_FOUND:
        raise Cancel("there is no such item")
    answer.raise_for_status()
    session.add(Price(item=job.payload, cents=answer.json()["cents"]))  # committed with the end of the job
