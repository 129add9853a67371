"""Groups whose rollouts arrive one request each"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

EVERYONE = "(SELECT current_setting('markscheme.teams', true)) = '*'"
SEEN = "(SELECT string_to_array(current_setting('markscheme.teams', true), ','))::text[]"


def _through(*references: tuple[str, str]) -> str:
    """Whether the transaction sees a row that refers to this one, given as (table, condition)."""
    return " OR ".join(
        [EVERYONE, *(f"EXISTS (SELECT FROM {table} AS t WHERE {on})" for table, on in references)]
    )


POLICIES = {
    "gathered_groups": f"{EVERYONE} OR team = ANY ({SEEN})",
    "gathered_rollouts": _through(("gathered_groups", "t.id = group_id")),
}
OLD_TEXTS = tuple((table, "t.text_key = key") for table in ("rollouts", "teacher_responses"))
TEXTS = (*OLD_TEXTS, ("gathered_rollouts", "t.text_key = key"))
ERASED_POSTGRESQL = """CREATE TRIGGER refuse_erased AFTER INSERT ON gathered_groups
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION refuse_erased()"""
ERASED_SQLITE = """CREATE TRIGGER refuse_erased_gathered_groups BEFORE INSERT ON gathered_groups
    WHEN (SELECT erased_at FROM teams WHERE name = new.team) IS NOT NULL
    BEGIN SELECT RAISE(ABORT, 'this team was erased'); END"""


def upgrade() -> None:
    op.create_table(
        "gathered_groups",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("team", sa.String(length=64), nullable=False),
        sa.Column("terms", sa.String(length=64), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("received", sa.Integer(), nullable=False),
        sa.Column("closes_at", sa.Double(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("scored", sa.Integer(), nullable=False),
        sa.Column("score", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_gathered_groups")),
    )
    for column in ("team", "created_at"):
        op.create_index(op.f(f"ix_gathered_groups_{column}"), "gathered_groups", [column])
    op.create_table(
        "gathered_rollouts",
        sa.Column("group_id", sa.String(length=64), nullable=False),
        sa.Column("rollout_id", sa.String(length=200), nullable=False),
        sa.Column("text_key", sa.String(length=64), nullable=False),
        sa.Column("truncated", sa.Boolean(), nullable=False),
        sa.Column("late", sa.Boolean(), nullable=False),
        sa.Column("score", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["group_id"], ["gathered_groups.id"], name=op.f("fk_gathered_rollouts_group_id")
        ),
        sa.ForeignKeyConstraint(
            ["text_key"], ["texts.key"], name=op.f("fk_gathered_rollouts_text_key")
        ),
        sa.PrimaryKeyConstraint("group_id", "rollout_id", name=op.f("pk_gathered_rollouts")),
    )
    op.create_index(op.f("ix_gathered_rollouts_text_key"), "gathered_rollouts", ["text_key"])
    if not _is_postgresql():
        op.execute(ERASED_SQLITE)
        return
    op.execute(ERASED_POSTGRESQL)
    for table, condition in POLICIES.items():
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
        op.execute(f"CREATE POLICY writing ON {table} USING ({condition})")
    op.execute(f"ALTER POLICY reading ON texts USING ({_through(*TEXTS)})")


def downgrade() -> None:
    if _is_postgresql():
        op.execute(f"ALTER POLICY reading ON texts USING ({_through(*OLD_TEXTS)})")
    op.drop_table("gathered_rollouts")
    op.drop_table("gathered_groups")


def _is_postgresql() -> bool:
    return op.get_bind().dialect.name == "postgresql"
