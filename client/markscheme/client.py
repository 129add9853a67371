"""The synchronous and the asynchronous client: the same methods over two transports."""

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
    JudgeList,
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
    MapField,
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
"""Where `markscheme serve` listens by default."""


class Client:
    """A connection to the service at `base_url`.

    Safe to share between threads. Close it, or use it as a context manager.

    Methods that ask a judge or a teacher take `deadline_s`, the seconds for the whole call, retries
    included: the service is told how much is left, and `DeadlineExceeded` is raised if there is no
    answer by then. Without it a silent connection is given up after a minute. `judge` names one of
    the service's judges; the default is the service's.

    Every method raises the errors of `markscheme.errors`. Failed connections, 429 and 5xx are
    retried twice first.

    Args:
        base_url: Address of the service, such as `http://127.0.0.1:8321`.
        api_key: Your team's API key; a service without keys needs none.

    Example:
        with Client("http://127.0.0.1:8321") as client:
            batch = client.score(
                [
                    {
                        "id": "g1",
                        "prompt": "Describe a tree without commas.",
                        "teacher_responses": ["A tall oak stands alone here"],
                        "rollouts": [{"id": "r1", "text": "A green tree"}],
                    }
                ]
            )
            print(batch.groups[0].rollouts[0].reward)  # 0 to 1, or None with a reason
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
        """Return the rubric for a prompt: induced from the responses, or reused.

        Args:
            prompt: A string or chat messages.
            student_responses: Rollouts to contrast, 1 to 256.
            teacher_responses: Responses to contrast them with; default: the teacher bank's.
            reuse: `always_new` induces unless these very responses were contrasted before;
                `if_fresh` reuses a rubric while it still separates rollouts; `frozen` never
                induces.
            tags: Tags of a new rubric.
            judge: The judge that writes it.
            teacher_model: Reuse only rubrics contrasted with responses of this model.
            rubricator: Reuse only rubrics whose rubricator's name begins with this.
            thinking: What is read of a rollout; see `score`.
            reuse_scope: Reuse rubrics of your team (`own`), also those shared with it
                (`shared`), or also the organisation's. Default: the team's setting; without
                one, `own` where there are teacher responses.
            deadline_s: Seconds for the whole call.
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
        self,
        prompt: PromptLike,
        criteria: Sequence[CriterionLike],
        *,
        tags: Sequence[str] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> Rubric:
        """Store a rubric of your own for a prompt.

        Args:
            prompt: A string or chat messages.
            criteria: Texts with points; ids are numbered if left out.
            tags: Up to 32 tags.
            metadata: Any JSON object; it is stored and returned, and no judge sees it.
        """
        return self._request_model(
            requests.create_rubric(prompt, criteria, tags, metadata or {}), Rubric
        )

    def rubric(self, rubric_id: str) -> Rubric:
        """Return a rubric by id. Raises `NotFound`."""
        return self._request_model(requests.rubric(rubric_id), Rubric)

    def fork_rubric(
        self,
        rubric_id: str,
        criteria: Sequence[CriterionLike] | None = None,
        *,
        tags: Sequence[str] | None = None,
    ) -> Rubric:
        """Store a new version of a rubric, or a copy of another team's.

        Args:
            rubric_id: The rubric to start from.
            criteria: The new criteria; default: unchanged.
            tags: The new tags; default: unchanged.
        """
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
        """Share, tag or retire a rubric of your team; `None` leaves a field as it is.

        Args:
            rubric_id: The rubric.
            visibility: `private` or `organisation`.
            shared_with: Names of the teams that may see a private rubric.
            tags: All its tags.
            retired: Whether groups stop getting it.
        """
        return self._request_model(
            requests.change_rubric(rubric_id, visibility, shared_with, tags, retired), Rubric
        )

    def import_rubric(
        self,
        content: Mapping[str, Any] | Sequence[Any],
        format: ExchangeFormat,
        *,
        prompt: PromptLike | None = None,
        tags: Sequence[str] = (),
        allow_loss: bool = False,
        mapping: Mapping[MapField, str] | None = None,
    ) -> RubricImported:
        """Store a rubric that is in another format.

        Args:
            content: The parsed JSON of the format.
            format: One of `markscheme.vocabulary.EXCHANGE_FORMATS`; `markscheme.exchange` says what
                they are, and `markscheme.exchange.detect_format` which one a content has.
            prompt: The prompt, for contents that hold none.
            tags: Tags of the rubric.
            allow_loss: Drop what cannot be held and list it in `losses`; otherwise it raises
                `InvalidRequest`.
            mapping: For the format `mapped`: paths by the part of a rubric, such as
                `{"prompt": "question", "criteria": "checklist", "text": "item"}`.
        """
        return self._request_model(
            requests.import_rubric(content, format, prompt, tags, allow_loss, mapping),
            RubricImported,
        )

    def export_rubric(
        self, rubric_id: str, format: ExchangeFormat = "native", *, allow_loss: bool = False
    ) -> Exported:
        """Return a rubric in another format.

        Args:
            rubric_id: The rubric.
            format: As in `import_rubric`.
            allow_loss: Drop what the format cannot hold and list it in `losses`; otherwise it
                raises `InvalidRequest`.
        """
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
        """Return a page of the rubrics that your team may see, newest first.

        All filters must match.

        Args:
            prompt: Exact text of the prompt.
            prompt_key: Its key, for prompts that are chat messages.
            text: Words of the prompt and the criteria.
            tags: Tags that the rubric must all have.
            category: Category of at least one criterion.
            team: The team that made it.
            teacher_model: The model whose responses it contrasts.
            rubricator: Beginning of its rubricator's name.
            origin: `induced`, `imported` or `forked`.
            min_quality: Minimum `RubricList.quality`, 0 to 1; rubrics that never scored a group
                have none.
            retired: Only retired ones, or only others.
            limit: Page size, 1 to 100.
            after: Id of the last rubric of the previous page.
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
        """Return what a rubric was made from, and what it led to."""
        return self._request_model(requests.lineage(rubric_id), Lineage)

    def save_teacher_responses(self, entries: Sequence[TeacherLike]) -> TeacherBankChange:
        """Store responses in the teacher bank; those it holds already are left alone."""
        return self._request_model(requests.save_teacher_responses(entries), TeacherBankChange)

    def teacher_responses(
        self, prompt: str | None = None, *, prompt_key: str | None = None
    ) -> TeacherResponseList:
        """Return the bank's responses to a prompt, given by its text or its key."""
        return self._request_model(
            requests.teacher_responses(prompt, prompt_key), TeacherResponseList
        )

    def teach(
        self, prompt: PromptLike, count: int = 1, *, deadline_s: float | None = None
    ) -> TeachResult:
        """Have the service sample its teacher until the bank holds `count` responses.

        Args:
            prompt: A string or chat messages.
            count: Responses that the bank should hold, 1 to 16.
            deadline_s: Seconds for the whole call.
        """
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
        """Score groups of rollouts. A reward that is not known is `None`, with a reason.

        Args:
            groups: Prompts with their rollouts; ids are yours.
            reuse: Which rubrics may be reused; see `induce`.
            verify: `rollout` judges each rollout alone, `group` all of a group in one call.
            score_teachers: Also score the teacher responses.
            ask_teacher: Responses to sample from the service's teacher where a new rubric has
                none, 0 to 16.
            run: Training run and step; a re-sent step gets the same rubrics.
            on_group: Called with each group as soon as it is scored.
            judge: The judge to ask.
            teacher_model: See `induce`.
            rubricator: See `induce`.
            thinking: What is judged of a rollout. `auto` drops a thought that the rollout opens
                itself, `strip` one that the chat template opened, `keep` nothing.
            reuse_scope: See `induce`.
            deadline_s: Seconds for the whole call.
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
        # NDJSON: groups arrive as they are judged, with heartbeats while nothing is ready.
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

    def judges(self) -> JudgeList:
        """Return the service's judges, with their roles and prices."""
        return self._request_model(requests.judges(), JudgeList)

    def usage(
        self,
        group_by: Sequence[UsageKey] = ("team",),
        *,
        since: date | None = None,
        until: date | None = None,
        team: str | None = None,
    ) -> UsageReport:
        """Return what judging cost and what re-use saved.

        A key with the scope `admin` sees every team's usage, others their own.

        Args:
            group_by: Keys of the sums: `team`, `run`, `rubric`, `role`, `judge`, `day`,
                `month`.
            since: First day (UTC).
            until: Day after the last one (UTC).
            team: One team's usage only.
        """
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
        """Close all connections."""
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
    """`Client` for asyncio: the same methods, awaited."""

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
        """Return the rubric for a prompt; see `Client.induce`."""
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
        self,
        prompt: PromptLike,
        criteria: Sequence[CriterionLike],
        *,
        tags: Sequence[str] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> Rubric:
        """Store a rubric of your own; see `Client.create_rubric`."""
        return await self._request_model(
            requests.create_rubric(prompt, criteria, tags, metadata or {}), Rubric
        )

    async def rubric(self, rubric_id: str) -> Rubric:
        """Return a rubric by id; see `Client.rubric`."""
        return await self._request_model(requests.rubric(rubric_id), Rubric)

    async def fork_rubric(
        self,
        rubric_id: str,
        criteria: Sequence[CriterionLike] | None = None,
        *,
        tags: Sequence[str] | None = None,
    ) -> Rubric:
        """Store a new version of a rubric; see `Client.fork_rubric`."""
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
        """Share, tag or retire a rubric; see `Client.change_rubric`."""
        return await self._request_model(
            requests.change_rubric(rubric_id, visibility, shared_with, tags, retired), Rubric
        )

    async def import_rubric(
        self,
        content: Mapping[str, Any] | Sequence[Any],
        format: ExchangeFormat,
        *,
        prompt: PromptLike | None = None,
        tags: Sequence[str] = (),
        allow_loss: bool = False,
        mapping: Mapping[MapField, str] | None = None,
    ) -> RubricImported:
        """Store a rubric that is in another format; see `Client.import_rubric`."""
        return await self._request_model(
            requests.import_rubric(content, format, prompt, tags, allow_loss, mapping),
            RubricImported,
        )

    async def export_rubric(
        self, rubric_id: str, format: ExchangeFormat = "native", *, allow_loss: bool = False
    ) -> Exported:
        """Return a rubric in another format; see `Client.export_rubric`."""
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
        """Return a page of rubrics; see `Client.rubrics`."""
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
        """Return the lineage of a rubric; see `Client.lineage`."""
        return await self._request_model(requests.lineage(rubric_id), Lineage)

    async def save_teacher_responses(self, entries: Sequence[TeacherLike]) -> TeacherBankChange:
        """Store teacher responses; see `Client.save_teacher_responses`."""
        return await self._request_model(
            requests.save_teacher_responses(entries), TeacherBankChange
        )

    async def teacher_responses(
        self, prompt: str | None = None, *, prompt_key: str | None = None
    ) -> TeacherResponseList:
        """Return the bank's responses to a prompt; see `Client.teacher_responses`."""
        return await self._request_model(
            requests.teacher_responses(prompt, prompt_key), TeacherResponseList
        )

    async def teach(
        self, prompt: PromptLike, count: int = 1, *, deadline_s: float | None = None
    ) -> TeachResult:
        """Have the service sample its teacher; see `Client.teach`."""
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
        """Score groups of rollouts; see `Client.score`."""
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

    async def judges(self) -> JudgeList:
        """Return the service's judges; see `Client.judges`."""
        return await self._request_model(requests.judges(), JudgeList)

    async def usage(
        self,
        group_by: Sequence[UsageKey] = ("team",),
        *,
        since: date | None = None,
        until: date | None = None,
        team: str | None = None,
    ) -> UsageReport:
        """Return what judging cost; see `Client.usage`."""
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
                raise  # a timeout of the caller's own, or one that is translated already
            raise deadline.exceeded() from error

    async def close(self) -> None:
        """Close all connections."""
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
    """Return an export: JSON of a foreign format, not one of our models."""
    protocol.raise_for_status(response)
    try:
        content = from_json(response.content, allow_inf_nan=False)
    except ValueError as error:
        raise ConnectionFailed(
            "the answer is not JSON: is this a Markscheme service of this version?"
        ) from error
    return Exported(content, decode_losses(response.headers.get(LOSSES_HEADER, "")))
