"""The tables of the app: its users, and its jobs beside them.

``python models.py`` creates them. A real app leaves that to its migrations: alembic revision --autogenerate.
"""

import os
from datetime import datetime
from uuid import UUID

from sqlalchemy import DateTime, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sa_proletarian import ArchivedJobMixin, JobMixin


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str]
    confirmation_sent_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))


class Job(JobMixin, Base):
    """A mail that has not been sent yet."""


class ArchivedJob(ArchivedJobMixin, Base):
    """A mail that has been sent, or was given up."""


if __name__ == "__main__":
    Base.metadata.create_all(create_engine(os.environ["DATABASE_URL"]))
