"""Write a synthetic run of a given size straight into the tables of a store.

The run learns: criteria are met more and more often, one saturates, one is met by students only,
and some rollouts are unscored. For the tests of pages and for `python -m runs.routes`.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, get_args

import sqlalchemy as sa

from markscheme.vocabulary import Category
from markscheme_server.domain.group_figures import GroupFigures, joined_verdicts, length_reward
from markscheme_server.domain.hashing import content_hash, criterion_key, prompt_key, text_key
from markscheme_server.domain.rubric import Criterion
from markscheme_server.store.engine.database import team_scope
from markscheme_server.store.engine.ids import new_id, now
from markscheme_server.store.store import Store
from markscheme_server.store.tables import (
    assignments,
    judge_calls,
    prompts,
    rollouts,
    rubrics,
    run_records,
    runs,
    second_verdicts,
    texts,
    verdicts,
)

JUDGE = "openai/judge-8b@r1 template=verifier/1 temperature=0.0 tail=6000"
SECOND = "openai/judge-70b@r1 template=verifier/1 temperature=0.0 tail=6000"
STEPS_PER_BATCH = 20


@dataclass(frozen=True, slots=True)
class RunSize:
    """How much a run holds."""

    steps: int = 1000
    groups: int = 4
    rollouts: int = 8
    criteria: int = 12
    prompts: int = 40
    rubrics: int = 1
    """Rubrics of as many prompts; a rubric's prompt has a number below it."""


def make_criteria(count: int) -> list[Criterion]:
    """Return criteria of all categories; the last is a pitfall."""
    categories = get_args(Category)
    return [
        Criterion(
            f"c{i}",
            f"The answer does thing {i}.",
            -1 if i == count else 1 + i % 5,
            categories[i % len(categories)],
        )
        for i in range(1, count + 1)
    ]


async def seed_run(
    store: Store,
    team: str,
    run_id: str,
    size: RunSize = RunSize(),
    *,
    seed: int = 1,
    like: str | None = None,
) -> list[str]:
    """Write a run, and return the ids of its groups in order.

    `like`: a run of the same size whose prompts it takes, with rubrics that add a version to each.
    """
    rng = random.Random(seed)
    begun = now() - timedelta(seconds=30 * size.steps)
    asked = [
        [{"role": "user", "content": f"Question {like or run_id} {i}?"}]
        for i in range(size.prompts)
    ]
    criteria = make_criteria(size.criteria)
    made = [new_id("rub") for _ in range(size.rubrics)]
    stored = [
        {
            "id": id_,
            "team": team,
            "prompt_key": prompt_key(asked[i]),
            "version": 1 if like is None else 1 + seed,
            "content_hash": content_hash(tuple(criteria)),
            "criteria": [
                {
                    "id": c.id,
                    "text": c.text if size.rubrics == 1 else f"{c.text} ({i})",
                    "points": c.points,
                    "category": c.category,
                    "check": None,
                    "source": None,
                }
                for c in criteria
            ],
            "origin": "induced",
            "tags": [],
            "provenance": {},
            "visibility": "private",
            "metadata": {},
            "created_at": begun,
        }
        for i, id_ in enumerate(made)
    ]
    ids: list[str] = []
    async with store.database.writing(team_scope(team)) as connection:
        await connection.execute(
            store.database.insert(prompts).on_conflict_do_nothing(),
            [{"key": prompt_key(p), "messages": p, "created_at": begun} for p in asked],
        )
        await connection.execute(rubrics.insert(), stored)
        await connection.execute(
            runs.insert().values(
                team=team,
                id=run_id,
                state="running",
                steps=2 * size.steps,
                facts={"student": "student-1b", "preset": "ropd"},
                created_at=begun,
                last_scored_at=now(),
                changed_at=now(),
            )
        )
    for start in range(0, size.steps, STEPS_PER_BATCH):
        rows: dict[sa.Table, list[dict[str, Any]]] = {}
        for step in range(start, min(size.steps, start + STEPS_PER_BATCH)):
            at = begun + timedelta(seconds=30 * step)
            for number in range(size.groups):
                prompt = asked[(step * size.groups + number) % size.prompts]
                rubric = number % size.rubrics
                for table, row in _group(
                    rng, size, team, run_id, step, number, prompt, stored[rubric], at
                ):
                    rows.setdefault(table, []).append(row)
            rows.setdefault(run_records, []).append(
                {
                    "team": team,
                    "run_id": run_id,
                    "step": step,
                    "metrics": json.dumps({"loss": 1 / (1 + step), "kl": 0.01}),
                }
            )
        ids += [row["id"] for row in rows[assignments]]
        async with store.database.writing(team_scope(team)) as connection:
            for table in (texts, judge_calls, assignments, rollouts, verdicts, second_verdicts):
                if table in rows:
                    await connection.execute(
                        store.database.insert_rows(table).on_conflict_do_nothing(),
                        {
                            table.name: store.database.pack(
                                [{c.name: None for c in table.c} | row for row in rows[table]]
                            )
                        },
                    )
            await connection.execute(run_records.insert(), rows[run_records])
    return ids


