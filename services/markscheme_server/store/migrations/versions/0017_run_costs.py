"""An index that has what a run's cost is added up from"""

from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

BEFORE = "ix_judge_calls_team_run_id"
AFTER = "ix_judge_calls_team_run_id_cost_usd_unpriced_calls_calls"


def upgrade() -> None:
    op.create_index(AFTER, "judge_calls", ["team", "run_id", "cost_usd", "unpriced_calls", "calls"])
    op.drop_index(op.f(BEFORE), "judge_calls")


def downgrade() -> None:
    op.create_index(op.f(BEFORE), "judge_calls", ["team", "run_id"])
    op.drop_index(op.f(AFTER), "judge_calls")
