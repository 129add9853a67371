"""Replays: stored rollouts scored again"""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

EVERYONE = "(SELECT current_setting('markscheme.teams', true)) = '*'"
SEEN = "(SELECT string_to_array(current_setting('markscheme.teams', true), ','))::text[]"
TABLES = ("replays", "replay_groups")
ERASED_POSTGRESQL = """CREATE TRIGGER refuse_erased AFTER INSERT ON {table}
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION refuse_erased()"""
ERASED_SQLITE = """CREATE TRIGGER refuse_erased_{table} BEFORE INSERT ON {table}
    WHEN (SELECT erased_at FROM teams WHERE name = new.team) IS NOT NULL
    BEGIN SELECT RAISE(ABORT, 'this team was erased'); END"""


def upgrade() -> None:
    op.create_table(
        "replays",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("team", sa.String(length=64), nullable=False),
        sa.Column("run_id", sa.String(length=200), nullable=False),
        sa.Column("request", sa.JSON(), nullable=False),
        sa.Column("judge", sa.Text(), nullable=True),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("due_at", sa.Double(), nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_replays")),
    )
    op.create_index(op.f("ix_replays_team_run_id"), "replays", ["team", "run_id"])
    op.create_index(op.f("ix_replays_state"), "replays", ["state"])
    op.create_index(op.f("ix_replays_created_at"), "replays", ["created_at"])
    op.create_table(
        "replay_groups",
        sa.Column("replay_id", sa.String(length=40), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("team", sa.String(length=64), nullable=False),
        sa.Column("assignment_id", sa.String(length=40), nullable=False),
        sa.Column("result", sa.Text(), nullable=True),
        sa.Column("cached_verdicts", sa.Integer(), nullable=True),
        sa.Column("saved_usd", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(
            ["replay_id"], ["replays.id"], name=op.f("fk_replay_groups_replay_id")
        ),
        sa.PrimaryKeyConstraint("replay_id", "number", name=op.f("pk_replay_groups")),
    )
    op.add_column("judge_calls", sa.Column("replay_id", sa.String(length=40), nullable=True))
    op.create_index(op.f("ix_judge_calls_replay_id"), "judge_calls", ["replay_id"])
    erased = ERASED_POSTGRESQL if _is_postgresql() else ERASED_SQLITE
    for table in TABLES:
        op.execute(erased.format(table=table))
    if _is_postgresql():
        for table in TABLES:
            op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
            op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
            op.execute(
                f"CREATE POLICY writing ON {table} USING ({EVERYONE} OR team = ANY ({SEEN}))"
            )


def downgrade() -> None:
    op.drop_index(op.f("ix_judge_calls_replay_id"), "judge_calls")
    op.drop_column("judge_calls", "replay_id")
    for table in reversed(TABLES):
        op.drop_table(table)


def _is_postgresql() -> bool:
    return op.get_bind().dialect.name == "postgresql"
