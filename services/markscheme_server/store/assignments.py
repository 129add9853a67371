"""Which rubric a group got, written down before judging, and what came of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from markscheme.vocabulary import AssignedOrigin, ReusePolicy, VerifyMode
from markscheme_server.domain.fingerprint import ChatMessage, prompt_key, text_key
from markscheme_server.store.database import Database
from markscheme_server.store.ids import new_id, now
from markscheme_server.store.tables import assignments, prompts, rollouts, teacher_responses, texts


@dataclass(frozen=True, slots=True)
class Assignment:
    """A group's rubric. ``run_id`` and ``step`` are ``None`` outside a run."""

    id: str
    rubric_id: str
    origin: AssignedOrigin


@dataclass(frozen=True, slots=True)
class ScoredRollout:
    """What is kept of one rollout: enough to judge it again later."""

    rollout_id: str
    text: str
    truncated: bool
    reward: float | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class Use:
    """One use of a rubric in a run: mean reward and spread (max - min) of the group, where scored."""

    reward_mean: float | None
    reward_spread: float | None


class AssignmentStore:
    """Assignments by run, step and group."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def find(self, team: str, *, run_id: str, step: int, group_id: str, prompt: str) -> Assignment | None:
        """The assignment that this group of this step already has."""
        a = assignments.c
        query = sa.select(a.id, a.rubric_id, a.origin).where(
            a.team == team, a.run_id == run_id, a.step == step, a.group_id == group_id, a.prompt_key == prompt)
        async with self._db.reading() as connection:
            row = (await connection.execute(query)).one_or_none()
        return Assignment(*row) if row else None

    async def assign(self, team: str, *, run_id: str | None, step: int | None, group_id: str,
                     prompt: Sequence[ChatMessage], rubric_id: str, origin: AssignedOrigin, reuse: ReusePolicy,
                     verify: VerifyMode) -> Assignment:
        """Write the assignment down; if another writer was first, its assignment is the answer."""
        key = prompt_key(prompt)
        made = Assignment(new_id("asg"), rubric_id, origin)
        async with self._db.writing() as connection:
            await self._db.insert_new(connection, prompts, [
                {"key": key, "messages": list(prompt), "created_at": now()}])
            await self._db.insert_new(connection, assignments, [{
                "id": made.id, "team": team, "run_id": run_id, "step": step, "group_id": group_id, "prompt_key": key,
                "rubric_id": rubric_id, "origin": origin, "reuse": reuse, "verify": verify, "created_at": now()}])
        if run_id is None or step is None:
            return made
        return await self.find(team, run_id=run_id, step=step, group_id=group_id, prompt=key) or made

    async def uses(self, team: str, *, rubric_id: str, run_id: str | None) -> list[Use]:
        """The scored or running uses of a rubric in one run (``None``: outside any run), newest first."""
        a = assignments.c
        query = (sa.select(a.reward_mean, a.reward_spread)
                 .where(a.team == team, a.rubric_id == rubric_id,
                        a.run_id.is_(None) if run_id is None else a.run_id == run_id)
                 .order_by(a.created_at.desc(), a.id.desc()))
        async with self._db.reading() as connection:
            return [Use(*row) for row in await connection.execute(query)]

    async def finish(self, assignment_id: str, scored: Sequence[ScoredRollout]) -> None:
        """Keep the group's rollouts and rewards."""
        rewards = [r.reward for r in scored if r.reward is not None]
        outcome: dict[str, Any] = {
            "reward_mean": sum(rewards) / len(rewards) if rewards else None,
            "reward_spread": max(rewards) - min(rewards) if rewards else None,
            "unscored": len(scored) - len(rewards),
        }
        async with self._db.writing() as connection:
            await self._db.insert_new(connection, texts, [
                {"key": text_key(r.text), "text": r.text, "created_at": now()} for r in scored])
            await connection.execute(sa.delete(rollouts).where(rollouts.c.assignment_id == assignment_id))
            await connection.execute(rollouts.insert(), [
                {"assignment_id": assignment_id, "rollout_id": r.rollout_id, "text_key": text_key(r.text),
                 "truncated": r.truncated, "reward": r.reward, "reason": r.reason} for r in scored])
            await connection.execute(
                sa.update(assignments).where(assignments.c.id == assignment_id).values(**outcome))


class TeacherBank:
    """Teacher responses by prompt."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def find(self, team: str, prompt: str) -> list[str]:
        """The team's teacher responses for a prompt, oldest first."""
        t = teacher_responses.c
        query = (sa.select(texts.c.text).join(teacher_responses, t.text_key == texts.c.key)
                 .where(t.team == team, t.prompt_key == prompt).order_by(t.created_at, t.text_key))
        async with self._db.reading() as connection:
            return list((await connection.execute(query)).scalars())

    async def save(self, team: str, prompt: Sequence[ChatMessage], responses: Sequence[str]) -> None:
        """Add responses; those already there are left as they are."""
        key = prompt_key(prompt)
        async with self._db.writing() as connection:
            await self._db.insert_new(connection, prompts, [
                {"key": key, "messages": list(prompt), "created_at": now()}])
            await self._db.insert_new(connection, texts, [
                {"key": text_key(t), "text": t, "created_at": now()} for t in dict.fromkeys(responses)])
            await self._db.insert_new(connection, teacher_responses, [
                {"team": team, "prompt_key": key, "text_key": text_key(t), "model": None, "created_at": now()}
                for t in dict.fromkeys(responses)])
