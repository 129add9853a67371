"""Second judges and re-asks that are left out, dropped or fail: counted, and no part of a score."""

import asyncio
from collections import Counter
from dataclasses import replace

import pytest

from fakes.processes import PATIENCE_S
from markscheme.vocabulary import UnscoredReason
from markscheme_server.domain.rubric import Rubric
from markscheme_server.judge.base import JudgeFailure, Verification, VerifyTask
from markscheme_server.rules.judge import BuiltinJudge
from markscheme_server.scoring import shadow
from markscheme_server.scoring.shadow import ScoredGroup, ShadowService
from server.scoring.in_process import (
    CHECKED,
    RED,
    Model,
    Scoring,
    group_request,
)


@pytest.fixture
def outcomes(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, str]]:
    """Count the rollouts by kind and outcome, as the metric does."""
    made: Counter[tuple[str, str]] = Counter()

    def count(kind: str, outcome: str, part: ScoredGroup) -> None:
        made[kind, outcome] += len(part.scored)

    monkeypatch.setattr(shadow, "_count", count)
    return made


async def scored(scoring: Scoring, rubric: Rubric, *texts: str) -> list[ScoredGroup]:
    batch = await scoring.scores.admit(
        RED, group_request(*texts, rubric=rubric), scoring.scores.deadline(None)
    )
    async for _ in scoring.scores.score(batch):
        pass
    return batch.scored


async def ask(service: ShadowService, groups: list[ScoredGroup]) -> None:
    service.start(groups)
    await service.drain(PATIENCE_S)


async def test_nobody_is_asked_about_a_group_that_code_decides(
    scoring: Scoring, outcomes: Counter[tuple[str, str]]
) -> None:
    second = Model("second")
    groups = await scored(scoring, await scoring.rubric([CHECKED]), "red", "blue")
    await ask(scoring.shadowed(second, 1.0), groups)
    assert (scoring.model.asked, second.asked, outcomes) == ([], [], Counter())


@pytest.mark.parametrize("second", [None, BuiltinJudge()])
async def test_without_a_second_model_only_the_own_judge_is_asked_again(
    second: BuiltinJudge | None, scoring: Scoring, outcomes: Counter[tuple[str, str]]
) -> None:
    groups = await scored(scoring, await scoring.rubric(), "good")
    await ask(scoring.shadowed(second, 1.0), groups)
    assert len(scoring.model.asked) == 2
    assert outcomes == {("again", "asked"): 1}


async def test_questions_beyond_those_that_may_wait_are_dropped(
    scoring: Scoring, outcomes: Counter[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The task that chooses is one of them.
    monkeypatch.setattr(shadow, "MAX_WAITING", 2)
    groups = await scored(scoring, await scoring.rubric(), "good", "bad", "good too")
    await ask(scoring.shadowed(None, 1.0), groups)
    assert outcomes == {("again", "asked"): 1, ("again", "dropped"): 2}
    assert len(scoring.model.asked) == 3 + 1


async def test_a_question_that_another_process_asks_is_not_asked_twice(
    scoring: Scoring, other: Scoring, outcomes: Counter[tuple[str, str]]
) -> None:
    asked, go_on = asyncio.Event(), asyncio.Event()
    groups = await scored(scoring, await scoring.rubric(), "good")

    async def held(_task: VerifyTask) -> Verification:
        asked.set()
        await go_on.wait()
        raise JudgeFailure(UnscoredReason.UNAVAILABLE, "down")

    scoring.model.verify_as = held
    first = scoring.shadowed(None, 1.0)
    first.start(groups)
    await asked.wait()
    await ask(other.shadowed(None, 1.0), [replace(each, judge=other.model) for each in groups])
    assert other.model.asked == []
    assert outcomes == {("again", "known"): 1}
    go_on.set()
    await first.drain(PATIENCE_S)
    assert outcomes == {("again", "known"): 1, ("again", "failed"): 1}
    # Nothing was stored, and the claim has ended: the next one asks.
    await ask(other.shadowed(None, 1.0), [replace(each, judge=other.model) for each in groups])
    assert outcomes["again", "asked"] == 1
