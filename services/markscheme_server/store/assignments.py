"""Which rubric a group got, stored before it is judged, and its outcome."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

import sqlalchemy as sa

from markscheme.vocabulary import AssignedOrigin, ReusePolicy, VerifyMode
from markscheme_server.domain.group_figures import GroupFigures, joined_verdicts, length_reward
from markscheme_server.domain.hashing import ChatMessage
from markscheme_server.domain.trajectory import Response, response_key
from markscheme_server.store.engine.database import Database, team_scope
from markscheme_server.store.engine.ids import new_id, now
from markscheme_server.store.engine.write_batch import Batcher
from markscheme_server.store.tables import assignments, past_groups, prompts, rollouts, runs, texts
from markscheme_server.store.texts import response_row

PART_CHARACTERS = 1024 * 1024
"""Characters of texts in one statement: some milliseconds to hash and to pack."""
T = TypeVar("T")
_OUTCOME = (
    "reward_mean",
    "reward_spread",
    "unscored",
    "cached_verdicts",
    "saved_usd",
    "judge",
    "figures",
    "scored_at",
)


@dataclass(frozen=True, slots=True)
class GroupRef:
    """What identifies a group. `run_id` and `step` are `None` outside a run."""

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
    """One rollout as it is stored: enough to judge it again later.

    `verdicts`: see `domain.verdict.verdict_string`; empty if no judge could read the rollout.
    `words`: of what was judged.
    """

    rollout_id: str
    response: Response
    truncated: bool
    reward: float | None
    reason: str | None
    verdicts: str = ""
    words: int | None = None


@dataclass(frozen=True, slots=True)
class ScoredTeacher:
    """A teacher response that was judged beside the rollouts. `key`: that of its text."""

    key: str
    reward: float | None
    verdicts: str


@dataclass(frozen=True, slots=True)
class GroupOutcome:
    """The rollouts of a judged group, and what reuse saved.

    `cached_verdicts`: verdicts that were stored before. `saved_usd`: what those, and a reused
    rubric, had cost. `distinct`: how many different judged texts have a reward; rewards have no
    spread where there are fewer than two. `judge`: the identity of the judge. `run_id`: the run, if
    there is one. `criteria`: how many the rubric has.
    """

    rollouts: Sequence[ScoredRollout]
    cached_verdicts: int = 0
    saved_usd: float = 0.0
    distinct: int = 0
    teachers: Sequence[ScoredTeacher] = ()
    criteria: int = 0
    judge: str | None = None
    run_id: str | None = None


@dataclass(frozen=True, slots=True)
class RubricUses:
    """How often a rubric was used in a run, and (mean reward, spread) of its two newest uses.

    Groups that cannot have a spread do not count: they do not show whether a rubric separates
    rollouts. `scored`: all groups of the team that it scored, in any run.
    """

    count: int
    newest: tuple[tuple[float, float], ...]
    scored: int


@dataclass(frozen=True, slots=True)
class _NewAssignment:
    group: GroupRef
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
        # The prompt is inserted in the same transaction: one that nothing refers to may be pruned.
        self._assign_all = database.combine(
            database.insert_rows(prompts).on_conflict_do_nothing(),
            database.insert_rows(assignments).on_conflict_do_nothing().returning(a.id),
        )
        outcome = database.rows([a.id, a.team, *(a[name] for name in _OUTCOME)], "outcomes")
        new, run = database.insert_rows(rollouts), database.insert_rows(runs)
        self._insert_texts = database.insert_rows(texts).on_conflict_do_nothing()
        self._finish_all = database.combine(
            self._insert_texts,
            # A step that is sent again replaces what it stored before.
            new.on_conflict_do_update(
                index_elements=[r.assignment_id, r.rollout_id],
                set_={
                    name: new.excluded[name]
                    for name in (
                        "text_key",
                        "truncated",
                        "reward",
                        "reason",
                        "verdicts",
                        "words",
                    )
                },
            ),
            run.on_conflict_do_update(
                index_elements=[runs.c.team, runs.c.id],
                set_={name: run.excluded[name] for name in ("last_scored_at", "changed_at")},
            ),
            sa.update(assignments)
            # The transaction's scope covers all teams of a batch; a team changes its own rows only.
            .where(a.id == outcome.id, a.team == outcome.team)
            .values({name: outcome[name] for name in _OUTCOME}),
        )
        self._finding: Batcher[GroupRef, Assignment | None] = Batcher(database, self._find)
        self._assigning: Batcher[_NewAssignment, Assignment] = Batcher(database, self._assign)
        self._finishing: Batcher[tuple[str, str, GroupOutcome], None] = Batcher(
            database, self._finish, weigh=lambda finished: len(finished[2].rollouts)
        )

    async def find(self, group: GroupRef) -> Assignment | None:
        """Return the assignment that a group of a step already has; outside a run there is none."""
        return await self._finding.submit(group) if group.run_id is not None else None

    def assign(
        self,
        group: GroupRef,
        *,
        prompt: Sequence[ChatMessage] | None,
        rubric_id: str,
        origin: AssignedOrigin,
        reuse: ReusePolicy,
        verify: VerifyMode,
        distinct: int = 0,
    ) -> asyncio.Future[Assignment]:
        """Store an assignment; if another writer was first, give its assignment instead.

        It is stored whether or not the future is awaited. `prompt`: `None` when it is stored
        already, as a rubric's own prompt is. `distinct`: how many different judged texts the group
        has.
        """
        return self._assigning.put(
            _NewAssignment(group, prompt, rubric_id, origin, reuse, verify, distinct)
        )

    async def uses(self, team: str, *, rubric_id: str, run_id: str | None) -> RubricUses:
        """Return the uses of a rubric, finished or not, in one run (`None`: outside any run)."""
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
        p = past_groups.c
        counts = (
            sa.select(sa.func.count()).where(same),
            sa.select(sa.func.count()).where(
                a.team == team, a.rubric_id == rubric_id, a.figures.is_not(None)
            ),
            sa.select(sa.func.count()).where(p.team == team, p.rubric_id == rubric_id),
        )
        query = sa.select(*(each.scalar_subquery() for each in counts))
        async with self._db.reading(team_scope(team)) as connection:
            count, scored, pruned = (await connection.execute(query)).one()
            return RubricUses(
                count,
                tuple((mean, spread) for mean, spread in await connection.execute(newest)),
                scored + pruned,
            )

    async def finish(self, team: str, assignment_id: str, outcome: GroupOutcome) -> None:
        """Store the group's rollouts and rewards."""
        await self._finishing.submit((team, assignment_id, outcome))

    async def _find(self, groups: Sequence[GroupRef]) -> list[Assignment | None]:
        by_step: dict[tuple[str, str | None, int | None], list[GroupRef]] = defaultdict(list)
        for group in groups:
            by_step[group.team, group.run_id, group.step].append(group)
        found: dict[GroupRef, Assignment] = {}
        for (team, run_id, step), of_step in by_step.items():
            parameters = {
                "team": team,
                "run": run_id,
                "step": step,
                "keys": self._db.keys(group.group_id for group in of_step),
            }
            for group_id, key, *columns in await self._db.read(
                team_scope(team), self._select, parameters
            ):
                found[GroupRef(team, run_id, step, group_id, key)] = Assignment(*columns)
        return [found.get(group) for group in groups]

    async def _assign(self, news: Sequence[_NewAssignment]) -> list[Assignment]:
        created = now()
        made = [Assignment(new_id("asg"), n.rubric_id, n.origin) for n in news]
        rows = [
            {
                "id": a.id,
                "team": n.group.team,
                "run_id": n.group.run_id,
                "step": n.group.step,
                "group_id": n.group.group_id,
                "prompt_key": n.group.prompt_key,
                "rubric_id": n.rubric_id,
                "origin": n.origin,
                "reuse": n.reuse,
                "verify": n.verify,
                "distinct_rollouts": n.distinct,
                "created_at": created,
            }
            for a, n in zip(made, news, strict=True)
        ]
        with_prompt = [n for n in news if n.prompt is not None]
        written = {
            id_
            for (id_,) in await self._db.write(
                team_scope(*(n.group.team for n in news)),
                self._assign_all,
                {
                    "prompts": self._db.pack(_prompt_rows(with_prompt, created)),
                    "assignments": self._db.pack(rows),
                },
            )
        }
        # ON CONFLICT DO NOTHING wrote no row where another sender of the step was first.
        taken = [n.group for a, n in zip(made, news, strict=True) if a.id not in written]
        first = dict(zip(taken, await self._find(taken), strict=True)) if taken else {}
        return [first.get(n.group) or a for a, n in zip(made, news, strict=True)]

    async def _finish(self, finished: Sequence[tuple[str, str, GroupOutcome]]) -> list[None]:
        created = now()
        # A step that is sent again while it runs may finish twice in one batch: the later outcome
        # stands.
        outcomes = {assignment_id: (team, outcome) for team, assignment_id, outcome in finished}
        rollouts = [(id_, r) for id_, (_, outcome) in outcomes.items() for r in outcome.rollouts]
        rows: list[dict[str, Any]] = []
        by_key: dict[str, Response] = {}
        for part in _split(rollouts, lambda item: _characters(item[1].response)):
            for assignment_id, r in part:
                key = response_key(r.response)
                by_key[key] = r.response
                rows.append(
                    {
                        "assignment_id": assignment_id,
                        "rollout_id": r.rollout_id,
                        "text_key": key,
                        "truncated": r.truncated,
                        "reward": r.reward,
                        "reason": r.reason,
                        "verdicts": r.verdicts,
                        "words": r.words,
                    }
                )
            await asyncio.sleep(0)  # hashing a part takes milliseconds

        def pack_texts(keys: Sequence[str]) -> dict[str, str]:
            texts = [response_row(key, by_key[key], created) for key in keys]
            return {"texts": self._db.pack(texts)}

        # Long texts go in several statements: one would block the event loop and copy all texts.
        # Sorted, so that two writers of the same texts queue instead of deadlocking.
        parts = _split(sorted(by_key), lambda key: _characters(by_key[key]))
        *first, last = list(parts) or [[]]
        outcome_rows = [
            {"id": assignment_id, "team": team} | _outcome_row(outcome, created.timestamp())
            for assignment_id, (team, outcome) in outcomes.items()
        ]
        await self._db.write(
            team_scope(*(team for team, _ in outcomes.values())),
            self._finish_all,
            pack_texts(last)
            | {
                "rollouts": self._db.pack(rows),
                "outcomes": self._db.pack(outcome_rows),
                "runs": self._db.pack(_run_rows(outcomes.values(), created)),
            },
            first=((self._insert_texts, pack_texts(keys)) for keys in first) if first else None,
        )
        return [None] * len(finished)


