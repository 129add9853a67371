"""Fill the teacher bank from a file, and have the teacher asked for what is missing."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict

from markscheme.data import Columns, Records, Row, RowReader, open_source
from markscheme.jsonl_rows import read_rows
from markscheme.protocol import PromptLike, TeacherLike
from markscheme.schema import (
    MAX_TEACHER_ENTRIES,
    Message,
    Prompt,
    TeacherAnswer,
    TeacherBankChange,
    TeacherEntry,
    TeachResult,
)

Answers = dict[str | None, list[str]]
"""Answers to one prompt, by the model that gave them; None: it is not known."""
MAX_RESPONSES_PER_ENTRY = 16
"""The wire format's limit."""


class TeacherBank(Protocol):
    """The part of `markscheme.Client` that teaching needs."""

    def save_teacher_responses(self, entries: Sequence[TeacherLike]) -> TeacherBankChange:
        """Store responses in the bank."""

    def teach(self, prompt: PromptLike, count: int = ...) -> TeachResult:
        """Sample the teacher until the bank holds `count` responses."""


class PromptEntry(BaseModel):
    """One row; other columns are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    prompt: Prompt
    teacher_responses: list[TeacherAnswer] = []
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


class Prompts:
    """The prompts of a source, read anew at each iteration.

    Args:
        source: A file, a folder or a split on the hub; see `markscheme.data`. It has a column
            `prompt`, and optional ones `teacher_responses` and `teacher_model`.
        ropd_index: A teacher index of ROPD; its answers go to the prompts that they belong to.
        columns: Other names of the columns.
        warn: Called with a message for each column that looks misspelt.

    Raises:
        ValueError: Names the row at fault.
        OSError: A file cannot be read.
    """

    def __init__(
        self,
        source: str | Path,
        ropd_index: Path | None = None,
        columns: Columns | None = None,
        warn: Callable[[str], None] = lambda message: None,
    ) -> None:
        reader = RowReader(
            PromptEntry.model_validate, list(PromptEntry.model_fields), columns, warn
        )
        self._entries = Records(open_source(source), reader)
        self._index = ropd_index
        self._answers: dict[str, Answers] = {}
        if ropd_index is not None:
            self._answers = read_ropd_index(ropd_index)

    def __iter__(self) -> Iterator[PromptEntry]:
        """Yield the prompts with the answers of the index; one with two models is there twice."""
        for entry in self._entries:
            yield from self._with_answers(entry)

    def check(self) -> int:
        """Read every row once and return the number of entries.

        Raises `ValueError`, also if no prompt is in the index.
        """
        entries, found = 0, False

        def visit(_: Row, entry: PromptEntry) -> None:
            nonlocal entries, found
            entries += sum(1 for _ in self._with_answers(entry))
            found = found or ropd_prompt_hash(entry.prompt) in self._answers

        self._entries.check(visit)
        if self._index is not None and not found:
            raise ValueError(
                f"no prompt of {self._entries.source.name} is one of the {len(self._answers)} in "
                f"{self._index}"
            )
        return entries

    def _with_answers(self, entry: PromptEntry) -> Iterator[PromptEntry]:
        if self._index is None:
            return iter([entry])
        return _with_answers(entry, self._answers.get(ropd_prompt_hash(entry.prompt), {}))


def read_prompts(
    source: str | Path, ropd_index: Path | None = None, columns: Columns | None = None
) -> list[PromptEntry]:
    """Read all prompts of a source; see `Prompts`. Raises `ValueError` and `OSError`."""
    prompts = Prompts(source, ropd_index, columns)
    prompts.check()
    return list(prompts)


def _with_answers(line: PromptEntry, answers: Answers) -> Iterator[PromptEntry]:
    """Yield the line with the answers of its own model, then one entry for each other model."""
    own = line.teacher_model
    if not line.teacher_responses and own is None and answers:
        # An entry without responses of its own takes those of the index's first model.
        own = next(iter(answers))
    texts = [*line.teacher_responses, *answers.get(own, [])]
    yield line.model_copy(update={"teacher_responses": texts, "teacher_model": own})
    for model, others in answers.items():
        if model != own:
            yield line.model_copy(update={"teacher_responses": others, "teacher_model": model})


def read_ropd_index(file: Path) -> dict[str, Answers]:
    """Read answers by prompt hash and model from `ropd.teacher_index.v1` and `.v2` lines.

    Raises `ValueError`.
    """
    answers: dict[str, Answers] = {}
    for prompt_hash, model, texts in (entry for _, entry in read_rows(file, _index_line)):
        known = answers.setdefault(prompt_hash, {}).setdefault(model, [])
        known.extend(text for text in texts if text not in known)
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

    # Entries with responses of several models may share a prompt, which is asked for once.
    asked = list({ropd_prompt_hash(line.prompt): line for line in lines}.values())
    for _ in range(len(lines) - len(asked)):
        on_prompt()
    with ThreadPoolExecutor(concurrency) as pool:
        try:
            outcomes = [pool.submit(ask, line) for line in asked]
            for outcome in outcomes:
                outcome.result()
        except BaseException:
            stop.set()
            raise


def _prompt_like(prompt: Prompt) -> PromptLike:
    return prompt if isinstance(prompt, str) else list[Message | dict[str, str]](prompt)


def _index_line(row: Any) -> tuple[str, str | None, list[str]]:
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
    fingerprint = row.get("teacher_fingerprint")
    model = fingerprint.get("model") if isinstance(fingerprint, dict) else None
    if model is not None and not isinstance(model, str):
        raise ValueError("teacher_fingerprint.model must be a text")
    return row["raw_prompt_hash"], model or None, [text.strip() for text in texts]
