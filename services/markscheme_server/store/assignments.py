"""Which rubric a group got, written down before judging, and what came of it."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import sqlalchemy as sa

from markscheme.vocabulary import AssignedOrigin, ReusePolicy, VerifyMode
from markscheme_server.domain.hashing import ChatMessage, text_key
from markscheme_server.store.engine.database import Database, team_scope
from markscheme_server.store.engine.ids import new_id, now
from markscheme_server.store.engine.write_batch import Batcher
from markscheme_server.store.tables import assignments, prompts, rollouts, texts

T = TypeVar("T")
PART_CHARACTERS = 1024 * 1024
"""Of texts in one statement: some milliseconds to hash and to pack."""
_OUTCOME = ("reward_mean", "reward_spread", "unscored", "cached_verdicts", "saved_usd")


@dataclass(frozen=True, slots=True)
class GroupRef:
    """Where a group stands: team, run and step (``None`` outside a run), the caller's group id, the prompt's key."""

    team: str
    run_id: str | None
    step: int | None
    group_id: str
    prompt_key: str


@dataclass(frozen=True, slots=True)
class Assignment:
    """A group's rubric."""

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
class Outcome:
    """What came of a group: its rollouts, and what stored verdicts and a rubric that was there saved it.

    ``distinct``: texts with a reward that are judged differently. Fewer than two can have no spread.
    """

    rollouts: Sequence[ScoredRollout]
    cached_verdicts: int = 0
    saved_usd: float = 0.0
    distinct: int = 0


@dataclass(frozen=True, slots=True)
class Uses:
    """How often a rubric was used in a run, and its newest scored uses, at most two: (mean reward, spread).

    Groups that can have no spread are none of them: they do not say whether a rubric tells rollouts apart.
    """

    count: int
    newest: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class _New:
    place: GroupRef
    prompt: Sequence[ChatMessage] | None
    rubric_id: str
    origin: AssignedOrigin
    reuse: ReusePolicy
    verify: VerifyMode
    distinct: int


