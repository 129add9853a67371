"""Money that adds up exactly, and what counts against budgets kept with each call"""

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

MONEY = (
    ("judge_calls", "cost_usd", True),
    ("past_usage", "cost_usd", False),
    ("budgets", "hard_usd", True),
    ("budgets", "soft_usd", True),
    ("budgets", "spent_usd", False),
    ("holds", "usd", False),
)
"""Table, column, and whether it may be empty."""


def upgrade() -> None:
    for table, column, nullable in MONEY:
        if _is_postgresql():
            op.execute(f"ALTER TABLE {table} ALTER {column} TYPE numeric(28, 9)")
        else:
            _replace(
                table,
                column,
                sa.BigInteger(),
                nullable,
                lambda old: sa.cast(sa.func.round(old * 1e9), sa.BigInteger),
            )
    money = sa.Numeric(28, 9) if _is_postgresql() else sa.BigInteger()
    op.add_column("judge_calls", sa.Column("unpriced_calls", sa.Integer(), nullable=True))
    op.add_column("judge_calls", sa.Column("settled_usd", money, nullable=True))
    op.add_column("past_usage", sa.Column("settled_usd", money, nullable=True))
    op.add_column("holds", sa.Column("spent_usd", money, server_default="0", nullable=False))


def downgrade() -> None:
    # Where any call's cost is not known, the older version knows none of the row's.
    op.execute("UPDATE judge_calls SET cost_usd = NULL WHERE unpriced_calls > 0")
    for table, column in (
        ("holds", "spent_usd"),
        ("past_usage", "settled_usd"),
        ("judge_calls", "settled_usd"),
        ("judge_calls", "unpriced_calls"),
    ):
        op.drop_column(table, column)
    for table, column, nullable in MONEY:
        if _is_postgresql():
            op.execute(f"ALTER TABLE {table} ALTER {column} TYPE double precision")
        else:
            _replace(table, column, sa.Double(), nullable, lambda old: old / 1e9)


def _is_postgresql() -> bool:
    return op.get_bind().dialect.name == "postgresql"


def _replace(
    table: str,
    column: str,
    kind: sa.types.TypeEngine[Any],
    nullable: bool,
    convert: Callable[[sa.Column[float]], sa.ColumnElement[Any]],
) -> None:
    """SQLite cannot change a column's type, and a table built anew would lose its triggers."""
    default, old, new = (
        None if nullable else "0",
        sa.Column(column, sa.Double),
        sa.Column(f"new_{column}", kind),
    )
    op.add_column(table, sa.Column(new.name, kind, server_default=default, nullable=nullable))
    op.execute(sa.update(sa.table(table, old, new)).values({new: convert(old)}))
    op.drop_column(table, column)
    op.execute(f"ALTER TABLE {table} RENAME COLUMN {new.name} TO {column}")
