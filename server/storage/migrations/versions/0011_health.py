"""Health checks, what happened to devices, and devices that are set aside."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bring the tables forward."""
    with op.batch_alter_table("device") as table:
        table.add_column(sa.Column("set_aside", sa.Text(), nullable=False, server_default=sa.text("''")))
        table.add_column(sa.Column("check_wanted", sa.Boolean(), nullable=False, server_default=sa.false()))
        table.add_column(sa.Column("life", sa.Text(), nullable=False, server_default=sa.text("''")))
        table.add_column(sa.Column("cleared_ms", sa.BigInteger(), nullable=False, server_default=sa.text("0")))
        table.add_column(sa.Column("history_from_ms", sa.BigInteger(), nullable=False, server_default=sa.text("0")))
    op.create_table(
        "health_check",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("device_id", sa.Text(), nullable=False),
        sa.Column("snapshot_id", sa.Text(), nullable=False),
        sa.Column("condition_id", sa.Text(), nullable=True),
        sa.Column("runtime", sa.Text(), nullable=False),
        sa.Column("format", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("lease_deadline_ms", sa.BigInteger(), nullable=False),
        sa.Column("attempts", sa.BigInteger(), nullable=False),
        sa.Column("result_sha256", sa.Text(), nullable=False),
        sa.Column("result_fence", sa.BigInteger(), nullable=False),
        sa.Column("outputs_sha256", sa.Text(), nullable=False),
        sa.Column("progress", sa.JSON(), nullable=True),
        sa.Column("verdict", sa.Text(), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("outputs_right", sa.Boolean(), nullable=True),
        sa.Column("p50_ms", sa.Double(), nullable=True),
        sa.Column("low_ms", sa.Double(), nullable=True),
        sa.Column("high_ms", sa.Double(), nullable=True),
        sa.Column("expected_low_ms", sa.Double(), nullable=True),
        sa.Column("expected_high_ms", sa.Double(), nullable=True),
        sa.Column("history", sa.BigInteger(), nullable=False),
        sa.Column("trust", sa.Text(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("finished_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["condition_id"], ["condition.id"], name=op.f("fk_health_check_condition_id_condition")
        ),
        sa.ForeignKeyConstraint(["device_id"], ["device.id"], name=op.f("fk_health_check_device_id_device")),
        sa.ForeignKeyConstraint(
            ["snapshot_id"], ["device_snapshot.id"], name=op.f("fk_health_check_snapshot_id_device_snapshot")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_health_check")),
    )
    op.create_table(
        "device_event",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("device_id", sa.Text(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["device_id"], ["device.id"], name=op.f("fk_device_event_device_id_device")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_device_event")),
    )
    with op.batch_alter_table("health_check", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_health_check_device_id"), ["device_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_health_check_state"), ["state"], unique=False)
    with op.batch_alter_table("device_event", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_device_event_device_id"), ["device_id"], unique=False)


def downgrade() -> None:
    """Take the tables back."""
    op.drop_table("device_event")
    op.drop_table("health_check")
    with op.batch_alter_table("device") as table:
        for name in ("history_from_ms", "cleared_ms", "life", "check_wanted", "set_aside"):
            table.drop_column(name)
