"""Networks of variants that users trained, and the variants made of them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bring the tables forward."""
    op.add_column("variant", sa.Column("recovered", sa.Text(), nullable=False, server_default=sa.text("''")))
    op.create_table(
        "recovered",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("variant_key", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("refusal", sa.Text(), nullable=False),
        sa.Column("facts", sa.JSON(), nullable=True),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["variant_key"], ["variant.key"], name=op.f("fk_recovered_variant_key_variant")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_recovered")),
    )
    with op.batch_alter_table("recovered", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_recovered_state"), ["state"], unique=False)


def downgrade() -> None:
    """Take the tables back."""
    with op.batch_alter_table("recovered", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_recovered_state"))
    op.drop_table("recovered")
    op.drop_column("variant", "recovered")
