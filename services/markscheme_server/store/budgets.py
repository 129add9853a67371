"""Budgets: what teams and runs may spend, and the money set aside for calls under way.

A call of a team that has a budget is preceded by a hold: a row with the most that the call is thought to cost. Holds
are granted under the budgets' row lock, over all processes, so that what is spent and what is held stay within the
hard limit; beyond it each process may have one more call under way, as long as less than the limit is spent. When the
call is recorded its hold is settled: it stands for what the call cost until a later grant has added that to
``spent_usd``. What a dead process held is believed until its lease ends.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from markscheme.vocabulary import BudgetWindow
from markscheme_server.store.audit import Actor, record
from markscheme_server.store.batching import Batcher
from markscheme_server.store.database import Database, sight_of
from markscheme_server.store.tables import budgets, holds, judge_calls, past_usage, teams

EVERYTHING = ""
"""In place of a run: the budget for all that a team does."""
Grant = Literal["granted", "wait", "spent"]


class UnknownTeam(Exception):
    """There is no team of this name."""


@dataclass(frozen=True, slots=True)
class Budget:
    """``run_id`` ``None``: on everything that the team does. ``since``: when the window began."""

    team: str
    run_id: str | None
    hard_usd: float | None
    soft_usd: float | None
    window: BudgetWindow
    since: datetime
    spent_usd: float


@dataclass(frozen=True, slots=True)
class Wish:
    """Money that is to be set aside for one call."""

    id: str
    team: str
    run_id: str | None
    usd: float


class BudgetStore:
    """Budgets by team and run. ``owner`` names this process in its holds, ``lease_s`` is how long they are believed."""

    def __init__(self, database: Database, *, owner: str, lease_s: float) -> None:
        self._db, self._owner, self._lease_s = database, owner, lease_s
        self._finding: Batcher[str, list[Budget]] = Batcher(self._find)
        self._holding: Batcher[Wish, Grant] = Batcher(self._hold)
        self._releasing: Batcher[tuple[str, str], None] = Batcher(self._release)
        self._in_team = database.in_keys(budgets.c.team, "keys")
        self._settle = settle(database)

    async def find(self, team: str) -> list[Budget]:
        """The team's budgets, that on everything first, each with what was spent in its window so far."""
        return await self._finding.submit(team)

    async def put(self, team: str, run_id: str | None, *, hard_usd: float | None, soft_usd: float | None,
                  window: BudgetWindow, actor: Actor) -> Budget:
        """Set a budget. What the ledger says was spent in its window counts. Raises :class:`UnknownTeam`."""
        async with self._db.writing(sight_of(team, actor.team)) as connection:
            if not (await connection.execute(sa.select(teams.c.name).where(
                    teams.c.name == team, teams.c.erased_at.is_(None)))).scalar():
                raise UnknownTeam
            await self._lock(connection, [team])
            since = _begins(window, await self._now(connection))
            row = {"team": team, "run_id": run_id or EVERYTHING, "hard_usd": hard_usd, "soft_usd": soft_usd,
                   "period": window, "since": since,
                   "spent_usd": await self._on_the_books(connection, team, run_id or EVERYTHING, since)}
            new = self._db.insert(budgets).values(row)
            await connection.execute(new.on_conflict_do_update(
                index_elements=[budgets.c.team, budgets.c.run_id], set_={
                    name: new.excluded[name] for name in ("hard_usd", "soft_usd", "period", "since", "spent_usd")}))
            await record(connection, actor, "budget.set", f"team:{team}", {
                "run": run_id, "hard_usd": hard_usd, "soft_usd": soft_usd, "window": window})
        return _budget(row)

    async def remove(self, team: str, run_id: str | None, actor: Actor) -> bool:
        """Take a budget away; false when there is none."""
        async with self._db.writing(sight_of(team, actor.team)) as connection:
            done = await connection.execute(sa.delete(budgets).where(
                budgets.c.team == team, budgets.c.run_id == (run_id or EVERYTHING)))
            if done.rowcount:
                await record(connection, actor, "budget.removed", f"team:{team}", {"run": run_id})
        return bool(done.rowcount)

    async def hold(self, wish: Wish) -> Grant:
        """Set money aside. ``wait``: only once a call of ours has ended; ``spent``: a hard limit is reached."""
        return await self._holding.submit(wish)

    async def release(self, team: str, hold_id: str) -> None:
        """Give back what was set aside for a call that was not made."""
        await self._releasing.submit((team, hold_id))

    async def drain(self) -> None:
        """Wait until everything handed in is stored."""
        for batcher in (self._holding, self._releasing):
            await batcher.drain()

    async def _find(self, asked: Sequence[str]) -> list[list[Budget]]:
        query = sa.select(budgets).where(self._in_team).order_by(budgets.c.team, budgets.c.run_id)
        settled = sa.select(holds.c.team, holds.c.run_id, sa.func.sum(holds.c.usd)).where(
            self._db.in_keys(holds.c.team, "keys"), holds.c.settled).group_by(holds.c.team, holds.c.run_id)
        found: dict[str, list[Budget]] = defaultdict(list)
        async with self._db.reading(sight_of(*asked)) as connection:
            rows = [dict(row) for row in (await connection.execute(
                query, {"keys": self._db.keys(asked)})).mappings()]
            if rows:
                now = await self._now(connection)
                due = (await connection.execute(settled, {"keys": self._db.keys(asked)})).all()
                for row in rows:
                    found[row["team"]].append(_budget(await self._as_of(connection, row, due, now)))
        return [found[team] for team in asked]

    async def _hold(self, wishes: Sequence[Wish]) -> list[Grant]:
        asked = {wish.team for wish in wishes}
        async with self._db.writing(sight_of(*asked)) as connection:
            limits = await self._lock(connection, asked)
            held = [dict(row) for row in (await connection.execute(sa.select(
                holds.c.team, holds.c.run_id, holds.c.owner, holds.c.usd).where(
                self._db.in_keys(holds.c.team, "keys"), holds.c.expires_at > self._db.clock),
                {"keys": self._db.keys(asked)})).mappings()]
            answers: list[Grant] = []
            granted = []
            for wish in wishes:
                answers.append(answer := _decide(wish, limits, held, self._owner))
                if answer == "granted":
                    held.append({"team": wish.team, "run_id": wish.run_id or EVERYTHING, "owner": self._owner,
                                 "usd": wish.usd})
                    granted.append({"id": wish.id, "settled": False} | held[-1])
            if granted:
                new = self._db.rows([holds.c[name] for name in granted[0]], "granted")
                await connection.execute(self._db.insert(holds).from_select(
                    [*granted[0], "expires_at"],
                    sa.select(*(new[name] for name in granted[0]), self._db.clock + self._lease_s).where(sa.true()),
                ).on_conflict_do_nothing(), {"granted": self._db.pack(granted)})
        return answers

    async def _lock(self, connection: AsyncConnection, asked: Iterable[str]) -> list[dict[str, Any]]:
        """The teams' budgets, locked and up to date: settled holds are counted and gone, old windows begun anew."""
        keys = {"keys": self._db.keys(asked)}
        limits = [dict(row) for row in (await connection.execute(sa.select(budgets).where(self._in_team).order_by(
            budgets.c.team, budgets.c.run_id).with_for_update(), keys)).mappings()]
        settled = (await connection.execute(sa.delete(holds).where(
            self._db.in_keys(holds.c.team, "keys"), holds.c.settled).returning(
            holds.c.team, holds.c.run_id, holds.c.usd), keys)).all()
        now = await self._now(connection)
        current = [await self._as_of(connection, limit, settled, now) for limit in limits]
        for before, limit in zip(limits, current, strict=True):
            if limit != before:
                await connection.execute(sa.update(budgets).where(
                    budgets.c.team == limit["team"], budgets.c.run_id == limit["run_id"]).values(
                    since=limit["since"], spent_usd=limit["spent_usd"]))
        return current

    async def _as_of(self, connection: AsyncConnection, limit: dict[str, Any], settled: Sequence[Any],
                     now: float) -> dict[str, Any]:
        """A budget as it stands now: with what was ``settled`` since it was written, or in a window begun since."""
        if (begun := _begins(limit["period"], now)) > limit["since"]:
            spent = await self._on_the_books(connection, limit["team"], limit["run_id"], begun)
            return limit | {"since": begun, "spent_usd": spent}
        due = sum(usd for team, run_id, usd in settled
                  if team == limit["team"] and limit["run_id"] in (EVERYTHING, run_id))
        return limit | {"spent_usd": limit["spent_usd"] + due}

    async def _on_the_books(self, connection: AsyncConnection, team: str, run_id: str, since: float) -> float:
        """What the ledger says was spent since then, which is when a day begins."""
        begun = datetime.fromtimestamp(since, UTC)
        spent = 0.0
        for table, is_since in ((judge_calls, judge_calls.c.created_at >= begun),
                                (past_usage, past_usage.c.day >= f"{begun:%Y-%m-%d}")):
            query = sa.select(sa.func.coalesce(sa.func.sum(table.c.cost_usd), 0.0)).where(
                table.c.team == team, is_since)
            spent += (await connection.execute(query.where(table.c.run_id == run_id) if run_id else query)).scalar_one()
        return spent

    async def _now(self, connection: AsyncConnection) -> float:
        return float((await connection.execute(sa.select(self._db.clock))).scalar_one())

    async def _release(self, given: Sequence[tuple[str, str]]) -> list[None]:
        async with self._db.writing(sight_of(*(team for team, _ in given))) as connection:
            await connection.execute(sa.delete(holds).where(
                self._db.in_keys(holds.c.team, "teams"), self._db.in_keys(holds.c.id, "keys"), ~holds.c.settled),
                {"teams": self._db.keys(team for team, _ in given), "keys": self._db.keys(key for _, key in given)})
        return [None] * len(given)


