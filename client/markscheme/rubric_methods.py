"""Methods of both clients for rubrics: create, find, change, import and export them."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from markscheme import requests
from markscheme.connection import AsyncConnection, SyncConnection
from markscheme.exchange import Exported
from markscheme.pagination import AsyncRubricPage, AsyncRubricPages, RubricPage
from markscheme.protocol import (
    CriterionLike,
    PromptLike,
    RubricLike,
    StudentLike,
    TeacherAnswerLike,
)
from markscheme.schema import Lineage, Rubric, RubricHealth, RubricImported
from markscheme.vocabulary import (
    Category,
    ExchangeFormat,
    MapField,
    ReusePolicy,
    ReuseScope,
    RubricOrigin,
    Thinking,
    View,
    Visibility,
)


class RubricMethods(SyncConnection):
    """Methods of `Client` for rubrics."""

    def induce(
        self,
        prompt: PromptLike,
        *,
        student_responses: Sequence[StudentLike],
        teacher_responses: Sequence[TeacherAnswerLike] | None = None,
        reuse: ReusePolicy = "if_fresh",
        tags: Sequence[str] = (),
        judge: str | None = None,
        teacher_model: str | None = None,
        rubricator: str | None = None,
        thinking: Thinking = "auto",
        reuse_scope: ReuseScope | None = None,
        view: View | None = None,
        deadline_s: float | None = None,
    ) -> Rubric:
        """Return the rubric for a prompt: induced from the responses, or reused.

        Args:
            prompt: A string or chat messages.
            student_responses: Rollouts to contrast, 1 to 256: texts, or lists of messages.
            teacher_responses: Responses to contrast them with; default: the teacher bank's.
            reuse: `always_new` induces unless the same responses were contrasted before;
                `if_fresh` reuses a rubric while it still separates rollouts; `frozen` never
                induces.
            tags: Tags of a new rubric.
            judge: The judge that writes it.
            teacher_model: Reuse only rubrics contrasted with responses of this model.
            rubricator: Reuse only rubrics whose rubricator's name begins with this.
            thinking: Whether thoughts are judged too; see `score`.
            reuse_scope: Reuse rubrics of your team (`own`), also those shared with it
                (`shared`), or also the organisation's. Default: the team's setting; without
                one, `own` where there are teacher responses.
            view: Which part of a trajectory the criteria are about; see `score`.
            deadline_s: Seconds for the whole call.
        """
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
            view,
            deadline_s,
        )
        return self._send(call)

    def create_rubric(
        self,
        prompt: PromptLike,
        criteria: Sequence[CriterionLike],
        *,
        tags: Sequence[str] = (),
        view: View | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Rubric:
        """Store a rubric of your own for a prompt.

        Args:
            prompt: A string or chat messages.
            criteria: Texts with points; ids are numbered if left out.
            tags: Up to 32 tags.
            view: Which part of a trajectory the criteria are about; see `score`.
            metadata: Any JSON object; it is stored and returned, and no judge sees it.
        """
        return self._send(requests.create_rubric(prompt, criteria, tags, view, metadata))

    def rubric(self, rubric_id: RubricLike) -> Rubric:
        """Return a rubric by id. Raises `NotFound`."""
        return self._send(requests.rubric(rubric_id))

    def fork_rubric(
        self,
        rubric_id: RubricLike,
        criteria: Sequence[CriterionLike] | None = None,
        *,
        tags: Sequence[str] | None = None,
        view: View | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Rubric:
        """Store a new version of a rubric, or a copy of another team's.

        Args:
            rubric_id: The rubric to start from.
            criteria: The new criteria; default: unchanged.
            tags: The new tags; default: unchanged.
            view: The new view; default: unchanged.
            metadata: The new metadata; default: unchanged, and empty for another team's rubric.
        """
        return self._send(requests.fork_rubric(rubric_id, criteria, tags, view, metadata))

    def change_rubric(
        self,
        rubric_id: RubricLike,
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
        return self._send(requests.change_rubric(rubric_id, visibility, shared_with, tags, retired))

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
        return self._send(
            requests.import_rubric(content, format, prompt, tags, allow_loss, mapping)
        )

    def export_rubric(
        self, rubric_id: RubricLike, format: ExchangeFormat = "native", *, allow_loss: bool = False
    ) -> Exported:
        """Return a rubric in another format.

        Args:
            rubric_id: The rubric.
            format: As in `import_rubric`.
            allow_loss: Drop what the format cannot hold and list it in `losses`; otherwise it
                raises `InvalidRequest`.
        """
        return self._send(requests.export_rubric(rubric_id, format, allow_loss))

    def rubrics(
        self,
        prompt: PromptLike | None = None,
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
    ) -> RubricPage:
        """Return a page of the rubrics that your team may see, newest first.

        All filters must match. Iterate over the page to get the rubrics of all pages.

        Args:
            prompt: The prompt, a string or chat messages.
            prompt_key: Its key, where the prompt is not at hand.
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
        return self._rubric_page(
            after,
            prompt=prompt,
            prompt_key=prompt_key,
            text=text,
            tags=tags,
            category=category,
            team=team,
            teacher_model=teacher_model,
            rubricator=rubricator,
            origin=origin,
            min_quality=min_quality,
            retired=retired,
            limit=limit,
        )

    def _rubric_page(self, after: str | None, **filters: Any) -> RubricPage:
        page = self._send(requests.rubrics(RubricPage, after=after, **filters))
        page._fetch_after = partial(self._rubric_page, **filters)
        return page

    def lineage(self, rubric_id: RubricLike) -> Lineage:
        """Return what a rubric was made from, and what it led to."""
        return self._send(requests.lineage(rubric_id))

    def rubric_health(self, rubric_id: RubricLike) -> RubricHealth:
        """Return how the criteria of a rubric do in your team's groups."""
        return self._send(requests.rubric_health(rubric_id))


