"""Erase a team, so that nothing of it is served, shared or written while it goes."""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

import structlog

from markscheme_server.accounts.auth import CACHE_S
from markscheme_server.accounts.unknown_team import unknown_team
from markscheme_server.domain.caller import DEFAULT_TEAM
from markscheme_server.errors import Conflict
from markscheme_server.store.audit import Actor
from markscheme_server.store.maintenance.batch_delete import Batch
from markscheme_server.store.maintenance.team_deletion import TOMBSTONES, Eraser
from markscheme_server.store.store import Store
from markscheme_server.store.teams import UnknownTeam

SETTLE_S = 2 * CACHE_S
"""Seconds after which no worker accepts the team's keys, and writes under way have ended."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ErasureReport:
    """What an erasure removed.

    `removed`: rows by table. `tombstones`: rubrics of which the id stays, because other teams
    refer to it.
    """

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
    on_batch: Callable[[Batch], None] | None = None,
) -> ErasureReport:
    """Erase a team, or finish an erasure that was interrupted.

    `on_total` is called with the number of rows to remove, `on_batch` after each batch. Raises
    `NotFound`, and `Conflict` for the operator's own team.
    """
    if team == DEFAULT_TEAM:
        raise Conflict(
            f"{DEFAULT_TEAM!r} is the operator's own team and cannot be erased: 'markscheme prune' "
            "removes what old runs left; to begin anew, use another database",
            code="operators_team",
            param="name",
        )
    eraser = Eraser(store.database, team, actor)
    try:
        # Marked first: from then on the database refuses new rows of the team.
        erased_at = await eraser.mark_erased()
    except UnknownTeam as error:
        raise await unknown_team(store.teams, team, "name") from error
    # Hide its rubrics from other teams at once, then wait for running requests.
    await eraser.withdraw_rubrics()
    await asyncio.sleep(SETTLE_S)
    if on_total is not None:
        on_total(await eraser.total())
    removed: Counter[str] = Counter()
    async for batch in eraser.run():
        removed.update(batch.deleted)
        if on_batch is not None:
            on_batch(batch)
    tombstones = removed.pop(TOMBSTONES, 0)
    log.info("team_erased", team=team, rows=removed.total(), tombstones=tombstones)
    return ErasureReport(team, erased_at, removed, tombstones)
