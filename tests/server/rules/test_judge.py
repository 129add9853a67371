"""The builtin judge in its two roles."""

import asyncio
import math
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from markscheme.vocabulary import UnscoredReason
from markscheme_server.domain.call_context import Allowance, CallContext, Deadline
from markscheme_server.domain.rubric import Criterion
from markscheme_server.judge.base import InductionTask, JudgeFailure, StudentResponse, VerifyTask
from markscheme_server.rules.judge import BuiltinJudge
from markscheme_server.rules.pool import CheckPool

PROMPT = ({"role": "user", "content": "Describe a harbour. Use no commas. Use at least 6 words."},)


async def induced() -> tuple[Criterion, ...]:
    task = InductionTask(
        PROMPT,
        ("The harbour is quiet and the boats are asleep.",),
        (StudentResponse("Boats, nets."),),
    )
    return await BuiltinJudge().induce(task)


async def test_decisions_come_by_criterion_with_evidence() -> None:
    criteria = await induced()
    task = VerifyTask(
        PROMPT, criteria, ("Boats, nets, ropes and the sea are what the harbour has.",)
    )
    verification = await BuiltinJudge().verify(task)
    (decisions,) = verification
    assert set(decisions) == {c.id for c in criteria}
    assert (decisions["c1"].met, decisions["c1"].evidence) == (False, "2 commas")


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
    assert list(together) == [single[0] for single in alone]


def test_identities_name_the_rules_version() -> None:
    judge = BuiltinJudge()
    assert judge.rubricator_identity == judge.template == "builtin/3"
    assert judge.verifier_identity == "builtin-checks/1"


SLOW = {"kind": "regex", "pattern": "(?:.{0,30}a){30}c"}
"""Takes a second for 100,000 characters."""
SHORT = {"kind": "max_words", "value": 5}


async def decided(
    texts: tuple[str, ...], checks: list[dict[str, object]], context: CallContext
) -> list[set[str]]:
    """Which criteria were decided for each text."""
    criteria = tuple(
        Criterion(f"c{i}", f"Number {i}.", 1, check=check) for i, check in enumerate(checks, 1)
    )
    judge = BuiltinJudge()
    try:
        answer = await judge.verify(VerifyTask(PROMPT, criteria, texts), context)
    finally:
        await judge.aclose()
    return [set(decisions) for decisions in answer]


async def test_what_may_not_end_in_time_is_not_begun_and_the_rest_is_decided() -> None:
    loop = asyncio.get_running_loop()
    due = loop.time() + 1.0
    assert await decided(
        ("ab" * 50_000, "a short one"), [SLOW, SHORT], CallContext(Deadline(due))
    ) == [{"c2"}, {"c1", "c2"}]
    assert loop.time() < due


async def test_a_costly_check_is_decided_where_there_is_time() -> None:
    assert await decided(("ab" * 5000,), [SLOW], CallContext(Deadline(math.inf))) == [{"c1"}]


async def test_all_groups_of_a_request_spend_its_computing_time() -> None:
    context = CallContext(Deadline(math.inf), allowance=Allowance(0.5))
    texts = ("word " * 2000,) * 20_000
    first = await decided(texts, [SHORT], context)
    assert {"c1"} in first
    assert set() in first
    assert await decided(("x " * 2000,), [SHORT], context) == [set()]


async def test_a_team_never_holds_the_last_thread() -> None:
    pool, end = CheckPool(2), threading.Event()
    busy = [asyncio.ensure_future(pool.run(end.wait, team="busy", priority=0)) for _ in range(5)]
    await asyncio.sleep(0)
    assert await asyncio.wait_for(pool.run(lambda: "done", team="other", priority=1), 30) == "done"
    end.set()
    await asyncio.gather(*busy)
    pool.close()


async def test_who_leaves_holds_a_thread_until_it_is_done() -> None:
    pool, begun, end = CheckPool(2), threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        end.wait()

    leaving = asyncio.ensure_future(pool.run(hold, team="a", priority=0))
    await asyncio.to_thread(begun.wait, 30)
    leaving.cancel()
    waiting = asyncio.ensure_future(pool.run(lambda: "next", team="a", priority=1))
    await asyncio.wait([waiting], timeout=0.05)
    assert not waiting.done()
    end.set()
    assert await asyncio.wait_for(waiting, 30) == "next"
    pool.close()
