"""How good releases are, and the order in which they were active."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0004"
down_revision: str | None = "0003"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("releases", sa.Column("evaluation", postgresql.JSONB(astext_type=sa.Text()), nullable=True))
    op.create_table(
        "release_activations",
        sa.Column("id", sa.Integer(), sa.Identity(always=False), nullable=False),
        sa.Column("release_number", sa.Integer(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("undone_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["release_number"], ["releases.number"], name=op.f("fk_release_activations_release_number_releases")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_release_activations")),
    )
    # What is known of the past: when each was last activated. The active one comes last, whatever the clocks said.
    op.execute(
        "INSERT INTO release_activations (release_number, at) SELECT number, activated_at FROM releases "
        "WHERE activated_at IS NOT NULL ORDER BY status = 'active', activated_at, number"
    )


def downgrade() -> None:
    op.drop_table("release_activations")
    op.drop_column("releases", "evaluation")
