"""The tables. Alembic's revisions create them; a test compares the two.

Content-addressed rows (prompts, texts, verdicts, inductions) are written once and never change.
Columns that refer to another table have an index: without one, the database scans the whole table
for each row that pruning deletes.
"""

from datetime import datetime
from decimal import Decimal
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class Usd(sa.types.TypeDecorator[int]):
    """Money, in whole nano-dollars.

    PostgreSQL stores dollars with nine decimals; SQLite, which has no exact decimals, stores whole
    nano-dollars.
    """

    impl = sa.Numeric(28, 9)
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> sa.types.TypeEngine[Any]:
        """Return the column type of the dialect."""
        return dialect.type_descriptor(
            sa.BigInteger() if dialect.name == "sqlite" else sa.Numeric(28, 9)
        )

    def process_bind_param(self, value: int | None, dialect: sa.Dialect) -> int | Decimal | None:
        """Convert nano-dollars to a stored value."""
        return value if value is None or dialect.name == "sqlite" else Decimal(value).scaleb(-9)

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> int | None:
        """Convert a stored value to nano-dollars."""
        return value if value is None or dialect.name == "sqlite" else int(value.scaleb(9))


KEY = sa.String(64)
WORDS = sa.Text().with_variant(postgresql.TSVECTOR(), "postgresql")
"""Searchable text: a ``tsvector`` in PostgreSQL; in SQLite triggers copy it into an index."""


def _created() -> sa.Column[datetime]:
    return sa.Column("created_at", sa.DateTime(timezone=True), nullable=False)


teams = sa.Table(
    "teams",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("rpm", sa.Integer),
    sa.Column("reuse_scope", sa.String(16)),
    sa.Column("erased_at", sa.DateTime(timezone=True)),
    _created(),
)
"""``rpm``: requests per minute, where the team has a limit of its own. ``reuse_scope``: whose
rubrics its groups get, where that is set. An erased team keeps its row, so that its name is never
reused.
"""

api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("prefix", sa.String(16), primary_key=True),
    sa.Column("digest", KEY, nullable=False, unique=True),
    sa.Column("team", sa.String(64), sa.ForeignKey("teams.name"), nullable=False),
    sa.Column("scopes", sa.JSON, nullable=False),
    sa.Column("label", sa.String(200)),
    sa.Column("expires_at", sa.DateTime(timezone=True)),
    sa.Column("revoked_at", sa.DateTime(timezone=True)),
    sa.Column("last_used_at", sa.DateTime(timezone=True)),
    _created(),
    sa.Index(None, "team"),
)
"""Of a key only its `domain.keys.key_hash` is stored. Rows are never deleted."""

prompts = sa.Table(
    "prompts",
    metadata,
    sa.Column("key", KEY, primary_key=True),
    sa.Column("messages", sa.JSON, nullable=False),
    _created(),
)

texts = sa.Table(
    "texts",
    metadata,
    sa.Column("key", KEY, primary_key=True),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("messages", sa.Text),
    _created(),
)
"""Responses. ``messages``: the canonical JSON of a trajectory, whose ``text`` is what the assistant
said last; null for a response that is a text.
"""

teacher_responses = sa.Table(
    "teacher_responses",
    metadata,
    sa.Column("team", sa.String(64), primary_key=True),
    sa.Column("prompt_key", KEY, sa.ForeignKey("prompts.key"), primary_key=True),
    sa.Column("text_key", KEY, sa.ForeignKey("texts.key"), primary_key=True),
    sa.Column("model", sa.String(200)),
    _created(),
    sa.Index(None, "prompt_key"),
    sa.Index(None, "text_key"),
)

