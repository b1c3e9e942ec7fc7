"""The base model that a job was submitted for, which its worker compares with its own."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0005"
down_revision: str | None = "0004"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("base_fingerprint", sa.String(), nullable=True))


def downgrade() -> None:
    # A state that was not known then: such a job has only been claimed, and its lease still decides about it.
    op.execute("UPDATE jobs SET status = 'running' WHERE status = 'validating'")
    op.drop_column("jobs", "base_fingerprint")
