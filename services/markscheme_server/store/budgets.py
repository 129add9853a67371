"""Budgets: what teams and runs may spend, and the money set aside for calls under way.

A request of a team that has a budget is preceded by a hold: a row with the most that it can cost. Holds are granted
under the budgets' row lock, over all processes, so that what is spent and what is held stay within the hard limit;
beyond it each process may have one more request under way, as long as less than the limit is spent. A question that
takes another request has its hold raised, by the same rule. When the question is recorded its hold is settled: it
stands for what the question cost until a later grant has added that to ``spent_usd``. What a dead process held is
believed until its lease ends. Money is whole nano-dollars here, but for :class:`Budget`.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from markscheme.vocabulary import BudgetWindow
from markscheme_server.domain.usage import to_nano, to_usd
from markscheme_server.store.audit import Actor, record
from markscheme_server.store.engine.database import Database, team_scope
from markscheme_server.store.engine.write_batch import Batcher
from markscheme_server.store.tables import budgets, holds, judge_calls, past_usage, teams

EVERYTHING = ""
"""In place of a run: the budget for all that a team does."""
HoldResult = Literal["granted", "wait", "spent"]


class UnknownTeam(Exception):
    """There is no team of this name."""


@dataclass(frozen=True, slots=True)
class Budget:
    """``run_id`` ``None``: on everything that the team does. ``since``: when the window began. Money is in dollars."""

    team: str
    run_id: str | None
    hard_usd: float | None
    soft_usd: float | None
    window: BudgetWindow
    since: datetime
    spent_usd: float


@dataclass(frozen=True, slots=True)
class HoldRequest:
    """Money that is to be set aside for a question's next request: ``most``, and ``spent`` on those before it. Nano-
    dollars."""

    id: str
    team: str
    run_id: str | None
    most: int
    spent: int = 0


class BudgetStore:
    """Budgets by team and run. ``owner`` names this process in its holds, ``lease_s`` is how long they are believed."""

    def __init__(self, database: Database, *, owner: str, lease_s: float) -> None:
        self._db, self._owner, self._lease_s = database, owner, lease_s
        self._finding: Batcher[str, list[Budget]] = Batcher(self._find)
        self._holding: Batcher[HoldRequest, HoldResult] = Batcher(self._hold)
        self._releasing: Batcher[tuple[str, str], None] = Batcher(self._release)
        self._in_team = database.in_keys(budgets.c.team, "keys")
        self._put = self._putting()

    async def find(self, team: str) -> list[Budget]:
        """The team's budgets, that on everything first, each with what was spent in its window so far."""
        return await self._finding.submit(team)

    async def put(
        self,
        team: str,
        run_id: str | None,
        *,
        hard_usd: float | None,
        soft_usd: float | None,
        window: BudgetWindow,
        actor: Actor,
    ) -> Budget:
        """Set a budget. What the ledger says was spent in its window counts. Raises :class:`UnknownTeam`."""
        async with self._db.writing(team_scope(team, actor.team)) as connection:
            if not (
                await connection.execute(
                    sa.select(teams.c.name).where(teams.c.name == team, teams.c.erased_at.is_(None))
                )
            ).scalar():
                raise UnknownTeam
            await self._lock(connection, [team])
            since = _begins(window, await self._now(connection))
            hard, soft = (None if usd is None else to_nano(usd) for usd in (hard_usd, soft_usd))
            row = {
                "team": team,
                "run_id": run_id or EVERYTHING,
                "hard_usd": hard,
                "soft_usd": soft,
                "period": window,
                "since": since,
                "spent_usd": await self._on_the_books(
                    connection, team, run_id or EVERYTHING, since
                ),
            }
            new = self._db.insert(budgets).values(row)
            await connection.execute(
                new.on_conflict_do_update(
                    index_elements=[budgets.c.team, budgets.c.run_id],
                    set_={
                        name: new.excluded[name]
                        for name in ("hard_usd", "soft_usd", "period", "since", "spent_usd")
                    },
                )
            )
            await record(
                connection,
                actor,
                "budget.set",
                f"team:{team}",
                {"run": run_id, "hard_usd": hard_usd, "soft_usd": soft_usd, "window": window},
            )
        return _budget(row)

    async def remove(self, team: str, run_id: str | None, actor: Actor) -> bool:
        """Take a budget away; false when there is none."""
        async with self._db.writing(team_scope(team, actor.team)) as connection:
            done = await connection.execute(
                sa.delete(budgets).where(
                    budgets.c.team == team, budgets.c.run_id == (run_id or EVERYTHING)
                )
            )
            if done.rowcount:
                await record(connection, actor, "budget.removed", f"team:{team}", {"run": run_id})
        return bool(done.rowcount)

    async def hold(self, wish: HoldRequest) -> HoldResult:
        """Set money aside. ``wait``: only once a request of ours has ended; ``spent``: a hard limit is reached. What
        the question held before then comes down to what it has spent."""
        return await self._holding.submit(wish)

    async def release(self, team: str, hold_id: str) -> None:
        """Give back what was set aside for a call that was not made."""
        await self._releasing.submit((team, hold_id))

    async def drain(self) -> None:
        """Wait until everything handed in is stored."""
        for batcher in (self._holding, self._releasing):
            await batcher.drain()

    def _putting(self) -> Any:
        """Holds made, or changed as long as they are not settled; bind ``changed`` to their rows."""
        names = ("id", "team", "run_id", "owner", "usd", "spent_usd", "settled")
        row = self._db.rows([holds.c[name] for name in names], "changed")
        new = self._db.insert(holds).from_select(
            [*names, "expires_at"],
            sa.select(*(row[name] for name in names), self._db.clock + self._lease_s).where(
                sa.true()
            ),
        )
        return new.on_conflict_do_update(
            index_elements=[holds.c.id],
            where=~holds.c.settled,
            set_={name: new.excluded[name] for name in ("usd", "spent_usd", "expires_at")},
        )

    async def _find(self, asked: Sequence[str]) -> list[list[Budget]]:
        query = sa.select(budgets).where(self._in_team).order_by(budgets.c.team, budgets.c.run_id)
        settled = (
            sa.select(holds.c.team, holds.c.run_id, sa.func.sum(holds.c.usd))
            .where(self._db.in_keys(holds.c.team, "keys"), holds.c.settled)
            .group_by(holds.c.team, holds.c.run_id)
        )
        found: dict[str, list[Budget]] = defaultdict(list)
        async with self._db.reading(team_scope(*asked)) as connection:
            rows = [
                dict(row)
                for row in (
                    await connection.execute(query, {"keys": self._db.keys(asked)})
                ).mappings()
            ]
            if rows:
                now = await self._now(connection)
                due = (await connection.execute(settled, {"keys": self._db.keys(asked)})).all()
                for row in rows:
                    found[row["team"]].append(_budget(await self._as_of(connection, row, due, now)))
        return [found[team] for team in asked]

    async def _hold(self, wishes: Sequence[HoldRequest]) -> list[HoldResult]:
        asked = {wish.team for wish in wishes}
        async with self._db.writing(team_scope(*asked)) as connection:
            limits = await self._lock(connection, asked)
            held = {
                row["id"]: dict(row)
                for row in (
                    await connection.execute(
                        sa.select(
                            holds.c.id,
                            holds.c.team,
                            holds.c.run_id,
                            holds.c.owner,
                            holds.c.usd,
                            holds.c.spent_usd,
                        ).where(
                            self._db.in_keys(holds.c.team, "keys"),
                            holds.c.expires_at > self._db.clock,
                        ),
                        {"keys": self._db.keys(asked)},
                    )
                ).mappings()
            }
            answers: list[HoldResult] = []
            changed: dict[str, dict[str, Any]] = {}
            for wish in wishes:
                answers.append(answer := _decide(wish, limits, held.values(), self._owner))
                if answer == "granted" or wish.spent or wish.id in held:
                    held[wish.id] = changed[wish.id] = {
                        "id": wish.id,
                        "team": wish.team,
                        "run_id": wish.run_id or EVERYTHING,
                        "owner": self._owner,
                        "usd": wish.spent + (wish.most if answer == "granted" else 0),
                        "spent_usd": wish.spent,
                    }
            if changed:
                await connection.execute(
                    self._put,
                    {
                        "changed": self._db.pack(
                            [
                                row
                                | {
                                    "usd": self._db.usd(row["usd"]),
                                    "spent_usd": self._db.usd(row["spent_usd"]),
                                    "settled": False,
                                }
                                for row in changed.values()
                            ]
                        )
                    },
                )
        return answers

    async def _lock(
        self, connection: AsyncConnection, asked: Iterable[str]
    ) -> list[dict[str, Any]]:
        """The teams' budgets, locked and up to date: settled holds are counted and gone, old windows begun anew."""
        keys = {"keys": self._db.keys(asked)}
        limits = [
            dict(row)
            for row in (
                await connection.execute(
                    sa.select(budgets)
                    .where(self._in_team)
                    .order_by(budgets.c.team, budgets.c.run_id)
                    .with_for_update(),
                    keys,
                )
            ).mappings()
        ]
        settled = (
            await connection.execute(
                sa.delete(holds)
                .where(self._db.in_keys(holds.c.team, "keys"), holds.c.settled)
                .returning(holds.c.team, holds.c.run_id, holds.c.usd),
                keys,
            )
        ).all()
        now = await self._now(connection)
        current = [await self._as_of(connection, limit, settled, now) for limit in limits]
        for before, limit in zip(limits, current, strict=True):
            if limit != before:
                await connection.execute(
                    sa.update(budgets)
                    .where(budgets.c.team == limit["team"], budgets.c.run_id == limit["run_id"])
                    .values(since=limit["since"], spent_usd=limit["spent_usd"])
                )
        return current

    async def _as_of(
        self, connection: AsyncConnection, limit: dict[str, Any], settled: Sequence[Any], now: float
    ) -> dict[str, Any]:
        """A budget as it stands now: with what was ``settled`` since it was written, or in a window begun since."""
        if (begun := _begins(limit["period"], now)) > limit["since"]:
            spent = await self._on_the_books(connection, limit["team"], limit["run_id"], begun)
            return limit | {"since": begun, "spent_usd": spent}
        due = sum(
            usd
            for team, run_id, usd in settled
            if team == limit["team"] and limit["run_id"] in (EVERYTHING, run_id)
        )
        return limit | {"spent_usd": limit["spent_usd"] + due}

    async def _on_the_books(
        self, connection: AsyncConnection, team: str, run_id: str, since: float
    ) -> int:
        """What the ledger says was spent since then, which is when a day begins."""
        begun = datetime.fromtimestamp(since, UTC)
        spent = 0
        for table, is_since in (
            (judge_calls, judge_calls.c.created_at >= begun),
            (past_usage, past_usage.c.day >= f"{begun:%Y-%m-%d}"),
        ):
            query = sa.select(
                sa.func.sum(sa.func.coalesce(table.c.settled_usd, table.c.cost_usd))
            ).where(table.c.team == team, is_since)
            row = await connection.execute(
                query.where(table.c.run_id == run_id) if run_id else query
            )
            spent += row.scalar_one() or 0
        return spent

    async def _now(self, connection: AsyncConnection) -> float:
        return float((await connection.execute(sa.select(self._db.clock))).scalar_one())

    async def _release(self, given: Sequence[tuple[str, str]]) -> list[None]:
        async with self._db.writing(team_scope(*(team for team, _ in given))) as connection:
            await connection.execute(
                sa.delete(holds).where(
                    self._db.in_keys(holds.c.team, "teams"),
                    self._db.in_keys(holds.c.id, "keys"),
                    ~holds.c.settled,
                ),
                {
                    "teams": self._db.keys(team for team, _ in given),
                    "keys": self._db.keys(key for _, key in given),
                },
            )
        return [None] * len(given)


