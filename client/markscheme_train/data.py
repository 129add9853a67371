"""Read prompts and teacher responses from a JSONL file, as the rows that TRL trains on."""

from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Json
from pydantic import BaseModel, ConfigDict

from markscheme.jsonl import LineError
from markscheme.jsonl_rows import check_unicode, non_null_columns, read_rows
from markscheme.schema import Prompt, TeacherResponses
from markscheme_train.errors import DataError


class Example(BaseModel):
    """One line of the file; other keys are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    prompt: Prompt
    teacher_responses: TeacherResponses | None = None


def read_examples(path: Path) -> list[Example]:
    """Read every line of a file.

    Content may be a list of text parts, and columns may be empty.

    Args:
        path: JSONL with `prompt` and optional `teacher_responses`.

    Raises:
        DataError: Names the first line that cannot be used, and the field.
    """
    try:
        examples = [example for _, example in read_rows(path, _example)]
    except LineError as error:
        raise DataError(str(error)) from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error}") from error
    if not examples:
        raise DataError(f'{path} has no prompts; each line needs at least {{"prompt": "…"}}')
    return examples


def _example(row: Any) -> Example:
    columns = non_null_columns(row)
    known = {name: columns[name] for name in Example.model_fields if name in columns}
    return Example.model_validate(check_unicode(known))


def as_dataset(examples: list[Example], *, chat: bool) -> Dataset:
    """Return rows with `prompt` and `teacher_responses` (`None` if absent).

    Args:
        examples: The prompts.
        chat: Whether the tokenizer has a chat template. Then prompts become chat messages;
            otherwise they must be strings.

    Raises:
        DataError: A prompt is a list of messages, but there is no chat template.
    """
    rows = []
    for number, example in enumerate(examples, start=1):
        if not chat and not isinstance(example.prompt, str):
            raise DataError(
                f"prompt {number} is a list of messages, but this model's tokenizer has no chat "
                "template"
            )
        row = example.model_dump()
        if chat and isinstance(example.prompt, str):
            row["prompt"] = [{"role": "user", "content": example.prompt}]
        rows.append(row)
    # As JSON: Arrow's structs would pad the arguments of a tool call with those of all others.
    return Dataset.from_list(rows, features=Features({name: Json() for name in rows[0]}))
