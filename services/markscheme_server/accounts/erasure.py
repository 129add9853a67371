"""Erasing a team, so that nothing of it is served, shared or written any more while it goes."""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

import structlog

from markscheme_server.accounts.auth import REMEMBERED_S
from markscheme_server.domain.caller import DEFAULT_TEAM
from markscheme_server.errors import Conflict, NotFound
from markscheme_server.store.audit import Actor
from markscheme_server.store.maintenance.batch_delete import Batch
from markscheme_server.store.maintenance.team_deletion import TOMBSTONES, Eraser
from markscheme_server.store.store import Store
from markscheme_server.store.teams import UnknownTeam

SETTLES_IN_S = 2 * REMEMBERED_S
"""By then no worker takes the team's keys any more, and what was being written has been."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Erased:
    """A team that was erased: rows removed by table, and rubrics of which the id stays."""

    team: str
    erased_at: datetime
    removed: Mapping[str, int]
    tombstones: int


async def erase_team(
    store: Store,
    team: str,
    actor: Actor,
    *,
    on_total: Callable[[int], None] | None = None,
    on_window: Callable[[Batch], None] | None = None,
) -> Erased:
    """Erase a team, or go on with it: a second call finishes what a killed one left.

    Raises :class:`NotFound`, and :class:`Conflict` for the operator's own team.
    """
    if team == DEFAULT_TEAM:
        raise Conflict(
            f"{DEFAULT_TEAM!r} is the operator's own team and cannot be erased: 'markscheme prune' removes "
            "what old runs left, and another database begins anew",
            code="operators_team",
            param="name",
        )
    eraser = Eraser(store.database, team, actor)
    try:
        at = await eraser.mark()
    except UnknownTeam as error:
        raise NotFound(f"there is no team {team!r}", code="team_not_found", param="name") from error
    await eraser.hide()
    await asyncio.sleep(SETTLES_IN_S)
    if on_total is not None:
        on_total(await eraser.total())
    removed: Counter[str] = Counter()
    async for window in eraser.run():
        removed.update(window.removed)
        if on_window is not None:
            on_window(window)
    tombstones = removed.pop(TOMBSTONES, 0)
    log.info("team_erased", team=team, rows=removed.total(), tombstones=tombstones)
    return Erased(team, at, removed, tombstones)