def settle(database: Database) -> sa.Update:
    """Holds become what their questions cost; bind ``settlements`` to their id, team and usd. Harmless to repeat."""
    row = database.rows([holds.c.id, holds.c.team, holds.c.usd], "settlements")
    return (
        sa.update(holds)
        .where(holds.c.id == row.id, holds.c.team == row.team)
        .values(usd=row.usd, settled=True)
    )


def count_unheld(database: Database) -> Any:
    """Calls that began before their team had a budget are counted too: bind ``unheld`` to their id, team, run_id and
    usd. It must come before the calls are written: one that is there has been counted."""
    row = database.rows([holds.c.id, holds.c.team, holds.c.run_id, holds.c.usd], "unheld")
    bound = sa.exists().where(
        budgets.c.team == row.team, budgets.c.run_id.in_([EVERYTHING, row.run_id])
    )
    counted = sa.exists().where(judge_calls.c.id == row.id)
    return (
        database.insert(holds)
        .from_select(
            ["id", "team", "run_id", "usd", "owner", "settled", "expires_at"],
            sa.select(
                row.id, row.team, row.run_id, row.usd, sa.literal(""), sa.true(), sa.literal(0.0)
            ).where(bound, ~counted),
        )
        .on_conflict_do_nothing()
    )


def _decide(
    wish: HoldRequest, limits: Sequence[dict[str, Any]], held: Iterable[dict[str, Any]], owner: str
) -> HoldResult:
    others = [each for each in held if each["team"] == wish.team and each["id"] != wish.id]
    for limit in limits:
        if (
            limit["team"] != wish.team
            or limit["run_id"] not in (EVERYTHING, wish.run_id)
            or limit["hard_usd"] is None
        ):
            continue
        beside = [each for each in others if limit["run_id"] in (EVERYTHING, each["run_id"])]
        spent = limit["spent_usd"] + sum(each["spent_usd"] for each in beside) + wish.spent
        if spent >= limit["hard_usd"]:
            return "spent"
        under_way = [each for each in beside if each["usd"] > each["spent_usd"]]
        open_usd = sum(each["usd"] - each["spent_usd"] for each in under_way)
        if spent + open_usd + wish.most > limit["hard_usd"] and any(
            each["owner"] == owner for each in under_way
        ):
            return "wait"
    return "granted"


def _begins(window: str, now: float) -> float:
    """When the window began that ``now`` is in, on the calendar of UTC."""
    if window == "total":
        return 0.0
    day = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return (day if window == "day" else day.replace(day=1)).timestamp()


def _budget(row: dict[str, Any]) -> Budget:
    hard, soft = (
        None if row[name] is None else to_usd(row[name]) for name in ("hard_usd", "soft_usd")
    )
    return Budget(
        row["team"],
        row["run_id"] or None,
        hard,
        soft,
        row["period"],
        datetime.fromtimestamp(row["since"], UTC),
        to_usd(row["spent_usd"]),
    )
