"""Figures of runs added up by blocks of steps, and an index of the organisation's rubrics"""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

EVERYONE = "(SELECT current_setting('markscheme.teams', true)) = '*'"
SEEN = "(SELECT string_to_array(current_setting('markscheme.teams', true), ','))::text[]"
ERASED_POSTGRESQL = """CREATE TRIGGER refuse_erased AFTER INSERT ON run_blocks
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION refuse_erased()"""
ERASED_SQLITE = """CREATE TRIGGER refuse_erased_run_blocks BEFORE INSERT ON run_blocks
    WHEN (SELECT erased_at FROM teams WHERE name = new.team) IS NOT NULL
    BEGIN SELECT RAISE(ABORT, 'this team was erased'); END"""
ORGANISATION = sa.text("visibility = 'organisation'")


def upgrade() -> None:
    op.create_table(
        "run_blocks",
        sa.Column("team", sa.String(length=64), nullable=False),
        sa.Column("run_id", sa.String(length=200), nullable=False),
        sa.Column("first_step", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("groups", sa.Integer(), nullable=False),
        sa.Column("pruned", sa.Integer(), nullable=False),
        sa.Column("scored_at", sa.Double(), nullable=True),
        sa.Column("figures", sa.LargeBinary(), nullable=False),
        sa.Column("details", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("team", "run_id", "first_step", name=op.f("pk_run_blocks")),
    )
    op.create_index(
        "ix_rubrics_organisation",
        "rubrics",
        ["created_at", "id"],
        postgresql_where=ORGANISATION,
        sqlite_where=ORGANISATION,
    )
    op.execute(ERASED_POSTGRESQL if _is_postgresql() else ERASED_SQLITE)
    if _is_postgresql():
        op.execute("ALTER TABLE run_blocks ENABLE ROW LEVEL SECURITY")
        op.execute("ALTER TABLE run_blocks FORCE ROW LEVEL SECURITY")
        op.execute(f"CREATE POLICY writing ON run_blocks USING ({EVERYONE} OR team = ANY ({SEEN}))")


def downgrade() -> None:
    op.drop_index("ix_rubrics_organisation", "rubrics")
    op.drop_table("run_blocks")


def _is_postgresql() -> bool:
    return op.get_bind().dialect.name == "postgresql"
