"""What trainers with a protocol of their own send to `/compat`, and get."""

from typing import Annotated, Any

from pydantic import Field

from markscheme.schema.base import ModelText, Prompt, Text, Wire

MAX_QUERIES = 256


class OpenRLHFQuery(Wire):
    """What OpenRLHF 0.11 posts to a remote reward model: lists of the same length.

    A query is a prompt and its response, as text with the special tokens of the chat template. A
    label that begins with `rub_` is the id of the prompt's rubric; others are ignored.
    """

    query: Annotated[list[ModelText], Field(min_length=1, max_length=MAX_QUERIES)]
    prompts: Annotated[list[Text], Field(min_length=1, max_length=MAX_QUERIES)]
    labels: list[Any] | None = None


class OpenRLHFReward(Wire):
    """What OpenRLHF reads: numbers for one query, lists for several.

    `scores` are the rewards again, for its filters. In `extra_logs`, `unscored` is 1 where a reward
    is not known and the mean of its group stands for it.
    """

    rewards: float | list[float]
    scores: float | list[float]
    extra_logs: dict[str, float | list[float]]


class SlimeSample(Wire):
    """What slime posts to a remote reward model.

    A label that begins with `rub_` is the id of the prompt's rubric; others are ignored.
    """

    prompt: Prompt
    response: ModelText
    label: Any = None
