"""Addresses change with what they depend on and with nothing else."""

from typing import Any

import pytest

from markscheme_server.domain import hashing as fp
from markscheme_server.domain.rubric import Criterion


def address(*, response: str, **question: Any) -> str:
    return fp.VerdictAddress(**question).of(response)


BASE = {
    "team": "t",
    "prompt": "p",
    "criterion": "c",
    "response": "r",
    "judge": "j",
    "verify": "rollout",
}


@pytest.mark.parametrize("changed", [*BASE, "pool", "judged_with"])
def test_each_part_of_a_verdicts_address_counts(changed: str) -> None:
    other = "group" if changed == "verify" else "other"
    assert address(**BASE) != address(**(BASE | {changed: other}))


def test_points_ids_and_categories_are_not_part_of_what_is_asked() -> None:
    one, other = Criterion("c1", "text", 5), Criterion("c9", "text", 1, "general_reasoning")
    assert fp.criterion_key(one) == fp.criterion_key(other)
    assert fp.content_hash([one]) != fp.content_hash([other])


def test_an_induction_is_addressed_by_sets() -> None:
    def key(students: list[str]) -> str:
        return fp.induction_key(
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
    assert fp.judged_text(text) == fp.judged_text(text, "auto") == auto
    assert fp.judged_text(text, "strip") == strip
    assert fp.judged_text(text, "keep") == keep
