"""The teacher bank."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Discriminator, Field, StringConstraints
from pydantic import Tag as Branch

from markscheme.schema.base import (
    MAX_TEACHER_ENTRIES,
    Identifier,
    Message,
    ModelText,
    Prompt,
    Trajectory,
    Usage,
    Wire,
    text_or_messages,
)

TeacherAnswer = Annotated[
    Annotated[ModelText, StringConstraints(min_length=1), Branch("<text>")]
    | Annotated[Trajectory, Field(min_length=1), Branch("<messages>")],
    Discriminator(
        text_or_messages,
        custom_error_type="response_type",
        custom_error_message="must be a text or a list of messages",
    ),
]
"""What a teacher responded: a text, or the messages of a trajectory."""
TeacherResponses = Annotated[list[TeacherAnswer], Field(min_length=1, max_length=16)]


class TeacherEntry(Wire):
    """Responses of a teacher to one prompt. `model` is the model that gave them, if known."""

    prompt: Prompt
    responses: TeacherResponses
    model: Identifier | None = None


class TeacherResponsesCreate(Wire):
    """`POST /v1/teacher-responses`: store responses in the teacher bank."""

    entries: Annotated[list[TeacherEntry], Field(min_length=1, max_length=MAX_TEACHER_ENTRIES)]


class TeacherBankChange(Wire):
    """What was stored. `duplicates` counts responses that were there already or sent twice."""

    object: Literal["teacher_responses.saved"] = "teacher_responses.saved"
    added: int
    duplicates: int


class TeacherResponse(Wire):
    """One response of the bank.

    `messages` is set where it is a trajectory; `text` is then the last that the assistant said.
    """

    text: str
    messages: list[Message] | None = None
    model: str | None
    created_at: datetime


class TeacherResponseList(Wire):
    """`GET /v1/teacher-responses`: the responses to a prompt, oldest first."""

    object: Literal["list"] = "list"
    prompt_key: str
    data: list[TeacherResponse]


class TeachRequest(Wire):
    """`POST /v1/teacher-responses:sample`: fill the bank up to `count` responses."""

    prompt: Prompt
    count: Annotated[int, Field(ge=1, le=16)] = 1


class TeachResult(Wire):
    """What the bank holds now.

    `duplicates` counts responses that the teacher gave again; `data` may then be shorter than
    asked.
    """

    object: Literal["teacher_responses.sampled"] = "teacher_responses.sampled"
    prompt_key: str
    data: list[TeacherResponse]
    added: int
    duplicates: int
    usage: Usage