def _group(
    rng: random.Random,
    size: RunSize,
    team: str,
    run_id: str,
    step: int,
    number: int,
    prompt: list[dict[str, str]],
    rubric: dict[str, Any],
    at: Any,
) -> Iterator[tuple[sa.Table, dict[str, Any]]]:
    done = step / size.steps
    criteria = [Criterion(**each) for each in rubric["criteria"]]
    asked = [criterion_key(criterion) for criterion in criteria]
    group, key = new_id("asg"), prompt_key(prompt)
    outage = 0.4 <= done < 0.42
    scored = []
    for i in range(size.rollouts):
        said = "".join(
            "?"
            if outage and rng.random() < 0.1
            else str(int(rng.random() < _share(n, size.criteria, done)))
            for n in range(size.criteria)
        )
        count = rng.randint(20, 40) + int(40 * done)
        scored.append((f"r{i}", said, _reward(criteria, said), count))
    taught = "".join(
        str(int(rng.random() < _teacher(n, size.criteria))) for n in range(size.criteria)
    )
    rewards, words = [r for _, _, r, _ in scored], [w for *_, w in scored]
    known = [reward for reward in rewards if reward is not None]
    spread = max(known) - min(known) if len(known) > 1 else None
    figures = GroupFigures(
        at=at.timestamp(),
        rewards=rewards,
        words=words,
        truncated=sum(rng.random() < 0.02 for _ in scored),
        reasons=["unavailable"] * (len(rewards) - len(known)),
        spread=spread,
        verdicts=joined_verdicts([said for _, said, _, _ in scored], size.criteria),
        teacher_rewards=[_reward(criteria, taught)],
        teacher_verdicts=taught,
        teacher_keys=[text_key(f"teacher of {key}")],
        length_reward=length_reward(words, rewards),
    )
    yield (
        assignments,
        {
            "id": group,
            "team": team,
            "run_id": run_id,
            "step": step,
            "group_id": f"s{step}-{number}",
            "prompt_key": key,
            "rubric_id": rubric["id"],
            "origin": "induced",
            "reuse": "if_fresh",
            "verify": "rollout",
            "reward_mean": sum(known) / len(known) if known else None,
            "reward_spread": spread,
            "unscored": len(rewards) - len(known),
            "cached_verdicts": 0,
            "saved_usd": 0.0,
            "distinct_rollouts": size.rollouts,
            "judge": JUDGE,
            "figures": figures.dump(),
            "scored_at": figures.at,
            "created_at": at,
        },
    )
    for name, said, reward, count in scored:
        text = f"{group} {name} " + "word " * (count - 2)
        response = text_key(text)
        yield texts, {"key": response, "text": text, "created_at": at}
        yield (
            rollouts,
            {
                "assignment_id": group,
                "rollout_id": name,
                "text_key": response,
                "truncated": False,
                "reward": reward,
                "reason": None if reward is not None else "unavailable",
                "verdicts": said,
                "words": count,
            },
        )
        call = new_id("call")
        yield (
            judge_calls,
            {
                "id": call,
                "team": team,
                "role": "verifier",
                "judge": JUDGE,
                "criteria": asked,
                "asked": len(asked),
                "calls": 1,
                "prompt_tokens": 1200,
                "completion_tokens": 300,
                "failure": None,
                "run_id": run_id,
                "rubric_id": rubric["id"],
                "cached_tokens": 0,
                "cost_usd": 400_000,
                "unpriced_calls": 0,
                "settled_usd": 400_000,
                "created_at": at,
            },
        )
        if rng.random() < 0.05:
            other = "".join(
                each if rng.random() < 0.9 - 0.2 * done else str(1 - int(each))
                for each in said.replace("?", "0")
            )
            yield (
                second_verdicts,
                {
                    "assignment_id": group,
                    "rollout_id": name,
                    "judge": SECOND,
                    "team": team,
                    "run_id": run_id,
                    "step": step,
                    "first_judge": JUDGE,
                    "first_reward": reward,
                    "first_verdicts": said,
                    "reward": _reward(criteria, other),
                    "verdicts": other,
                    "created_at": at,
                },
            )
        if step >= size.steps - 5:
            for criterion, each in zip(criteria, said, strict=True):
                if each != "?":
                    yield (
                        verdicts,
                        {
                            "key": text_key(f"{group} {name} {criterion.id}"),
                            "team": team,
                            "prompt_key": key,
                            "criterion_key": criterion_key(criterion),
                            "response_key": response,
                            "judge": JUDGE,
                            "met": each == "1",
                            "evidence": "word word" if each == "1" else None,
                            "call_id": call,
                            "rationale": None,
                            "created_at": at,
                        },
                    )


def _share(number: int, criteria: int, done: float) -> float:
    """Return how often students meet a criterion: 0 saturates, 1 inverts, others grow."""
    if number == 0:
        return 0.995
    if number == 1:
        return 0.2 if done < 0.5 else 0.9
    if number == criteria - 1:
        return 0.1
    return 0.2 + 0.5 * done * number / criteria


def _teacher(number: int, criteria: int) -> float:
    return {0: 0.99, 1: 0.3, criteria - 1: 0.02}.get(number, 0.9)


def _reward(criteria: list[Criterion], said: str) -> float | None:
    if "?" in said:
        return None
    most = sum(c.points for c in criteria if c.points > 0)
    return max(0.0, sum(c.points for c, e in zip(criteria, said, strict=True) if e == "1") / most)
