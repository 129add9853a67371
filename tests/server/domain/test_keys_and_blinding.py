"""Addresses change with what they depend on and with nothing else; blinding is undone exactly."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from markscheme_server.domain import hashing as fp
from markscheme_server.domain.blinding import blind, shuffle_order, unblind
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


@given(st.text(), st.lists(st.integers(), max_size=40))
def test_unblinding_undoes_blinding(seed: str, items: list[int]) -> None:
    order = shuffle_order(seed, len(items))
    assert sorted(order) == list(range(len(items)))
    assert order == shuffle_order(seed, len(items))
    assert unblind(blind(items, order), order) == items


def test_shuffling_depends_on_the_seed() -> None:
    assert len({tuple(shuffle_order(str(seed), 8)) for seed in range(50)}) > 40


def test_unblinding_refuses_another_number_of_answers() -> None:
    with pytest.raises(ValueError, match="2 answers for 3 places"):
        unblind([1, 2], [0, 1, 2])


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
