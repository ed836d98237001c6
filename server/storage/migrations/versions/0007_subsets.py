"""Parts of splits that devices compute metrics on."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bring the tables forward."""
    op.create_table(
        "subset",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("split_sha256", sa.Text(), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("rows_sha256", sa.Text(), nullable=False),
        sa.Column("rows_size_bytes", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_subset")),
    )


def downgrade() -> None:
    """Take the tables back."""
    op.drop_table("subset")
