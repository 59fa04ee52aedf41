"""The row that a writing handler writes."""

from __future__ import annotations

from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    pass


class Effect(Base):
    __tablename__ = "effect"

    effect_id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int]
