"""Verdicts and the judge calls that made them. A verdict that was paid for is stored before it is answered."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from markscheme_server.domain.usage import JudgeUsage
from markscheme_server.domain.verdict import StoredDecision
from markscheme_server.store.budgets import EVERYTHING, count_unheld, settle
from markscheme_server.store.claims import Claim, ClaimStore
from markscheme_server.store.engine.database import Database, team_scope
from markscheme_server.store.engine.ids import new_id, now
from markscheme_server.store.engine.write_batch import Batcher
from markscheme_server.store.tables import judge_calls, verdicts

GATHER_S = 0.01
"""Under load, replies of this long go into one transaction."""
StoredVerdicts = dict[str, StoredDecision]
"""By address."""


@dataclass(frozen=True, slots=True)
class StoredVerdict:
    """A decided verdict under its address. An unscored one is never stored."""

    key: str
    prompt_key: str
    criterion_key: str
    response_key: str
    judge: str
    met: bool
    evidence: str | None
    cost_usd: float | None = None
    rationale: str | None = None


@dataclass(frozen=True, slots=True)
class JudgeCall:
    """A line of the ledger: what was asked of a judge, for which run and rubric, and what it cost.

    ``failure``: the reason it gave nothing. ``hold``: the money that was set aside for it.
    """

    role: str
    judge: str
    criteria: tuple[str, ...]
    usage: JudgeUsage
    failure: str | None = None
    run_id: str | None = None
    rubric_id: str | None = None
    hold: str | None = None
    id: str = field(default_factory=lambda: new_id("call"))


@dataclass(frozen=True, slots=True)
class Reply:
    """What one judge call left behind. ``claim``: key and fence of the claim it was made under, where there is one.

    ``call`` is ``None`` for checks, which cost nothing.
    """

    team: str
    verdicts: Sequence[StoredVerdict] = ()
    call: JudgeCall | None = None
    claim: Claim | None = None
    done: bool = True
    """Whether the claim ends with this reply; else it is only seen to be ours still."""


class VerdictStore:
    """Verdicts by address."""

    def __init__(self, database: Database, claims: ClaimStore) -> None:
        self._db, self._claims = database, claims
        v = verdicts.c
        self._select = sa.select(v.key, v.team, v.met, v.evidence, v.cost_usd, v.rationale).where(
            database.in_keys(v.key, "keys")
        )
        mine = claims.mine("claimed")
        claim = sa.Column("claim", v.key.type)
        # The verdicts of a claim that was taken over are left out, in the statement that finds out.
        self._writes = database.combine(
            sa.select(mine.c.key),
            count_unheld(database),
            database.insert_rows(judge_calls).on_conflict_do_nothing(),
            database.insert_rows(
                verdicts,
                beside=[claim],
                where=lambda row: sa.or_(row.claim.is_(None), row.claim.in_(sa.select(mine.c.key))),
            ).on_conflict_do_nothing(),
            claims.end(mine, "ending"),
            settle(database),
            answering=0,
        )
        self._finding: Batcher[tuple[str, tuple[str, ...]], StoredVerdicts] = Batcher(
            self._find, weigh=lambda asked: len(asked[1])
        )
        self._saving: Batcher[Reply, bool] = Batcher(
            self._save, gather_s=GATHER_S, weigh=lambda reply: 1 + len(reply.verdicts)
        )

    async def find(self, team: str, keys: Iterable[str]) -> StoredVerdicts:
        """The team's verdicts among ``keys``."""
        wanted = tuple(keys)
        return await self._finding.submit((team, wanted)) if wanted else {}

    async def save(self, reply: Reply) -> bool:
        """Store a reply, with others that come at the same time in one short transaction.

        The first verdict under an address stands; a later one for it is dropped. False: the reply's claim was
        taken over, so its verdicts were not written (the call still stands in the ledger); look up the new
        owner's.
        """
        return await self._saving.submit(reply)

    async def drain(self) -> None:
        """Wait until everything handed in is stored."""
        await self._saving.drain()

    async def _find(self, asked: Sequence[tuple[str, tuple[str, ...]]]) -> list[StoredVerdicts]:
        wanted = self._db.keys(key for _, keys in asked for key in keys)
        async with self._db.reading(team_scope(*(team for team, _ in asked))) as connection:
            rows = await connection.execute(self._select, {"keys": wanted})
            known = {
                key: (team, StoredDecision(met, evidence, cost, rationale))
                for key, team, met, evidence, cost, rationale in rows
            }
        return [
            {key: known[key][1] for key in keys if key in known and known[key][0] == team}
            for team, keys in asked
        ]

    async def _save(self, replies: Sequence[Reply]) -> list[bool]:
        created = now()
        calls: list[dict[str, Any]] = []
        rows: list[dict[str, Any]] = []
        settled: list[dict[str, Any]] = []
        unheld: list[dict[str, Any]] = []
        for reply in replies:
            call = reply.call
            if call is not None:
                calls.append(self._call_row(reply.team, call, created))
                cost = self._db.usd(call.usage.settled)
                if call.hold is not None:
                    settled.append({"id": call.hold, "team": reply.team, "usd": cost})
                elif call.usage.settled:
                    unheld.append(
                        {
                            "id": call.id,
                            "team": reply.team,
                            "run_id": call.run_id or EVERYTHING,
                            "usd": cost,
                        }
                    )
            claim = reply.claim[0] if reply.claim else None
            rows += [
                {
                    "key": v.key,
                    "team": reply.team,
                    "prompt_key": v.prompt_key,
                    "criterion_key": v.criterion_key,
                    "response_key": v.response_key,
                    "judge": v.judge,
                    "met": v.met,
                    "evidence": v.evidence,
                    "call_id": call.id if call else None,
                    "cost_usd": v.cost_usd,
                    "created_at": created,
                    "rationale": v.rationale,
                    "claim": claim,
                }
                for v in reply.verdicts
            ]
        claimed = {reply.claim for reply in replies if reply.claim is not None}
        ending = [reply.claim[0] for reply in replies if reply.claim is not None and reply.done]
        self._claims.forget(ending)
        # In one order, so that two writers of the same keys queue instead of locking each other out.
        mine = await self._db.write(
            team_scope(*(reply.team for reply in replies)),
            self._writes,
            {
                "judge_calls": self._db.pack(calls),
                "ending": self._db.keys(ending),
                "unheld": self._db.pack(unheld),
                "settlements": self._db.pack(sorted(settled, key=lambda row: row["id"])),
                "verdicts": self._db.pack(sorted(rows, key=lambda row: row["key"])),
                "claimed": self._db.pack(
                    [{"key": key, "fence": fence} for key, fence in sorted(claimed)]
                ),
            },
        )
        ours = {key for (key,) in mine}
        return [reply.claim is None or reply.claim[0] in ours for reply in replies]

    def _call_row(self, team: str, call: JudgeCall, created: datetime) -> dict[str, Any]:
        usage = call.usage
        return {
            "id": call.id,
            "team": team,
            "role": call.role,
            "judge": call.judge,
            "criteria": list(call.criteria),
            "calls": usage.calls,
            "prompt_tokens": usage.prompt_tokens,
            "cached_tokens": usage.cached_tokens,
            "completion_tokens": usage.completion_tokens,
            "cost_usd": self._db.usd(usage.cost),
            "unpriced_calls": usage.unpriced_calls,
            "settled_usd": self._db.usd(usage.settled),
            "failure": call.failure,
            "run_id": call.run_id,
            "rubric_id": call.rubric_id,
            "created_at": created,
        }
