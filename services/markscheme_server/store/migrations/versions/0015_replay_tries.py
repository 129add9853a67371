"""How often a group of a replay was begun"""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "replay_groups", sa.Column("tries", sa.Integer(), nullable=False, server_default="0")
    )


def downgrade() -> None:
    op.drop_column("replay_groups", "tries")
