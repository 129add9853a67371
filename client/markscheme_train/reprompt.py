"""The self-teacher's prompt: the task, a demonstration, feedback, and the request again.

As in SDPO (arXiv 2601.20802) the attempt itself is not shown: the self-teacher rates it token by
token. What does not fit is cut from the feedback first, then from the end of the demonstration,
never from the task or the closing instruction.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Message = Mapping[str, Any]
Prompt = str | Sequence[Message]
"""Plain text, or chat messages."""

DEMONSTRATION = "A response to this task that was found to be good:\n\n{}"
FEEDBACK = "An earlier attempt fell short of this:\n\n{}"
CLOSING = "Now give a good response to the task above."


def reprompt(prompt: Prompt, demonstration: str | None, feedback: Sequence[str] = ()) -> Prompt:
    """Return the prompt in the same form, with demonstration and feedback.

    They are added to the last message, or in one of their own where that is not the user's.
    """
    parts = []
    if demonstration is not None:
        parts.append(DEMONSTRATION.format(demonstration))
    if feedback:
        parts.append(FEEDBACK.format("\n".join(f"- {line}" for line in feedback)))
    if isinstance(prompt, str):
        return "\n\n".join([prompt, *parts, CLOSING]) + "\n\n"
    last = prompt[-1]
    if last["role"] != "user":  # such as a tool's result
        return [*prompt, {"role": "user", "content": "\n\n".join([*parts, CLOSING])}]
    return [
        *prompt[:-1],
        {**last, "content": "\n\n".join([last.get("content", ""), *parts, CLOSING])},
    ]


def build_teacher_prompt(
    tokens: Callable[[Prompt], Sequence[int]],
    cut: Callable[[str, int], str],
    prompt: Prompt,
    demonstration: str | None,
    feedback: Sequence[str],
    *,
    max_tokens: int,
) -> Sequence[int] | None:
    """Return the token ids of `reprompt`, or `None` when the task alone leaves no room.

    Lines of feedback are dropped from the last one, then the demonstration is shortened down to
    half of its room; one that still does not fit is given up, and the row with it.

    Args:
        tokens: Renders a prompt to token ids.
        cut: Keeps the first n tokens of a text.
        prompt: The task.
        demonstration: A good response without its thought, if there is one.
        feedback: Criteria that the attempt missed.
        max_tokens: Maximum length of the prompt in tokens.
    """
    lines, response = list(feedback), demonstration
    while True:
        ids = tokens(reprompt(prompt, response, lines))
        if len(ids) <= max_tokens:
            return ids
        if lines:
            lines.pop()
            # Without feedback and demonstration it would read no more than the student.
            if not lines and response is None:
                return None
            continue
        if response is None:
            return None
        available = max_tokens - len(tokens(reprompt(prompt, "")))
        # Tokens at the joints can differ from those counted apart: shorten until it fits.
        for keep in range(available, max(0, available // 2), -max(1, available // 8)):
            ids = tokens(reprompt(prompt, cut(response, keep)))
            if len(ids) <= max_tokens:
                return ids
        return None