def _characters(response: Response) -> int:
    return len(response) if isinstance(response, str) else len(response.json)


def _split(items: Iterable[T], characters: Callable[[T], int]) -> Iterator[list[T]]:
    """Split items into parts whose texts have about `PART_CHARACTERS`."""
    part: list[T] = []
    size = 0
    for item in items:
        part.append(item)
        size += characters(item)
        if size >= PART_CHARACTERS:
            yield part
            part, size = [], 0
    if part:
        yield part


def _outcome_row(outcome: GroupOutcome, at: float) -> dict[str, Any]:
    rewards = [r.reward for r in outcome.rollouts]
    known = [reward for reward in rewards if reward is not None]
    words = [r.words for r in outcome.rollouts]
    spread = max(known) - min(known) if outcome.distinct >= 2 else None
    figures = GroupFigures(
        at=at,
        rewards=rewards,
        words=words,
        truncated=sum(r.truncated for r in outcome.rollouts),
        reasons=[r.reason for r in outcome.rollouts if r.reason is not None],
        spread=spread,
        verdicts=joined_verdicts([r.verdicts for r in outcome.rollouts], outcome.criteria),
        teacher_rewards=[t.reward for t in outcome.teachers],
        teacher_verdicts=joined_verdicts([t.verdicts for t in outcome.teachers], outcome.criteria),
        teacher_keys=[t.key for t in outcome.teachers],
        length_reward=length_reward(words, rewards),
    )
    return {
        "reward_mean": sum(known) / len(known) if known else None,
        "reward_spread": spread,
        "unscored": len(rewards) - len(known),
        "cached_verdicts": outcome.cached_verdicts,
        "saved_usd": outcome.saved_usd,
        "judge": outcome.judge,
        "figures": figures.dump(),
        "scored_at": at,
    }


def _run_rows(
    outcomes: Iterable[tuple[str, GroupOutcome]], created: datetime
) -> list[dict[str, Any]]:
    found = {(team, o.run_id) for team, o in outcomes if o.run_id is not None}
    # Sorted, so that two writers of the same runs queue instead of deadlocking.
    return [
        {
            "team": team,
            "id": run_id,
            "state": "running",
            "reason": None,
            "steps": None,
            "facts": {},
            "last_scored_at": created,
            "changed_at": created,
            "created_at": created,
        }
        for team, run_id in sorted(found)
    ]


def _prompt_rows(news: Sequence[_NewAssignment], created: object) -> list[dict[str, Any]]:
    messages = {n.group.prompt_key: list(n.prompt or ()) for n in news}
    # Sorted, so that two writers of the same prompts queue instead of deadlocking.
    return [
        {"key": key, "messages": messages[key], "created_at": created} for key in sorted(messages)
    ]
