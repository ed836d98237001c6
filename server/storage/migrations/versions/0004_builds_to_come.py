"""Builds that are wanted before they are made, each by its own name."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bring the tables forward."""
    op.add_column("build", sa.Column("state", sa.Text(), nullable=False, server_default=sa.text("'done'")))
    op.add_column("build", sa.Column("attempts", sa.BigInteger(), nullable=False, server_default=sa.text("0")))
    op.add_column("build", sa.Column("reason", sa.Text(), nullable=False, server_default=sa.text("''")))
    op.add_column("candidate", sa.Column("build_id", sa.Text(), nullable=False, server_default=sa.text("''")))


def downgrade() -> None:
    """Take the tables back."""
    op.drop_column("candidate", "build_id")
    for name in ("reason", "attempts", "state"):
        op.drop_column("build", name)