rubrics = sa.Table(
    "rubrics",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("team", sa.String(64), nullable=False),
    sa.Column("prompt_key", KEY, sa.ForeignKey("prompts.key"), nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("parent_id", sa.String(40), sa.ForeignKey("rubrics.id")),
    sa.Column("content_hash", KEY, nullable=False),
    sa.Column("criteria", sa.JSON, nullable=False),
    sa.Column("origin", sa.String(16), nullable=False),
    sa.Column("tags", sa.JSON, nullable=False),
    sa.Column("provenance", sa.JSON, nullable=False),
    sa.Column("visibility", sa.String(16), nullable=False, server_default="private"),
    sa.Column("retired_at", sa.DateTime(timezone=True)),
    sa.Column("offered_at", sa.DateTime(timezone=True)),
    sa.Column("cost_usd", sa.Double),
    sa.Column("words", WORDS, nullable=False, server_default=""),
    sa.Column("view", sa.String(16)),
    sa.Column("metadata", sa.JSON, nullable=False, server_default="{}"),
    _created(),
    sa.UniqueConstraint("team", "prompt_key", "version"),
    sa.Index(None, "team", "created_at", "id"),
    sa.Index(None, "prompt_key"),
    sa.Index(None, "parent_id"),
    sa.Index(
        "ix_rubrics_organisation",
        "created_at",
        "id",
        postgresql_where=sa.text("visibility = 'organisation'"),
        sqlite_where=sa.text("visibility = 'organisation'"),
    ),
)
"""``offered_at``: when it last became visible to the organisation or was unretired; null: never.
``metadata``: open JSON of the rubric; that of a criterion is in ``criteria``.
"""

rubric_words = sa.table("rubric_words", sa.column("rubric_id"), sa.column("words"))
"""SQLite's full-text index of `rubrics`; PostgreSQL has none."""

shares = sa.Table(
    "shares",
    metadata,
    sa.Column("rubric_id", sa.String(40), sa.ForeignKey("rubrics.id"), primary_key=True),
    sa.Column("team", sa.String(64), primary_key=True),
    sa.Column("owner", sa.String(64), nullable=False),
    sa.Column(
        "created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()
    ),
    sa.Index(None, "team"),
)
"""Teams that may see a rubric of another team, its ``owner``.

The team may not exist: owners do not learn which teams do. ``created_at`` is renewed when the
rubric is unretired.
"""

inductions = sa.Table(
    "inductions",
    metadata,
    sa.Column("key", KEY, primary_key=True),
    sa.Column("rubric_id", sa.String(40), sa.ForeignKey("rubrics.id"), nullable=False),
    _created(),
)

judge_calls = sa.Table(
    "judge_calls",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("team", sa.String(64), nullable=False),
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("judge", sa.Text, nullable=False),
    sa.Column("criteria", sa.JSON, nullable=False),
    sa.Column("calls", sa.Integer, nullable=False),
    sa.Column("prompt_tokens", sa.Integer, nullable=False),
    sa.Column("completion_tokens", sa.Integer, nullable=False),
    sa.Column("failure", sa.String(16)),
    sa.Column("run_id", sa.String(200)),
    sa.Column("rubric_id", sa.String(40)),
    sa.Column("cached_tokens", sa.Integer, nullable=False, server_default="0"),
    sa.Column("cost_usd", Usd),
    sa.Column("unpriced_calls", sa.Integer),
    sa.Column("settled_usd", Usd),
    _created(),
    sa.Column("replay_id", sa.String(40)),
    sa.Column("asked", sa.Integer),
    sa.Index(None, "created_at"),
    sa.Index(None, "team", "created_at"),
    # With all that a run's cost is added up from, so that no row is read for it.
    sa.Index(None, "team", "run_id", "cost_usd", "unpriced_calls", "calls"),
    # Likewise for the report of judges, in its order: without a sort and without the criteria.
    sa.Index(
        "ix_judge_calls_report",
        "team",
        "judge",
        "failure",
        "created_at",
        "role",
        "calls",
        "cost_usd",
        "unpriced_calls",
        "asked",
    ),
    sa.Index(None, "replay_id"),
)
"""The ledger of calls to judges and teachers: by whom, for what, and at what cost.

A call of a replay has no ``run_id``: it is not part of what the run cost. ``asked``: how many
``criteria`` there are; a row of an older version, written while it was replaced, has none.

``cost_usd`` covers the calls of known cost; ``unpriced_calls`` counts the others. ``settled_usd``
is what counts against budgets. Rows of older versions lack both: then ``cost_usd`` counts against
budgets, and without it all calls are unpriced.
"""

verdicts = sa.Table(
    "verdicts",
    metadata,
    sa.Column("key", KEY, primary_key=True),
    sa.Column("team", sa.String(64), nullable=False),
    sa.Column("prompt_key", KEY, nullable=False),
    sa.Column("criterion_key", KEY, nullable=False),
    sa.Column("response_key", KEY, nullable=False),
    sa.Column("judge", sa.Text, nullable=False),
    sa.Column("met", sa.Boolean),
    sa.Column("evidence", sa.Text),
    sa.Column("call_id", sa.String(40), sa.ForeignKey("judge_calls.id")),
    sa.Column("cost_usd", sa.Double),
    _created(),
    sa.Column("rationale", sa.Text),
    sa.Index(None, "created_at"),
    sa.Index(None, "call_id"),
    sa.Index(None, "prompt_key", "criterion_key"),
)
"""``met``: null where the criterion does not apply. An unscored verdict has no row."""

assignments = sa.Table(
    "assignments",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("team", sa.String(64), nullable=False),
    sa.Column("run_id", sa.String(200)),
    sa.Column("step", sa.Integer),
    sa.Column("group_id", sa.String(200), nullable=False),
    sa.Column("prompt_key", KEY, sa.ForeignKey("prompts.key"), nullable=False),
    sa.Column("rubric_id", sa.String(40), sa.ForeignKey("rubrics.id"), nullable=False),
    sa.Column("origin", sa.String(16), nullable=False),
    sa.Column("reuse", sa.String(16), nullable=False),
    sa.Column("verify", sa.String(16), nullable=False),
    sa.Column("reward_mean", sa.Float),
    sa.Column("reward_spread", sa.Float),
    sa.Column("unscored", sa.Integer),
    sa.Column("cached_verdicts", sa.Integer),
    sa.Column("saved_usd", sa.Double),
    sa.Column("distinct_rollouts", sa.Integer, nullable=False, server_default="0"),
    _created(),
    sa.Column("judge", sa.Text),
    sa.Column("figures", sa.Text),
    sa.Column("scored_at", sa.Double),
    sa.UniqueConstraint("team", "run_id", "step", "group_id", "prompt_key"),
    sa.Index(None, "team", "rubric_id", "run_id"),
    sa.Index(None, "team", "run_id", "created_at"),
    sa.Index(None, "rubric_id"),
    sa.Index(None, "created_at"),
    sa.Index(None, "prompt_key"),
)
"""``distinct_rollouts``: different judged texts of the group. ``reward_spread``: null where fewer
than two of them have a reward, because there can be no spread. ``judge``: the identity of the judge
whose verdicts count. ``figures``: `domain.group_figures.GroupFigures` as JSON. ``scored_at``: in
seconds since 1970.
"""

rollouts = sa.Table(
    "rollouts",
    metadata,
    sa.Column("assignment_id", sa.String(40), sa.ForeignKey("assignments.id"), primary_key=True),
    sa.Column("rollout_id", sa.String(200), primary_key=True),
    sa.Column("text_key", KEY, sa.ForeignKey("texts.key"), nullable=False),
    sa.Column("truncated", sa.Boolean, nullable=False),
    sa.Column("reward", sa.Float),
    sa.Column("reason", sa.String(16)),
    sa.Column("verdicts", sa.Text),
    sa.Column("words", sa.Integer),
    sa.Index(None, "text_key"),
)
"""``verdicts``: one character for each criterion in the rubric's order, see
`domain.verdict.verdict_string`. ``words``: of what was judged.
"""

runs = sa.Table(
    "runs",
    metadata,
    sa.Column("team", sa.String(64), primary_key=True),
    sa.Column("id", sa.String(200), primary_key=True),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("reason", sa.Text),
    sa.Column("steps", sa.Integer),
    sa.Column("facts", sa.JSON, nullable=False),
    sa.Column("last_scored_at", sa.DateTime(timezone=True)),
    sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False),
    _created(),
)
"""Training runs: made by the first group that is scored, or by `PUT /v1/runs/{id}`.

``steps``: how many are planned. ``changed_at``: when a figure of the run changed. Never pruned.
"""

