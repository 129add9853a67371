"""Replays: jobs that score stored groups of a run again, and the results of their groups."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any, Literal, NamedTuple

import sqlalchemy as sa

from markscheme.vocabulary import ReplayState
from markscheme_server.domain.replay import ReplayedRollout
from markscheme_server.domain.usage import to_usd
from markscheme_server.store.engine.database import ALL_TEAMS, Database, team_scope
from markscheme_server.store.engine.ids import as_utc, new_id, now
from markscheme_server.store.tables import assignments, judge_calls, replay_groups, replays

LIVE: tuple[ReplayState, ...] = ("queued", "running", "paused")
"""States of a replay that is not over."""


@dataclass(frozen=True, slots=True)
class StoredReplay:
    """A replay. `request`: `schema.ReplayRequest` as JSON; `judge`: the identity of its judge."""

    id: str
    team: str
    run_id: str
    request: Mapping[str, Any]
    judge: str | None
    state: ReplayState
    reason: str | None
    created_at: datetime
    changed_at: datetime


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a replay is. `compared`: the groups among the `done` that could be scored."""

    groups: int = 0
    done: int = 0
    compared: int = 0
    cached_verdicts: int = 0
    saved_usd: float = 0.0
    calls: int = 0
    cost_usd: float = 0.0
    unpriced_calls: int = 0


class RunGroupRef(NamedTuple):
    """A scored group of a run, as far as it decides whether a replay takes it.

    A tuple, because a run has thousands, and they are made while the event loop waits.
    """

    id: str
    prompt_key: str
    rubric_id: str
    judge: str | None


@dataclass(frozen=True, slots=True)
class OpenGroup:
    """A group of a replay that is not done. `tries`: how often it was begun."""

    number: int
    assignment_id: str
    tries: int


