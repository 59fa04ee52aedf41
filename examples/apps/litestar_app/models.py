"""The tables of the shop, on the bases of advanced-alchemy. Lines marked "added" came with the jobs."""

from uuid import UUID

from advanced_alchemy.base import DefaultBase, UUIDAuditBase
from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from sa_proletarian import ArchivedJobMixin, JobMixin  # added


class Order(UUIDAuditBase):
    __tablename__ = "orders"

    number: Mapped[str] = mapped_column(unique=True)
    quantity: Mapped[int]


class Receipt(UUIDAuditBase):
    __tablename__ = "receipts"

    order_id: Mapped[UUID] = mapped_column(ForeignKey(Order.id))
    text: Mapped[str]


class Job(JobMixin, DefaultBase):  # added: a base without a primary key, as the mixin brings its own
    """Something to do for the shop."""  # added


class ArchivedJob(ArchivedJobMixin, DefaultBase):  # added
    """Something that has been done, or was given up."""  # added
