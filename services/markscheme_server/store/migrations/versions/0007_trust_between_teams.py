"""Whose rubrics a team reuses, since when others see a rubric, and which groups can have spread"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

# Rows of other teams: the migration sees them all (EVERYONE), as does the policy of each table.
BACKFILL = (
    "UPDATE shares SET created_at = (SELECT created_at FROM rubrics WHERE id = rubric_id)",
    "UPDATE assignments SET distinct_rollouts = (SELECT count(DISTINCT text_key) FROM rollouts "
    "WHERE assignment_id = assignments.id)",
    "UPDATE assignments SET reward_spread = NULL WHERE distinct_rollouts < 2",
    # An edited rubric was made by whoever edited it, not by what induced its parent.
    """UPDATE rubrics SET provenance = '{}' WHERE origin = 'forked' AND NOT EXISTS (
       SELECT 1 FROM rubrics AS source WHERE source.origin = 'induced' AND source.prompt_key = rubrics.prompt_key
       AND source.content_hash = rubrics.content_hash)""",
)
REFUSE_POSTGRESQL = (
    "DROP TRIGGER refuse_erased ON shares",
    """CREATE FUNCTION refuse_erased_owner() RETURNS trigger LANGUAGE plpgsql AS
       $$BEGIN IF EXISTS (SELECT FROM added AS a JOIN teams AS t ON t.name = a.owner WHERE t.erased_at IS NOT NULL) THEN
       RAISE EXCEPTION 'this team was erased' USING ERRCODE = 'check_violation'; END IF; RETURN NULL; END$$""",
    """CREATE TRIGGER refuse_erased AFTER INSERT ON shares REFERENCING NEW TABLE AS added
       FOR EACH STATEMENT EXECUTE FUNCTION refuse_erased_owner()""",
)
REFUSE_POSTGRESQL_BACK = (
    "DROP TRIGGER refuse_erased ON shares",
    "DROP FUNCTION refuse_erased_owner",
    """CREATE TRIGGER refuse_erased AFTER INSERT ON shares REFERENCING NEW TABLE AS added
       FOR EACH STATEMENT EXECUTE FUNCTION refuse_erased()""",
)
# SQLite makes the table anew, and its triggers go with the old one.
REFUSE_SQLITE = """CREATE TRIGGER refuse_erased_shares BEFORE INSERT ON shares
    WHEN (SELECT erased_at FROM teams WHERE name = new.{column}) IS NOT NULL
    BEGIN SELECT RAISE(ABORT, 'this team was erased'); END"""


def upgrade() -> None:
    op.add_column("teams", sa.Column("reuse_scope", sa.String(length=16), nullable=True))
    op.add_column("rubrics", sa.Column("offered_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column(
        "assignments",
        sa.Column("distinct_rollouts", sa.Integer(), server_default="0", nullable=False),
    )
    op.create_index(
        op.f("ix_assignments_team_run_id_created_at"),
        "assignments",
        ["team", "run_id", "created_at"],
    )
    with op.batch_alter_table("shares", schema=None) as batch_op:
        batch_op.drop_constraint("fk_shares_team", type_="foreignkey")
        batch_op.add_column(
            sa.Column(
                "created_at",
                sa.DateTime(timezone=True),
                server_default=sa.func.now(),
                nullable=False,
            )
        )
    for statement in (
        REFUSE_POSTGRESQL if _is_postgresql() else (REFUSE_SQLITE.format(column="owner"),)
    ):
        op.execute(statement)
    for statement in BACKFILL:
        op.execute(statement)


def downgrade() -> None:
    op.execute("DELETE FROM shares WHERE team NOT IN (SELECT name FROM teams)")
    with op.batch_alter_table("shares", schema=None) as batch_op:
        batch_op.drop_column("created_at")
        batch_op.create_foreign_key("fk_shares_team", "teams", ["team"], ["name"])
    for statement in (
        REFUSE_POSTGRESQL_BACK if _is_postgresql() else (REFUSE_SQLITE.format(column="team"),)
    ):
        op.execute(statement)
    op.drop_index(op.f("ix_assignments_team_run_id_created_at"), "assignments")
    op.drop_column("assignments", "distinct_rollouts")
    op.drop_column("rubrics", "offered_at")
    op.drop_column("teams", "reuse_scope")


def _is_postgresql() -> bool:
    return op.get_bind().dialect.name == "postgresql"
