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
    _forget("may_not_apply")


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


def _forget(field: str) -> None:
    """Remove a field of criteria: the older version reads no rubric that has it."""
    rubrics = sa.table("rubrics", sa.column("id"), sa.column("criteria", sa.JSON))
    connection = op.get_bind()
    for key, criteria in connection.execute(sa.select(rubrics.c.id, rubrics.c.criteria)).all():
        if any(field in criterion for criterion in criteria):
            known = [{n: v for n, v in each.items() if n != field} for each in criteria]
            connection.execute(sa.update(rubrics).where(rubrics.c.id == key).values(criteria=known))
