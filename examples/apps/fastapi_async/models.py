"""The tables of the shop. Lines marked "added" came with the jobs.

``python models.py`` creates the tables. A real app leaves that to its migrations: alembic revision --autogenerate.
"""

import asyncio
import os
from uuid import UUID

from sqlalchemy import ForeignKey
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sa_proletarian import ArchivedJobMixin, JobMixin  # added

engine = create_async_engine(os.environ["DATABASE_URL"])  # postgresql+psycopg://… or postgresql+asyncpg://…
Session = async_sessionmaker(engine, expire_on_commit=False)


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    number: Mapped[str] = mapped_column(unique=True)
    quantity: Mapped[int]


class Receipt(Base):
    __tablename__ = "receipts"

    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[UUID] = mapped_column(ForeignKey(Order.id))
    text: Mapped[str]


class Job(JobMixin, Base):  # added
    """Something to do for the shop."""  # added


class ArchivedJob(ArchivedJobMixin, Base):  # added
    """Something that has been done, or was given up."""  # added


async def create_tables() -> None:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    await engine.dispose()


if __name__ == "__main__":
    asyncio.run(create_tables())
