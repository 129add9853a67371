"""``/v1/teams`` and ``/v1/keys``: who there is, and with which keys. All of it takes the scope ``admin``."""

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Path, Query

from markscheme import schema
from markscheme_server import wire
from markscheme_server.accounts.erasure import erase_team
from markscheme_server.api.body import StrictRoute
from markscheme_server.api.errors import RESPONSES
from markscheme_server.api.services import Administrator, UsesServices
from markscheme_server.store.audit import actor_of

router = APIRouter(
    prefix="/v1",
    route_class=StrictRoute,
    responses=RESPONSES | {409: {"model": schema.ErrorBody, "description": "There is one already"}},
)
Name = Annotated[str, Path(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$", description="A team's name")]
Prefix = Annotated[
    str, Path(pattern=r"^mk_[0-9A-Za-z]{8}$", description="The first eleven characters of a key")
]


@router.post("/teams", status_code=201, summary="Make a team")
async def create_team(
    payload: schema.TeamCreate, caller: Administrator, services: UsesServices
) -> schema.Team:
    return wire.from_team(await services.identity.create_team(payload.name, actor=actor_of(caller)))


@router.get("/teams", summary="List teams")
async def list_teams(_caller: Administrator, services: UsesServices) -> schema.TeamList:
    return schema.TeamList(data=[wire.from_team(team) for team in await services.identity.teams()])


@router.patch(
    "/teams/{name:id}", summary="Set a team's requests a minute, and whose rubrics it reuses"
)
async def change_team(
    name: Name, payload: schema.TeamPatch, caller: Administrator, services: UsesServices
) -> schema.Team:
    return wire.from_team(
        await services.identity.change_team(
            name, payload.model_dump(exclude_unset=True), actor=actor_of(caller)
        )
    )


@router.delete("/teams/{name:id}", summary="Erase a team and all that it made")
async def erase(name: Name, caller: Administrator, services: UsesServices) -> schema.TeamErased:
    """Nobody can undo it, and the name is given to no other team. It takes as long as there is much to remove; sent
    again, it goes on where it was broken off. The operator's own team is refused."""
    erased = await erase_team(services.store, name, actor_of(caller))
    return schema.TeamErased(
        name=erased.team,
        erased_at=erased.erased_at,
        removed=dict(erased.removed),
        tombstones=erased.tombstones,
    )


# No Idempotency-Key here: the answer would be kept under it, and with it the key.
@router.post(
    "/keys", status_code=201, summary="Make a key; the answer is the only place where it is shown"
)
async def create_key(
    payload: schema.KeyCreate, caller: Administrator, services: UsesServices
) -> schema.KeyCreated:
    secret, key = await services.identity.create_key(
        payload.team,
        payload.scopes,
        label=payload.label,
        expires_at=payload.expires_at,
        actor=actor_of(caller),
    )
    return wire.from_new_key(secret, key)


@router.get("/keys", summary="List keys, newest first")
async def list_keys(
    _caller: Administrator,
    services: UsesServices,
    team: Annotated[str | None, Query(max_length=64, pattern=r"^[a-z0-9._-]*$")] = None,
) -> schema.KeyList:
    return schema.KeyList(data=[wire.from_key(key) for key in await services.identity.keys(team)])


@router.post(
    "/keys/{prefix:id}:rotate",
    status_code=201,
    summary="Replace a key by a new one, with time to change over",
)
async def rotate_key(
    prefix: Prefix, payload: schema.KeyRotate, caller: Administrator, services: UsesServices
) -> schema.KeyCreated:
    secret, key = await services.identity.rotate(
        prefix, overlap=timedelta(seconds=payload.overlap_s), actor=actor_of(caller)
    )
    return wire.from_new_key(secret, key)


@router.delete("/keys/{prefix:id}", summary="Revoke a key: within a second it opens nothing")
async def revoke_key(prefix: Prefix, caller: Administrator, services: UsesServices) -> schema.Key:
    return wire.from_key(await services.identity.revoke(prefix, actor=actor_of(caller)))
