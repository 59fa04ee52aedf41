"""The worker table: schema v2.

Revision proletarian_v2, after proletarian_v1.
"""

from __future__ import annotations

from collections.abc import Sequence

from alembic import op

revision: str = "proletarian_v2"
down_revision: str | Sequence[str] | None = "proletarian_v1"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.proletarian_migrate(1, 2)  # type: ignore[attr-defined]


def downgrade() -> None:
    op.proletarian_migrate(2, 1)  # type: ignore[attr-defined]
