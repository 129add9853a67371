"""Rubrics in and out in other formats."""

import json
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from markscheme import exchange, schema
from markscheme.vocabulary import ExchangeFormat
from markscheme_server import wire
from markscheme_server.api import idempotency
from markscheme_server.api.body import StrictRoute
from markscheme_server.api.errors import RESPONSES
from markscheme_server.api.idempotency import TakesKey
from markscheme_server.api.rubrics import checked_criteria, get_rubric, shown_rubrics
from markscheme_server.api.services import Inducer, Reader, UsesServices
from markscheme_server.errors import Unprocessable
from markscheme_server.store.audit import actor_of

MOST_TAGS = 32
_EXPORTED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The rubric in the format asked for, and nothing around it",
        "content": {"application/json": {"schema": {"type": "object"}}},
        "headers": {
            exchange.LOSSES_HEADER: {
                "description": "What the format could not hold: sentences, percent-encoded, joined by '; '",
                "schema": {"type": "string"},
            }
        },
    }
}

router = APIRouter(prefix="/v1", route_class=StrictRoute, responses=RESPONSES)


@router.post(
    "/rubrics:import",
    status_code=201,
    response_model=schema.RubricImported,
    responses=idempotency.RESPONSES,
    summary="Bring a rubric in another format",
)
async def import_rubric(
    payload: schema.RubricImport, caller: Inducer, services: UsesServices, once: TakesKey
) -> Response:
    """What the format says is stored as ``POST /v1/rubrics`` would store it. What we cannot hold is refused, or, with
    ``allow_loss``, left out and told."""
    try:
        found = exchange.load(
            payload.content, payload.format, prompt=payload.prompt, allow_loss=payload.allow_loss
        )
    except exchange.Malformed as error:
        raise Unprocessable(str(error), code="malformed_content", param=error.param) from error
    except exchange.NotRepresentable as error:
        raise Unprocessable(str(error), code="not_representable", param="content") from error
    criteria = await checked_criteria(found.criteria)
    tags = list(dict.fromkeys([*payload.tags, *found.tags]))
    if len(tags) > MOST_TAGS:
        raise Unprocessable(
            f"with the tags of the content there are {len(tags)}; a rubric has {MOST_TAGS} at most",
            code="too_many_tags",
            param="tags",
        )

    async def save() -> schema.RubricImported:
        saved = await services.store.rubrics.save(
            team=caller.team,
            prompt=wire.messages(found.prompt),
            criteria=criteria,
            origin="imported",
            tags=tags,
            provenance={},
            actor=actor_of(caller),
        )
        return schema.RubricImported(
            rubric=(await shown_rubrics(services, caller, [saved]))[0], losses=list(found.losses)
        )

    return await once.answer(payload, save, status=201)


@router.get(
    "/rubrics/{rubric_id:id}/export",
    response_class=Response,
    responses=_EXPORTED,
    summary="Read a rubric in another format",
)
async def export_rubric(
    rubric_id: str,
    caller: Reader,
    services: UsesServices,
    format: ExchangeFormat = "native",
    allow_loss: Annotated[bool, Query(description="Leave out what the format cannot hold")] = False,
) -> Response:
    """The answer is the file: prompt, criteria and tags, no id, team or provenance."""
    found = (
        await shown_rubrics(services, caller, [await get_rubric(services, caller, rubric_id)])
    )[0]
    try:
        exported = exchange.dump(found, format, allow_loss=allow_loss)
    except exchange.NotRepresentable as error:
        raise Unprocessable(str(error), code="not_representable", param="format") from error
    headers = (
        {exchange.LOSSES_HEADER: exchange.encode_losses(exported.losses)}
        if exported.losses
        else None
    )
    return Response(
        json.dumps(exported.content, ensure_ascii=False) + "\n",
        headers=headers,
        media_type="application/json",
    )
