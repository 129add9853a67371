"""Rows of a trainer's batch: read, put into groups, and written as the service takes them."""

from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from markscheme.integrations.conversation import (
    Conversation,
    first_error,
    normal_conversation,
    wire_prompt,
    wire_response,
)
from markscheme.messages import MessageError
from markscheme.schema import Group, Rollout


@dataclass(frozen=True, slots=True)
class Row:
    """A rollout as it travels between processes.

    `problem` says why the service cannot be asked about it; then it is unscored.
    """

    prompt: Conversation
    completion: Conversation
    truncated: bool = False
    teacher_responses: list[Conversation] | None = None
    rubric_id: str | None = None
    problem: str | None = None


def group_rows(rows: Sequence[Row], size: int) -> list[list[int]]:
    """Return the indices of each group's rows.

    A group is `size` neighbours of one prompt; the same prompt twice is two groups. Rows that do
    not divide so are grouped by prompt and rubric, wherever they stand.
    """
    starts = range(0, len(rows), size)
    if len(rows) % size == 0 and all(
        row.prompt == rows[start].prompt for start in starts for row in rows[start : start + size]
    ):
        return [list(range(start, start + size)) for start in starts]
    members: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        members.setdefault(repr((row.prompt, row.rubric_id)), []).append(index)
    return list(members.values())


def read_row(
    prompt: Any, completion: Any, teacher_responses: Any, rubric_id: str | None, *, truncated: bool
) -> Row:
    """Return a row of TRL's with its messages in their normal form, or with its problem."""
    # The rows of a group must stay equal: an image that was loaded twice is not.
    plain: Conversation = ""
    try:
        plain = repr(prompt)
        plain = normal_conversation(prompt, "prompt")
        row = Row(
            plain,
            normal_conversation(completion, "completion"),
            truncated,
            _responses(teacher_responses),
            rubric_id or None,
        )
        # The service refuses a whole batch for one row that it does not take: find out here.
        group_of("g", [("r", row)], row.rubric_id)
    except ValidationError as error:
        return Row(plain, "", truncated, problem=first_error(error))
    except ValueError as error:
        return Row(plain, "", truncated, problem=str(error))
    except RecursionError:
        return Row(plain, "", truncated, problem="nested too deeply")
    return row


def _responses(given: Any) -> list[Conversation] | None:
    """Return a row's teacher responses: a list of them, or one alone, each a text or messages."""
    if given is None or (isinstance(given, Sized) and not len(given)):
        return None
    if not isinstance(given, Sequence):
        raise MessageError("teacher_responses: must be a list of texts or of lists of messages")
    alone = isinstance(given, str) or isinstance(given[0], Mapping)
    return [
        normal_conversation(response, f"teacher_responses[{number}]")
        for number, response in enumerate([given] if alone else given)
    ]


def group_of(identifier: str, rows: Sequence[tuple[str, Row]], rubric_id: str | None) -> Group:
    """Return the rows, with the ids of their rollouts, as a group. Raises `ValueError`."""
    first = rows[0][1]
    teachers = first.teacher_responses
    return Group(
        id=identifier,
        prompt=wire_prompt(first.prompt),
        rubric_id=rubric_id,
        teacher_responses=(
            None
            if teachers is None
            else [wire_response(each, "teacher_responses") for each in teachers]
        ),
        rollouts=[_rollout(rollout, row) for rollout, row in rows],
    )


def _rollout(identifier: str, row: Row) -> Rollout:
    response = wire_response(row.completion, "completion")
    if isinstance(response, str):
        return Rollout(id=identifier, text=response, truncated=row.truncated)
    return Rollout(id=identifier, messages=response, truncated=row.truncated)