@dataclass(frozen=True, slots=True)
class GroupResult:
    """A group that was scored again: its rubrics and its rollouts before and after."""

    rubric_before: str
    rubric_after: str
    rollouts: Sequence[ReplayedRollout]

    def dump(self) -> str:
        """Return it as it is stored."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def load(cls, text: str) -> "GroupResult":
        """Read what `dump` returned."""
        fields = json.loads(text)
        return cls(
            fields["rubric_before"],
            fields["rubric_after"],
            [ReplayedRollout(**each) for each in fields["rollouts"]],
        )


class ReplayStore:
    """Replays by id, and the queue of each team."""

    def __init__(self, database: Database) -> None:
        self._db = database
        r = replays.c
        self._insert_groups = database.insert_rows(replay_groups)
        self._select = sa.select(
            r.id,
            r.team,
            r.run_id,
            r.request,
            r.judge,
            r.state,
            r.reason,
            r.created_at,
            r.changed_at,
        )
        self._due = sa.and_(r.state.in_(LIVE), r.due_at <= database.clock)

    async def run_groups(self, team: str, run_id: str) -> list[RunGroupRef]:
        """Return the scored groups of a run that are still stored, in the order of the run."""
        a = assignments.c
        query = (
            sa.select(a.id, a.prompt_key, a.rubric_id, a.judge)
            .where(a.team == team, a.run_id == run_id, a.figures.is_not(None))
            .order_by(a.step, a.created_at, a.id)
        )
        async with self._db.reading(team_scope(team)) as connection:
            return [RunGroupRef(*row) for row in await connection.execute(query)]

    async def create(
        self,
        team: str,
        run_id: str,
        request: Mapping[str, Any],
        judge: str | None,
        groups: Sequence[str],
    ) -> StoredReplay:
        """Store a replay of these assignments."""
        at = now()
        made = StoredReplay(new_id("rpl"), team, run_id, request, judge, "queued", None, at, at)
        rows = [
            {"replay_id": made.id, "number": number, "team": team, "assignment_id": id_}
            | dict.fromkeys(("result", "cached_verdicts", "saved_usd"))
            | {"tries": 0}
            for number, id_ in enumerate(groups)
        ]
        async with self._db.writing(team_scope(team)) as connection:
            await connection.execute(replays.insert().values(**asdict(made), due_at=0.0))
            await connection.execute(self._insert_groups, {replay_groups.name: self._db.pack(rows)})
        return made

    async def find(self, team: str, replay_id: str) -> StoredReplay | None:
        """Return a replay of the team."""
        query = self._select.where(replays.c.team == team, replays.c.id == replay_id)
        async with self._db.reading(team_scope(team)) as connection:
            row = (await connection.execute(query)).first()
        return _replay(row) if row is not None else None

    async def page(
        self, team: str, run_id: str | None, limit: int, after: str | None
    ) -> tuple[list[StoredReplay], bool]:
        """Return the replays of a run (`None`: of all) before `after`, the newest first."""
        r = replays.c
        query = self._select.where(r.team == team).order_by(r.id.desc()).limit(limit + 1)
        if run_id is not None:
            query = query.where(r.run_id == run_id)
        if after is not None:
            query = query.where(r.id < after)  # ids sort by time
        async with self._db.reading(team_scope(team)) as connection:
            rows = (await connection.execute(query)).all()
        return [_replay(row) for row in rows[:limit]], len(rows) > limit

    async def progress(self, team: str, ids: Sequence[str]) -> dict[str, Progress]:
        """Return how far replays of the team are."""
        g, c = replay_groups.c, judge_calls.c
        groups = (
            sa.select(
                g.replay_id,
                sa.func.count(),
                sa.func.count(g.cached_verdicts),
                sa.func.count(g.result),
                sa.cast(sa.func.coalesce(sa.func.sum(g.cached_verdicts), 0), sa.Integer),
                sa.func.coalesce(sa.func.sum(g.saved_usd), 0.0),
            )
            .where(g.team == team, self._db.in_keys(g.replay_id, "keys"))
            .group_by(g.replay_id)
        )
        calls = (
            sa.select(
                c.replay_id,
                sa.func.sum(c.calls),
                sa.func.sum(c.cost_usd),
                sa.func.sum(c.unpriced_calls),
            )
            .where(c.team == team, self._db.in_keys(c.replay_id, "keys"))
            .group_by(c.replay_id)
        )
        keys = {"keys": self._db.keys(ids)}
        async with self._db.reading(team_scope(team)) as connection:
            counted = {row[0]: Progress(*row[1:]) for row in await connection.execute(groups, keys)}
            paid = {row[0]: row for row in await connection.execute(calls, keys)}
        return {
            id_: replace(
                counted.get(id_, Progress()),
                calls=int(row[1]) if row is not None else 0,
                cost_usd=to_usd(int(row[2] or 0)) if row is not None else 0.0,
                unpriced_calls=int(row[3] or 0) if row is not None else 0,
            )
            for id_ in ids
            for row in [paid.get(id_)]
        }

    async def results(self, team: str, replay_id: str) -> list[str]:
        """Return the results of a replay's groups, as `GroupResult.load` reads them."""
        g = replay_groups.c
        query = (
            sa.select(g.result)
            .where(g.team == team, g.replay_id == replay_id, g.result.is_not(None))
            .order_by(g.number)
        )
        async with self._db.reading(team_scope(team)) as connection:
            return list((await connection.execute(query)).scalars())

    async def teams(self) -> list[str]:
        """Return the teams that have a replay to work on now."""
        query = sa.select(replays.c.team).where(self._due).distinct()
        async with self._db.reading(ALL_TEAMS) as connection:
            return list((await connection.execute(query)).scalars())

    async def next(self, team: str) -> StoredReplay | None:
        """Return the team's oldest replay to work on now."""
        r = replays.c
        query = self._select.where(r.team == team, self._due).order_by(r.id).limit(1)
        async with self._db.reading(team_scope(team)) as connection:
            row = (await connection.execute(query)).first()
        return _replay(row) if row is not None else None

    async def open_groups(self, team: str, replay_id: str) -> list[OpenGroup]:
        """Return the groups that are not done."""
        g = replay_groups.c
        query = (
            sa.select(g.number, g.assignment_id, g.tries)
            .where(g.team == team, g.replay_id == replay_id, g.cached_verdicts.is_(None))
            .order_by(g.number)
        )
        async with self._db.reading(team_scope(team)) as connection:
            return [OpenGroup(*row) for row in await connection.execute(query)]

    async def count_try(self, replay: StoredReplay, number: int, change: Literal[1, -1]) -> None:
        """Count one try of a group more before it begins, or one less when it ended in order."""
        await self._update_open(replay, number, tries=replay_groups.c.tries + change)

    async def save(
        self,
        replay: StoredReplay,
        number: int,
        result: GroupResult | None,
        *,
        cached_verdicts: int = 0,
        saved_usd: float = 0.0,
    ) -> None:
        """Store that a group is done. `result`: `None` if it could not be scored.

        The first result of a group stands: one that a process stores late changes nothing.
        """
        await self._update_open(
            replay,
            number,
            result=result.dump() if result is not None else None,
            cached_verdicts=cached_verdicts,
            saved_usd=saved_usd,
        )

    async def _update_open(self, replay: StoredReplay, number: int, **values: Any) -> None:
        """Change columns of a group, unless it is done."""
        g = replay_groups.c
        async with self._db.writing(team_scope(replay.team)) as connection:
            await connection.execute(
                sa.update(replay_groups)
                .where(
                    g.team == replay.team,
                    g.replay_id == replay.id,
                    g.number == number,
                    g.cached_verdicts.is_(None),
                )
                .values(**values)
            )

    async def change(
        self,
        replay: StoredReplay,
        state: ReplayState,
        reason: str | None = None,
        *,
        pause_s: float = 0.0,
    ) -> bool:
        """Change the state of a replay that is not over; return whether it was not.

        `pause_s`: seconds for which no process works on it.
        """
        r = replays.c
        async with self._db.writing(team_scope(replay.team)) as connection:
            changed = await connection.execute(
                sa.update(replays)
                .where(r.team == replay.team, r.id == replay.id, r.state.in_(LIVE))
                .values(
                    state=state, reason=reason, due_at=self._db.clock + pause_s, changed_at=now()
                )
            )
        return bool(changed.rowcount)


def _replay(row: Any) -> StoredReplay:
    return StoredReplay(
        row.id,
        row.team,
        row.run_id,
        row.request,
        row.judge,
        row.state,
        row.reason,
        as_utc(row.created_at),
        as_utc(row.changed_at),
    )