class AssignmentStore:
    """Assignments by run, step and group."""

    def __init__(self, database: Database) -> None:
        self._db = database
        a, r = assignments.c, rollouts.c
        self._select = sa.select(a.group_id, a.prompt_key, a.id, a.rubric_id, a.origin).where(
            a.team == sa.bindparam("team"),
            a.run_id == sa.bindparam("run"),
            a.step == sa.bindparam("step"),
            database.in_keys(a.group_id, "keys"),
        )
        # With its prompt: a prompt that nothing refers to may be pruned.
        self._assign_all = database.combine(
            database.insert_rows(prompts).on_conflict_do_nothing(),
            database.insert_rows(assignments).on_conflict_do_nothing().returning(a.id),
        )
        outcome = database.rows([a.id, a.team, *(a[name] for name in _OUTCOME)], "outcomes")
        self._insert_texts = database.insert_rows(texts).on_conflict_do_nothing()
        new = database.insert_rows(rollouts)
        self._finish_all = database.combine(
            self._insert_texts,
            new.on_conflict_do_update(
                index_elements=[r.assignment_id, r.rollout_id],
                set_={
                    name: new.excluded[name]
                    for name in ("text_key", "truncated", "reward", "reason")
                },
            ),
            sa.update(assignments)
            .where(a.id == outcome.id, a.team == outcome.team)
            .values({name: outcome[name] for name in _OUTCOME}),
        )
        self._finding: Batcher[GroupRef, Assignment | None] = Batcher(self._find)
        self._assigning: Batcher[_New, Assignment] = Batcher(self._assign)
        self._finishing: Batcher[tuple[str, str, Outcome], None] = Batcher(
            self._finish, weigh=lambda finished: len(finished[2].rollouts)
        )

    async def find(self, place: GroupRef) -> Assignment | None:
        """The assignment that this group of this step already has; outside a run there is none."""
        return await self._finding.submit(place) if place.run_id is not None else None

    async def assign(
        self,
        place: GroupRef,
        *,
        prompt: Sequence[ChatMessage] | None,
        rubric_id: str,
        origin: AssignedOrigin,
        reuse: ReusePolicy,
        verify: VerifyMode,
        distinct: int = 0,
    ) -> Assignment:
        """Write the assignment down; if another writer was first, its assignment is the answer.

        ``prompt`` is ``None`` when it is stored already, as a rubric's own prompt is; ``distinct``: the group's texts
        that are judged differently.
        """
        return await self._assigning.submit(
            _New(place, prompt, rubric_id, origin, reuse, verify, distinct)
        )

    async def uses(self, team: str, *, rubric_id: str, run_id: str | None) -> Uses:
        """The scored or running uses of a rubric in one run (``None``: outside any run) that can have spread."""
        a = assignments.c
        same = sa.and_(
            a.team == team,
            a.rubric_id == rubric_id,
            a.distinct_rollouts >= 2,
            a.run_id.is_(None) if run_id is None else a.run_id == run_id,
        )
        newest = (
            sa.select(a.reward_mean, a.reward_spread)
            .where(same, a.reward_spread.is_not(None))
            .order_by(a.created_at.desc(), a.id.desc())
            .limit(2)
        )
        async with self._db.reading(team_scope(team)) as connection:
            count = (await connection.execute(sa.select(sa.func.count()).where(same))).scalar_one()
            return Uses(
                count, tuple((mean, spread) for mean, spread in await connection.execute(newest))
            )

    async def finish(self, team: str, assignment_id: str, outcome: Outcome) -> None:
        """Keep the group's rollouts and rewards."""
        await self._finishing.submit((team, assignment_id, outcome))

    async def drain(self) -> None:
        """Wait until everything handed in is stored."""
        for batcher in (self._assigning, self._finishing):
            await batcher.drain()

    async def _find(self, places: Sequence[GroupRef]) -> list[Assignment | None]:
        by_step: dict[tuple[str, str | None, int | None], list[GroupRef]] = defaultdict(list)
        for place in places:
            by_step[place.team, place.run_id, place.step].append(place)
        found: dict[GroupRef, Assignment] = {}
        async with self._db.reading(team_scope(*(place.team for place in places))) as connection:
            for (team, run_id, step), group in by_step.items():
                rows = await connection.execute(
                    self._select,
                    {
                        "team": team,
                        "run": run_id,
                        "step": step,
                        "keys": self._db.keys(p.group_id for p in group),
                    },
                )
                found |= {
                    GroupRef(team, run_id, step, group_id, key): Assignment(*rest)
                    for group_id, key, *rest in rows
                }
        return [found.get(place) for place in places]

    async def _assign(self, news: Sequence[_New]) -> list[Assignment]:
        created = now()
        made = [Assignment(new_id("asg"), n.rubric_id, n.origin) for n in news]
        rows = [
            {
                "id": a.id,
                "team": n.place.team,
                "run_id": n.place.run_id,
                "step": n.place.step,
                "group_id": n.place.group_id,
                "prompt_key": n.place.prompt_key,
                "rubric_id": n.rubric_id,
                "origin": n.origin,
                "reuse": n.reuse,
                "verify": n.verify,
                "distinct_rollouts": n.distinct,
                "created_at": created,
            }
            for a, n in zip(made, news, strict=True)
        ]
        unknown = [n for n in news if n.prompt is not None]
        written = {
            id_
            for (id_,) in await self._db.write(
                team_scope(*(n.place.team for n in news)),
                self._assign_all,
                {
                    "prompts": self._db.pack(_prompt_rows(unknown, created)),
                    "assignments": self._db.pack(rows),
                },
            )
        }
        taken = [n.place for a, n in zip(made, news, strict=True) if a.id not in written]
        standing = dict(zip(taken, await self._find(taken), strict=True)) if taken else {}
        return [standing.get(n.place) or a for a, n in zip(made, news, strict=True)]

    async def _finish(self, finished: Sequence[tuple[str, str, Outcome]]) -> list[None]:
        created = now()
        # A step that is sent again while it runs may finish twice in one batch: the later outcome stands.
        outcomes = {assignment_id: (team, outcome) for team, assignment_id, outcome in finished}
        rows: list[dict[str, Any]] = []
        kept: dict[str, str] = {}
        for part in _sliced(
            [(id_, r) for id_, (_, outcome) in outcomes.items() for r in outcome.rollouts],
            lambda each: each[1].text,
        ):
            for assignment_id, r in part:
                key = text_key(r.text)
                kept[key] = r.text
                rows.append(
                    {
                        "assignment_id": assignment_id,
                        "rollout_id": r.rollout_id,
                        "text_key": key,
                        "truncated": r.truncated,
                        "reward": r.reward,
                        "reason": r.reason,
                    }
                )
            await asyncio.sleep(0)
        # Long texts go by several statements: one would hold the event loop and have them all in memory once more.
        *first, last = _sliced(sorted(kept), kept.__getitem__) if kept else [[]]

        def packed(keys: Sequence[str]) -> dict[str, str]:
            return {
                "texts": self._db.pack(
                    [{"key": key, "text": kept[key], "created_at": created} for key in keys]
                )
            }

        await self._db.write(
            team_scope(*(team for team, _ in outcomes.values())),
            self._finish_all,
            packed(last)
            | {
                "rollouts": self._db.pack(rows),
                "outcomes": self._db.pack(
                    [
                        {"id": assignment_id, "team": team} | _outcome_row(outcome)
                        for assignment_id, (team, outcome) in outcomes.items()
                    ]
                ),
            },
            first=((self._insert_texts, packed(keys)) for keys in first),
        )
        return [None] * len(finished)


def _sliced(items: Iterable[T], text_of: Callable[[T], str]) -> Iterator[list[T]]:
    """Items in parts whose texts have about ``PART_CHARACTERS``."""
    part: list[T] = []
    size = 0
    for item in items:
        part.append(item)
        size += len(text_of(item))
        if size >= PART_CHARACTERS:
            yield part
            part, size = [], 0
    if part:
        yield part


def _outcome_row(outcome: Outcome) -> dict[str, Any]:
    rewards = [r.reward for r in outcome.rollouts if r.reward is not None]
    return {
        "reward_mean": sum(rewards) / len(rewards) if rewards else None,
        "reward_spread": max(rewards) - min(rewards) if outcome.distinct >= 2 else None,
        "unscored": len(outcome.rollouts) - len(rewards),
        "cached_verdicts": outcome.cached_verdicts,
        "saved_usd": outcome.saved_usd,
    }


def _prompt_rows(news: Sequence[_New], created: object) -> list[dict[str, Any]]:
    messages = {n.place.prompt_key: list(n.prompt or ()) for n in news}
    return [
        {"key": key, "messages": messages[key], "created_at": created} for key in sorted(messages)
    ]
