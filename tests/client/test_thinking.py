"""Where a model's thinking ends and its answer begins."""

import pytest

from growth import assert_linear
from markscheme.thinking import (
    DELIMITERS,
    opens_thought,
    split_reply,
    split_response,
    split_thinking,
)


@pytest.mark.parametrize(("opening", "closing"), DELIMITERS)
def test_every_markup_is_cut(opening: str, closing: str) -> None:
    split = split_thinking(f" {opening}a draft{closing}\n the answer")
    assert (split.answer, split.finished) == ("the answer", True)
    assert not split_thinking(f"{opening}a draft").finished


def test_several_thoughts_in_a_row_are_cut() -> None:
    assert split_thinking("<think>a</think> <think>b</think>c").answer == "c"


def test_a_closing_mark_in_an_answer_cuts_nothing() -> None:
    text = "Templates end a thought with </think>, as you see."
    assert split_thinking(text).answer == text
    assert split_response(text).answer == text


def test_a_template_that_opened_the_thought_is_heard_of() -> None:
    assert split_thinking("a draft</think>answer", opened=True).answer == "answer"
    assert not split_thinking("a draft without an end", opened=True).finished


@pytest.mark.parametrize(
    ("prompt", "opens"),
    [
        ("<|im_start|>assistant\n<think>\n", True),
        ("[THINK]", True),
        ("<|im_start|>assistant\n", False),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", False),
    ],
)
def test_a_template_that_opens_a_thought_is_recognised(prompt: str, opens: bool) -> None:
    assert opens_thought(prompt) == opens


def test_a_reply_may_show_only_the_end_of_its_thought() -> None:
    assert split_reply('a draft {"a": 1}\n</think>\n{"b": 2}').answer.strip() == '{"b": 2}'
    assert (
        split_reply('{"evidence": "it says </think>"}').answer == '{"evidence": "it says </think>"}'
    )


def test_a_response_may_show_only_the_end_of_its_thought_on_a_line_of_its_own() -> None:
    assert split_response("a draft\n</think>\n\nanswer").answer.strip() == "answer"


@pytest.mark.parametrize(
    ("text", "answer", "finished"),
    [
        (
            "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b<|return|>",
            "b",
            True,
        ),
        ("<|channel|>final <|constrain|>json<|message|>{}", "{}", True),
        ("<|channel|>analysis<|message|>only thoughts", "", False),
        ("analysisWe think.assistantfinalThe answer.", "The answer.", True),
        ("analysis of the poem", "analysis of the poem", True),
    ],
)
def test_harmony_answers_in_its_final_channel(text: str, answer: str, finished: bool) -> None:
    split = split_thinking(text)
    assert (split.answer, split.finished) == (answer, finished)


@pytest.mark.parametrize(
    "piece", ["<think></think>", "<think>", "</think>", "<|channel|>", "analysis", " \n", "[THINK]"]
)
def test_hostile_repetition_takes_linear_time(piece: str) -> None:
    def split(text: str) -> None:
        for each in (split_thinking, split_reply, split_response):
            each(text)

    assert_linear(split, lambda size: piece * (size // len(piece)), size=250_000)
