"""Row-level security, the ledger with budgets, an audit trail, and the words of rubrics to search in"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

# The transaction's scope: teams joined by commas, '*' for all, '' for none; null where it was never
# set. In a subquery, so that PostgreSQL computes it once for a statement and not for each row.
SIGHT = "(SELECT current_setting('markscheme.teams', true))"
EVERYONE = f"{SIGHT} = '*'"
SEEN = "(SELECT string_to_array(current_setting('markscheme.teams', true), ','))::text[]"
OWN = f"{EVERYONE} OR team = ANY ({SEEN})"


def _through(*references: tuple[str, str]) -> str:
    """Whether the transaction sees a row that refers to this one, given as (table, condition)."""
    return " OR ".join(
        [EVERYONE, *(f"EXISTS (SELECT FROM {table} AS t WHERE {on})" for table, on in references)]
    )


# Reading, and writing where that is not the same.
POLICIES = {
    "rubrics": (
        # Without a team a transaction does not see the organisation's rubrics either.
        f"{OWN} OR ({SIGHT} <> '' AND visibility = 'organisation') OR "
        + _through(
            (
                "shares",
                f"t.rubric_id = rubrics.id AND t.owner = rubrics.team AND t.team = ANY ({SEEN})",
            )
        ),
        OWN,
    ),
    "shares": (f"{OWN} OR owner = ANY ({SEEN})", f"{EVERYONE} OR owner = ANY ({SEEN})"),
    "rollouts": (_through(("assignments", "t.id = assignment_id")), None),
    "inductions": (_through(("rubrics", f"t.id = rubric_id AND t.team = ANY ({SEEN})")), None),
    "prompts": (
        _through(
            *(
                (table, "t.prompt_key = key")
                for table in ("rubrics", "assignments", "teacher_responses")
            )
        ),
        EVERYONE,
    ),
    "texts": (
        _through(*((table, "t.text_key = key") for table in ("rollouts", "teacher_responses"))),
        EVERYONE,
    ),
    **dict.fromkeys(
        (
            "teacher_responses",
            "judge_calls",
            "verdicts",
            "assignments",
            "idempotency_keys",
            "past_usage",
            "budgets",
            "holds",
            "audit_entries",
        ),
        (OWN, None),
    ),
}
ADDRESSED = ("prompts", "texts")
"""Named by the hash of what they hold: whoever brings one may add it, and sees it by what refers to it. So whoever has
such a hash has what it is of; the service works it out from what a caller sent and takes none from a caller."""
OF_TEAMS = (
    "api_keys",
    "teacher_responses",
    "rubrics",
    "shares",
    "judge_calls",
    "verdicts",
    "assignments",
    "idempotency_keys",
    "budgets",
    "holds",
)
"""Take no rows of a team that was erased, whoever brings them: a request that ends late leaves nothing behind. What
pruning adds up is not among them: that goes after what it was added up from."""


def upgrade() -> None:
    with op.batch_alter_table("teams", schema=None) as batch_op:
        batch_op.add_column(sa.Column("rpm", sa.Integer(), nullable=True))
        batch_op.add_column(sa.Column("erased_at", sa.DateTime(timezone=True), nullable=True))
    with op.batch_alter_table("rubrics", schema=None) as batch_op:
        batch_op.add_column(sa.Column("cost_usd", sa.Double(), nullable=True))
        batch_op.add_column(
            sa.Column(
                "words",
                sa.Text().with_variant(postgresql.TSVECTOR(), "postgresql"),
                server_default="",
                nullable=False,
            )
        )
        batch_op.create_index(batch_op.f("ix_rubrics_parent_id"), ["parent_id"], unique=False)
    with op.batch_alter_table("judge_calls", schema=None) as batch_op:
        batch_op.add_column(sa.Column("run_id", sa.String(length=200), nullable=True))
        batch_op.add_column(sa.Column("rubric_id", sa.String(length=40), nullable=True))
        batch_op.add_column(
            sa.Column("cached_tokens", sa.Integer(), server_default="0", nullable=False)
        )
        batch_op.add_column(sa.Column("cost_usd", sa.Double(), nullable=True))
        batch_op.create_index(
            batch_op.f("ix_judge_calls_team_created_at"), ["team", "created_at"], unique=False
        )
    with op.batch_alter_table("verdicts", schema=None) as batch_op:
        batch_op.add_column(sa.Column("cost_usd", sa.Double(), nullable=True))
        batch_op.create_index(
            batch_op.f("ix_verdicts_prompt_key_criterion_key"),
            ["prompt_key", "criterion_key"],
            unique=False,
        )
    with op.batch_alter_table("assignments", schema=None) as batch_op:
        batch_op.add_column(sa.Column("cached_verdicts", sa.Integer(), nullable=True))
        batch_op.add_column(sa.Column("saved_usd", sa.Double(), nullable=True))
        batch_op.create_index(batch_op.f("ix_assignments_rubric_id"), ["rubric_id"], unique=False)
    op.create_table(
        "past_usage",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("team", sa.String(length=64), nullable=False),
        sa.Column("day", sa.String(length=10), nullable=False),
        sa.Column("run_id", sa.String(length=200), nullable=True),
        sa.Column("rubric_id", sa.String(length=40), nullable=True),
        sa.Column("role", sa.String(length=16), nullable=True),
        sa.Column("judge", sa.Text(), nullable=True),
        *(
            sa.Column(name, sa.BigInteger(), nullable=False)
            for name in (
                "calls",
                "failed_calls",
                "unpriced_calls",
                "prompt_tokens",
                "cached_tokens",
                "completion_tokens",
                "cached_verdicts",
            )
        ),
        sa.Column("cost_usd", sa.Double(), nullable=False),
        sa.Column("saved_usd", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_past_usage")),
    )
    op.create_index(op.f("ix_past_usage_team_day"), "past_usage", ["team", "day"], unique=False)
    op.create_table(
        "budgets",
        sa.Column("team", sa.String(length=64), nullable=False),
        sa.Column("run_id", sa.String(length=200), nullable=False),
        sa.Column("hard_usd", sa.Double(), nullable=True),
        sa.Column("soft_usd", sa.Double(), nullable=True),
        sa.Column("period", sa.String(length=8), nullable=False),
        sa.Column("since", sa.Double(), nullable=False),
        sa.Column("spent_usd", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["team"], ["teams.name"], name=op.f("fk_budgets_team")),
        sa.PrimaryKeyConstraint("team", "run_id", name=op.f("pk_budgets")),
    )
    op.create_table(
        "holds",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("team", sa.String(length=64), nullable=False),
        sa.Column("run_id", sa.String(length=200), nullable=False),
        sa.Column("owner", sa.String(length=40), nullable=False),
        sa.Column("usd", sa.Double(), nullable=False),
        sa.Column("settled", sa.Boolean(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_holds")),
    )
    op.create_index(op.f("ix_holds_team"), "holds", ["team"], unique=False)
    op.create_table(
        "audit_entries",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("team", sa.String(length=64), nullable=False),
        sa.Column("key", sa.String(length=16), nullable=True),
        sa.Column("action", sa.String(length=40), nullable=False),
        sa.Column("subject", sa.String(length=240), nullable=False),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_entries")),
    )
    op.create_index(op.f("ix_audit_entries_team_id"), "audit_entries", ["team", "id"], unique=False)
    op.create_index(
        op.f("ix_audit_entries_subject_id"), "audit_entries", ["subject", "id"], unique=False
    )
    _fill_words()
    for statement in POSTGRESQL if _is_postgresql() else SQLITE:
        op.execute(statement)
    for table in OF_TEAMS:
        op.execute((ERASED_POSTGRESQL if _is_postgresql() else ERASED_SQLITE).format(table=table))
    if _is_postgresql():
        for table, (reads, writes) in POLICIES.items():
            _secure(table, reads, writes)


def downgrade() -> None:
    for table in OF_TEAMS:
        op.execute(
            f"DROP TRIGGER refuse_erased ON {table}"
            if _is_postgresql()
            else f"DROP TRIGGER refuse_erased_{table}"
        )
    for statement in POSTGRESQL_BACK if _is_postgresql() else SQLITE_BACK:
        op.execute(statement)
    if _is_postgresql():
        for table in POLICIES:
            for policy in ("reading", "adding", "writing"):
                op.execute(f"DROP POLICY IF EXISTS {policy} ON {table}")
            op.execute(f"ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY")
            op.execute(f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY")
    for table in ("audit_entries", "holds", "budgets", "past_usage"):
        op.drop_table(table)
    for table, columns, index in (
        ("assignments", ("saved_usd", "cached_verdicts"), "ix_assignments_rubric_id"),
        ("verdicts", ("cost_usd",), "ix_verdicts_prompt_key_criterion_key"),
        (
            "judge_calls",
            ("cost_usd", "cached_tokens", "rubric_id", "run_id"),
            "ix_judge_calls_team_created_at",
        ),
        ("rubrics", ("words", "cost_usd"), "ix_rubrics_parent_id"),
        ("teams", ("erased_at", "rpm"), None),
    ):
        with op.batch_alter_table(table, schema=None) as batch_op:
            if index:
                batch_op.drop_index(index)
            for column in columns:
                batch_op.drop_column(column)


def _is_postgresql() -> bool:
    return op.get_bind().dialect.name == "postgresql"


def _secure(table: str, reads: str, writes: str | None) -> None:
    """Let rows be read and written by these conditions only, also by the tables' owner."""
    op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
    if writes is None:
        op.execute(f"CREATE POLICY writing ON {table} USING ({reads})")
        return
    op.execute(f"CREATE POLICY reading ON {table} FOR SELECT USING ({reads})")
    if table in ADDRESSED:
        op.execute(f"CREATE POLICY adding ON {table} FOR INSERT WITH CHECK (true)")
    op.execute(f"CREATE POLICY writing ON {table} USING ({writes})")


