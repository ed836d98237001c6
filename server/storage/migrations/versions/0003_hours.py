"""The hours in which devices may be given work."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bring the tables forward."""
    op.add_column("device", sa.Column("hours", sa.JSON(), nullable=False, server_default=sa.text("'[]'")))


def downgrade() -> None:
    """Take the tables back."""
    with op.batch_alter_table("device") as table:
        table.drop_column("hours")
