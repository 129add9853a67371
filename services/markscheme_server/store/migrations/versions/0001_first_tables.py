"""First tables"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "judge_calls",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("team", sa.String(length=64), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("judge", sa.Text(), nullable=False),
        sa.Column("criteria", sa.JSON(), nullable=False),
        sa.Column("calls", sa.Integer(), nullable=False),
        sa.Column("prompt_tokens", sa.Integer(), nullable=False),
        sa.Column("completion_tokens", sa.Integer(), nullable=False),
        sa.Column("failure", sa.String(length=16), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_judge_calls")),
    )
    op.create_table(
        "prompts",
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("messages", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_prompts")),
    )
    op.create_table(
        "texts",
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_texts")),
    )
    op.create_table(
        "rubrics",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("team", sa.String(length=64), nullable=False),
        sa.Column("prompt_key", sa.String(length=64), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("parent_id", sa.String(length=40), nullable=True),
        sa.Column("content_hash", sa.String(length=64), nullable=False),
        sa.Column("criteria", sa.JSON(), nullable=False),
        sa.Column("origin", sa.String(length=16), nullable=False),
        sa.Column("tags", sa.JSON(), nullable=False),
        sa.Column("provenance", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["parent_id"], ["rubrics.id"], name=op.f("fk_rubrics_parent_id")),
        sa.ForeignKeyConstraint(
            ["prompt_key"], ["prompts.key"], name=op.f("fk_rubrics_prompt_key")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rubrics")),
        sa.UniqueConstraint(
            "team", "prompt_key", "version", name=op.f("uq_rubrics_team_prompt_key_version")
        ),
    )
    with op.batch_alter_table("rubrics", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_rubrics_team_created_at_id"), ["team", "created_at", "id"], unique=False
        )

    op.create_table(
        "teacher_responses",
        sa.Column("team", sa.String(length=64), nullable=False),
        sa.Column("prompt_key", sa.String(length=64), nullable=False),
        sa.Column("text_key", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=200), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["prompt_key"], ["prompts.key"], name=op.f("fk_teacher_responses_prompt_key")
        ),
        sa.ForeignKeyConstraint(
            ["text_key"], ["texts.key"], name=op.f("fk_teacher_responses_text_key")
        ),
        sa.PrimaryKeyConstraint(
            "team", "prompt_key", "text_key", name=op.f("pk_teacher_responses")
        ),
    )
    op.create_table(
        "verdicts",
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("team", sa.String(length=64), nullable=False),
        sa.Column("prompt_key", sa.String(length=64), nullable=False),
        sa.Column("criterion_key", sa.String(length=64), nullable=False),
        sa.Column("response_key", sa.String(length=64), nullable=False),
        sa.Column("judge", sa.Text(), nullable=False),
        sa.Column("met", sa.Boolean(), nullable=False),
        sa.Column("evidence", sa.Text(), nullable=True),
        sa.Column("call_id", sa.String(length=40), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["call_id"], ["judge_calls.id"], name=op.f("fk_verdicts_call_id")),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_verdicts")),
    )
    op.create_table(
        "assignments",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("team", sa.String(length=64), nullable=False),
        sa.Column("run_id", sa.String(length=200), nullable=True),
        sa.Column("step", sa.Integer(), nullable=True),
        sa.Column("group_id", sa.String(length=200), nullable=False),
        sa.Column("prompt_key", sa.String(length=64), nullable=False),
        sa.Column("rubric_id", sa.String(length=40), nullable=False),
        sa.Column("origin", sa.String(length=16), nullable=False),
        sa.Column("reuse", sa.String(length=16), nullable=False),
        sa.Column("verify", sa.String(length=16), nullable=False),
        sa.Column("reward_mean", sa.Float(), nullable=True),
        sa.Column("reward_spread", sa.Float(), nullable=True),
        sa.Column("unscored", sa.Integer(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["prompt_key"], ["prompts.key"], name=op.f("fk_assignments_prompt_key")
        ),
        sa.ForeignKeyConstraint(
            ["rubric_id"], ["rubrics.id"], name=op.f("fk_assignments_rubric_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_assignments")),
        sa.UniqueConstraint(
            "team",
            "run_id",
            "step",
            "group_id",
            "prompt_key",
            name=op.f("uq_assignments_team_run_id_step_group_id_prompt_key"),
        ),
    )
    with op.batch_alter_table("assignments", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_assignments_team_rubric_id_run_id"),
            ["team", "rubric_id", "run_id"],
            unique=False,
        )

    op.create_table(
        "inductions",
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("rubric_id", sa.String(length=40), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["rubric_id"], ["rubrics.id"], name=op.f("fk_inductions_rubric_id")
        ),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_inductions")),
    )
    op.create_table(
        "rollouts",
        sa.Column("assignment_id", sa.String(length=40), nullable=False),
        sa.Column("rollout_id", sa.String(length=200), nullable=False),
        sa.Column("text_key", sa.String(length=64), nullable=False),
        sa.Column("truncated", sa.Boolean(), nullable=False),
        sa.Column("reward", sa.Float(), nullable=True),
        sa.Column("reason", sa.String(length=16), nullable=True),
        sa.ForeignKeyConstraint(
            ["assignment_id"], ["assignments.id"], name=op.f("fk_rollouts_assignment_id")
        ),
        sa.ForeignKeyConstraint(["text_key"], ["texts.key"], name=op.f("fk_rollouts_text_key")),
        sa.PrimaryKeyConstraint("assignment_id", "rollout_id", name=op.f("pk_rollouts")),
    )


def downgrade() -> None:
    op.drop_table("rollouts")
    op.drop_table("inductions")
    with op.batch_alter_table("assignments", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_assignments_team_rubric_id_run_id"))

    op.drop_table("assignments")
    op.drop_table("verdicts")
    op.drop_table("teacher_responses")
    with op.batch_alter_table("rubrics", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_rubrics_team_created_at_id"))

    op.drop_table("rubrics")
    op.drop_table("texts")
    op.drop_table("prompts")
    op.drop_table("judge_calls")
