"""Stored groups as people look at them: prompt, rollouts, texts and what the judge said."""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from markscheme.vocabulary import AssignedOrigin, ReusePolicy, VerifyMode
from markscheme_server.domain.group_figures import GroupFigures, load_figures
from markscheme_server.domain.hashing import ChatMessage
from markscheme_server.domain.run_comparison import LastGroup
from markscheme_server.domain.run_history import SecondVerdicts
from markscheme_server.domain.trajectory import Response
from markscheme_server.store.engine.database import Database, team_scope
from markscheme_server.store.engine.ids import as_utc
from markscheme_server.store.tables import (
    assignments,
    prompts,
    rollouts,
    second_verdicts,
    teacher_responses,
    texts,
    verdicts,
)
from markscheme_server.store.texts import stored_response


@dataclass(frozen=True, slots=True)
class StoredGroup:
    """A group with its rubric. `figures`: `None` until it is scored."""

    id: str
    group_id: str
    run_id: str | None
    step: int | None
    created_at: datetime
    prompt_key: str
    prompt: Sequence[ChatMessage]
    rubric_id: str
    origin: AssignedOrigin
    reuse: ReusePolicy
    verify: VerifyMode
    judge: str | None
    mean: float | None
    spread: float | None
    unscored: int | None
    cached_verdicts: int | None
    saved_usd: float | None
    figures: GroupFigures | None


@dataclass(frozen=True, slots=True)
class StoredRollout:
    """A rollout of a stored group. `text_key`: the key of its response."""

    id: str
    text_key: str
    truncated: bool
    reward: float | None
    reason: str | None
    verdicts: str
    words: int | None


@dataclass(frozen=True, slots=True)
class JudgeVerdict:
    """A stored verdict with what the judge said of it."""

    criterion_key: str
    response_key: str
    judge: str
    met: bool | None
    evidence: str | None
    rationale: str | None


