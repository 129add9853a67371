"""The caller of a request: the team that a key speaks for, and what it may do."""

from dataclasses import dataclass

from markscheme.vocabulary import SCOPES, ReuseScope, Scope

DEFAULT_TEAM = "default"
"""The team of callers that need no key, and of `MARKSCHEME_API_KEY`."""


@dataclass(frozen=True, slots=True)
class Caller:
    """A member of a team.

    `key`: the prefix of the key that was presented, if it is one of the database's. `rpm`: the
    team's limit of requests per minute, if it has one. `reuse_scope`: whose rubrics the team's
    groups get, if the team has set that.
    """

    team: str
    scopes: frozenset[Scope]
    key: str | None = None
    rpm: int | None = None
    reuse_scope: ReuseScope | None = None


OPERATOR = Caller(DEFAULT_TEAM, frozenset(SCOPES))
"""Whoever runs the deployment: may do everything, as the default team."""
