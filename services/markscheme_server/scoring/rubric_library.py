"""The rubrics that a team may see and change, as they go over the wire.

This is the only place that decides who sees a rubric and what of it is shown. A team sees its own
rubrics, those shared with it, and those of the organisation. Of another team's rubric it sees what
is judged and which models made it, but neither its parent, nor with whom it is shared, nor its
metadata, nor what names that team's runs and texts.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from markscheme import exchange, schema
from markscheme.vocabulary import ExchangeFormat, RubricOrigin, View
from markscheme_server import wire
from markscheme_server.domain.call_context import CallContext
from markscheme_server.domain.caller import Caller
from markscheme_server.domain.hashing import ChatMessage
from markscheme_server.domain.rubric import Criterion, Rubric
from markscheme_server.domain.trajectory import DEFAULT_VIEW, judged
from markscheme_server.errors import Forbidden, NotFound, Unprocessable
from markscheme_server.judge.base import StudentResponse
from markscheme_server.rules.checks import validate_check
from markscheme_server.scoring.judges import Judges
from markscheme_server.scoring.lineage import read_lineage
from markscheme_server.scoring.rubrics import RubricRequest, RubricService
from markscheme_server.store.audit import actor_of
from markscheme_server.store.lineage import LineageStore
from markscheme_server.store.rubric_versions import MetadataTooLarge, RubricVersions
from markscheme_server.store.rubrics import Filters, NotOwner, RubricStore, Search

PUBLIC_PROVENANCE = frozenset(
    {"rubricator", "template", "teacher_model", "format", "points_factor"}
)
"""Fields of the provenance that other teams see: which models made the rubric, or which format it
was read from.
"""


@dataclass(frozen=True, slots=True)
class RubricDraft:
    """A rubric that was checked and can be saved.

    `parent`: the rubric that it is forked from. `losses`: sentences on what an import dropped;
    `notes`: on what it read in a way that may surprise. `any_version`: whether an older version
    with the same content is returned instead.
    """

    prompt: tuple[ChatMessage, ...]
    criteria: tuple[Criterion, ...]
    origin: RubricOrigin
    tags: tuple[str, ...]
    parent: Rubric | None = None
    provenance: Mapping[str, Any] | None = None
    metadata: Mapping[str, Any] | None = None
    losses: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    view: View | None = None
    any_version: bool = False


class RubricLibrary:
    """Read, make, change and export rubrics on behalf of a caller.

    Making a rubric takes two calls: `draft_*` refuses bad input and writes nothing, `save` (or
    `induce`) does the work. A route validates before it takes an `Idempotency-Key`, so that a
    refused body leaves no trace under the key.
    """

    def __init__(
        self,
        rubrics: RubricStore,
        versions: RubricVersions,
        lineage: LineageStore,
        inductions: RubricService,
        judges: Judges,
    ) -> None:
        self._rubrics, self._versions, self._lineage = rubrics, versions, lineage
        self._inductions, self._judges = inductions, judges

    async def get(self, caller: Caller, rubric_id: str) -> schema.Rubric:
        """Return a rubric that the caller sees. Raises `NotFound`."""
        return await self._show(caller, await self._find(caller, rubric_id))

    async def list_rubrics(self, caller: Caller, search: Search) -> schema.RubricList:
        """Return one page of the rubrics that the caller sees, newest first."""
        found, more = await self._rubrics.page(caller.team, search)
        quality = (
            await self._rubrics.quality(caller.team, [rubric.id for rubric in found])
            if found
            else {}
        )
        return schema.RubricList(
            data=await self._show_all(caller, found), has_more=more, quality=quality
        )

    async def lineage(self, caller: Caller, rubric_id: str) -> schema.Lineage:
        """Return the history of a rubric that the caller sees. Raises `NotFound`."""
        rubric = await self._find(caller, rubric_id)
        return await read_lineage(self._rubrics, self._lineage, caller.team, rubric)

    async def export(
        self, caller: Caller, rubric_id: str, format: ExchangeFormat, *, allow_loss: bool = False
    ) -> exchange.Exported:
        """Return a rubric in another format, and what that format could not hold.

        Raises `NotFound`, and `Unprocessable` when something would be lost and `allow_loss` is
        false.
        """
        rubric = await self.get(caller, rubric_id)
        try:
            return exchange.dump(rubric, format, allow_loss=allow_loss)
        except exchange.NotRepresentable as error:
            raise Unprocessable(str(error), code="not_representable", param="format") from error

    async def draft_create(self, payload: schema.RubricCreate) -> RubricDraft:
        """Validate a caller's rubric. Raises `Unprocessable`."""
        return RubricDraft(
            prompt=wire.text_messages(payload.prompt),
            criteria=await _checked(payload.criteria),
            origin="imported",
            tags=tuple(payload.tags),
            view=payload.view,
            metadata=payload.metadata,
        )

    async def draft_import(self, payload: schema.RubricImport) -> RubricDraft:
        """Check a rubric in another format. Raises `Unprocessable`."""
        try:
            found = exchange.load(
                payload.content,
                payload.format,
                prompt=payload.prompt,
                allow_loss=payload.allow_loss,
                mapping=payload.map,
            )
        except exchange.Malformed as error:
            raise Unprocessable(str(error), code="malformed_content", param=error.param) from error
        except exchange.NotRepresentable as error:
            raise Unprocessable(str(error), code="not_representable", param="content") from error
        criteria = await _checked(found.criteria)
        tags = tuple(dict.fromkeys([*payload.tags, *found.tags]))
        if len(tags) > schema.MAX_TAGS:
            raise Unprocessable(
                f"with the tags of the content there are {len(tags)}; "
                f"a rubric has {schema.MAX_TAGS} at most",
                code="too_many_tags",
                param="tags",
            )
        return RubricDraft(
            prompt=wire.text_messages(found.prompt, "content"),
            criteria=criteria,
            origin="imported",
            tags=tags,
            view=found.view,
            provenance=found.provenance,
            metadata=found.metadata,
            losses=found.losses,
            notes=found.notes,
            any_version=True,
        )

    async def draft_fork(
        self, caller: Caller, rubric_id: str, payload: schema.RubricFork
    ) -> RubricDraft:
        """Check a new version of a rubric, or the caller's own copy of another team's.

        What made the source is the provenance of an unchanged copy only: with other criteria the
        author is the caller's team. Raises `NotFound` and `Unprocessable`.
        """
        # Redacted first: a copy must not hold what the team could not see.
        source = _redacted(await self._find(caller, rubric_id), caller.team)
        criteria = source.criteria if payload.criteria is None else await _checked(payload.criteria)
        metadata: Mapping[str, Any] | None = payload.metadata
        if metadata is None and source.team == caller.team:
            metadata = (await self._rubrics.metadata(caller.team, [rubric_id])).get(rubric_id)
        return RubricDraft(
            prompt=tuple(dict(message) for message in source.prompt),
            criteria=criteria,
            origin="forked",
            tags=source.tags if payload.tags is None else tuple(payload.tags),
            parent=source,
            view=payload.view or source.view,
            provenance=source.provenance if criteria == source.criteria else None,
            metadata=metadata,
        )

    async def save(self, caller: Caller, draft: RubricDraft) -> schema.Rubric:
        """Store a draft as a private rubric of the caller's team.

        If the team's newest rubric for the prompt (for an import: any of them) has the same
        criteria, that one is returned with the draft's metadata added, and nothing else is stored.
        Raises `Unprocessable` if the metadata would become too large.
        """
        try:
            saved = await self._versions.save(
                team=caller.team,
                prompt=draft.prompt,
                criteria=draft.criteria,
                origin=draft.origin,
                parent=draft.parent,
                view=draft.view,
                tags=draft.tags,
                provenance=draft.provenance or {},
                metadata=draft.metadata,
                any_version=draft.any_version,
                actor=actor_of(caller),
            )
        except MetadataTooLarge as error:
            raise Unprocessable(
                "with the metadata that the rubric has already it is more than a rubric may have "
                f"({schema.MAX_METADATA_BYTES} bytes, and as many for its criteria)",
                code="metadata_too_large",
                param="metadata",
            ) from error
        return wire.from_rubric(saved)

    def draft_induction(self, caller: Caller, payload: schema.InduceRequest) -> RubricRequest:
        """Return the input of an induction.

        Raises `Unprocessable` for an unknown judge, and for parts that are not text.
        """
        judge = self._judges.get(payload.judge, "rubricator")
        teachers, view = payload.teacher_responses, payload.view or judge.view
        students = wire.text_responses(
            [wire.said(student) for student in payload.student_responses], "student_responses"
        )
        return RubricRequest(
            team=caller.team,
            prompt=wire.text_messages(payload.prompt),
            teachers=(
                None if teachers is None else wire.text_responses(teachers, "teacher_responses")
            ),
            students=tuple(
                StudentResponse(
                    judged(response, view or DEFAULT_VIEW, payload.thinking),
                    isinstance(sent, schema.StudentResponse) and sent.truncated,
                )
                for response, sent in zip(students, payload.student_responses, strict=True)
            ),
            judge=judge,
            view=view,
            reuse=payload.reuse,
            run_id=payload.run,
            tags=tuple(payload.tags),
            key=caller.key,
            filters=Filters(payload.teacher_model, payload.rubricator),
            reuse_scope=payload.reuse_scope or caller.reuse_scope,
        )

    async def induce(
        self, caller: Caller, request: RubricRequest, context: CallContext
    ) -> schema.Rubric:
        """Return the rubric for a request: reused, or induced now. Raises `JudgeFailure`."""
        resolved = await self._inductions.resolve(request, context)
        return await self._show(caller, resolved.rubric)

    async def change(
        self, caller: Caller, rubric_id: str, payload: schema.RubricPatch
    ) -> schema.Rubric:
        """Change who sees a rubric, its tags, or whether it is retired.

        Any team name may stand in `shared_with`, so that the answer does not reveal which teams
        there are. Raises `NotFound`, and `Forbidden` when the rubric is another team's.
        """
        _require_valid_id(rubric_id)
        try:
            changed = await self._rubrics.change(
                caller.team,
                rubric_id,
                visibility=payload.visibility,
                shared_with=payload.shared_with,
                tags=payload.tags,
                retired=payload.retired,
                actor=actor_of(caller),
            )
        except NotOwner as error:
            raise Forbidden(
                "this rubric is another team's: only that team may change it",
                code="not_your_rubric",
                param="rubric_id",
            ) from error
        if changed is None:
            raise _not_found()
        return await self._show(caller, changed)

    async def _find(self, caller: Caller, rubric_id: str) -> Rubric:
        _require_valid_id(rubric_id)
        rubric = await self._rubrics.find(caller.team, rubric_id)
        if rubric is None:
            raise _not_found()
        return rubric

    async def _show(self, caller: Caller, rubric: Rubric) -> schema.Rubric:
        return (await self._show_all(caller, [rubric]))[0]

    async def _show_all(self, caller: Caller, rubrics: Sequence[Rubric]) -> list[schema.Rubric]:
        own = [rubric.id for rubric in rubrics if rubric.team == caller.team]
        shared = await self._rubrics.shared_with(caller.team, own) if own else {}
        metadata = await self._rubrics.metadata(caller.team, own) if own else {}
        return [
            wire.from_rubric(
                replace(
                    _redacted(rubric, caller.team),
                    shared_with=shared.get(rubric.id, ()),
                    metadata=metadata.get(rubric.id, {}),
                )
            )
            for rubric in rubrics
        ]


def _redacted(rubric: Rubric, team: str) -> Rubric:
    """Return the rubric without what only its own team may see."""
    if rubric.team == team:
        return rubric
    provenance = {
        name: value for name, value in rubric.provenance.items() if name in PUBLIC_PROVENANCE
    }
    criteria = tuple(replace(criterion, metadata={}) for criterion in rubric.criteria)
    return replace(rubric, parent_id=None, provenance=provenance, criteria=criteria)


async def _checked(criteria: Sequence[schema.Criterion]) -> tuple[Criterion, ...]:
    """Return the criteria after compiling their checks. Raises `Unprocessable`."""
    converted = wire.to_criteria(criteria)
    try:
        for criterion in converted:
            if criterion.check is not None:
                validate_check(criterion.check)
                await asyncio.sleep(0)  # large patterns take milliseconds to compile
    except ValueError as error:
        raise Unprocessable(str(error), code="invalid_check", param="criteria") from error
    return converted


def _require_valid_id(rubric_id: str) -> None:
    """Raise `NotFound` for an id with a NUL, which PostgreSQL does not take."""
    if "\x00" in rubric_id:
        raise _not_found()


def _not_found() -> NotFound:
    return NotFound("there is no such rubric", code="rubric_not_found", param="rubric_id")