def settle(database: Database) -> sa.Update:
    """Holds become what their calls cost; bind ``settlements`` to what :func:`settlement` makes. Harmless to repeat."""
    row = database.rows([holds.c.id, holds.c.team, holds.c.usd], "settlements")
    return sa.update(holds).where(holds.c.id == row.id, holds.c.team == row.team).values(
        usd=sa.func.coalesce(row.usd, holds.c.usd), settled=True)


def count_unheld(database: Database) -> Any:
    """Calls that began before their team had a budget are counted too: bind ``unheld`` to their id, team, run_id and
    usd. It must come before the calls are written: one that is there has been counted."""
    row = database.rows([holds.c.id, holds.c.team, holds.c.run_id, holds.c.usd], "unheld")
    bound = sa.exists().where(budgets.c.team == row.team, budgets.c.run_id.in_([EVERYTHING, row.run_id]))
    counted = sa.exists().where(judge_calls.c.id == row.id)
    return database.insert(holds).from_select(
        ["id", "team", "run_id", "usd", "owner", "settled", "expires_at"],
        sa.select(row.id, row.team, row.run_id, row.usd, sa.literal(""), sa.true(), sa.literal(0.0)).where(
            bound, ~counted)).on_conflict_do_nothing()


def settlement(team: str, hold_ids: Sequence[str], cost_usd: float | None) -> list[dict[str, Any]]:
    """What a call's holds come to: the first its whole cost, the others nothing. Where the cost is not known, what was
    set aside counts."""
    return [{"id": hold_id, "team": team, "usd": cost_usd if i == 0 or cost_usd is None else 0.0}
            for i, hold_id in enumerate(hold_ids)]


def _decide(wish: Wish, limits: Sequence[dict[str, Any]], held: Sequence[dict[str, Any]], owner: str) -> Grant:
    for limit in limits:
        if limit["team"] != wish.team or limit["run_id"] not in (EVERYTHING, wish.run_id) or limit["hard_usd"] is None:
            continue
        if limit["spent_usd"] >= limit["hard_usd"]:
            return "spent"
        beside = [each for each in held if each["team"] == wish.team
                  and limit["run_id"] in (EVERYTHING, each["run_id"])]
        if limit["spent_usd"] + sum(each["usd"] for each in beside) + wish.usd > limit["hard_usd"] and any(
                each["owner"] == owner for each in beside):
            return "wait"
    return "granted"


def _begins(window: str, now: float) -> float:
    """When the window began that ``now`` is in, on the calendar of UTC."""
    if window == "total":
        return 0.0
    day = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return (day if window == "day" else day.replace(day=1)).timestamp()


def _budget(row: dict[str, Any]) -> Budget:
    return Budget(row["team"], row["run_id"] or None, row["hard_usd"], row["soft_usd"], row["period"],
                  datetime.fromtimestamp(row["since"], UTC), row["spent_usd"])
