"""Teams and their keys."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, model_validator

from markscheme.schema.base import Identifier, TeamName, Wire
from markscheme.vocabulary import ReuseScope, Scope


class TeamCreate(Wire):
    """`POST /v1/teams`."""

    name: TeamName


class TeamPatch(Wire):
    """`PATCH /v1/teams/{name}`.

    `rpm` limits requests per minute. `reuse_scope` says whose rubrics the team's groups get by
    default. Fields that are left out stay; null restores the default.
    """

    rpm: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    reuse_scope: ReuseScope | None = None

    @model_validator(mode="after")
    def _changes_something(self) -> "TeamPatch":
        if not self.model_fields_set:
            raise ValueError("say rpm, reuse_scope or both")
        return self


class Team(Wire):
    """A team of the organisation. What it makes is its own until it shares it.

    `rpm` is its own limit of requests per minute, and `reuse_scope` its own default, if set.
    """

    object: Literal["team"] = "team"
    name: str
    created_at: datetime
    rpm: int | None = None
    reuse_scope: ReuseScope | None = None


class TeamList(Wire):
    """`GET /v1/teams`: every team, by name."""

    object: Literal["list"] = "list"
    data: list[Team]


class TeamErased(Wire):
    """`DELETE /v1/teams/{name}`: rows that this call removed, by table.

    `tombstones` counts rubrics whose id stays, because other teams' assignments or rubrics refer to
    it.
    """

    object: Literal["team.erased"] = "team.erased"
    name: str
    erased_at: datetime
    removed: dict[str, int]
    tombstones: int


class KeyCreate(Wire):
    """`POST /v1/keys`: a key for a member of a team."""

    team: TeamName
    scopes: Annotated[list[Scope], Field(min_length=1)]
    label: Identifier | None = None
    expires_at: Annotated[AwareDatetime, Field(strict=False)] | None = None


class Key(Wire):
    """A stored key, identified by its first characters, `prefix`.

    It is refused once it has expired or was revoked.
    """

    object: Literal["key"] = "key"
    prefix: str
    team: str
    scopes: list[Scope]
    label: str | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None


class KeyCreated(Key):
    """A new key. This answer alone holds the key itself; it is not stored."""

    key: str


class KeyList(Wire):
    """`GET /v1/keys`: newest first."""

    object: Literal["list"] = "list"
    data: list[Key]


class KeyRotate(Wire):
    """`POST /v1/keys/{prefix}:rotate`: a new key; the old one works `overlap_s` seconds more."""

    overlap_s: Annotated[int, Field(ge=0, le=90 * 86_400)] = 86_400
