"""A rationale with each verdict, and what doctor found out about endpoints"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("verdicts", sa.Column("rationale", sa.Text(), nullable=True))
    op.create_table(
        "endpoint_probes",
        sa.Column("endpoint", sa.String(length=400), nullable=False),
        sa.Column("model", sa.String(length=400), nullable=False),
        sa.Column("json_schema", sa.String(length=16), nullable=False),
        sa.Column("form", sa.String(length=16), nullable=False),
        sa.Column("probed_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("endpoint", "model", name=op.f("pk_endpoint_probes")),
    )


def downgrade() -> None:
    op.drop_table("endpoint_probes")
    op.drop_column("verdicts", "rationale")
