"""Test the details that a refusal names; the recorded dialects test the kinds of refusal."""

import pytest

from markscheme_server.judge.refusal_parsing import (
    MAX_WORDS,
    of_completion,
    of_response,
    without_echo,
)
from markscheme_server.judge.refusals import REASONS, RefusalKind

ROLLOUT = (
    "My answer mentions response_format, json_schema and a grammar, and the context length too."
)


def test_every_kind_has_a_reason() -> None:
    assert set(REASONS) == set(RefusalKind)


@pytest.mark.parametrize(
    ("message", "most"),
    [
        (
            "max_tokens is too large: 8192. This model supports at most 4096 completion tokens, "
            "whereas you provided 8192.",
            4096,
        ),
        (
            "max_tokens: 20000 > 8192, "
            "which is the maximum allowed number of output tokens for the model",
            8192,
        ),
        ("Invalid max_tokens value, the valid range of max_tokens is [1, 8192]", 8192),
        (
            "`max_tokens` must be less than or equal to `8192`, the maximum value for `max_tokens`",
            8192,
        ),
    ],
)
def test_the_longest_reply_that_is_taken_is_read(message: str, most: int) -> None:
    refusal = of_response(400, {"error": {"message": message}}, ["max_tokens", "temperature"])
    assert (refusal.kind, refusal.parameter, refusal.limit) == (
        RefusalKind.PARAMETER,
        "max_tokens",
        most,
    )


@pytest.mark.parametrize(
    ("message", "room"),
    [
        (
            "This model's maximum context length is 4096 tokens. "
            "However, you requested 5200 tokens (1104 in the messages, 4096 in the completion). "
            "Please reduce the length of the messages or completion.",
            2992,
        ),
        (
            "'max_tokens' or 'max_completion_tokens' is too large: 8192. "
            "This model's maximum context length is 4096 tokens "
            "and your request has 278 input tokens (8192 > 4096 - 278).",
            3818,
        ),
        (
            "This model's maximum context length is 4096 tokens. "
            "However, your prompt contains at least 4097 input tokens.",
            0,
        ),
    ],
)
def test_what_the_context_leaves_for_a_reply_is_read(message: str, room: int) -> None:
    refusal = of_response(400, {"message": message, "code": 400}, ["max_tokens"])
    assert (refusal.kind, refusal.reply_tokens) == (RefusalKind.TOO_LARGE, room)


def test_words_that_repeat_the_rollout_decide_nothing_and_are_not_shown() -> None:
    body = {"error": {"message": f"Input rejected: {ROLLOUT}"}}
    refusal = of_response(400, body, ["temperature"], f"Task\n{ROLLOUT}\n")
    assert refusal.kind is RefusalKind.UNEXPLAINED
    assert "json_schema" not in refusal.words
    assert refusal.words.startswith("Input")


def test_words_are_one_bounded_line() -> None:
    refusal = of_response(500, {"error": {"message": "a\nb\x00c " + "x" * 9000}})
    assert len(refusal.words) <= MAX_WORDS
    assert refusal.words.startswith("a b c x")


def test_an_echo_is_taken_out_wherever_it_stands() -> None:
    material = "the quick brown fox jumps over the lazy dog near the river bank"
    shown = without_echo(f"bad input: {material[10:50]} was refused", material)
    assert "jumps over" not in shown
    assert shown.startswith("bad")
    assert shown.endswith("refused")


@pytest.mark.parametrize(
    "body",
    [
        "",
        "<html>502</html>",
        [],
        {},
        None,
        7,
        {"error": None},
        {"error": []},
        {"error": {"message": {"nested": ["x"] * 9}}},
        [{"error": {"code": 400}}],
    ],
)
def test_any_body_is_read(body: object) -> None:
    assert of_response(503, body).kind is RefusalKind.UNAVAILABLE
    assert isinstance(of_response(400, body).kind, RefusalKind)


@pytest.mark.parametrize(
    "completion",
    [
        None,
        7,
        [],
        {},
        {"choices": "x"},
        {"choices": [None]},
        {"choices": [{}]},
        {"choices": [{"message": {"content": "fine"}}], "error": None},
    ],
)
def test_what_is_no_refusal_is_none(completion: object) -> None:
    assert of_completion(completion) is None
