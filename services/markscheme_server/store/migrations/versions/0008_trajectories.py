"""Responses that are messages, and what of them a rubric is about"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("texts", sa.Column("messages", sa.Text(), nullable=True))
    op.add_column("rubrics", sa.Column("view", sa.String(length=16), nullable=True))


def downgrade() -> None:
    op.drop_column("rubrics", "view")
    op.drop_column("texts", "messages")
