"""The checkpoints that a running job has published."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0006"
down_revision: str | None = "0005"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("checkpoints", postgresql.JSONB(astext_type=sa.Text()), nullable=True))
    # What ended before had them in its result alone; their time is the job's.
    op.execute(
        "UPDATE jobs SET checkpoints = (SELECT jsonb_agg(one || jsonb_build_object('created_at', "
        "floor(extract(epoch FROM finished_at))::bigint)) FROM jsonb_array_elements(result -> 'checkpoints') AS one) "
        "WHERE jsonb_typeof(result -> 'checkpoints') = 'array'"
    )


def downgrade() -> None:
    op.drop_column("jobs", "checkpoints")
