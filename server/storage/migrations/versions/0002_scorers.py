"""Users' own metrics: scorers, what they score, and what agents can do."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bring the tables forward."""
    op.add_column("device", sa.Column("capabilities", sa.JSON(), nullable=False, server_default=sa.text("'[]'")))
    op.add_column("job", sa.Column("scorer_id", sa.Text(), nullable=False, server_default=sa.text("''")))
    op.create_table(
        "scorer",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("source_sha256", sa.Text(), nullable=False),
        sa.Column("lower_is_better", sa.Boolean(), nullable=False),
        sa.Column("unit", sa.Text(), nullable=False),
        sa.Column("seen_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_scorer")),
    )
    op.create_table(
        "scoring",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("measurement_id", sa.Text(), nullable=False),
        sa.Column("scorer_id", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("lease_deadline_ms", sa.BigInteger(), nullable=False),
        sa.Column("attempts", sa.BigInteger(), nullable=False),
        sa.Column("scores_sha256", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("metric", sa.JSON(), nullable=True),
        sa.ForeignKeyConstraint(
            ["measurement_id"], ["measurement.id"], name=op.f("fk_scoring_measurement_id_measurement")
        ),
        sa.ForeignKeyConstraint(["scorer_id"], ["scorer.id"], name=op.f("fk_scoring_scorer_id_scorer")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_scoring")),
        sa.UniqueConstraint("measurement_id", "scorer_id", name=op.f("uq_scoring_measurement_id_scorer_id")),
    )
    with op.batch_alter_table("scoring", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_scoring_state"), ["state"], unique=False)


def downgrade() -> None:
    """Take the tables back."""
    with op.batch_alter_table("scoring", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_scoring_state"))
    op.drop_table("scoring")
    op.drop_table("scorer")
    op.drop_column("job", "scorer_id")
    op.drop_column("device", "capabilities")