class RunGroupStore:
    """Reads the groups of a team."""

    def __init__(self, database: Database) -> None:
        self._db = database
        a = assignments.c
        self._select = sa.select(
            a.id,
            a.group_id,
            a.run_id,
            a.step,
            a.created_at,
            a.prompt_key,
            prompts.c.messages,
            a.rubric_id,
            a.origin,
            a.reuse,
            a.verify,
            a.judge,
            a.reward_mean,
            a.reward_spread,
            a.unscored,
            a.cached_verdicts,
            a.saved_usd,
            a.figures,
        ).join(prompts, prompts.c.key == a.prompt_key)

    async def find(self, team: str, ids: Sequence[str]) -> list[StoredGroup]:
        """Return those of these groups that the team has, in the order given."""
        query = self._select.where(
            assignments.c.team == team, self._db.in_keys(assignments.c.id, "keys")
        )
        async with self._db.reading(team_scope(team)) as connection:
            rows = await connection.execute(query, {"keys": self._db.keys(ids)})
            found = {row.id: _group(row) for row in rows}
        return [found[id_] for id_ in ids if id_ in found]

    async def last_of_prompts(self, team: str, run_ids: Sequence[str]) -> list[LastGroup]:
        """Return the last scored group of each prompt in each of the team's runs.

        Of groups with a known reward, if there is one.
        """
        a = assignments.c
        place = sa.func.row_number().over(
            partition_by=(a.run_id, a.prompt_key),
            # The ids of groups sort by time.
            order_by=(a.reward_mean.is_(None), a.step.desc(), a.id.desc()),
        )
        # Only ids are ranked: sorting all columns of all groups takes twice as long.
        ranked = (
            sa.select(a.id, place.label("place"))
            .where(a.team == team, a.run_id.in_(run_ids), a.figures.is_not(None))
            .subquery()
        )
        query = sa.select(
            a.id, a.run_id, a.prompt_key, a.step, a.rubric_id, a.judge, a.reward_mean
        ).where(a.id.in_(sa.select(ranked.c.id).where(ranked.c.place == 1)))
        async with self._db.reading(team_scope(team)) as connection:
            rows = (await connection.execute(query)).all()
        # In a thread: a run may have a prompt of its own in each of thousands of groups.
        return await asyncio.to_thread(lambda: [LastGroup(*row) for row in rows])

    async def prompts(self, team: str, ids: Sequence[str]) -> dict[str, Sequence[ChatMessage]]:
        """Return the prompts of those of these groups that the team has, by prompt key."""
        a, p = assignments.c, prompts.c
        query = (
            sa.select(p.key, p.messages)
            .join(assignments, a.prompt_key == p.key)
            .where(a.team == team, self._db.in_keys(a.id, "keys"))
        )
        async with self._db.reading(team_scope(team)) as connection:
            rows = await connection.execute(query, {"keys": self._db.keys(ids)})
            return {row.key: row.messages for row in rows}

    async def rollouts(self, team: str, ids: Sequence[str]) -> dict[str, list[StoredRollout]]:
        """Return the rollouts of the team's groups, by group, in the order of their ids."""
        r, a = rollouts.c, assignments.c
        query = (
            sa.select(
                r.assignment_id,
                r.rollout_id,
                r.text_key,
                r.truncated,
                r.reward,
                r.reason,
                r.verdicts,
                r.words,
            )
            .join(assignments, a.id == r.assignment_id)
            .where(a.team == team, self._db.in_keys(r.assignment_id, "keys"))
            # r2 comes before r10.
            .order_by(r.assignment_id, sa.func.length(r.rollout_id), r.rollout_id)
        )
        found: dict[str, list[StoredRollout]] = defaultdict(list)
        async with self._db.reading(team_scope(team)) as connection:
            for row in await connection.execute(query, {"keys": self._db.keys(ids)}):
                found[row.assignment_id].append(
                    StoredRollout(
                        row.rollout_id,
                        row.text_key,
                        row.truncated,
                        row.reward,
                        row.reason,
                        row.verdicts or "",
                        row.words,
                    )
                )
        return found

    async def responses(
        self, team: str, group: str, prompt: str, teacher_keys: Sequence[str]
    ) -> dict[str, Response]:
        """Return the responses of a group by the keys of their texts, as far as they are stored.

        Of teacher responses, those that the team's bank holds for the prompt.
        """
        r, a, t = rollouts.c, assignments.c, teacher_responses.c
        own = (
            sa.select(r.text_key)
            .join(assignments, a.id == r.assignment_id)
            .where(a.team == team, a.id == group)
        )
        bank = sa.select(t.text_key).where(
            t.team == team, t.prompt_key == prompt, self._db.in_keys(t.text_key, "keys")
        )
        query = sa.select(texts.c.key, texts.c.text, texts.c.messages).where(
            # Not two conditions: with OR, PostgreSQL reads all texts.
            texts.c.key.in_(sa.union_all(own, bank))
        )
        async with self._db.reading(team_scope(team)) as connection:
            rows = await connection.execute(query, {"keys": self._db.keys(teacher_keys)})
            return {key: stored_response(text, messages) for key, text, messages in rows}

    async def verdicts(
        self, team: str, prompt: str, criterion_keys: Sequence[str], response_keys: Sequence[str]
    ) -> list[JudgeVerdict]:
        """Return what judges said of these responses to a prompt, the oldest first."""
        v = verdicts.c
        wanted = set(response_keys)
        query = (
            sa.select(v.criterion_key, v.response_key, v.judge, v.met, v.evidence, v.rationale)
            .where(
                v.team == team,
                v.prompt_key == prompt,
                self._db.in_keys(v.criterion_key, "criteria"),
                self._db.in_keys(v.response_key, "responses"),
            )
            .order_by(v.created_at, v.key)
        )
        async with self._db.reading(team_scope(team)) as connection:
            rows = await connection.execute(
                query,
                {
                    "criteria": self._db.keys(criterion_keys),
                    "responses": self._db.keys(wanted),
                },
            )
            return [JudgeVerdict(*row) for row in rows]

    async def second(self, team: str, group: str) -> list[SecondVerdicts]:
        """Return what a second judge said of a group's rollouts."""
        c = second_verdicts.c
        query = sa.select(
            c.assignment_id,
            c.rollout_id,
            c.judge,
            c.step,
            c.first_reward,
            c.first_verdicts,
            c.reward,
            c.verdicts,
        ).where(c.team == team, c.assignment_id == group)
        async with self._db.reading(team_scope(team)) as connection:
            return [SecondVerdicts(*row) for row in await connection.execute(query)]

    async def neighbours(
        self, team: str, group: StoredGroup
    ) -> tuple[str | None, str | None] | None:
        """Return the prompt's groups before and after a group in the same run.

        `None` if the group was pruned since it was read.
        """
        a = assignments.c
        query = (
            sa.select(a.id)
            .where(
                a.team == team,
                a.id == group.id
                if group.run_id is None
                else sa.and_(a.run_id == group.run_id, a.prompt_key == group.prompt_key),
            )
            .order_by(a.step, a.created_at, a.id)
        )
        async with self._db.reading(team_scope(team)) as connection:
            ids = list((await connection.execute(query)).scalars())
        if group.id not in ids:
            return None
        place = ids.index(group.id)
        return (
            ids[place - 1] if place else None,
            ids[place + 1] if place + 1 < len(ids) else None,
        )


def _group(row: Any) -> StoredGroup:
    return StoredGroup(
        id=row.id,
        group_id=row.group_id,
        run_id=row.run_id,
        step=row.step,
        created_at=as_utc(row.created_at),
        prompt_key=row.prompt_key,
        prompt=row.messages,
        rubric_id=row.rubric_id,
        origin=row.origin,
        reuse=row.reuse,
        verify=row.verify,
        judge=row.judge,
        mean=row.reward_mean,
        spread=row.reward_spread,
        unscored=row.unscored,
        cached_verdicts=row.cached_verdicts,
        saved_usd=row.saved_usd,
        figures=load_figures([row.figures])[0] if row.figures is not None else None,
    )
