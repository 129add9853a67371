"""Batches whose rubric, verdicts or store change while they are scored."""

import asyncio
from typing import Any

import pytest
import sqlalchemy as sa
from structlog.testing import capture_logs

from fakes.processes import PATIENCE_S
from markscheme.vocabulary import UnscoredReason
from markscheme_server.domain.call_context import CallContext, Deadline
from markscheme_server.domain.hashing import messages_of
from markscheme_server.domain.rubric import Criterion
from markscheme_server.domain.trajectory import Answer
from markscheme_server.errors import TooLarge
from markscheme_server.judge.base import (
    Decision,
    JudgeFailure,
    Verification,
    VerifyTask,
)
from markscheme_server.judge.queue import CallQueue
from markscheme_server.rules.judge import BuiltinJudge
from markscheme_server.scoring import verdicts
from markscheme_server.scoring.rubrics import ResolvedRubric, RubricService
from markscheme_server.store.engine.database import ALL_TEAMS
from markscheme_server.store.tables import verdicts as stored_verdicts
from server.scoring.in_process import (
    CHECKED,
    PROMPT,
    RED,
    Model,
    Scoring,
    group_request,
    in_an_hour,
    is_good,
)

TWO = (Criterion("c1", "It is good.", 1), Criterion("c2", "It is short.", 1))


async def test_more_verdicts_than_a_request_may_ask_for_are_refused_and_nothing_is_stored(
    scoring: Scoring,
) -> None:
    rubric = await scoring.rubric(TWO)
    texts = [f"good {n}" for n in range(51)]
    with pytest.raises(TooLarge, match="102 verdicts.*ask for 100: send several requests") as large:
        await scoring.score(*texts, rubric=rubric)
    assert (large.value.code, large.value.param) == ("too_many_verdicts", "groups")
    assert scoring.model.asked == []
    assert await scoring.store.replays.run_groups("red", "run") == []
    assert (await scoring.score(*texts[:50], rubric=rubric)).status == "scored"


