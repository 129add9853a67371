"""Verdicts and the judge calls that made them. A verdict that was paid for is stored before it is answered."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from markscheme_server.store.database import Database
from markscheme_server.store.ids import new_id, now
from markscheme_server.store.tables import judge_calls, verdicts

IN_LIST = 500
"""Keys in one IN (…) list: SQLite binds at most 999 in old builds, and plans stay small."""
ROWS = 100
"""Rows in one INSERT, for the same bound."""


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


@dataclass(frozen=True, slots=True)
class JudgeCall:
    """What was asked of a judge and what it cost. ``failure``: the reason it gave nothing."""

    role: str
    judge: str
    criteria: tuple[str, ...]
    calls: int
    prompt_tokens: int
    completion_tokens: int
    failure: str | None = None


class VerdictStore:
    """Verdicts by address."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def find(self, team: str, keys: Iterable[str]) -> dict[str, tuple[bool, str | None]]:
        """``{key: (met, evidence)}`` of the team's verdicts among ``keys``."""
        wanted = list(dict.fromkeys(keys))
        found: dict[str, tuple[bool, str | None]] = {}
        async with self._db.reading() as connection:
            for start in range(0, len(wanted), IN_LIST):
                rows = await connection.execute(
                    sa.select(verdicts.c.key, verdicts.c.met, verdicts.c.evidence)
                    .where(verdicts.c.team == team, verdicts.c.key.in_(wanted[start:start + IN_LIST])))
                found.update({key: (met, evidence) for key, met, evidence in rows})
        return found

    async def save(self, team: str, rows: Sequence[StoredVerdict], call: JudgeCall | None) -> None:
        """Store verdicts with the call that made them (none: checks, which cost nothing) in one transaction.

        The first verdict under an address stands; a later one for it is dropped.
        """
        created = now()
        async with self._db.writing() as connection:
            call_id = None
            if call is not None:
                call_id = new_id("call")
                await connection.execute(judge_calls.insert().values(
                    id=call_id, team=team, role=call.role, judge=call.judge, criteria=list(call.criteria),
                    calls=call.calls, prompt_tokens=call.prompt_tokens, completion_tokens=call.completion_tokens,
                    failure=call.failure, created_at=created))
            values: list[Mapping[str, object]] = [
                {"key": v.key, "team": team, "prompt_key": v.prompt_key, "criterion_key": v.criterion_key,
                 "response_key": v.response_key, "judge": v.judge, "met": v.met, "evidence": v.evidence,
                 "call_id": call_id, "created_at": created} for v in rows]
            for start in range(0, len(values), ROWS):
                await self._db.insert_new(connection, verdicts, [dict(v) for v in values[start:start + ROWS]])
