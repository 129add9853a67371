"""Who asks: the team that a key speaks for, and what it may do."""

from dataclasses import dataclass

from markscheme.vocabulary import SCOPES, ReuseScope, Scope

DEFAULT_TEAM = "default"
"""The team of whoever needs no key, and of ``MARKSCHEME_API_KEY``."""


@dataclass(frozen=True, slots=True)
class Caller:
    """A team's member. ``key``: the prefix of the key that was presented, where it is one of the database's; ``rpm``:
    the requests a minute that the team may send, where it has a limit; ``reuse_scope``: whose rubrics its groups get,
    where that is set."""

    team: str
    scopes: frozenset[Scope]
    key: str | None = None
    rpm: int | None = None
    reuse_scope: ReuseScope | None = None


OPERATOR = Caller(DEFAULT_TEAM, frozenset(SCOPES))
"""Whoever runs the deployment: may do everything, as the default team."""