run_records = sa.Table(
    "run_records",
    metadata,
    sa.Column("team", sa.String(64), primary_key=True),
    sa.Column("run_id", sa.String(200), primary_key=True),
    sa.Column("step", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("metrics", sa.Text, nullable=False),
)
"""The trainer's own metrics of steps, as JSON."""

past_groups = sa.Table(
    "past_groups",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("team", sa.String(64), nullable=False),
    sa.Column("run_id", sa.String(200), nullable=False),
    sa.Column("step", sa.Integer, nullable=False),
    sa.Column("rubric_id", sa.String(40), sa.ForeignKey("rubrics.id"), nullable=False),
    sa.Column("judge", sa.Text),
    sa.Column("figures", sa.Text, nullable=False),
    sa.Index(None, "team", "run_id"),
    sa.Index(None, "rubric_id"),
)
"""What is left of pruned assignments of runs: figures, no texts."""

run_blocks = sa.Table(
    "run_blocks",
    metadata,
    sa.Column("team", sa.String(64), primary_key=True),
    sa.Column("run_id", sa.String(200), primary_key=True),
    sa.Column("first_step", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("groups", sa.Integer, nullable=False),
    sa.Column("pruned", sa.Integer, nullable=False),
    sa.Column("scored_at", sa.Double),
    sa.Column("figures", sa.LargeBinary, nullable=False),
    sa.Column("details", sa.LargeBinary, nullable=False),
)
"""The figures of some steps of a run, added up: `domain.run_blocks.Block`.

Made from the groups when they are read, and read in their place while ``groups``, ``pruned`` and
``scored_at``, a sum of all their times, are still those of the groups. ``version``: of the format
of ``figures`` and ``details``; blocks of another version are not read.
"""

second_verdicts = sa.Table(
    "second_verdicts",
    metadata,
    sa.Column("assignment_id", sa.String(40), primary_key=True),
    sa.Column("rollout_id", sa.String(200), primary_key=True),
    sa.Column("judge", sa.Text, primary_key=True),
    sa.Column("team", sa.String(64), nullable=False),
    sa.Column("run_id", sa.String(200)),
    sa.Column("step", sa.Integer),
    sa.Column("first_judge", sa.Text),
    sa.Column("first_reward", sa.Float),
    sa.Column("first_verdicts", sa.Text, nullable=False),
    sa.Column("reward", sa.Float),
    sa.Column("verdicts", sa.Text, nullable=False),
    _created(),
    sa.Index(None, "team", "run_id"),
    sa.Index(None, "team", "created_at"),
)
"""What a second judge said of rollouts, beside what the first one had said.

They survive the assignment, so that figures do; they hold no text.
"""

repeat_verdicts = sa.Table(
    "repeat_verdicts",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("team", sa.String(64), nullable=False),
    sa.Column("run_id", sa.String(200)),
    sa.Column("criterion_key", KEY, nullable=False),
    sa.Column("verdict_key", KEY, nullable=False),
    sa.Column("judge", sa.Text, nullable=False),
    sa.Column("met_before", sa.Boolean),
    sa.Column("met_now", sa.Boolean),
    _created(),
    sa.Index(None, "team", "run_id"),
    sa.Index(None, "team", "created_at"),
)
"""What a judge said when it was asked again for a verdict that is stored."""

replays = sa.Table(
    "replays",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("team", sa.String(64), nullable=False),
    sa.Column("run_id", sa.String(200), nullable=False),
    sa.Column("request", sa.JSON, nullable=False),
    sa.Column("judge", sa.Text),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("reason", sa.Text),
    sa.Column("due_at", sa.Double, nullable=False),
    sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False),
    _created(),
    sa.Index(None, "team", "run_id"),
    sa.Index(None, "state"),
    sa.Index(None, "created_at"),
)
"""Jobs that score stored groups of a run again.

``request``: `schema.ReplayRequest` as JSON. ``judge``: the identity of the judge that it names, if
it names one. ``due_at``: when a paused one is tried again, in seconds since 1970 on the database's
clock.
"""

replay_groups = sa.Table(
    "replay_groups",
    metadata,
    sa.Column("replay_id", sa.String(40), sa.ForeignKey("replays.id"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("team", sa.String(64), nullable=False),
    sa.Column("assignment_id", sa.String(40), nullable=False),
    sa.Column("result", sa.Text),
    sa.Column("cached_verdicts", sa.Integer),
    sa.Column("saved_usd", sa.Double),
    sa.Column("tries", sa.Integer, nullable=False, server_default="0"),
)
"""The groups of a replay, in the order of the run. They survive the assignment and hold no text.

``cached_verdicts``: null until the group is done. ``result``: `store.replays.GroupResult` as JSON;
null for a group that could not be scored. ``tries``: how often it was begun, without those times
that ended in good order, as by a pause.
"""

gathered_groups = sa.Table(
    "gathered_groups",
    metadata,
    sa.Column("id", KEY, primary_key=True),
    sa.Column("team", sa.String(64), nullable=False),
    sa.Column("terms", KEY, nullable=False),
    sa.Column("size", sa.Integer, nullable=False),
    sa.Column("received", sa.Integer, nullable=False),
    sa.Column("closes_at", sa.Double, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("scored", sa.Integer, nullable=False),
    sa.Column("score", sa.Text),
    _created(),
    sa.Index(None, "team"),
    sa.Index(None, "created_at"),
)
"""Groups whose rollouts arrive one request each.

``id``: the hash of team, run and key. ``terms``: the hash of what all requests of the group have in
common. ``received``: rollouts that have arrived, at most ``size``. ``closes_at``: when those are
scored that are there, in seconds since 1970 on the database's clock. ``attempts``: how often the
group was scored; ``scored``: with how many rollouts the last time, and ``score``: its answer then,
as JSON without rollouts.
"""

gathered_rollouts = sa.Table(
    "gathered_rollouts",
    metadata,
    sa.Column("group_id", KEY, sa.ForeignKey("gathered_groups.id"), primary_key=True),
    sa.Column("rollout_id", sa.String(200), primary_key=True),
    sa.Column("text_key", KEY, sa.ForeignKey("texts.key"), nullable=False),
    sa.Column("truncated", sa.Boolean, nullable=False),
    sa.Column("late", sa.Boolean, nullable=False),
    sa.Column("score", sa.Text),
    sa.Column("asked_until", sa.Double),
    sa.Index(None, "text_key"),
)
"""``score``: the rollout's answer as JSON; null until it is scored. ``late``: scored alone, because
it arrived after the group was scored. ``asked_until``: when the request for a rollout without a
name of its own ends, in seconds since 1970 on the database's clock; null once it was answered.
"""

claims = sa.Table(
    "claims",
    metadata,
    sa.Column("key", KEY, primary_key=True),
    sa.Column("owner", sa.String(40), nullable=False),
    sa.Column("fence", sa.BigInteger, nullable=False),
    sa.Column("expires_at", sa.Double, nullable=False),
)
"""Work in progress: its owner, and the end of the owner's lease.

``expires_at`` is in seconds since 1970 on the database's clock.
"""

idempotency_keys = sa.Table(
    "idempotency_keys",
    metadata,
    sa.Column("team", sa.String(64), primary_key=True),
    sa.Column("route", sa.String(64), primary_key=True),
    sa.Column("key", sa.String(255), primary_key=True),
    sa.Column("fingerprint", KEY, nullable=False),
    sa.Column("owner", sa.String(40), nullable=False),
    sa.Column("expires_at", sa.Double, nullable=False),
    sa.Column("status", sa.Integer),
    sa.Column("body", sa.Text),
    _created(),
    sa.Index(None, "created_at"),
)
"""Answers by idempotency key. Without a status the request is running, and its lease ends at
``expires_at`` (seconds since 1970 on the database's clock).
"""

past_usage = sa.Table(
    "past_usage",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("team", sa.String(64), nullable=False),
    sa.Column("day", sa.String(10), nullable=False),
    sa.Column("run_id", sa.String(200)),
    sa.Column("rubric_id", sa.String(40)),
    sa.Column("role", sa.String(16)),
    sa.Column("judge", sa.Text),
    *(
        sa.Column(name, sa.BigInteger, nullable=False)
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
    sa.Column("cost_usd", Usd, nullable=False),
    sa.Column("saved_usd", sa.Double, nullable=False),
    sa.Column("settled_usd", Usd),
    sa.Index(None, "team", "day"),
)
"""Totals of pruned ledger rows, so that what was spent remains known. ``settled_usd``: as there."""

budgets = sa.Table(
    "budgets",
    metadata,
    sa.Column("team", sa.String(64), sa.ForeignKey("teams.name"), primary_key=True),
    sa.Column("run_id", sa.String(200), primary_key=True),
    sa.Column("hard_usd", Usd),
    sa.Column("soft_usd", Usd),
    sa.Column("period", sa.String(8), nullable=False),
    sa.Column("since", sa.Double, nullable=False),
    sa.Column("spent_usd", Usd, nullable=False),
)
"""What a team may spend in a period that began at ``since`` (seconds since 1970).

``run_id`` "": on all its runs and requests together.
"""

holds = sa.Table(
    "holds",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("team", sa.String(64), nullable=False),
    sa.Column("run_id", sa.String(200), nullable=False),
    sa.Column("owner", sa.String(40), nullable=False),
    sa.Column("usd", Usd, nullable=False),
    sa.Column("settled", sa.Boolean, nullable=False),
    sa.Column("expires_at", sa.Double, nullable=False),
    sa.Column("spent_usd", Usd, nullable=False, server_default="0"),
    sa.Index(None, "team"),
)
"""Budget reserved for questions in progress.

``usd`` is the maximum cost of a question, of which ``spent_usd`` is spent on requests that have
ended. Once settled, ``usd`` is the actual cost, until the budgets have counted it.
"""

audit_entries = sa.Table(
    "audit_entries",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("team", sa.String(64), nullable=False),
    sa.Column("key", sa.String(16)),
    sa.Column("action", sa.String(40), nullable=False),
    sa.Column("subject", sa.String(240), nullable=False),
    sa.Column("detail", sa.JSON, nullable=False),
    _created(),
    sa.Index(None, "team", "id"),
    sa.Index(None, "subject", "id"),
)
"""The audit trail: who did what to which rubric, key, team or budget. Append-only by triggers."""

endpoint_probes = sa.Table(
    "endpoint_probes",
    metadata,
    sa.Column("endpoint", sa.String(400), primary_key=True),
    sa.Column("model", sa.String(400), primary_key=True),
    sa.Column("json_schema", sa.String(16), nullable=False),
    sa.Column("form", sa.String(16), nullable=False),
    sa.Column("probed_at", sa.DateTime(timezone=True), nullable=False),
)
"""Results of ``doctor``. ``endpoint``: host and path, without credentials."""

secrets = sa.Table(
    "secrets",
    metadata,
    sa.Column("name", sa.String(40), primary_key=True),
    sa.Column("value", sa.String(64), nullable=False),
)
"""Secrets that the deployment generated for itself; never a key of a person or a judge."""
