"""Split a model's output into its thinking and its answer, for every markup in use.

Standard library only: the service, the SDK and the trainer share this module, so that all of them
cut at the same place.
"""

import re
from dataclasses import dataclass

from markscheme.vocabulary import Thinking

DELIMITERS: tuple[tuple[str, str], ...] = (
    ("<think>", "</think>"),  # DeepSeek-R1, Qwen3, GLM, most open models
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("[THINK]", "[/THINK]"),  # Magistral
    ("◁think▷", "◁/think▷"),  # Kimi
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A
    ("<|begin_of_thought|>", "<|end_of_thought|>"),  # Sky-T1
    ("<|channel>thought", "<channel|>"),  # Gemma 4
    ("<unused94>thought", "<unused95>"),  # MedGemma
)
"""Opening and closing delimiters of a thought."""

_SPACE = re.compile("[\ufeff \\t\\r\\n]+")
_CLOSING = re.compile("|".join(re.escape(close) for _, close in DELIMITERS))
_CLOSING_LINE = re.compile(rf"^[ \t]*(?:{_CLOSING.pattern})[ \t]*$", re.MULTILINE)
# Harmony (gpt-oss): `<|channel|>final <|constrain|>json<|message|>` begins the answer. Servers that
# drop special tokens leave the bare words "analysis … assistantfinal …".
_HARMONY = ("<|channel|>", "<|start|>assistant<|channel|>")
_FINAL = "<|channel|>final"
_MESSAGE = "<|message|>"
_MAX_THOUGHTS = 1000
"""Consecutive thoughts that are cut off; a text that begins with more has no answer."""
_HARMONY_ENDS = ("<|return|>", "<|end|>", "<|call|>")
_BARE_ANALYSIS, _BARE_FINAL = "analysis", "assistantfinal"


@dataclass(frozen=True, slots=True)
class Output:
    """A model's output in two parts.

    Attributes:
        thinking: Everything before the answer, delimiters included.
        answer: The rest.
        finished: False when a thought began and did not end; then there is no answer.
    """

    thinking: str
    answer: str
    finished: bool = True


def split_thinking(text: str, *, opened: bool = False) -> Output:
    """Split `text` after the thought that it begins with. Runs in linear time.

    A closing delimiter inside an answer cuts nothing: only a thought at the beginning ends at one.

    Args:
        text: The output.
        opened: Whether the chat template opened the thought, so that `text` begins inside it.
    """
    at = _skip_space(text, 0)
    if text.startswith(_HARMONY, at):
        return _split_harmony(text, at)
    if text.startswith(_BARE_ANALYSIS, at) and (final := text.rfind(_BARE_FINAL, at)) != -1:
        end = final + len(_BARE_FINAL)
        return Output(text[:end], text[end:])
    # Some models open the thought once more: then their own delimiters count.
    began = opened and _opening(text, at) is None
    if began:
        close = _CLOSING.search(text, at)
        if close is None:
            return Output(text, "", finished=False)
        at = _skip_space(text, close.end())
    # Some models think several times before they answer.
    for _ in range(_MAX_THOUGHTS):
        mark = _opening(text, at)
        if mark is None:
            return Output(text[:at], text[at:]) if began else Output("", text)
        began = True
        start, close_mark = mark
        end = text.find(close_mark, at + len(start))
        if end == -1:
            break
        at = _skip_space(text, end + len(close_mark))
    return Output(text, "", finished=False)


def judged_text(text: str, thinking: Thinking = "auto") -> str:
    """Return the part of a response that is judged: its answer, without surrounding white space.

    `auto` removes a thought that the response itself opens at its beginning; `strip` also removes
    one that the chat template had opened; `keep` removes nothing. A thought without an answer is
    an empty answer.
    """
    if thinking == "keep":
        return text.strip()
    return split_thinking(text, opened=thinking == "strip").answer.strip()


def split_reply(text: str) -> Output:
    """Split a judge's reply, where a lone closing delimiter also ends a thought.

    Chat templates open the thought in the prompt, so the reply shows only its end. A reply that
    begins with JSON or a code fence has no thought before it.
    """
    split = split_thinking(text)
    if (
        split.thinking
        or not split.finished
        or text.startswith(("{", "[", "`"), _skip_space(text, 0))
    ):
        return split
    return after_last_close(text) or split


def after_last_close(text: str) -> Output | None:
    """Return the split after the last closing delimiter, or `None` if there is none."""
    end = max(
        (at + len(close) for _, close in DELIMITERS if (at := text.rfind(close)) != -1),
        default=None,
    )
    return None if end is None else Output(text[:end], text[end:])


def split_response(text: str) -> Output:
    """Split a teacher's response: a lone closing delimiter counts if it stands on its own line."""
    split = split_thinking(text)
    if split.thinking or not split.finished:
        return split
    close = _CLOSING_LINE.search(text)
    return split if close is None else Output(text[: close.end()], text[close.end() :])


def opens_thought(prompt: str) -> bool:
    """Return whether a rendered prompt ends with an opening delimiter."""
    end = prompt[-200:].rstrip()
    return any(end.endswith(opening) for opening, _ in DELIMITERS)


def _skip_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _opening(text: str, at: int) -> tuple[str, str] | None:
    return next((mark for mark in DELIMITERS if text.startswith(mark[0], at)), None)


def _split_harmony(text: str, at: int) -> Output:
    final = text.rfind(_FINAL, at)
    message = text.find(_MESSAGE, final) if final != -1 else -1
    if message == -1:
        return Output(text, "", finished=False)
    start = message + len(_MESSAGE)
    answer = text[start:].rstrip()
    for end in _HARMONY_ENDS:
        answer = answer.removesuffix(end).rstrip()
    return Output(text[:start], answer)
