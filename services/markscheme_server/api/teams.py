"""`/v1/teams` and `/v1/keys`: teams and their API keys. Every call needs the scope `admin`."""

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Path, Query

from markscheme import schema
from markscheme_server import wire
from markscheme_server.api.body import StrictRoute
from markscheme_server.api.errors import RESPONSES
from markscheme_server.api.services import Administrator, UsesServices
from markscheme_server.store.audit import actor_of

router = APIRouter(
    prefix="/v1",
    route_class=StrictRoute,
    responses=RESPONSES | {409: {"model": schema.ErrorBody, "description": "It exists already"}},
    tags=["Teams and keys"],
)
Name = Annotated[schema.TeamName, Path(description="A team's name")]
Prefix = Annotated[
    str, Path(pattern=r"^mk_[0-9A-Za-z]{8}$", description="The first eleven characters of a key")
]


@router.post("/teams", status_code=201, summary="Create a team")
async def create_team(
    payload: schema.TeamCreate, caller: Administrator, services: UsesServices
) -> schema.Team:
    """Create a team. The name of an erased team cannot be used again."""
    team = await services.authenticator.create_team(payload.name, actor=actor_of(caller))
    return wire.from_team(team)


@router.get("/teams", summary="List teams")
async def list_teams(_caller: Administrator, services: UsesServices) -> schema.TeamList:
    """List all teams by name."""
    return schema.TeamList(
        data=[wire.from_team(team) for team in await services.authenticator.teams()]
    )


@router.patch("/teams/{name:id}", summary="Set a team's rate limit and reuse scope")
async def change_team(
    name: Name, payload: schema.TeamPatch, caller: Administrator, services: UsesServices
) -> schema.Team:
    """Change what is set for a team; `null` restores the default.

    Every worker applies it within a second.
    """
    team = await services.authenticator.change_team(
        name, payload.model_dump(exclude_unset=True), actor=actor_of(caller)
    )
    return wire.from_team(team)


@router.delete("/teams/{name:id}", summary="Erase a team and all that it created")
async def erase_team(
    name: Name, caller: Administrator, services: UsesServices
) -> schema.TeamErased:
    """Erase a team for good. The operator's own team is refused.

    The call takes as long as there is much to remove. Send it again to continue an erasure that
    was interrupted.
    """
    erased = await services.erase_team(name, actor_of(caller))
    return schema.TeamErased(
        name=erased.team,
        erased_at=erased.erased_at,
        removed=dict(erased.removed),
        tombstones=erased.tombstones,
    )


# No Idempotency-Key here: the answer, and with it the key, would be stored.
@router.post("/keys", status_code=201, summary="Create an API key")
async def create_key(
    payload: schema.KeyCreate, caller: Administrator, services: UsesServices
) -> schema.KeyCreated:
    """Create a key. This answer is the only place where it is shown."""
    secret, key = await services.authenticator.create_key(
        payload.team,
        payload.scopes,
        label=payload.label,
        expires_at=payload.expires_at,
        actor=actor_of(caller),
    )
    return wire.from_new_key(secret, key)


@router.get("/keys", summary="List API keys, newest first")
async def list_keys(
    _caller: Administrator,
    services: UsesServices,
    team: Annotated[schema.TeamName | None, Query(description="Only keys of this team")] = None,
) -> schema.KeyList:
    """List keys by prefix, without the keys themselves."""
    return schema.KeyList(
        data=[wire.from_key(key) for key in await services.authenticator.keys(team)]
    )


@router.post("/keys/{prefix:id}:rotate", status_code=201, summary="Replace an API key by a new one")
async def rotate_key(
    prefix: Prefix, payload: schema.KeyRotate, caller: Administrator, services: UsesServices
) -> schema.KeyCreated:
    """Create a key with the same scopes; the old one stays valid for `overlap_s` at most."""
    secret, key = await services.authenticator.rotate(
        prefix, overlap=timedelta(seconds=payload.overlap_s), actor=actor_of(caller)
    )
    return wire.from_new_key(secret, key)


@router.delete("/keys/{prefix:id}", summary="Revoke an API key")
async def revoke_key(prefix: Prefix, caller: Administrator, services: UsesServices) -> schema.Key:
    """Revoke a key; all workers refuse it within a second."""
    key = await services.authenticator.revoke(prefix, actor=actor_of(caller))
    return wire.from_key(key)
