"""Read prompts, teacher responses and rubric ids, as the rows that TRL trains on."""

from collections.abc import Callable
from pathlib import Path

from datasets import Dataset, Features, Json
from pydantic import BaseModel, ConfigDict

from markscheme.data import Columns, RowReader, SourceError, open_source
from markscheme.schema import Identifier, Prompt, TeacherResponses
from markscheme_train.errors import DataError


class Example(BaseModel):
    """One row of the data; other columns are ignored.

    `rubric_id` names the rubric that scores the prompt's rollouts.
    """

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    prompt: Prompt
    teacher_responses: TeacherResponses | None = None
    rubric_id: Identifier | None = None


def read_examples(
    source: str | Path,
    columns: Columns | None = None,
    warn: Callable[[str], None] = lambda message: None,
) -> list[Example]:
    """Read every row of a source.

    Content may be a list of text parts, and columns may be empty.

    Args:
        source: A file, a folder or a split on the hub; see `markscheme.data`. It has a column
            `prompt`, and optional ones `teacher_responses` and `rubric_id`.
        columns: Other names of these columns.
        warn: Called with a message for each column that looks misspelt.

    Raises:
        DataError: Names the first row that cannot be used, and the column.
    """
    reader = RowReader(Example.model_validate, list(Example.model_fields), columns, warn)
    try:
        opened = open_source(source)
        examples = [reader.read(row) for row in opened.rows(reader.columns)]
        if examples:
            reader.check_named(opened.name)
    except SourceError as error:
        raise DataError(str(error)) from error
    except OSError as error:
        raise DataError(f"cannot read {source}: {error}") from error
    if not examples:
        raise DataError(f'{source} has no prompts; each row needs at least {{"prompt": "…"}}')
    return examples


def as_dataset(examples: list[Example], *, chat: bool) -> Dataset:
    """Return rows with `prompt`, `teacher_responses` and `rubric_id` (`None` if absent).

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
