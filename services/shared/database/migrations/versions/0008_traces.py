"""Traces: which experts were chosen at every token."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0008"
down_revision: str | None = "0007"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    json = postgresql.JSONB(none_as_null=True, astext_type=sa.Text())
    op.create_table(
        "traces",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("status", sa.String(), server_default="importing", nullable=False),
        sa.Column("source", sa.String(), nullable=True),
        sa.Column("digest", sa.String(), nullable=True),
        sa.Column("analysis_digest", sa.String(), nullable=True),
        sa.Column("description", json, nullable=True),
        sa.Column("error", json, nullable=True),
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_traces")),
        sa.UniqueConstraint("job_id", name=op.f("uq_traces_job_id")),
    )
    op.create_index("ix_traces_created_at_id", "traces", ["created_at", "id"])


def downgrade() -> None:
    op.drop_table("traces")
