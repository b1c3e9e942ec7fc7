"""What is known of each request beside its answer, and the gaps that are found among those that were flagged."""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0007"
down_revision: str | None = "0006"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_OF_REQUESTS: dict[str, sa.types.TypeEngine[Any]] = {
    "flagged": sa.Boolean(),
    "domain": sa.String(),
    "domain_probability": sa.Float(),
    "states": sa.LargeBinary(),
    "prompt_nats": sa.Float(),
    "base_nats": sa.Float(),
}


def upgrade() -> None:
    for name, kind in _OF_REQUESTS.items():
        op.add_column("requests", sa.Column(name, kind, nullable=True))
    op.create_index("ix_requests_flagged_at_id", "requests", ["at", "id"], postgresql_where=sa.text("flagged"))
    _create_gaps()
    op.create_table(
        "gap_requests",
        sa.Column("request_id", sa.String(), nullable=False),
        sa.Column("gap_id", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["request_id"], ["requests.id"], name=op.f("fk_gap_requests_request_id_requests"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["gap_id"], ["gaps.id"], name=op.f("fk_gap_requests_gap_id_gaps"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("request_id", name=op.f("pk_gap_requests")),
    )
    op.create_index("ix_gap_requests_gap_id", "gap_requests", ["gap_id"])


def _create_gaps() -> None:
    moment = sa.DateTime(timezone=True)
    op.create_table(
        "gaps",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("status", sa.String(), server_default="open", nullable=False),
        sa.Column("merged_into", sa.String(), nullable=True),
        sa.Column("follows", sa.String(), nullable=True),
        sa.Column("base_fingerprint", sa.String(), nullable=False),
        sa.Column("release", sa.String(), nullable=True),
        sa.Column("num_prompts", sa.Integer(), nullable=False),
        sa.Column("trend", sa.Float(), nullable=False),
        sa.Column("domain", sa.String(), nullable=False),
        sa.Column("keywords", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("expert_name", sa.String(), nullable=False),
        sa.Column("centroid", sa.LargeBinary(), nullable=False),
        sa.Column("report", postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=False),
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("closed_by_job", sa.String(), nullable=True),
        sa.Column("closed_by_release", sa.String(), nullable=True),
        sa.Column("created_at", moment, server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", moment, server_default=sa.text("now()"), nullable=False),
        sa.Column("last_seen_at", moment, nullable=False),
        sa.Column("closed_at", moment, nullable=True),
        sa.ForeignKeyConstraint(["merged_into"], ["gaps.id"], name=op.f("fk_gaps_merged_into_gaps")),
        sa.ForeignKeyConstraint(["follows"], ["gaps.id"], name=op.f("fk_gaps_follows_gaps")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_gaps")),
    )
    op.create_index("ix_gaps_status_last_seen_at_id", "gaps", ["status", "last_seen_at", "id"])


def downgrade() -> None:
    op.drop_table("gap_requests")
    op.drop_table("gaps")
    op.drop_index("ix_requests_flagged_at_id", table_name="requests")
    for name in reversed(_OF_REQUESTS):
        op.drop_column("requests", name)
