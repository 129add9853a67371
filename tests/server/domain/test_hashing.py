"""Cache keys change with what they depend on, and with nothing else."""

from typing import Any

import pytest

from markscheme_server.domain.hashing import (
    VerdictKey,
    content_hash,
    criterion_key,
    induction_key,
    judged_text,
)
from markscheme_server.domain.rubric import Criterion


def verdict_key(*, response: str, **question: Any) -> str:
    return VerdictKey(**question).for_response(response)


BASE = {
    "team": "t",
    "prompt": "p",
    "criterion": "c",
    "response": "r",
    "judge": "j",
    "verify": "rollout",
}


@pytest.mark.parametrize("changed", [*BASE, "pool"])
def test_each_part_of_a_verdict_key_counts(changed: str) -> None:
    other = "group" if changed == "verify" else "other"
    assert verdict_key(**BASE) != verdict_key(**(BASE | {changed: other}))


def test_points_ids_and_categories_are_not_part_of_what_is_asked() -> None:
    one, other = Criterion("c1", "text", 5), Criterion("c9", "text", 1, "general_reasoning")
    assert criterion_key(one) == criterion_key(other)
    assert content_hash([one]) != content_hash([other])


def test_a_criterion_that_may_not_apply_is_another_question_of_another_rubric() -> None:
    one, other = Criterion("c1", "text", 5), Criterion("c1", "text", 5, may_not_apply=True)
    assert criterion_key(one) != criterion_key(other)
    assert content_hash([one]) != content_hash([other])


def test_an_induction_key_ignores_order_and_repeats() -> None:
    def key(students: list[str]) -> str:
        return induction_key(
            team="t", prompt="p", teachers=["a"], students=students, rubricator="r"
        )

    assert key(["x", "y"]) == key(["y", "x", "x"]) != key(["x"])


@pytest.mark.parametrize(
    ("text", "auto", "strip", "keep"),
    [
        (" plain ", "plain", "", "plain"),
        ("<think>a</think> answer ", "answer", "answer", "<think>a</think> answer"),
        (
            "<think>a</think> `</think>` ends it",
            "`</think>` ends it",
            "`</think>` ends it",
            "<think>a</think> `</think>` ends it",
        ),
        (
            "a thought</think> answer",
            "a thought</think> answer",
            "answer",
            "a thought</think> answer",
        ),
        ("Write `</think>` here.", "Write `</think>` here.", "` here.", "Write `</think>` here."),
        ("<think>never ends", "", "", "<think>never ends"),
        ("<think>no answer</think>  ", "", "", "<think>no answer</think>"),
        ("[THINK]a[/THINK]b", "b", "b", "[THINK]a[/THINK]b"),
        (
            "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b<|return|>",
            "b",
            "b",
            "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b<|return|>",
        ),
        ("", "", "", ""),
    ],
)
def test_a_thought_is_cut_off_when_the_rollout_or_its_template_opens_it(
    text: str, auto: str, strip: str, keep: str
) -> None:
    assert judged_text(text) == judged_text(text, "auto") == auto
    assert judged_text(text, "strip") == strip
    assert judged_text(text, "keep") == keep


def test_keys_of_stored_rows_stay_valid() -> None:
    """Rows of earlier versions bear these keys."""
    assert verdict_key(**BASE) == (
        "8c646667733ca2893117ea322e34af0b452a04c974ec52c20a32f2bb47aaa1f7"
    )
    assert verdict_key(**(BASE | {"verify": "group", "pool": "x"})) == (
        "d6d7a73b9c22e24d7988ade993605b1a46cf60842b3fe7ba784239a835befbf6"
    )
    assert induction_key(
        team="t", prompt="p", teachers=["b", "a"], students=["s"], rubricator="r"
    ) == ("32823d0431f029755f8d3ba75099878a0c2eac97f4c3523d67812ee09c8154f8")
    assert criterion_key(Criterion("c1", "text", 5)) == (
        "832cb5683bf7f26fbeadca3081eb173f2e74c38aece8341bbfb566c39d1fcc3f"
    )
    assert content_hash([Criterion("c1", "text", 5)]) == (
        "f80fe3003eb26ecf49cf3398cbcf0c6f80eb23058201e9ad07268377d56bb87b"
    )
