"""An index that has what the judges' report is added up from"""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

INDEX = "ix_judge_calls_report"
COLUMNS = (
    "team",
    "judge",
    "failure",
    "created_at",
    "role",
    "calls",
    "cost_usd",
    "unpriced_calls",
    "asked",
)


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        # One rewrite of the table; an UPDATE would leave all of its rows behind as dead ones.
        count = sa.Computed("json_array_length(criteria)", persisted=True)
        op.add_column("judge_calls", sa.Column("asked", sa.Integer(), count))
        op.execute("ALTER TABLE judge_calls ALTER COLUMN asked DROP EXPRESSION")
    else:
        op.add_column("judge_calls", sa.Column("asked", sa.Integer()))
        op.execute("UPDATE judge_calls SET asked = json_array_length(criteria)")
    op.create_index(INDEX, "judge_calls", list(COLUMNS))


def downgrade() -> None:
    op.drop_index(INDEX, "judge_calls")
    op.drop_column("judge_calls", "asked")
