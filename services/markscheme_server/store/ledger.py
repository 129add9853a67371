"""The ledger: one row for each question that a judge or a teacher was asked, with what it cost.

Recording a question also settles the money that was set aside for it, in the same transaction:
its hold becomes what the question cost. What the rows add up to is what budgets count.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from markscheme_server.domain.usage import JudgeUsage
from markscheme_server.judge_settings import JudgeRole
from markscheme_server.store.engine.database import Database, team_scope
from markscheme_server.store.engine.ids import new_id, now
from markscheme_server.store.engine.write_batch import Batcher
from markscheme_server.store.tables import budgets, holds, judge_calls, past_usage

ALL_RUNS = ""
"""In place of a run's id: the budget on everything that a team does."""
GATHER_S = 0.01
"""Seconds for which writes are gathered into one transaction under load."""


CallRole = JudgeRole | Literal["replay"]
"""What a call is recorded as."""


@dataclass(frozen=True, slots=True)
class CallDescription:
    """What is known of a question before it is asked.

    `judge`: the judge's identity. `criteria`: keys of the criteria that are asked about. The role
    `replay` is that of a verifier's call for the replay `replay_id`.
    """

    team: str
    run_id: str | None
    role: CallRole
    judge: str
    criteria: tuple[str, ...] = ()
    rubric_id: str | None = None
    replay_id: str | None = None


@dataclass(frozen=True, slots=True)
class JudgeCall:
    """A row of the ledger: a question and what it cost.

    `failure`: why there is no answer. `hold_id`: the money that was set aside for it.
    """

    about: CallDescription
    usage: JudgeUsage
    failure: str | None = None
    hold_id: str | None = None
    id: str = field(default_factory=lambda: new_id("call"))


class LedgerStore:
    """Writes the ledger and adds up what was spent.

    `statements` record calls; another store may run them in a transaction of its own, with
    `parameters`. They are harmless to repeat with the same calls.
    """

    def __init__(self, database: Database) -> None:
        self._db = database
        # Order matters: a call that is there already has been counted.
        self.statements = (
            _count_calls_without_hold(database),
            database.insert_rows(judge_calls).on_conflict_do_nothing(),
            _settle_holds(database),
        )
        self._record_all = database.combine(*self.statements)
        self._recording: Batcher[JudgeCall, None] = Batcher(
            database, self._record, gather_s=GATHER_S
        )

    async def record(self, call: JudgeCall | None) -> None:
        """Store a call and settle its hold. `None`: nothing was sent, so there is nothing to do."""
        if call is not None:
            await self._recording.submit(call)

    def parameters(self, calls: Sequence[JudgeCall], created_at: datetime) -> dict[str, Any]:
        """Return what `statements` take for these calls."""
        settlements: list[dict[str, Any]] = []
        without_hold: list[dict[str, Any]] = []
        for call in calls:
            row = {"team": call.about.team, "usd": self._db.usd(call.usage.settled)}
            if call.hold_id is not None:
                settlements.append(row | {"id": call.hold_id})
            # The team may have got a budget since the call began; see `_count_calls_without_hold`.
            elif call.usage.settled:
                without_hold.append(row | {"id": call.id, "run_id": call.about.run_id or ALL_RUNS})
        # Holds come in one order, so that two writers queue instead of locking each other out.
        return {
            "judge_calls": self._db.pack([self._row(call, created_at) for call in calls]),
            "without_hold": self._db.pack(without_hold),
            "settlements": self._db.pack(sorted(settlements, key=lambda row: row["id"])),
        }

    async def spent_since(
        self, connection: AsyncConnection, team: str, run_id: str, since: float
    ) -> int:
        """Return what a run (`ALL_RUNS`: the team) spent, in nano-dollars.

        Reads in the caller's transaction. `since`: the beginning of a day, in seconds since 1970.
        """
        begin = datetime.fromtimestamp(since, UTC)
        spent = 0
        for table, is_since in (
            (judge_calls, judge_calls.c.created_at >= begin),
            (past_usage, past_usage.c.day >= f"{begin:%Y-%m-%d}"),
        ):
            # Rows of older versions have no `settled_usd`.
            query = sa.select(
                sa.func.sum(sa.func.coalesce(table.c.settled_usd, table.c.cost_usd))
            ).where(table.c.team == team, is_since)
            if run_id != ALL_RUNS:
                query = query.where(table.c.run_id == run_id)
            spent += (await connection.execute(query)).scalar_one() or 0
        return spent

    async def _record(self, calls: Sequence[JudgeCall]) -> list[None]:
        await self._db.write(
            team_scope(*(call.about.team for call in calls)),
            self._record_all,
            self.parameters(calls, now()),
        )
        return [None] * len(calls)

    def _row(self, call: JudgeCall, created_at: datetime) -> dict[str, Any]:
        about, usage = call.about, call.usage
        return {
            "id": call.id,
            "team": about.team,
            "role": about.role,
            "judge": about.judge,
            "criteria": list(about.criteria),
            "asked": len(about.criteria),
            "calls": usage.calls,
            "prompt_tokens": usage.prompt_tokens,
            "cached_tokens": usage.cached_tokens,
            "completion_tokens": usage.completion_tokens,
            "cost_usd": self._db.usd(usage.cost),
            "unpriced_calls": usage.unpriced_calls,
            "settled_usd": self._db.usd(usage.settled),
            "failure": call.failure,
            "run_id": about.run_id,
            "rubric_id": about.rubric_id,
            "created_at": created_at,
            "replay_id": about.replay_id,
        }


def _settle_holds(database: Database) -> sa.Update:
    """Turn holds into what their questions cost; binds `settlements` (id, team, usd)."""
    row = database.rows([holds.c.id, holds.c.team, holds.c.usd], "settlements")
    return (
        sa.update(holds)
        .where(holds.c.id == row.id, holds.c.team == row.team)
        .values(usd=row.usd, settled=True)
    )


def _count_calls_without_hold(database: Database) -> Any:
    """Add settled holds for calls that began before their team had a budget.

    Binds `without_hold` (id, team, run_id, usd). It must run before the calls are inserted: one
    that is in the ledger already has been counted.
    """
    row = database.rows([holds.c.id, holds.c.team, holds.c.run_id, holds.c.usd], "without_hold")
    has_budget = sa.exists().where(
        budgets.c.team == row.team, budgets.c.run_id.in_([ALL_RUNS, row.run_id])
    )
    is_counted = sa.exists().where(judge_calls.c.id == row.id)
    return (
        database.insert(holds)
        .from_select(
            # Settled from the beginning, so that no owner and no lease matters.
            ["id", "team", "run_id", "usd", "owner", "settled", "expires_at"],
            sa.select(
                row.id, row.team, row.run_id, row.usd, sa.literal(""), sa.true(), sa.literal(0.0)
            ).where(has_budget, ~is_counted),
        )
        .on_conflict_do_nothing()
    )
