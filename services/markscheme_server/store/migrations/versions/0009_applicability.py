"""A verdict may say that the criterion does not apply"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _set_nullable(True)


def downgrade() -> None:
    # The older version cannot read them; their criteria are no questions that it asks.
    op.execute("DELETE FROM verdicts WHERE met IS NULL")
    _set_nullable(False)


def _set_nullable(nullable: bool) -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.alter_column("verdicts", "met", existing_type=sa.Boolean(), nullable=nullable)
        return
    # Not in a batch: that makes the table anew, and its trigger goes with the old one.
    op.add_column(
        "verdicts",
        sa.Column(
            "met_new",
            sa.Boolean(),
            server_default=None if nullable else sa.false(),
            nullable=nullable,
        ),
    )
    op.execute("UPDATE verdicts SET met_new = met")
    op.execute("ALTER TABLE verdicts DROP COLUMN met")
    op.execute("ALTER TABLE verdicts RENAME COLUMN met_new TO met")
