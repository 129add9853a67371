"""Induce rubrics for many prompts ahead of a training.

The service is the state: a prompt that has a rubric is skipped, so a run that was stopped goes on
where it stopped. What is found and made is what a training with `reuse: frozen` gets.
"""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Event, Lock
from typing import Any, Protocol, TypeVar

from markscheme.data import Columns, Records, Row, RowReader, open_source, windows
from markscheme.errors import AuthenticationFailed, InvalidRequest, JudgeReplyUnreadable, NotFound
from markscheme.schema import InduceRequest, JudgeInfo, JudgeList, Message, Rubric, StudentResponse
from markscheme.student import PromptRefused, Student
from markscheme.vocabulary import ReusePolicy, Thinking, UnscoredReason, View

T = TypeVar("T")

FIELDS = ("prompt", "teacher_responses", "student_responses")
WINDOW = 256
"""Rows that are held in memory at a time."""
CHARACTERS_PER_TOKEN = 4
TEMPLATE_CHARACTERS = 2600
"""The rubricator's instructions, without the material."""
REPLY_TOKENS = 450
"""A rubric of eight criteria, as the rubricator writes it."""
ROLE = "rubricator"
_HINTS = {"student_responses": "or have the student sampled: --student URL --student-model NAME"}


class RubricMaker(Protocol):
    """The part of `markscheme.Client` that induction needs."""

    def induce(
        self,
        prompt: Any,
        *,
        student_responses: Sequence[Any],
        teacher_responses: Sequence[Any] | None = ...,
        reuse: ReusePolicy = ...,
        judge: str | None = ...,
        thinking: Thinking = ...,
        view: View | None = ...,
    ) -> Rubric:
        """Return the rubric for a prompt."""

    def judges(self) -> JudgeList:
        """Return the service's judges."""


@dataclass(slots=True)
class Survey:
    """What is there and what is missing. Lengths are characters of the missing rows together."""

    rows: int = 0
    existing: int = 0
    repeated: int = 0
    missing: set[str] = field(default_factory=set)
    prompt_characters: int = 0
    teacher_characters: int = 0
    student_characters: int = 0
    to_sample: int = 0
    """Missing rows without student responses: the student is sampled."""
    without_teachers: int = 0
    """Missing rows that state no teacher responses: the bank's are used."""


@dataclass(frozen=True, slots=True)
class InductionEstimate:
    """What the missing rubrics will cost. `cost_usd` is null when the judge has no prices."""

    judge: JudgeInfo | None
    calls: int
    prompt_tokens: int
    reply_tokens: int
    cost_usd: float | None
    student_calls: int
    student_tokens: int

    @property
    def is_free(self) -> bool:
        """Whether no model is asked: the builtin judge is rules."""
        return self.student_calls == 0 and (
            self.calls == 0 or (self.judge is not None and self.judge.kind == "builtin")
        )


@dataclass(slots=True)
class InductionReport:
    """What a run did, counted as answers arrive."""

    induced: int = 0
    reused: int = 0
    failed: int = 0

    def __str__(self) -> str:
        reused = f", {self.reused} were there by then" if self.reused else ""
        return f"{self.induced} rubrics induced{reused}, {self.failed} rows failed"


