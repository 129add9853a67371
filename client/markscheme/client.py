"""The sync and the async client: the same methods over two transports."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import date
from types import TracebackType
from typing import Any, Self

import httpx
from httpx_retries import RetryTransport
from pydantic_core import from_json

from markscheme import protocol, requests
from markscheme.deadline import Deadline
from markscheme.errors import ConnectionFailed
from markscheme.exchange import LOSSES_HEADER, Exported, decode_losses
from markscheme.protocol import (
    CriterionLike,
    GroupLike,
    Model,
    PromptLike,
    StudentLike,
    TeacherLike,
)
from markscheme.schema import (
    GroupScore,
    Lineage,
    Rubric,
    RubricImported,
    RubricList,
    Run,
    ScoreBatch,
    TeacherBankChange,
    TeacherResponseList,
    TeachResult,
    UsageReport,
)
from markscheme.transport import AsyncDeadlineTransport, DeadlineTransport
from markscheme.vocabulary import (
    Category,
    ExchangeFormat,
    ReusePolicy,
    ReuseScope,
    RubricOrigin,
    Thinking,
    UsageKey,
    VerifyMode,
    Visibility,
)

OnGroup = Callable[[GroupScore], None]
DEFAULT_URL = "http://127.0.0.1:8321"
"""Where ``markscheme serve`` listens unless told otherwise."""


class Client:
    """A service at ``base_url``. Safe to share between threads; close it, or use it as a context manager.

    ``deadline_s`` is the time for a whole call, retries included: the service is told what is left of it, and
    :class:`markscheme.errors.DeadlineExceeded` says that there was no answer by then. An answer that goes silent
    half-way is given up after a minute at most. ``judge`` names one of the service's judges.
    """

    def __init__(self, base_url: str, api_key: str | None = None) -> None:
        self.base_url = base_url.rstrip("/")
        self._http = httpx.Client(
            base_url=self.base_url,
            headers=protocol.headers(api_key),
            timeout=protocol.TIMEOUT,
            transport=RetryTransport(DeadlineTransport()),
        )

    def induce(
        self,
        prompt: PromptLike,
        *,
        student_responses: Sequence[StudentLike],
        teacher_responses: Sequence[str] | None = None,
        reuse: ReusePolicy = "if_fresh",
        tags: Sequence[str] = (),
        judge: str | None = None,
        teacher_model: str | None = None,
        rubricator: str | None = None,
        thinking: Thinking = "auto",
        reuse_scope: ReuseScope | None = None,
        deadline_s: float | None = None,
    ) -> Rubric:
        """The rubric for a prompt, induced from the responses or reused under ``reuse``.

        ``teacher_model``, ``rubricator``: reuse only induced rubrics that were made from this model's responses, or by
        a rubricator whose name begins so. ``reuse_scope``: reuse only your team's rubrics (``own``), also those shared
        with it (``shared``), or also the organisation's; ``None``: as the team's setting says, and without one
        ``own`` where there is a teacher to go by and a rubric may be induced.
        """
        deadline = Deadline.after(deadline_s)
        call = requests.induce(
            prompt,
            student_responses,
            teacher_responses,
            reuse,
            tags,
            judge,
            teacher_model,
            rubricator,
            thinking,
            reuse_scope,
        )
        return self._request_model(call, Rubric, protocol.INDUCE_TIMEOUT, deadline)

    def create_rubric(
        self, prompt: PromptLike, criteria: Sequence[CriterionLike], *, tags: Sequence[str] = ()
    ) -> Rubric:
        """Store a rubric of your own for a prompt."""
        return self._request_model(requests.create_rubric(prompt, criteria, tags), Rubric)

    def rubric(self, rubric_id: str) -> Rubric:
        """A rubric by id. Raises :class:`markscheme.errors.NotFound`."""
        return self._request_model(requests.rubric(rubric_id), Rubric)

    def fork_rubric(
        self,
        rubric_id: str,
        criteria: Sequence[CriterionLike] | None = None,
        *,
        tags: Sequence[str] | None = None,
    ) -> Rubric:
        """A new version with these criteria, or a copy of another team's rubric for your own team."""
        return self._request_model(requests.fork_rubric(rubric_id, criteria, tags), Rubric)

    def change_rubric(
        self,
        rubric_id: str,
        *,
        visibility: Visibility | None = None,
        shared_with: Sequence[str] | None = None,
        tags: Sequence[str] | None = None,
        retired: bool | None = None,
    ) -> Rubric:
        """Say who sees a rubric of your team, tag it or retire it; ``None`` leaves a thing as it is."""
        return self._request_model(
            requests.change_rubric(rubric_id, visibility, shared_with, tags, retired), Rubric
        )

    def import_rubric(
        self,
        content: Mapping[str, Any],
        format: ExchangeFormat,
        *,
        prompt: PromptLike | None = None,
        tags: Sequence[str] = (),
        allow_loss: bool = False,
    ) -> RubricImported:
        """Store a rubric that is in another format; ``prompt`` for the formats that hold none.

        What cannot be held is refused (:class:`markscheme.errors.InvalidRequest`) or, with ``allow_loss``, left out
        and named in ``losses``.
        """
        return self._request_model(
            requests.import_rubric(content, format, prompt, tags, allow_loss), RubricImported
        )

    def export_rubric(
        self, rubric_id: str, format: ExchangeFormat = "native", *, allow_loss: bool = False
    ) -> Exported:
        """A rubric in another format: its ``content``, and the ``losses`` that were allowed."""
        return _exported(self._request(requests.export_rubric(rubric_id, format, allow_loss)))

    def rubrics(
        self,
        prompt: str | None = None,
        *,
        prompt_key: str | None = None,
        text: str | None = None,
        tags: Sequence[str] = (),
        category: Category | None = None,
        team: str | None = None,
        teacher_model: str | None = None,
        rubricator: str | None = None,
        origin: RubricOrigin | None = None,
        min_quality: float | None = None,
        retired: bool | None = None,
        limit: int = 20,
        after: str | None = None,
    ) -> RubricList:
        """A page of the rubrics that your team sees, newest first; all that is given narrows it down.

        ``text``: words of the prompt and the criteria; ``tags``: all of them; ``team``: who made it; ``rubricator``:
        how its name begins; ``min_quality``: the least :attr:`markscheme.schema.RubricList.quality`, which has to be
        known.
        """
        return self._request_model(
            requests.rubrics(
                prompt=prompt,
                prompt_key=prompt_key,
                text=text,
                tag=list(tags),
                category=category,
                team=team,
                teacher_model=teacher_model,
                rubricator=rubricator,
                origin=origin,
                min_quality=min_quality,
                retired=retired,
                limit=limit,
                after=after,
            ),
            RubricList,
        )

    def lineage(self, rubric_id: str) -> Lineage:
        """What a rubric was made from, what was made from it, and what came of training on it."""
        return self._request_model(requests.lineage(rubric_id), Lineage)

    def save_teacher_responses(self, entries: Sequence[TeacherLike]) -> TeacherBankChange:
        """Put teacher responses into the bank: prompts with their responses. What it holds already is left alone."""
        return self._request_model(requests.save_teacher_responses(entries), TeacherBankChange)

    def teacher_responses(
        self, prompt: str | None = None, *, prompt_key: str | None = None
    ) -> TeacherResponseList:
        """What the bank holds for a prompt, given by its text or its key."""
        return self._request_model(
            requests.teacher_responses(prompt, prompt_key), TeacherResponseList
        )

    def teach(
        self, prompt: PromptLike, count: int = 1, *, deadline_s: float | None = None
    ) -> TeachResult:
        """Have the service ask its teacher until the bank holds ``count`` responses to the prompt."""
        return self._request_model(
            requests.teach(prompt, count),
            TeachResult,
            protocol.INDUCE_TIMEOUT,
            Deadline.after(deadline_s),
        )

    def score(
        self,
        groups: Sequence[GroupLike],
        *,
        reuse: ReusePolicy = "if_fresh",
        verify: VerifyMode = "rollout",
        score_teachers: bool = False,
        ask_teacher: int = 0,
        run: Run | None = None,
        on_group: OnGroup | None = None,
        judge: str | None = None,
        teacher_model: str | None = None,
        rubricator: str | None = None,
        thinking: Thinking = "auto",
        reuse_scope: ReuseScope | None = None,
        deadline_s: float | None = None,
    ) -> ScoreBatch:
        """Score a batch; ``on_group`` hears of each group as it is done. An unknown reward is ``None``.

        ``ask_teacher``: how many responses the service asks its teacher for where a new rubric has none to go by.
        ``teacher_model``, ``rubricator``, ``reuse_scope``: see :meth:`induce`. ``thinking``: ``strip`` when the chat
        template opens the student's thought, so that rollouts begin inside it; ``auto`` cuts off a thought that a
        rollout opens itself; ``keep`` has all of it judged.
        """
        deadline = Deadline.after(deadline_s)
        call, order = requests.score(
            groups,
            reuse,
            verify,
            score_teachers,
            ask_teacher,
            run,
            judge,
            teacher_model,
            rubricator,
            thinking,
            reuse_scope,
        )
        reader = protocol.BatchReader(order, deadline)
        with (
            self._translated_errors(deadline),
            self._http.stream(
                call.method,
                call.path,
                json=call.json,
                headers=call.headers,
                extensions=call.extensions(deadline),
            ) as response,
        ):
            if not response.is_success:
                response.read()
                protocol.raise_for_status(response)
            for line in protocol.response_lines(response.iter_bytes()):
                group = reader.line(line)
                if group is not None and on_group is not None:
                    on_group(group)
        return reader.batch()

    def usage(
        self,
        group_by: Sequence[UsageKey] = ("team",),
        *,
        since: date | None = None,
        until: date | None = None,
        team: str | None = None,
    ) -> UsageReport:
        """What judging cost and what re-use saved, up to the day before ``until`` (UTC). A key with the scope
        ``admin`` sees every team's, or that of ``team``."""
        return self._request_model(requests.usage(group_by, since, until, team), UsageReport)

    def _request_model(
        self,
        call: protocol.Call,
        model: type[Model],
        timeout: httpx.Timeout = protocol.TIMEOUT,
        deadline: Deadline | None = None,
    ) -> Model:
        return protocol.read(self._request(call, timeout, deadline), model)

    def _request(
        self,
        call: protocol.Call,
        timeout: httpx.Timeout = protocol.TIMEOUT,
        deadline: Deadline | None = None,
    ) -> httpx.Response:
        with self._translated_errors(deadline):
            return self._http.request(
                call.method,
                call.path,
                json=call.json,
                params=call.params,
                timeout=timeout,
                headers=call.headers,
                extensions=call.extensions(deadline),
            )

    @contextmanager
    def _translated_errors(self, deadline: Deadline | None) -> Iterator[None]:
        try:
            yield
        except httpx.RequestError as error:
            raise protocol.connection_error(self.base_url, error, deadline) from error

    def close(self) -> None:
        """Let go of connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class AsyncClient:
    """:class:`Client` for code that awaits; works inside a running event loop."""

    def __init__(self, base_url: str, api_key: str | None = None) -> None:
        self.base_url = base_url.rstrip("/")
        self._http = httpx.AsyncClient(
            base_url=self.base_url,
            headers=protocol.headers(api_key),
            timeout=protocol.TIMEOUT,
            transport=RetryTransport(AsyncDeadlineTransport()),
        )

    async def induce(
        self,
        prompt: PromptLike,
        *,
        student_responses: Sequence[StudentLike],
        teacher_responses: Sequence[str] | None = None,
        reuse: ReusePolicy = "if_fresh",
        tags: Sequence[str] = (),
        judge: str | None = None,
        teacher_model: str | None = None,
        rubricator: str | None = None,
        thinking: Thinking = "auto",
        reuse_scope: ReuseScope | None = None,
        deadline_s: float | None = None,
    ) -> Rubric:
        """See :meth:`Client.induce`."""
        deadline = Deadline.after(deadline_s)
        call = requests.induce(
            prompt,
            student_responses,
            teacher_responses,
            reuse,
            tags,
            judge,
            teacher_model,
            rubricator,
            thinking,
            reuse_scope,
        )
        return await self._request_model(call, Rubric, protocol.INDUCE_TIMEOUT, deadline)

    async def create_rubric(
        self, prompt: PromptLike, criteria: Sequence[CriterionLike], *, tags: Sequence[str] = ()
    ) -> Rubric:
        """See :meth:`Client.create_rubric`."""
        return await self._request_model(requests.create_rubric(prompt, criteria, tags), Rubric)

    async def rubric(self, rubric_id: str) -> Rubric:
        """See :meth:`Client.rubric`."""
        return await self._request_model(requests.rubric(rubric_id), Rubric)

    async def fork_rubric(
        self,
        rubric_id: str,
        criteria: Sequence[CriterionLike] | None = None,
        *,
        tags: Sequence[str] | None = None,
    ) -> Rubric:
        """See :meth:`Client.fork_rubric`."""
        return await self._request_model(requests.fork_rubric(rubric_id, criteria, tags), Rubric)

    async def change_rubric(
        self,
        rubric_id: str,
        *,
        visibility: Visibility | None = None,
        shared_with: Sequence[str] | None = None,
        tags: Sequence[str] | None = None,
        retired: bool | None = None,
    ) -> Rubric:
        """See :meth:`Client.change_rubric`."""
        return await self._request_model(
            requests.change_rubric(rubric_id, visibility, shared_with, tags, retired), Rubric
        )

    async def import_rubric(
        self,
        content: Mapping[str, Any],
        format: ExchangeFormat,
        *,
        prompt: PromptLike | None = None,
        tags: Sequence[str] = (),
        allow_loss: bool = False,
    ) -> RubricImported:
        """See :meth:`Client.import_rubric`."""
        return await self._request_model(
            requests.import_rubric(content, format, prompt, tags, allow_loss), RubricImported
        )

    async def export_rubric(
        self, rubric_id: str, format: ExchangeFormat = "native", *, allow_loss: bool = False
    ) -> Exported:
        """See :meth:`Client.export_rubric`."""
        return _exported(await self._request(requests.export_rubric(rubric_id, format, allow_loss)))

    async def rubrics(
        self,
        prompt: str | None = None,
        *,
        prompt_key: str | None = None,
        text: str | None = None,
        tags: Sequence[str] = (),
        category: Category | None = None,
        team: str | None = None,
        teacher_model: str | None = None,
        rubricator: str | None = None,
        origin: RubricOrigin | None = None,
        min_quality: float | None = None,
        retired: bool | None = None,
        limit: int = 20,
        after: str | None = None,
    ) -> RubricList:
        """See :meth:`Client.rubrics`."""
        return await self._request_model(
            requests.rubrics(
                prompt=prompt,
                prompt_key=prompt_key,
                text=text,
                tag=list(tags),
                category=category,
                team=team,
                teacher_model=teacher_model,
                rubricator=rubricator,
                origin=origin,
                min_quality=min_quality,
                retired=retired,
                limit=limit,
                after=after,
            ),
            RubricList,
        )

    async def lineage(self, rubric_id: str) -> Lineage:
        """See :meth:`Client.lineage`."""
        return await self._request_model(requests.lineage(rubric_id), Lineage)

    async def save_teacher_responses(self, entries: Sequence[TeacherLike]) -> TeacherBankChange:
        """See :meth:`Client.save_teacher_responses`."""
        return await self._request_model(
            requests.save_teacher_responses(entries), TeacherBankChange
        )

    async def teacher_responses(
        self, prompt: str | None = None, *, prompt_key: str | None = None
    ) -> TeacherResponseList:
        """See :meth:`Client.teacher_responses`."""
        return await self._request_model(
            requests.teacher_responses(prompt, prompt_key), TeacherResponseList
        )

    async def teach(
        self, prompt: PromptLike, count: int = 1, *, deadline_s: float | None = None
    ) -> TeachResult:
        """See :meth:`Client.teach`."""
        return await self._request_model(
            requests.teach(prompt, count),
            TeachResult,
            protocol.INDUCE_TIMEOUT,
            Deadline.after(deadline_s),
        )

    async def score(
        self,
        groups: Sequence[GroupLike],
        *,
        reuse: ReusePolicy = "if_fresh",
        verify: VerifyMode = "rollout",
        score_teachers: bool = False,
        ask_teacher: int = 0,
        run: Run | None = None,
        on_group: OnGroup | None = None,
        judge: str | None = None,
        teacher_model: str | None = None,
        rubricator: str | None = None,
        thinking: Thinking = "auto",
        reuse_scope: ReuseScope | None = None,
        deadline_s: float | None = None,
    ) -> ScoreBatch:
        """See :meth:`Client.score`."""
        deadline = Deadline.after(deadline_s)
        call, order = requests.score(
            groups,
            reuse,
            verify,
            score_teachers,
            ask_teacher,
            run,
            judge,
            teacher_model,
            rubricator,
            thinking,
            reuse_scope,
        )
        reader = protocol.BatchReader(order, deadline)
        async with (
            self._translated_errors(deadline),
            self._http.stream(
                call.method,
                call.path,
                json=call.json,
                headers=call.headers,
                extensions=call.extensions(deadline),
            ) as response,
        ):
            if not response.is_success:
                await response.aread()
                protocol.raise_for_status(response)
            async for line in protocol.response_lines_async(response.aiter_bytes()):
                group = reader.line(line)
                if group is not None and on_group is not None:
                    on_group(group)
        return reader.batch()

    async def usage(
        self,
        group_by: Sequence[UsageKey] = ("team",),
        *,
        since: date | None = None,
        until: date | None = None,
        team: str | None = None,
    ) -> UsageReport:
        """See :meth:`Client.usage`."""
        return await self._request_model(requests.usage(group_by, since, until, team), UsageReport)

    async def _request_model(
        self,
        call: protocol.Call,
        model: type[Model],
        timeout: httpx.Timeout = protocol.TIMEOUT,
        deadline: Deadline | None = None,
    ) -> Model:
        return protocol.read(await self._request(call, timeout, deadline), model)

    async def _request(
        self,
        call: protocol.Call,
        timeout: httpx.Timeout = protocol.TIMEOUT,
        deadline: Deadline | None = None,
    ) -> httpx.Response:
        async with self._translated_errors(deadline):
            return await self._http.request(
                call.method,
                call.path,
                json=call.json,
                params=call.params,
                timeout=timeout,
                headers=call.headers,
                extensions=call.extensions(deadline),
            )

    @asynccontextmanager
    async def _translated_errors(self, deadline: Deadline | None) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(
                deadline.remaining_s if deadline is not None else None
            ) as limit:
                yield
        except httpx.RequestError as error:
            raise protocol.connection_error(self.base_url, error, deadline) from error
        except TimeoutError as error:
            if deadline is None or not limit.expired():
                raise  # somebody else's, or ours already
            raise deadline.exceeded() from error

    async def close(self) -> None:
        """Let go of connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()


def _exported(response: httpx.Response) -> Exported:
    """An export, which is a foreign format's JSON and no model of ours."""
    protocol.raise_for_status(response)
    try:
        content = from_json(response.content, allow_inf_nan=False)
    except ValueError as error:
        raise ConnectionFailed(
            "the answer is not JSON: is this a Markscheme service of this version?"
        ) from error
    return Exported(content, decode_losses(response.headers.get(LOSSES_HEADER, "")))
