"""Job and archive: schema v1.

Revision proletarian_v1, the first one. It is released: never change it, write the next one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql, postgresql

revision: str = "proletarian_v1"
down_revision: str | Sequence[str] | None = None
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

COMMENT = "sa_proletarian schema v1"


def upgrade() -> None:
    op.create_table(
        "proletarian_job",
        *shared_columns(),
        sa.Column("claim_id", sa.Uuid(), nullable=True),
        sa.Column("claimed_by", sa.Text(), nullable=True),
        sa.Column("claimed_until", instant(), nullable=True),
        sa.Column("crashes", sa.Integer(), nullable=False),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("job_id"),
        count("proletarian_job", "attempts"),
        count("proletarian_job", "crashes"),
        calendar("proletarian_job", "enqueued_at"),
        calendar("proletarian_job", "process_at"),
        calendar("proletarian_job", "claimed_until"),
        comment=COMMENT,
    )
    op.create_index(op.f("ix_proletarian_job_due"), "proletarian_job", ["queue", "process_at", "job_id"])
    op.create_table(
        "proletarian_archived_job",
        *shared_columns(),
        sa.Column("status", sa.String(length=20), nullable=False),
        sa.Column("finished_at", instant(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("job_id"),
        count("proletarian_archived_job", "attempts"),
        calendar("proletarian_archived_job", "enqueued_at"),
        calendar("proletarian_archived_job", "process_at"),
        calendar("proletarian_archived_job", "finished_at"),
        comment=COMMENT,
    )


def downgrade() -> None:
    op.drop_table("proletarian_archived_job")
    op.drop_table("proletarian_job")


def shared_columns() -> list[sa.Column[Any]]:
    return [
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("queue", sa.String(length=200), nullable=False),
        sa.Column("job_type", sa.String(length=200), nullable=False),
        sa.Column("payload", sa.JSON().with_variant(postgresql.JSONB(), "postgresql"), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("enqueued_at", instant(), nullable=False),
        sa.Column("process_at", instant(), nullable=False),
    ]


def instant() -> sa.types.TypeEngine[Any]:
    return sa.DateTime(timezone=True).with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")


def count(table: str, column: str) -> sa.CheckConstraint:
    return sa.CheckConstraint(f"{column} >= 0", name=op.f(f"ck_{table}_{column}"))


def calendar(table: str, column: str) -> sa.CheckConstraint:
    within = f"{column} >= '0001-01-03' AND {column} < '9999-12-30'"
    return sa.CheckConstraint(within, name=op.f(f"ck_{table}_{column}"))