def _fill_words() -> None:
    """What a rubric is found by: the beginning of its prompt's texts and its criteria's."""
    connection = op.get_bind()
    rubrics = sa.table(
        "rubrics",
        sa.column("id"),
        sa.column("prompt_key"),
        sa.column("criteria", sa.JSON),
        sa.column("words"),
    )
    prompts = sa.table("prompts", sa.column("key"), sa.column("messages", sa.JSON))
    found = connection.execute(
        sa.select(rubrics.c.id, rubrics.c.criteria, prompts.c.messages).join(
            prompts, prompts.c.key == rubrics.c.prompt_key
        )
    ).all()
    for rubric_id, criteria, messages in found:
        words = "\n".join(
            [each["text"] for each in criteria] + [message["content"] for message in messages]
        )[:50_000]
        connection.execute(
            sa.update(rubrics)
            .where(rubrics.c.id == rubric_id)
            .values(
                words=sa.func.to_tsvector(sa.text("'english'"), words)
                if _is_postgresql()
                else words
            )
        )


POSTGRESQL = (
    """CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS
       $$BEGIN RAISE EXCEPTION '% is append-only', TG_TABLE_NAME; END$$""",
    """CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_entries
       EXECUTE FUNCTION refuse_change()""",
    """CREATE FUNCTION refuse_erased() RETURNS trigger LANGUAGE plpgsql AS
       $$BEGIN IF EXISTS (SELECT FROM added AS a JOIN teams AS t ON t.name = a.team WHERE t.erased_at IS NOT NULL) THEN
       RAISE EXCEPTION 'this team was erased' USING ERRCODE = 'check_violation'; END IF; RETURN NULL; END$$""",
)
POSTGRESQL_BACK = (
    "DROP TRIGGER append_only ON audit_entries",
    "DROP FUNCTION refuse_change",
    "DROP FUNCTION refuse_erased",
)
# Once for all rows of a statement, because they come in batches.
ERASED_POSTGRESQL = """CREATE TRIGGER refuse_erased AFTER INSERT ON {table} REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_erased()"""
ERASED_SQLITE = """CREATE TRIGGER refuse_erased_{table} BEFORE INSERT ON {table}
    WHEN (SELECT erased_at FROM teams WHERE name = new.team) IS NOT NULL
    BEGIN SELECT RAISE(ABORT, 'this team was erased'); END"""
