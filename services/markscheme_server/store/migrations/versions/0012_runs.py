"""Runs, figures of groups that survive pruning, and what second judges and re-asks said"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

EVERYONE = "(SELECT current_setting('markscheme.teams', true)) = '*'"
SEEN = "(SELECT string_to_array(current_setting('markscheme.teams', true), ','))::text[]"
TABLES = ("runs", "run_records", "past_groups", "second_verdicts", "repeat_verdicts")
REFUSING = tuple(table for table in TABLES if table != "past_groups")
"""Tables that take no rows of an erased team. Past groups come of rows that were there."""
ERASED_POSTGRESQL = """CREATE TRIGGER refuse_erased AFTER INSERT ON {table}
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION refuse_erased()"""
ERASED_SQLITE = """CREATE TRIGGER refuse_erased_{table} BEFORE INSERT ON {table}
    WHEN (SELECT erased_at FROM teams WHERE name = new.team) IS NOT NULL
    BEGIN SELECT RAISE(ABORT, 'this team was erased'); END"""
FIGURES_SQLITE = """UPDATE assignments SET figures = (
    SELECT json_object(
        'at', (julianday(assignments.created_at) - 2440587.5) * 86400.0,
        'rewards', json_group_array(r.reward),
        'words', json_group_array(NULL),
        'truncated', sum(r.truncated),
        'reasons', json(coalesce(
            (SELECT json_group_array(u.reason) FROM rollouts AS u
                WHERE u.assignment_id = assignments.id AND u.reward IS NULL), '[]')),
        'spread', assignments.reward_spread
    ) FROM rollouts AS r WHERE r.assignment_id = assignments.id)
    WHERE unscored IS NOT NULL"""
FIGURES_POSTGRESQL = """UPDATE assignments SET figures = (
    SELECT json_build_object(
        'at', extract(epoch FROM assignments.created_at),
        'rewards', json_agg(r.reward),
        'words', json_agg(NULL::integer),
        'truncated', count(*) FILTER (WHERE r.truncated),
        'reasons', coalesce(json_agg(r.reason) FILTER (WHERE r.reward IS NULL), '[]'::json),
        'spread', assignments.reward_spread
    )::text FROM rollouts AS r WHERE r.assignment_id = assignments.id HAVING count(*) > 0)
    WHERE unscored IS NOT NULL"""
RUNS = """INSERT INTO runs (team, id, state, facts, created_at, last_scored_at, changed_at)
    SELECT team, run_id, 'running', '{}', min(created_at), max(created_at), max(created_at)
    FROM assignments
    WHERE run_id IS NOT NULL GROUP BY team, run_id"""


def upgrade() -> None:
    op.add_column("rollouts", sa.Column("verdicts", sa.Text(), nullable=True))
    op.add_column("rollouts", sa.Column("words", sa.Integer(), nullable=True))
    op.add_column("assignments", sa.Column("judge", sa.Text(), nullable=True))
    op.add_column("assignments", sa.Column("figures", sa.Text(), nullable=True))
    op.add_column("assignments", sa.Column("scored_at", sa.Double(), nullable=True))
    op.create_table(
        "runs",
        sa.Column("team", sa.String(length=64), nullable=False),
        sa.Column("id", sa.String(length=200), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("steps", sa.Integer(), nullable=True),
        sa.Column("facts", sa.JSON(), nullable=False),
        sa.Column("last_scored_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("team", "id", name=op.f("pk_runs")),
    )
    op.create_table(
        "run_records",
        sa.Column("team", sa.String(length=64), nullable=False),
        sa.Column("run_id", sa.String(length=200), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("metrics", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("team", "run_id", "step", name=op.f("pk_run_records")),
    )
    op.create_table(
        "past_groups",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("team", sa.String(length=64), nullable=False),
        sa.Column("run_id", sa.String(length=200), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("rubric_id", sa.String(length=40), nullable=False),
        sa.Column("judge", sa.Text(), nullable=True),
        sa.Column("figures", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["rubric_id"], ["rubrics.id"], name=op.f("fk_past_groups_rubric_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_past_groups")),
    )
    op.create_index(op.f("ix_past_groups_team_run_id"), "past_groups", ["team", "run_id"])
    op.create_index(op.f("ix_past_groups_rubric_id"), "past_groups", ["rubric_id"])
    op.create_table(
        "second_verdicts",
        sa.Column("assignment_id", sa.String(length=40), nullable=False),
        sa.Column("rollout_id", sa.String(length=200), nullable=False),
        sa.Column("judge", sa.Text(), nullable=False),
        sa.Column("team", sa.String(length=64), nullable=False),
        sa.Column("run_id", sa.String(length=200), nullable=True),
        sa.Column("step", sa.Integer(), nullable=True),
        sa.Column("first_judge", sa.Text(), nullable=True),
        sa.Column("first_reward", sa.Float(), nullable=True),
        sa.Column("first_verdicts", sa.Text(), nullable=False),
        sa.Column("reward", sa.Float(), nullable=True),
        sa.Column("verdicts", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint(
            "assignment_id", "rollout_id", "judge", name=op.f("pk_second_verdicts")
        ),
    )
    op.create_index(op.f("ix_second_verdicts_team_run_id"), "second_verdicts", ["team", "run_id"])
    op.create_index(
        op.f("ix_second_verdicts_team_created_at"), "second_verdicts", ["team", "created_at"]
    )
    op.create_table(
        "repeat_verdicts",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("team", sa.String(length=64), nullable=False),
        sa.Column("run_id", sa.String(length=200), nullable=True),
        sa.Column("criterion_key", sa.String(length=64), nullable=False),
        sa.Column("verdict_key", sa.String(length=64), nullable=False),
        sa.Column("judge", sa.Text(), nullable=False),
        sa.Column("met_before", sa.Boolean(), nullable=True),
        sa.Column("met_now", sa.Boolean(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_repeat_verdicts")),
    )
    op.create_index(op.f("ix_repeat_verdicts_team_run_id"), "repeat_verdicts", ["team", "run_id"])
    op.create_index(
        op.f("ix_repeat_verdicts_team_created_at"), "repeat_verdicts", ["team", "created_at"]
    )
    op.create_index(op.f("ix_judge_calls_team_run_id"), "judge_calls", ["team", "run_id"])
    op.execute(FIGURES_POSTGRESQL if _is_postgresql() else FIGURES_SQLITE)
    op.execute(RUNS)
    erased = ERASED_POSTGRESQL if _is_postgresql() else ERASED_SQLITE
    for table in REFUSING:
        op.execute(erased.format(table=table))
    if _is_postgresql():
        for table in TABLES:
            op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
            op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
            op.execute(
                f"CREATE POLICY writing ON {table} USING ({EVERYONE} OR team = ANY ({SEEN}))"
            )


def downgrade() -> None:
    op.drop_index(op.f("ix_judge_calls_team_run_id"), "judge_calls")
    for table in reversed(TABLES):
        op.drop_table(table)
    op.drop_column("assignments", "scored_at")
    op.drop_column("assignments", "figures")
    op.drop_column("assignments", "judge")
    op.drop_column("rollouts", "words")
    op.drop_column("rollouts", "verdicts")


def _is_postgresql() -> bool:
    return op.get_bind().dialect.name == "postgresql"
