"""Finish reasons in every spelling, and which parts of a message are its text."""

from typing import Any

import pytest

from markscheme_server.judge.choices import MAX_WORD, finish_of, is_cut_off, is_refusal, text_of


@pytest.mark.parametrize(
    ("choice", "word"),
    [
        ({}, ""),
        ({"finish_reason": None}, ""),
        ({"finish_reason": "stop"}, "stop"),
        ({"finish_reason": " MAX_TOKENS "}, "max_tokens"),
        ({"finish_reason": "FinishReason.MAX_TOKENS"}, "max_tokens"),
        ({"finish_reason": "maxTokens"}, "max_tokens"),
        ({"finish_reason": "content-filter"}, "content_filter"),
        ({"finish_reason": {"type": "length", "length": 20}}, "length"),
        ({"finish_reason": {}, "stop_reason": "refusal"}, "refusal"),
        ({"finish_reason": None, "native_finish_reason": "SAFETY"}, "safety"),
        ({"finish_reason": "stop", "stop_reason": "length"}, "stop"),
        ({"finish_reason": 2}, "2"),
    ],
)
def test_a_finish_reason_has_one_spelling(choice: dict[str, Any], word: str) -> None:
    assert finish_of(choice) == word


def test_a_long_finish_reason_is_read_up_to_its_bound() -> None:
    assert len(finish_of({"finish_reason": "a" * 1_000_000})) <= MAX_WORD
    assert not is_cut_off({"finish_reason": "a" * 1_000_000 + "length"})


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("a", "a"),
        (None, ""),
        (7, ""),
        (["a", {"text": "b"}, {"type": "Text", "text": "c"}], "abc"),
        ([{"type": "thought", "text": "a"}, {"type": "text", "text": "b"}], "b"),
        ([{"type": "text", "text": "a", "thought": True}], ""),
        ([{"type": "text", "text": {"value": "a"}}, None, 7], ""),
        ({"type": "output_text", "text": "a"}, "a"),
    ],
)
def test_only_parts_that_say_they_are_text_are_read(content: Any, text: str) -> None:
    assert text_of({"content": content}) == text


@pytest.mark.parametrize(
    ("message", "refused"),
    [
        ({"refusal": None, "content": "a"}, False),
        ({"refusal": " ", "content": "a"}, False),
        ({"refusal": "No."}, True),
        ({"refusal": True}, True),
        ({"content": [{"type": "refusal", "refusal": "No."}]}, True),
        ({"content": [{"type": "text", "text": "a", "refusal": None}, "b"]}, False),
    ],
)
def test_a_refusal_is_seen_in_a_field_or_in_a_part(message: Any, refused: bool) -> None:
    assert is_refusal(message) is refused
