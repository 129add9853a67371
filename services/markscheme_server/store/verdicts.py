"""Verdicts, and the judge calls that made them.

A verdict that was paid for is stored before it is answered.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from markscheme_server.domain.verdict import StoredDecision
from markscheme_server.store.claims import Claim, ClaimStore
from markscheme_server.store.engine.database import Database, team_scope
from markscheme_server.store.engine.ids import now
from markscheme_server.store.engine.write_batch import Batcher
from markscheme_server.store.ledger import GATHER_S, JudgeCall, LedgerStore
from markscheme_server.store.tables import verdicts

Decisions = dict[str, StoredDecision]
"""Decided verdicts by verdict key."""


@dataclass(frozen=True, slots=True)
class StoredVerdict:
    """A decided verdict under its key. An unscored one is never stored."""

    key: str
    prompt_key: str
    criterion_key: str
    response_key: str
    judge: str
    decision: StoredDecision


@dataclass(frozen=True, slots=True)
class JudgeReply:
    """What one judge call yields: verdicts, and its row in the ledger.

    `call`: `None` for checks, which cost nothing. `claim`: the claim under which it was made, if
    there is one. `ends_claim`: whether the claim ends with this reply; otherwise it is only
    checked that it is still ours.
    """

    team: str
    verdicts: Sequence[StoredVerdict] = ()
    call: JudgeCall | None = None
    claim: Claim | None = None
    ends_claim: bool = True


class VerdictStore:
    """Verdicts by verdict key."""

    def __init__(self, database: Database, claims: ClaimStore, ledger: LedgerStore) -> None:
        self._db, self._claims, self._ledger = database, claims, ledger
        v = verdicts.c
        self._select = sa.select(v.key, v.team, v.met, v.evidence, v.cost_usd, v.rationale).where(
            database.in_keys(v.key, "keys")
        )
        ours = claims.ours("claimed")
        claim = sa.Column("claim", v.key.type)
        # A claim that was taken over is noticed by the statement that inserts the verdicts, which
        # leaves out those that belong to it.
        self._writes = database.combine(
            sa.select(ours.c.key),
            *ledger.statements,
            database.insert_rows(
                verdicts,
                extra=[claim],
                where=lambda row: sa.or_(row.claim.is_(None), row.claim.in_(sa.select(ours.c.key))),
            ).on_conflict_do_nothing(),
            claims.end(ours, "ending"),
            # The first statement returns the claims that are still ours.
            returning=0,
        )
        self._finding: Batcher[tuple[str, tuple[str, ...]], Decisions] = Batcher(
            database, self._find, weigh=lambda query: len(query[1])
        )
        self._saving: Batcher[JudgeReply, bool] = Batcher(
            database, self._save, gather_s=GATHER_S, weigh=lambda reply: 1 + len(reply.verdicts)
        )

    async def find(self, team: str, keys: Iterable[str]) -> Decisions:
        """Return the team's verdicts among `keys`."""
        keys = tuple(keys)
        return await self._finding.submit((team, keys)) if keys else {}

    async def save(self, reply: JudgeReply) -> bool:
        """Store a reply, in one short transaction with others that come at the same time.

        The first verdict under a key stands; later ones are dropped. Returns false if the claim
        was taken over: the verdicts were not written then, only the call is in the ledger.
        """
        return await self._saving.submit(reply)

    async def _find(self, queries: Sequence[tuple[str, tuple[str, ...]]]) -> list[Decisions]:
        keys = self._db.keys(key for _, keys in queries for key in keys)
        rows = await self._db.read(
            team_scope(*(team for team, _ in queries)), self._select, {"keys": keys}
        )
        found = {
            key: (team, StoredDecision(met, evidence, cost_usd, rationale))
            for key, team, met, evidence, cost_usd, rationale in rows
        }
        return [
            # The query served several teams: each gets its own rows only.
            {key: found[key][1] for key in keys if key in found and found[key][0] == team}
            for team, keys in queries
        ]

    async def _save(self, replies: Sequence[JudgeReply]) -> list[bool]:
        created_at = now()
        rows = [
            {
                "key": verdict.key,
                "team": reply.team,
                "prompt_key": verdict.prompt_key,
                "criterion_key": verdict.criterion_key,
                "response_key": verdict.response_key,
                "judge": verdict.judge,
                "met": verdict.decision.met,
                "evidence": verdict.decision.evidence,
                "call_id": reply.call.id if reply.call else None,
                "cost_usd": verdict.decision.cost_usd,
                "created_at": created_at,
                "rationale": verdict.decision.rationale,
                "claim": reply.claim[0] if reply.claim else None,
            }
            for reply in replies
            for verdict in reply.verdicts
        ]
        claimed = {reply.claim for reply in replies if reply.claim is not None}
        ending = [reply.claim[0] for reply in replies if reply.claim and reply.ends_claim]
        self._claims.forget(ending)
        calls = [reply.call for reply in replies if reply.call is not None]
        # Rows come in one order, so that two writers of the same keys queue instead of locking
        # each other out.
        still_ours = await self._db.write(
            team_scope(*(reply.team for reply in replies)),
            self._writes,
            self._ledger.parameters(calls, created_at)
            | {
                "ending": self._db.keys(ending),
                "verdicts": self._db.pack(sorted(rows, key=lambda row: row["key"])),
                "claimed": self._db.pack(
                    [{"key": key, "fence": fence} for key, fence in sorted(claimed)]
                ),
            },
        )
        ours = {key for (key,) in still_ours}
        return [reply.claim is None or reply.claim[0] in ours for reply in replies]
