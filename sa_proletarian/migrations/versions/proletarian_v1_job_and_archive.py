"""Job and archive: schema v1.

Revision proletarian_v1, the first one.
"""

from __future__ import annotations

from collections.abc import Sequence

from alembic import op

revision: str = "proletarian_v1"
down_revision: str | Sequence[str] | None = None
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.proletarian_migrate(0, 1)  # type: ignore[attr-defined]


def downgrade() -> None:
    op.proletarian_migrate(1, 0)  # type: ignore[attr-defined]
