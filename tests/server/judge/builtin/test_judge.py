"""The builtin judge in its two roles."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from markscheme.vocabulary import UnscoredReason
from markscheme_server.domain.rubric import Criterion
from markscheme_server.judge.base import InductionTask, JudgeFailure, Response, VerifyTask
from markscheme_server.judge.builtin.judge import BuiltinJudge

PROMPT = ({"role": "user", "content": "Describe a harbour. Use no commas. Use at least 6 words."},)


async def induced() -> tuple[Criterion, ...]:
    task = InductionTask(PROMPT, ("The harbour is quiet and the boats are asleep.",), (Response("Boats, nets."),))
    return (await BuiltinJudge().induce(task)).criteria


async def test_decisions_come_by_criterion_with_evidence() -> None:
    criteria = await induced()
    task = VerifyTask(PROMPT, criteria, ("Boats, nets, ropes and the sea are what the harbour has.",))
    verification = await BuiltinJudge().verify(task)
    (decisions,) = verification.decisions
    assert set(decisions) == {c.id for c in criteria}
    assert (decisions["c1"].met, decisions["c1"].evidence) == (False, "2 commas")
    assert verification.usage.calls == 0


async def test_a_criterion_without_a_check_is_unscored_not_guessed() -> None:
    plain = Criterion("c1", "The response is kind.", 5)
    with pytest.raises(JudgeFailure, match="decides checks only") as failure:
        await BuiltinJudge().verify(VerifyTask(PROMPT, (plain,), ("Hello.",)))
    assert failure.value.reason is UnscoredReason.UNAVAILABLE


@given(st.lists(st.text(max_size=40), min_size=1, max_size=4))
@settings(max_examples=20, deadline=None)
async def test_a_group_is_judged_as_its_rollouts_are_one_by_one(texts: list[str]) -> None:
    judge, criteria = BuiltinJudge(), await induced()
    together = await judge.verify(VerifyTask(PROMPT, criteria, tuple(texts), verify="group"))
    alone = [await judge.verify(VerifyTask(PROMPT, criteria, (text,))) for text in texts]
    assert list(together.decisions) == [single.decisions[0] for single in alone]


def test_identities_name_the_rules_version() -> None:
    judge = BuiltinJudge()
    assert judge.rubricator_identity == judge.template == "builtin/2"
    assert judge.verifier_identity == "builtin-checks/1"
