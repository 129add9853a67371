"""`/v1/rubrics:import` and `…/export`: rubrics in other formats."""

import json
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from markscheme import exchange, schema
from markscheme.vocabulary import ExchangeFormat
from markscheme_server.api import idempotency
from markscheme_server.api.body import StrictRoute
from markscheme_server.api.errors import RESPONSES
from markscheme_server.api.idempotency import TakesKey
from markscheme_server.api.services import Inducer, Reader, UsesServices

_EXPORTED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The rubric in the chosen format, and nothing else",
        "content": {"application/json": {"schema": {"type": ["object", "array"]}}},
        "headers": {
            exchange.LOSSES_HEADER: {
                "description": "What the format could not hold: sentences, percent-encoded, "
                "joined by '; '",
                "schema": {"type": "string"},
            }
        },
    }
}

router = APIRouter(prefix="/v1", route_class=StrictRoute, responses=RESPONSES, tags=["Rubrics"])


@router.post(
    "/rubrics:import",
    status_code=201,
    response_model=schema.RubricImported,
    responses=idempotency.RESPONSES,
    summary="Import a rubric from another format",
)
async def import_rubric(
    payload: schema.RubricImport, caller: Inducer, services: UsesServices, once: TakesKey
) -> Response:
    """Create a rubric from the content, as `POST /v1/rubrics` would.

    When one of the team's rubrics for the prompt, newest or not, has the same criteria and is not
    retired, that one is returned: importing again what was edited since does not undo the edit.
    What cannot be represented is refused or, with `allow_loss`, left out and listed in `losses`.
    """
    draft = await services.library.draft_import(payload)

    async def save() -> schema.RubricImported:
        rubric = await services.library.save(caller, draft)
        return schema.RubricImported(
            rubric=rubric, losses=list(draft.losses), notes=list(draft.notes)
        )

    return await once.answer(payload, save, status=201)


@router.get(
    "/rubrics/{rubric_id:id}/export",
    response_class=Response,
    responses=_EXPORTED,
    summary="Export a rubric to another format",
)
async def export_rubric(
    rubric_id: str,
    caller: Reader,
    services: UsesServices,
    format: ExchangeFormat = "native",
    allow_loss: Annotated[bool, Query(description="Leave out what the format cannot hold")] = False,
) -> Response:
    """Return the file: prompt, criteria, tags and metadata, without id, team and provenance."""
    exported = await services.library.export(caller, rubric_id, format, allow_loss=allow_loss)
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
