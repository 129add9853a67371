"""The rubric reward of `markscheme.integrations.trl`, under the trainer's names."""

from typing import Any

from markscheme.integrations import conversation
from markscheme.integrations.report import CriterionRate, RewardReport, RowScore
from markscheme.integrations.trl import MISSED, Row, RubricReward, Scorer, is_outage
from markscheme.messages import MessageError, plain_prompt, role_of, text_of
from markscheme.schema import Message
from markscheme_train.errors import DataError

__all__ = [
    "MISSED",
    "CriterionRate",
    "RewardReport",
    "Row",
    "RowScore",
    "RubricReward",
    "Scorer",
    "completion_text",
    "is_outage",
    "wire_prompt",
]


def completion_text(completion: str | list[dict[str, Any]]) -> str:
    """Return the text of the assistant's messages in a completion, joined.

    A tool call without text is empty. Raises `DataError` for content that is not text, such as an
    image.
    """
    if isinstance(completion, str):
        return completion
    if not isinstance(completion, list):
        raise DataError("completion: must be a text or a list of messages")
    try:
        return "".join(
            text_of(message.get("content"), f"completion[{number}].content")
            for number, message in enumerate(completion)
            if role_of(message, f"completion[{number}]") == "assistant"
        )
    except MessageError as error:
        raise DataError(str(error)) from error
    except RecursionError as error:
        raise DataError("completion: nested too deeply") from error


def wire_prompt(prompt: str | list[dict[str, Any]]) -> str | list[Message]:
    """Return a prompt in the service's form.

    Raises `DataError` for content that is not text and for messages that cannot be read.
    """
    if not isinstance(prompt, str | list):
        raise DataError("prompt: must be a text or a list of messages")
    try:
        return conversation.wire_prompt(plain_prompt(prompt))
    except ValueError as error:
        raise DataError(str(error)) from error
    except RecursionError as error:
        raise DataError("prompt: nested too deeply") from error
