"""Open metadata of rubrics: what an imported row held beside the rubric"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("rubrics", sa.Column("metadata", sa.JSON(), server_default="{}", nullable=False))


def downgrade() -> None:
    op.drop_column("rubrics", "metadata")
    _forget("metadata")


def _forget(field: str) -> None:
    """Remove a field of criteria: the older version reads no rubric that has it."""
    rubrics = sa.table("rubrics", sa.column("id"), sa.column("criteria", sa.JSON))
    connection = op.get_bind()
    for key, criteria in connection.execute(sa.select(rubrics.c.id, rubrics.c.criteria)).all():
        if any(field in criterion for criterion in criteria):
            known = [{n: v for n, v in each.items() if n != field} for each in criteria]
            connection.execute(sa.update(rubrics).where(rubrics.c.id == key).values(criteria=known))
