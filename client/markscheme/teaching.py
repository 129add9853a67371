"""Fill the teacher bank from a file, and have the teacher asked for what is missing."""

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict

from markscheme.jsonl_rows import check_unicode, non_null_columns, read_rows
from markscheme.protocol import PromptLike, TeacherLike
from markscheme.schema import (
    MAX_TEACHER_ENTRIES,
    Message,
    Prompt,
    TeacherBankChange,
    TeacherEntry,
    TeachResult,
)

MAX_RESPONSES_PER_ENTRY = 16
"""The wire format's limit."""


class TeacherBank(Protocol):
    """The part of `markscheme.Client` that teaching needs."""

    def save_teacher_responses(self, entries: Sequence[TeacherLike]) -> TeacherBankChange:
        """Store responses in the bank."""

    def teach(self, prompt: PromptLike, count: int = ...) -> TeachResult:
        """Sample the teacher until the bank holds `count` responses."""


class PromptEntry(BaseModel):
    """One line of the file; other keys are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    prompt: Prompt
    teacher_responses: list[str] = []
    teacher_model: str | None = None


@dataclass(slots=True)
class TeachReport:
    """What a run did, counted as answers arrive."""

    prompts: int = 0
    from_file: int = 0
    already_stored: int = 0
    sampled: int = 0
    duplicates: int = 0
    judge_calls: int = 0

    def __str__(self) -> str:
        return (
            f"{self.prompts} prompts done: {self.from_file} responses from the file "
            f"({self.already_stored} were there already), {self.sampled} from the teacher "
            f"in {self.judge_calls} calls ({self.duplicates} duplicates)"
        )


def read_prompts(file: Path, ropd_index: Path | None = None) -> list[PromptEntry]:
    """Read the prompts of a file, with the answers of a ROPD index added.

    Args:
        file: JSONL with `prompt` and optional `teacher_responses`, `teacher_model`.
        ropd_index: A teacher index of ROPD; its answers go to the prompts that they belong to.

    Raises:
        ValueError: Names the line at fault, or says that no prompt is in the index.
    """
    lines = [line for _, line in read_rows(file, _prompt_entry)]
    if not lines:
        raise ValueError(f"{file} holds no prompts")
    if ropd_index is None:
        return lines
    answers = read_ropd_index(ropd_index)
    merged = [
        line.model_copy(
            update={
                "teacher_responses": [
                    *line.teacher_responses,
                    *answers.get(ropd_prompt_hash(line.prompt), []),
                ]
            }
        )
        for line in lines
    ]
    matched = {ropd_prompt_hash(line.prompt) for line in lines} & answers.keys()
    if not matched:
        raise ValueError(f"no prompt of {file} is one of the {len(answers)} in {ropd_index}")
    return merged


def read_ropd_index(file: Path) -> dict[str, list[str]]:
    """Read answers by prompt hash from `ropd.teacher_index.v1` and `.v2` lines.

    Raises `ValueError`.
    """
    answers: dict[str, list[str]] = {}
    for prompt_hash, texts in (pair for _, pair in read_rows(file, _index_line)):
        answers.setdefault(prompt_hash, []).extend(
            text for text in texts if text not in answers.get(prompt_hash, [])
        )
    return answers


def ropd_prompt_hash(prompt: Prompt) -> str:
    """Return ROPD's `raw_prompt_hash`.

    It is the sha256 of the messages as JSON with sorted keys and the default separators.
    """
    messages = (
        [{"role": "user", "content": prompt}]
        if isinstance(prompt, str)
        else [{"role": message.role, "content": message.content} for message in prompt]
    )
    return hashlib.sha256(
        json.dumps(messages, ensure_ascii=False, sort_keys=True).encode()
    ).hexdigest()


def teach_all(
    client: TeacherBank,
    lines: Sequence[PromptEntry],
    report: TeachReport,
    *,
    count: int,
    concurrency: int,
    on_prompt: Callable[[], None] = lambda: None,
) -> None:
    """Store what the entries hold, then have the teacher asked for what is missing.

    Prompts are asked for concurrently. When a call fails, what is done stays done, and the error is
    raised once the running calls have ended.
    """
    entries = [
        TeacherEntry(
            prompt=line.prompt,
            responses=list(texts[start : start + MAX_RESPONSES_PER_ENTRY]),
            model=line.teacher_model,
        )
        for line in lines
        if (texts := [t for t in line.teacher_responses if t])
        for start in range(0, len(texts), MAX_RESPONSES_PER_ENTRY)
    ]
    for start in range(0, len(entries), MAX_TEACHER_ENTRIES):
        change = client.save_teacher_responses(entries[start : start + MAX_TEACHER_ENTRIES])
        report.from_file += change.added + change.duplicates
        report.already_stored += change.duplicates
    # After the first error no further prompt is begun: each would be paid for.
    stop, counting = Event(), Lock()

    def ask(line: PromptEntry) -> None:
        if stop.is_set():
            return
        try:
            result = client.teach(_prompt_like(line.prompt), count) if count else None
        except BaseException:
            stop.set()
            raise
        with counting:
            report.prompts += 1
            if result is not None:
                report.sampled += result.added
                report.duplicates += result.duplicates
                report.judge_calls += result.usage.judge_calls
            on_prompt()

    with ThreadPoolExecutor(concurrency) as pool:
        try:
            outcomes = [pool.submit(ask, line) for line in lines]
            for outcome in outcomes:
                outcome.result()
        except BaseException:
            stop.set()
            raise


def _prompt_like(prompt: Prompt) -> PromptLike:
    return prompt if isinstance(prompt, str) else list[Message | dict[str, str]](prompt)


def _prompt_entry(row: Any) -> PromptEntry:
    columns = non_null_columns(row)
    already_stored = {name: columns[name] for name in PromptEntry.model_fields if name in columns}
    return PromptEntry.model_validate(check_unicode(already_stored))


def _index_line(row: Any) -> tuple[str, list[str]]:
    kind = row.get("schema_version") if isinstance(row, dict) else None
    texts = {
        "ropd.teacher_index.v1": [row.get("teacher_answer")] if kind else [],
        "ropd.teacher_index.v2": row.get("teacher_answers") if kind else [],
    }.get(str(kind))
    if texts is None:
        raise ValueError(f"not a line of a ROPD teacher index (schema_version is {kind!r})")
    if (
        not isinstance(texts, list)
        or not texts
        or not all(isinstance(t, str) and t.strip() for t in texts)
    ):
        raise ValueError("a teacher's answer is missing or empty")
    if not isinstance(row.get("raw_prompt_hash"), str):
        raise ValueError("raw_prompt_hash is missing")
    return row["raw_prompt_hash"], [text.strip() for text in texts]