class Inductions:
    """The prompts of a source for which rubrics are wanted.

    Args:
        client: A `markscheme.Client`.
        source: A file, a folder or a split on the hub; see `markscheme.data`. Columns: `prompt`,
            and optional ones `student_responses` and `teacher_responses`.
        columns: Other names of the columns.
        student: Sampled for rows without student responses; `None`: such a row is an error.
        samples: Responses to sample for a row.
        judge: The judge that writes the rubrics; default: the service's.
        thinking: What is read of a student response; see `Client.score`.
        view: Which part of a trajectory the rubrics are about; see `Client.induce`.
        warn: Called with a message for each column that looks misspelt.

    Raises:
        ValueError: The source cannot be opened.
    """

    def __init__(
        self,
        client: RubricMaker,
        source: str | Path,
        *,
        columns: Columns | None = None,
        student: Student | None = None,
        samples: int = 4,
        judge: str | None = None,
        thinking: Thinking = "auto",
        view: View | None = None,
        warn: Callable[[str], None] = lambda message: None,
    ) -> None:
        self._client, self._student, self._samples = client, student, samples
        self._judge, self._thinking, self._view = judge, thinking, view
        reader = RowReader(
            partial(_parse, sampled=student is not None), FIELDS, columns, warn, _HINTS
        )
        self._records = Records(open_source(source), reader)

    def check(self) -> int:
        """Read every row once and return their number. Raises `ValueError`."""
        return self._records.check()

    def survey(self, *, concurrency: int, on_row: Callable[[], None] = lambda: None) -> Survey:
        """Look up which prompts have a rubric. Asks no judge."""
        survey, seen, counting = Survey(), set[bytes](), Lock()

        def look(item: tuple[Row, InduceRequest]) -> None:
            row, request = item
            key = _prompt_digest(request)
            with counting:
                survey.rows += 1
                repeated = key in seen
                survey.repeated += repeated
                seen.add(key)
            if not repeated:
                found = self._has_rubric(request)
                with counting:
                    survey.existing += found
                    if not found:
                        self._count(survey, row, request)
            on_row()

        for window in windows(self._records.with_rows(), WINDOW):
            _run(look, window, concurrency)
        return survey

    def estimate(self, survey: Survey) -> InductionEstimate:
        """Estimate the calls, tokens and cost of what is missing.

        Raises `ValueError` if there is no judge of the name given.
        """
        judge = self._find_judge()
        calls = len(survey.missing)
        characters = (
            survey.prompt_characters + survey.teacher_characters + survey.student_characters
        )
        sampled = survey.to_sample * self._samples
        student_tokens = sampled * self._student.max_tokens if self._student is not None else 0
        prompt_tokens = student_tokens + math.ceil(
            (characters + calls * TEMPLATE_CHARACTERS) / CHARACTERS_PER_TOKEN
        )
        cost = None
        if judge is not None and judge.price_input is not None and judge.price_output is not None:
            cost = (
                prompt_tokens * judge.price_input + calls * REPLY_TOKENS * judge.price_output
            ) / 10**6
        return InductionEstimate(
            judge=judge,
            calls=calls,
            prompt_tokens=prompt_tokens,
            reply_tokens=calls * REPLY_TOKENS,
            cost_usd=cost,
            student_calls=sampled,
            student_tokens=student_tokens,
        )

    def induce(
        self,
        survey: Survey,
        report: InductionReport,
        *,
        concurrency: int,
        on_row: Callable[[], None] = lambda: None,
        on_failure: Callable[[str], None] = lambda message: None,
    ) -> None:
        """Induce what is missing.

        A row that the judge or the student refuses is reported and the others go on. What would
        meet every row (a service that is away, a wrong key, a spent budget) is raised once the
        running calls have ended.
        """
        counting = Lock()

        def make(item: tuple[Row, InduceRequest]) -> None:
            row, request = item
            try:
                made = self._induce(request)
            except (InvalidRequest, JudgeReplyUnreadable, PromptRefused) as error:
                with counting:
                    report.failed += 1
                    on_failure(f"{row.place}: {error}")
            else:
                with counting:
                    report.induced += made
                    report.reused += not made
            on_row()

        rows = (item for item in self._records.with_rows() if item[0].name in survey.missing)
        for window in windows(rows, WINDOW):
            _run(make, window, concurrency)

    def _count(self, survey: Survey, row: Row, request: InduceRequest) -> None:
        survey.missing.add(row.name)
        survey.prompt_characters += _characters(request.prompt)
        survey.teacher_characters += sum(map(_characters, request.teacher_responses or ()))
        survey.without_teachers += request.teacher_responses is None
        survey.to_sample += _is_placeholder(request)
        survey.student_characters += sum(map(_characters, request.student_responses))

    def _has_rubric(self, request: InduceRequest) -> bool:
        """Return whether a training with `reuse: frozen` would get a rubric for the prompt."""
        try:
            # The request must have a response, though a look-up reads none.
            self._client.induce(
                request.prompt, student_responses=request.student_responses[:1], reuse="frozen"
            )
        except InvalidRequest as error:
            if error.code != UnscoredReason.NO_RUBRIC:
                raise
            return False
        return True

    def _induce(self, request: InduceRequest) -> bool:
        """Induce one rubric; false if there is one by now."""
        responses: Sequence[Any] = request.student_responses
        if self._student is not None and _is_placeholder(request):
            if self._has_rubric(request):
                return False  # made since the survey: no need to sample
            responses = self._student.sample(request.prompt, self._samples)
        self._client.induce(
            request.prompt,
            student_responses=responses,
            teacher_responses=request.teacher_responses,
            judge=self._judge,
            thinking=self._thinking,
            view=self._view,
        )
        return True

    def _find_judge(self) -> JudgeInfo | None:
        """Return the judge that will be asked. Raises `ValueError` if there is none of its name."""
        try:
            judges = self._client.judges().data
        except (AuthenticationFailed, NotFound):
            return None  # a key without the scope `read`, or an older service
        if self._judge is None:
            return next((each for each in judges if ROLE in each.roles), None)
        for each in judges:
            if each.name == self._judge:
                return each
        names = ", ".join(each.name for each in judges)
        raise ValueError(f"there is no judge {self._judge!r}; there are: {names}")


_NOT_SAMPLED = StudentResponse(text="")
"""Stands in a request until the student is sampled."""


def _parse(fields: dict[str, Any], *, sampled: bool) -> InduceRequest:
    if sampled:
        fields.setdefault("student_responses", [_NOT_SAMPLED.model_dump(exclude_none=True)])
    return InduceRequest.model_validate(fields)


def _is_placeholder(request: InduceRequest) -> bool:
    return request.student_responses == [_NOT_SAMPLED]


def _prompt_digest(request: InduceRequest) -> bytes:
    prompt = request.model_dump(mode="json", include={"prompt"})["prompt"]
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return hashlib.sha256(json.dumps(messages, sort_keys=True).encode()).digest()


def _characters(value: Any) -> int:
    """Return the length of a text, of messages, or of a response with either."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, StudentResponse):
        return _characters(value.text if value.text is not None else value.messages)
    if isinstance(value, Message):
        return len(value.model_dump_json())
    return sum(map(_characters, value))


def _run(work: Callable[[T], None], items: Sequence[T], concurrency: int) -> None:
    """Run `work` on items in threads; after the first error none is begun, and it is raised."""
    stop = Event()

    def guarded(item: T) -> None:
        if stop.is_set():
            return
        try:
            work(item)
        except BaseException:
            stop.set()
            raise

    with ThreadPoolExecutor(concurrency) as pool:
        try:
            for outcome in [pool.submit(guarded, item) for item in items]:
                outcome.result()
        except BaseException:
            stop.set()
            raise
