"""Test what a judge is told of criteria that may not apply, and which replies are verdicts."""

import hashlib
from typing import Any

import pytest

from markscheme_server.domain.rubric import Criterion
from markscheme_server.judge import prompts
from markscheme_server.judge.base import Decision, VerifyTask
from markscheme_server.judge.replies import ReplyError, read_pool, read_verdicts

ALWAYS = (Criterion("c1", "It names a colour.", 2), Criterion("c2", "It is polite.", 1))
IDS = ("c1", "c2")


def message(may_not_apply: tuple[str, ...] = (), *, pool: bool = False) -> str:
    task = VerifyTask(
        ({"role": "user", "content": "Name a colour."},),
        ALWAYS,
        ("Red.", "Blue.") if pool else ("Red.",),
        "group" if pool else "rollout",
    )
    schema = prompts.verdict_schema(
        pool=pool, evidence=False, nonce=True, may_not_apply=bool(may_not_apply)
    )
    return prompts.verifier_prompt(
        task,
        prompts.number_criteria(task.criteria),
        schema,
        prompts.PromptSecrets(b"x"),
        max_tokens=100,
        nonce="n",
        canary=("c3", "It contains zz."),
        may_not_apply=may_not_apply,
    )


@pytest.mark.parametrize(
    ("pool", "digest"),
    [
        (False, "73c1733f923d3d2d9dd03c1662d84a052407aa5bace73cfd48591014cdd33d8e"),
        (True, "2f83e2a62f9d9622bef6d91c3fb86befd0603c16ecc4b5ca81a7914819130d2b"),
    ],
)
def test_without_such_a_criterion_the_prompt_is_that_of_the_stored_verdicts(
    pool: bool, digest: str
) -> None:
    """The keys of stored verdicts hold the template's version: it and the prompt must stay."""
    assert prompts.VERIFIER_VERSION == "77228fbd58e7"
    assert hashlib.sha256(message(pool=pool).encode()).hexdigest() == digest


@pytest.mark.parametrize("pool", [False, True])
def test_the_prompt_names_the_criteria_that_may_not_apply_and_no_others(pool: bool) -> None:
    told = message(("c2",), pool=pool)
    assert "May not apply to an answer: c2." in told
    assert '"applicable"' in told
    assert "applicable" not in message(pool=pool)


def test_a_verdict_may_say_that_the_criterion_does_not_apply() -> None:
    reply = [{"id": "c1", "met": True}, {"id": "c2", "applicable": False, "met": None}]
    assert read_verdicts(reply, IDS, may_not_apply=["c2"]) == {
        "c1": Decision(True),
        "c2": Decision(None),
    }


def test_in_group_mode_it_is_said_of_each_answer() -> None:
    def marked(number: int, **verdict: Any) -> dict[str, Any]:
        return {
            "answer": number,
            "verdicts": [{"id": "c1", "applicable": True, "met": True}, {"id": "c2"} | verdict],
        }

    reply = {"answers": [marked(1, applicable=False, met=None), marked(2, met=False)]}
    assert [each["c2"].met for each in read_pool(reply, 2, IDS, may_not_apply=["c2"])] == [
        None,
        False,
    ]


@pytest.mark.parametrize(
    "verdict",
    [
        {"applicable": False, "met": None},
        {"applicable": False, "met": False},
        {"applicable": False, "met": True},
        {"met": None},
    ],
)
def test_of_a_criterion_that_always_applies_it_is_no_verdict(verdict: dict[str, Any]) -> None:
    reply = [{"id": "c1"} | verdict, {"id": "c2", "applicable": False, "met": None}]
    with pytest.raises(ReplyError, match="c1|met must be true or false"):
        read_verdicts(reply, IDS, may_not_apply=["c2"])


@pytest.mark.parametrize(
    "verdict",
    [
        {"applicable": False, "met": True},
        {"applicable": False, "met": False},
        {"applicable": True, "met": None},
        {"met": None},
        {},
        {"applicable": None, "met": None},
        {"applicable": "false", "met": None},
        {"applicable": 0, "met": None},
        {"applicable": False, "met": "null"},
        {"applicable": True, "met": 1},
    ],
)
def test_a_contradiction_is_no_verdict(verdict: dict[str, Any]) -> None:
    with pytest.raises(ReplyError, match="c2 needs applicable"):
        read_verdicts(
            [{"id": "c1", "met": True}, {"id": "c2"} | verdict], IDS, may_not_apply=["c2"]
        )


def test_another_field_of_that_name_is_passed_over_where_nobody_asked_for_it() -> None:
    reply = [{"id": i, "met": True, "applicable": "yes"} for i in IDS]
    assert read_verdicts(reply, IDS) == {i: Decision(True) for i in IDS}
