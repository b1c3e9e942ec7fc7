"""Jobs that pause, in an order, of a user; their metrics."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("queue", sa.String(), server_default="cpu", nullable=False))
    op.add_column("jobs", sa.Column("priority", sa.Integer(), server_default=sa.text("0"), nullable=False))
    op.add_column("jobs", sa.Column("user_name", sa.String(), nullable=True))
    op.add_column("jobs", sa.Column("pause_requested", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.create_index("ix_jobs_user_name_status", "jobs", ["user_name", "status"])
    op.create_table(
        "job_metrics",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("step", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("figures", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_metrics_job_id_jobs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "step", name=op.f("pk_job_metrics")),
    )


def downgrade() -> None:
    op.execute("UPDATE jobs SET status = 'cancelled', finished_at = now() WHERE status = 'paused'")
    op.drop_table("job_metrics")
    op.drop_index("ix_jobs_user_name_status", table_name="jobs")
    for column in ("pause_requested", "user_name", "priority", "queue"):
        op.drop_column("jobs", column)