class AsyncRubricMethods(AsyncConnection):
    """Methods of `AsyncClient` for rubrics."""

    async def induce(
        self,
        prompt: PromptLike,
        *,
        student_responses: Sequence[StudentLike],
        teacher_responses: Sequence[TeacherAnswerLike] | None = None,
        reuse: ReusePolicy = "if_fresh",
        tags: Sequence[str] = (),
        judge: str | None = None,
        teacher_model: str | None = None,
        rubricator: str | None = None,
        thinking: Thinking = "auto",
        reuse_scope: ReuseScope | None = None,
        view: View | None = None,
        deadline_s: float | None = None,
    ) -> Rubric:
        """Return the rubric for a prompt; see `Client.induce`."""
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
            view,
            deadline_s,
        )
        return await self._send(call)

    async def create_rubric(
        self,
        prompt: PromptLike,
        criteria: Sequence[CriterionLike],
        *,
        tags: Sequence[str] = (),
        view: View | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Rubric:
        """Store a rubric of your own; see `Client.create_rubric`."""
        return await self._send(requests.create_rubric(prompt, criteria, tags, view, metadata))

    async def rubric(self, rubric_id: RubricLike) -> Rubric:
        """Return a rubric by id; see `Client.rubric`."""
        return await self._send(requests.rubric(rubric_id))

    async def fork_rubric(
        self,
        rubric_id: RubricLike,
        criteria: Sequence[CriterionLike] | None = None,
        *,
        tags: Sequence[str] | None = None,
        view: View | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Rubric:
        """Store a new version of a rubric; see `Client.fork_rubric`."""
        return await self._send(requests.fork_rubric(rubric_id, criteria, tags, view, metadata))

    async def change_rubric(
        self,
        rubric_id: RubricLike,
        *,
        visibility: Visibility | None = None,
        shared_with: Sequence[str] | None = None,
        tags: Sequence[str] | None = None,
        retired: bool | None = None,
    ) -> Rubric:
        """Share, tag or retire a rubric; see `Client.change_rubric`."""
        return await self._send(
            requests.change_rubric(rubric_id, visibility, shared_with, tags, retired)
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
        return await self._send(
            requests.import_rubric(content, format, prompt, tags, allow_loss, mapping)
        )

    async def export_rubric(
        self, rubric_id: RubricLike, format: ExchangeFormat = "native", *, allow_loss: bool = False
    ) -> Exported:
        """Return a rubric in another format; see `Client.export_rubric`."""
        return await self._send(requests.export_rubric(rubric_id, format, allow_loss))

    def rubrics(
        self,
        prompt: PromptLike | None = None,
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
    ) -> AsyncRubricPages:
        """Return rubrics: `async for rubric in client.rubrics()`, or await it for one page.

        See `Client.rubrics`.
        """
        fetch = partial(
            self._rubric_page,
            after,
            prompt=prompt,
            prompt_key=prompt_key,
            text=text,
            tags=tags,
            category=category,
            team=team,
            teacher_model=teacher_model,
            rubricator=rubricator,
            origin=origin,
            min_quality=min_quality,
            retired=retired,
            limit=limit,
        )
        return AsyncRubricPages(fetch)

    async def _rubric_page(self, after: str | None, **filters: Any) -> AsyncRubricPage:
        page = await self._send(requests.rubrics(AsyncRubricPage, after=after, **filters))
        page._fetch_after = partial(self._rubric_page, **filters)
        return page

    async def lineage(self, rubric_id: RubricLike) -> Lineage:
        """Return the lineage of a rubric; see `Client.lineage`."""
        return await self._send(requests.lineage(rubric_id))

    async def rubric_health(self, rubric_id: RubricLike) -> RubricHealth:
        """Return how criteria do; see `Client.rubric_health`."""
        return await self._send(requests.rubric_health(rubric_id))
