"""The tables of the shop, and what is done with them. Lines marked "added" came with the jobs."""

from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sa_proletarian import ArchivedJobMixin, JobMixin  # added


class Base(DeclarativeBase):
    pass


db = SQLAlchemy(model_class=Base)


class Order(db.Model):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[str] = mapped_column(unique=True)
    quantity: Mapped[int]


class Receipt(db.Model):
    __tablename__ = "receipts"

    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey(Order.id))
    text: Mapped[str]


def add_receipt(order_id: int) -> None:
    """Do what requests and jobs do alike, on ``db.session``."""
    order = db.get_or_404(Order, order_id)
    db.session.add(Receipt(order_id=order.id, text=f"{order.number}: {order.quantity} cups of tea"))
    db.session.commit()


class Job(JobMixin, db.Model):  # added
    """Something to do for the shop."""  # added


class ArchivedJob(ArchivedJobMixin, db.Model):  # added
    """Something that has been done, or was given up."""  # added