# The index is a table of its own: rows of "rubrics" have no number that would stay the same.
SQLITE = (
    "CREATE VIRTUAL TABLE rubric_words USING fts5(rubric_id UNINDEXED, words, tokenize = 'porter unicode61')",
    "INSERT INTO rubric_words (rubric_id, words) SELECT id, words FROM rubrics",
    """CREATE TRIGGER rubric_words_added AFTER INSERT ON rubrics
       BEGIN INSERT INTO rubric_words (rubric_id, words) VALUES (new.id, new.words); END""",
    """CREATE TRIGGER rubric_words_changed AFTER UPDATE OF words ON rubrics
       BEGIN UPDATE rubric_words SET words = new.words WHERE rubric_id = new.id; END""",
    """CREATE TRIGGER rubric_words_removed AFTER DELETE ON rubrics
       BEGIN DELETE FROM rubric_words WHERE rubric_id = old.id; END""",
    *(
        f"""CREATE TRIGGER append_only_{change} BEFORE {change} ON audit_entries
          BEGIN SELECT RAISE(ABORT, 'audit_entries is append-only'); END"""
        for change in ("update", "delete")
    ),
)
SQLITE_BACK = (
    "DROP TRIGGER rubric_words_added",
    "DROP TRIGGER rubric_words_changed",
    "DROP TRIGGER rubric_words_removed",
    "DROP TABLE rubric_words",
    "DROP TRIGGER append_only_update",
    "DROP TRIGGER append_only_delete",
)
