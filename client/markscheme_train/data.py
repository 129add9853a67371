"""Read prompts, teacher responses and rubric ids, as the rows that TRL trains on."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Json
from jinja2 import TemplateError
from pydantic import BaseModel, ConfigDict

from markscheme.data import Columns, RowReader, SourceError, open_source
from markscheme.schema import Identifier, Prompt, TeacherResponses
from markscheme.text import replace_invalid
from markscheme_train.errors import DataError


class Example(BaseModel):
    """One row of the data.

    `rubric_id` names the rubric that scores the prompt's rollouts. `other_columns` are for other
    reward functions.
    """

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    prompt: Prompt
    teacher_responses: TeacherResponses | None = None
    rubric_id: Identifier | None = None
    other_columns: dict[str, Any] = {}


RESERVED_COLUMNS = frozenset(Example.model_fields) | {
    *("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric"),
    *("environment", "environments", "image", "images"),
}
"""Names that no other column may have: ours, TRL's arguments, and columns that TRL reads."""


def read_examples(
    source: str | Path,
    columns: Columns | None = None,
    warn: Callable[[str], None] = lambda message: None,
    *,
    other_columns: bool = False,
) -> list[Example]:
    """Read every row of a source.

    Content may be a list of text parts, and columns may be empty.

    Args:
        source: A file, a folder or a split on the hub; see `markscheme.data`. It has a column
            `prompt`, and optional ones `teacher_responses` and `rubric_id`.
        columns: Other names of these columns.
        warn: Called with a message for each column that looks misspelt or cannot be kept.
        other_columns: Keep all other columns, for other reward functions.

    Raises:
        DataError: Names the first row that cannot be used, and the column.
    """
    fields = ["prompt", "teacher_responses", "rubric_id"]
    reader = RowReader(Example.model_validate, fields, columns, warn)
    examples: list[Example] = []
    dropped: set[str] = set()
    try:
        opened = open_source(source)
        for row in opened.rows(None if other_columns else reader.columns):
            example = reader.read(row)
            if other_columns:
                others = {n: v for n, v in row.read().items() if n not in reader.columns}
                dropped |= RESERVED_COLUMNS & others.keys()
                kept = {n: v for n, v in others.items() if n not in RESERVED_COLUMNS}
                try:
                    stored = _without_half_characters(kept)
                except RecursionError as error:
                    raise DataError(f"{row.place}: a column is nested too deeply") from error
                example = example.model_copy(update={"other_columns": stored})
            examples.append(example)
        if examples:
            reader.check_named(opened.name)
    except SourceError as error:
        raise DataError(str(error)) from error
    except OSError as error:
        raise DataError(f"cannot read {source}: {error}") from error
    if not examples:
        raise DataError(f'{source} has no prompts; each row needs at least {{"prompt": "…"}}')
    for name in sorted(dropped):
        warn(
            f"{source}: reward functions do not get the column {name!r}, whose name has another "
            "meaning: rename it"
        )
    return examples


def as_dataset(examples: list[Example], *, chat: bool) -> Dataset:
    """Return rows with `prompt`, `teacher_responses`, `rubric_id` and the examples' other columns.

    What an example lacks is `None`.

    Args:
        examples: The prompts.
        chat: Whether the tokenizer has a chat template. Then prompts become chat messages;
            otherwise they must be strings.

    Raises:
        DataError: A prompt is a list of messages, but there is no chat template.
    """
    rows = []
    others = {name: None for example in examples for name in example.other_columns}
    for number, example in enumerate(examples, start=1):
        if not chat and not isinstance(example.prompt, str):
            raise DataError(
                f"prompt {number} is a list of messages, but this model's tokenizer has no chat "
                "template"
            )
        row = example.model_dump(exclude={"other_columns"}) | others | example.other_columns
        if chat and isinstance(example.prompt, str):
            row["prompt"] = [{"role": "user", "content": example.prompt}]
        rows.append(row)
    # As JSON: Arrow's structs would pad the arguments of a tool call with those of all others.
    return Dataset.from_list(rows, features=Features({name: Json() for name in rows[0]}))


def check_template(dataset: Dataset, tokenizer: Any, template: Mapping[str, Any]) -> None:
    """Raise `DataError` for a prompt that the tokenizer's chat template refuses.

    Templates refuse roles, such as a system message, their order, and several tool calls at once.
    Of the prompts that are alike in these the first is tried.
    """
    tried: set[Any] = set()
    for number, prompt in enumerate(dataset["prompt"], start=1):
        if isinstance(prompt, str):
            continue
        kind = tuple(
            (
                message["role"],
                len(message.get("tool_calls") or ()),
                *sorted(name for name, value in message.items() if value),
            )
            for message in prompt
        )
        if kind not in tried:
            tried.add(kind)
            _rendered(prompt, number, tokenizer, template)


def within_length(
    dataset: Dataset, tokenizer: Any, limit: int, template: Mapping[str, Any]
) -> Dataset:
    """Return the rows whose prompt has at most `limit` tokens, its chat template included.

    Args:
        dataset: The rows.
        tokenizer: The student's tokenizer.
        limit: The longest prompt, in tokens.
        template: Arguments of the chat template.

    Raises `DataError` for a prompt that the chat template refuses.
    """

    def length(prompt: str | list[dict[str, Any]], number: int) -> int:
        if isinstance(prompt, str):
            return len(tokenizer(prompt)["input_ids"])
        text = _rendered(prompt, number, tokenizer, template)
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    return dataset.select(
        [n for n, prompt in enumerate(dataset["prompt"]) if length(prompt, n + 1) <= limit]
    )


def _rendered(
    prompt: list[dict[str, Any]], number: int, tokenizer: Any, template: Mapping[str, Any]
) -> str:
    try:
        text: str = tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, tokenize=False, **template
        )
    except (TemplateError, TypeError, ValueError, KeyError) as error:
        roles = ", ".join(message["role"] for message in prompt)
        raise DataError(
            f"prompt {number} ({roles}): the tokenizer's chat template refuses it "
            f"({str(error).partition(chr(10))[0] or type(error).__name__})"
        ) from error
    return text


def _without_half_characters(value: Any) -> Any:
    """Return JSON whose texts and names Arrow can store."""
    if isinstance(value, str):
        return replace_invalid(value)
    if isinstance(value, Mapping):
        return {
            _without_half_characters(name): _without_half_characters(each)
            for name, each in value.items()
        }
    if isinstance(value, list):
        return [_without_half_characters(each) for each in value]
    return value
