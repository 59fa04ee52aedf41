"""The tables of the shop. Lines marked "added" came with the jobs.

``python models.py`` creates the tables. A real app leaves that to its migrations: alembic revision --autogenerate.
"""

import os

from sqlalchemy import ForeignKey, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from sa_proletarian import ArchivedJobMixin, JobMixin  # added

engine = create_engine(os.environ["DATABASE_URL"])
Session = sessionmaker(engine)


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[str] = mapped_column(unique=True)
    quantity: Mapped[int]


class Receipt(Base):
    __tablename__ = "receipts"

    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey(Order.id))
    text: Mapped[str]


class Job(JobMixin, Base):  # added
    """Something to do for the shop."""  # added


class ArchivedJob(ArchivedJobMixin, Base):  # added
    """Something that has been done, or was given up."""  # added


if __name__ == "__main__":
    Base.metadata.create_all(engine)
