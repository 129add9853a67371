"""Test reference answers of every form, and prompts that are none."""

from typing import Any

import pytest

from markscheme.exchange import Malformed, load
from markscheme.exchange.values import to_references

RUBRICS = {"rubrics": [{"criterion": "It is short.", "points": 1}]}


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        ("An answer", ["An answer"]),
        (42, ["42"]),
        ([1.5, "two", True, None, " "], ["1.5", "two"]),
        ({"role": "assistant", "content": "One."}, ["One."]),
        ({"role": "assistant", "content": [{"type": "text", "text": "One."}]}, ["One."]),
        ({"role": "assistant", "content": [{"type": "audio"}]}, []),
        (
            [
                {"role": "user", "content": "Which?"},
                {"role": "assistant", "content": "First."},
                {"role": "assistant", "content": "Last."},
            ],
            ["Last."],
        ),
        ([{"role": "user", "content": "Which?"}], []),
        ({"text": "One."}, []),
    ],
)
def test_a_reference_answer_is_the_text_of_a_value_or_of_the_last_answer(
    value: Any, texts: list[str]
) -> None:
    assert to_references(value) == texts


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([{"role": "nobody", "content": "Hi."}], r"prompt\[0\]\.role: "),
        ([{"role": "user", "content": "Hi."}] * 5000, "prompt: "),
        (3, "prompt: must be a text or a list of messages"),
    ],
)
def test_a_prompt_that_is_none_is_refused_by_place(prompt: Any, message: str) -> None:
    with pytest.raises(Malformed, match=f"^{message}"):
        load(RUBRICS | {"prompt": prompt}, "healthbench")
