"""Prompts and teacher responses from a JSONL file, as the rows TRL trains on."""

import json
from pathlib import Path
from typing import Any

from datasets import Dataset
from pydantic import BaseModel, ConfigDict, ValidationError

from markscheme.schema import Prompt, TeacherResponses
from markscheme_train.errors import DataError


class Example(BaseModel):
    """One line of the file; keys it does not name are left alone."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    prompt: Prompt
    teacher_responses: TeacherResponses | None = None


def read_examples(path: Path) -> list[Example]:
    """Every line of the file. Raises :class:`DataError` naming the first line that is not usable."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    examples = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            examples.append(Example.model_validate(json.loads(line)))
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number}: not JSON ({error.msg} at column {error.colno})") from error
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"][:1]) or "the line"
            raise DataError(f"{path}, line {number}: {where}: {first['msg']}") from error
    if not examples:
        raise DataError(f"{path} has no prompts; each line needs at least {{\"prompt\": \"…\"}}")
    return examples


def as_dataset(examples: list[Example], *, chat: bool) -> Dataset:
    """Rows with ``prompt`` and ``teacher_responses`` (absent: ``None``).

    ``chat``: the tokenizer has a chat template, so prompts go in as messages; without one they must be plain
    strings. Raises :class:`DataError`.
    """
    rows = []
    for number, example in enumerate(examples, start=1):
        if not chat and not isinstance(example.prompt, str):
            raise DataError(f"prompt {number} is a list of messages, but this model's tokenizer has no chat template")
        prompt: Any = example.prompt
        if chat:
            prompt = ([{"role": "user", "content": prompt}] if isinstance(prompt, str)
                      else [message.model_dump() for message in prompt])
        rows.append({"prompt": prompt, "teacher_responses": example.teacher_responses})
    return Dataset.from_list(rows)
