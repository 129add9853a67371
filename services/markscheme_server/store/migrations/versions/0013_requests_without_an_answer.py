"""Requests for rollouts without a name, so that one that is sent again is recognised everywhere"""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("gathered_rollouts", sa.Column("asked_until", sa.Double(), nullable=True))


def downgrade() -> None:
    op.drop_column("gathered_rollouts", "asked_until")