async def test_a_step_that_is_sent_twice_at_once_gets_one_rubric(
    scoring: Scoring, other: Scoring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both induce, by different rubricators; the first that is written down counts."""
    other.model.rubricator_identity = "another"
    resolve, both = RubricService.induce, asyncio.Barrier(2)

    async def induce(self: RubricService, *arguments: Any) -> ResolvedRubric:
        resolved = await resolve(self, *arguments)
        await both.wait()
        return resolved

    monkeypatch.setattr(RubricService, "induce", induce)
    async with asyncio.timeout(PATIENCE_S):
        scores = await asyncio.gather(
            *(
                each.score("good", "bad", teachers=["better"], reuse="always_new")
                for each in (scoring, other)
            )
        )
    assert len(scoring.model.inductions) == len(other.model.inductions) == 1
    assert len({score.rubric.id for score in scores if score.rubric is not None}) == 1
    assert [[each.reward for each in score.rollouts] for score in scores] == [[1.0, 0.0]] * 2
    (group,) = await scoring.store.replays.run_groups("red", "run")
    assert {score.rubric.id for score in scores if score.rubric} == {group.rubric_id}


async def test_a_criterion_that_was_judged_meanwhile_is_not_asked_about_again(
    scoring: Scoring,
) -> None:
    both, first = await scoring.rubric(TWO), await scoring.rubric(TWO[:1])
    batch = await scoring.scores.admit(RED, group_request("good", rubric=both), in_an_hour())
    await scoring.score("good", rubric=first, step=1)
    (score,) = [each async for each in scoring.scores.score(batch)]
    assert score.rollouts[0].reward == 1.0
    asked = [[c.text for c in task.criteria] for task in scoring.model.asked]
    assert asked == [["It is good."], ["It is short."]]


async def test_replies_that_come_after_the_lease_are_not_stored_and_the_question_is_asked_again(
    scoring: Scoring,
) -> None:
    """Another process took the question over, and gave it up."""
    rubric = await scoring.rubric(TWO)
    scoring.model.max_criteria = 1
    claims, late = scoring.store.claims, []

    async def slow(task: VerifyTask) -> Verification:
        if not late:
            late.append(task)
            # As the other process would, under a name of ours.
            await scoring.expire_claims()
            (key,) = claims._fences
            await claims.acquire(key)
            claims.forget([key])
            await scoring.expire_claims()
        return await is_good(task)

    scoring.model.verify_as = slow
    score = await scoring.score("good", rubric=rubric)
    assert score.rollouts[0].reward == 1.0
    assert len(scoring.model.asked) > 2
    async with scoring.store.database.reading(ALL_TEAMS) as connection:
        count = sa.select(sa.func.count()).select_from(stored_verdicts)
        assert (await connection.execute(count)).scalar_one() == 2


async def test_a_rollout_that_waits_too_long_for_its_turn_is_null_and_asks_nobody(
    scoring: Scoring, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verdicts, "MIN_UNITS", 1)
    monkeypatch.setattr(verdicts, "UNITS_PER_SLOT", 0)
    rubric, asked, go_on = await scoring.rubric(), asyncio.Event(), asyncio.Event()

    async def held(task: VerifyTask) -> Verification:
        asked.set()
        await go_on.wait()
        return await is_good(task)

    scoring.model.verify_as = held
    first = asyncio.ensure_future(scoring.score("good 1", rubric=rubric))
    await asked.wait()
    soon = Deadline(asyncio.get_running_loop().time() + 0.02)
    request = group_request("good 2", rubric=rubric, step=1)
    batch = await scoring.scores.admit(RED, request, soon)
    (late,) = [each async for each in scoring.scores.score(batch)]
    assert [(each.reward, each.reason) for each in late.rollouts] == [(None, "timeout")]
    go_on.set()
    assert [each.reward for each in (await first).rollouts] == [1.0]
    assert len(scoring.model.asked) == 1


async def test_checks_that_there_was_no_time_for_are_null_and_not_stored(
    scoring: Scoring, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing(
        _self: BuiltinJudge, task: VerifyTask, context: CallContext | None = None
    ) -> Verification:
        return tuple({} for _ in task.responses)

    rubric = await scoring.rubric([CHECKED])
    with monkeypatch.context() as patch:
        patch.setattr(BuiltinJudge, "verify", nothing)
        score = await scoring.score("red", rubric=rubric)
    assert (score.rollouts[0].reward, score.rollouts[0].reason) == (None, "timeout")
    assert (await scoring.score("red", rubric=rubric)).rollouts[0].reward == 1.0


async def test_what_a_judge_does_not_answer_when_asked_again_is_left_out(scoring: Scoring) -> None:
    rubric = await scoring.rubric(TWO)
    scoring.model.max_criteria = 1

    async def refuses_one(task: VerifyTask) -> Verification:
        if task.criteria[0].text == "It is short.":
            raise JudgeFailure(UnscoredReason.REFUSED, "no")
        return tuple({c.id: Decision(True) for c in task.criteria} for _ in task.responses)

    (plan,) = await scoring.verdicts.plan(
        team="red",
        prompt=messages_of(PROMPT),
        rubric=rubric,
        answers=[Answer("good")],
        judge=scoring.model,
        verify="rollout",
        view="reply",
        run_id=None,
    )
    scoring.model.verify_as = refuses_one
    context = CallContext(in_an_hour(), team="red")
    said = await scoring.verdicts.ask_again(plan.query, plan.query.texts, context)
    assert said == {plan.query.key(rubric.criteria[0], plan.query.texts[0]): True}


async def test_an_induced_rubric_is_replaced_after_its_uses_in_a_run(scoring: Scoring) -> None:
    sent = [
        await scoring.score(f"good {step}", f"bad {step}", step=step, teachers=["better"])
        for step in range(3)
    ]
    origins = [each.rubric.origin for each in sent if each.rubric is not None]
    # `Freshness.max_uses` is 2.
    assert origins == ["induced", "reused", "induced"]
    assert len(scoring.model.inductions) == 2


async def test_a_group_whose_teacher_has_a_full_queue_is_unscored_and_says_so(
    scoring: Scoring,
) -> None:
    teacher = Model("teacher")
    teacher.gateway.reserve = CallQueue(0).reserve
    teacher.gateway.reserve(1, "red")
    scoring.judges._by_name["teacher"] = teacher  # type: ignore[index]
    scoring.judges._roles["teacher"] = "teacher"  # type: ignore[index]
    with capture_logs() as logs:
        score = await scoring.score("good", ask_teacher=1)
    assert (score.rollouts[0].reward, score.rollouts[0].reason) == (None, "unavailable")
    assert score.error is not None
    assert "waiting already; try again later" in score.error.message
    assert [each["event"] for each in logs] == ["group_unscored"]
    assert (teacher.sampled, scoring.model.inductions) == (0, [])
