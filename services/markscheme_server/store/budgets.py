"""Budgets: what teams and runs may spend, and the money set aside for calls under way.

A team with a budget takes a hold before each request: a row with the most that the request can
cost. Holds are granted under a lock on the budgets' rows, over all processes, so that what is
spent and what is held stay within the hard limit. Beyond it each process may have one more request
under way, as long as less than the limit is spent. A question that needs another request has its
hold raised by the same rule.

When a question is recorded in the ledger its hold is settled: it then stands for what the question
cost, until the next grant has added that to `spent_usd`. The holds of a dead process count until
their lease ends. Money is in whole nano-dollars here, except in `Budget`.
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
from markscheme_server.store.ledger import ALL_RUNS, LedgerStore
from markscheme_server.store.tables import budgets, holds, teams
from markscheme_server.store.teams import UnknownTeam

HoldResult = Literal["granted", "wait", "spent"]


@dataclass(frozen=True, slots=True)
class Budget:
    """A limit on spending. Money is in dollars.

    `run_id` `None`: on everything that the team does. `since`: when the window began.
    """

    team: str
    run_id: str | None
    hard_usd: float | None
    soft_usd: float | None
    window: BudgetWindow
    since: datetime
    spent_usd: float


@dataclass(frozen=True, slots=True)
class HoldRequest:
    """A request to set money aside for a question's next request, in nano-dollars.

    `id`: the question's hold. `max_cost`: the most that the next request can cost. `spent`: what
    the question's requests before it cost.
    """

    id: str
    team: str
    run_id: str | None
    max_cost: int
    spent: int = 0


class BudgetStore:
    """Budgets by team and run.

    `owner` names this process in its holds. `lease_s`: seconds for which they count if the
    process dies.
    """

    def __init__(
        self, database: Database, ledger: LedgerStore, *, owner: str, lease_s: float
    ) -> None:
        self._db, self._ledger, self._owner, self._lease_s = database, ledger, owner, lease_s
        self._finding: Batcher[str, list[Budget]] = Batcher(database, self._find)
        self._holding: Batcher[HoldRequest, HoldResult] = Batcher(database, self._hold)
        self._releasing: Batcher[tuple[str, str], None] = Batcher(database, self._release)
        self._select_budgets = (
            sa.select(budgets)
            .where(database.in_keys(budgets.c.team, "keys"))
            # Locked in this order too, so that two grants queue instead of deadlocking.
            .order_by(budgets.c.team, budgets.c.run_id)
        )
        self._put_holds = self._prepare_put_holds()

    async def find(self, team: str) -> list[Budget]:
        """Return the team's budgets as they stand now, the one on everything first."""
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
        """Set a budget; what was spent in its window so far counts. Raises `UnknownTeam`."""
        async with self._db.writing(team_scope(team, actor.team)) as connection:
            if not (
                await connection.execute(
                    sa.select(teams.c.name).where(teams.c.name == team, teams.c.erased_at.is_(None))
                )
            ).scalar():
                raise UnknownTeam
            # Deletes settled holds. The ledger, which is added up below, contains their cost.
            await self._lock(connection, [team])
            since = _window_start(window, await self._now(connection))
            hard, soft = (None if usd is None else to_nano(usd) for usd in (hard_usd, soft_usd))
            row = {
                "team": team,
                "run_id": run_id or ALL_RUNS,
                "hard_usd": hard,
                "soft_usd": soft,
                "period": window,
                "since": since,
                "spent_usd": await self._ledger.spent_since(
                    connection, team, run_id or ALL_RUNS, since
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
        """Remove a budget; return whether there was one."""
        async with self._db.writing(team_scope(team, actor.team)) as connection:
            done = await connection.execute(
                sa.delete(budgets).where(
                    budgets.c.team == team, budgets.c.run_id == (run_id or ALL_RUNS)
                )
            )
            if done.rowcount:
                await record(connection, actor, "budget.removed", f"team:{team}", {"run": run_id})
        return bool(done.rowcount)

    async def hold(self, request: HoldRequest) -> HoldResult:
        """Set money aside, or say why not.

        `wait`: it may be granted once another request of this process has ended. `spent`: a hard
        limit is reached. In both cases the question's hold is lowered to what it has spent.
        """
        return await self._holding.submit(request)

    async def release(self, team: str, hold_id: str) -> None:
        """Remove the hold of a question for which no request was sent."""
        await self._releasing.submit((team, hold_id))

    def _prepare_put_holds(self) -> Any:
        """Insert holds, or change those that are not settled yet; binds `changed` to their rows."""
        names = ("id", "team", "run_id", "owner", "usd", "spent_usd", "settled")
        row = self._db.rows([holds.c[name] for name in names], "changed")
        # Without the WHERE, SQLite would read the ON of ON CONFLICT as that of a join.
        new = self._db.insert(holds).from_select(
            [*names, "expires_at"],
            sa.select(*(row[name] for name in names), self._db.clock + self._lease_s).where(
                sa.true()
            ),
        )
        return new.on_conflict_do_update(
            index_elements=[holds.c.id],
            # A settled hold stands for money that was spent: a late write must not change it.
            where=~holds.c.settled,
            set_={name: new.excluded[name] for name in ("usd", "spent_usd", "expires_at")},
        )

    async def _find(self, wanted: Sequence[str]) -> list[list[Budget]]:
        keys = {"keys": self._db.keys(wanted)}
        scope = team_scope(*wanted)
        if not await self._db.read(scope, self._select_budgets, keys):
            return [[] for _ in wanted]  # most teams have no budget
        settled_holds = (
            sa.select(holds.c.team, holds.c.run_id, sa.func.sum(holds.c.usd))
            .where(self._db.in_keys(holds.c.team, "keys"), holds.c.settled)
            .group_by(holds.c.team, holds.c.run_id)
        )
        found: dict[str, list[Budget]] = defaultdict(list)
        async with self._db.reading(scope) as connection:
            rows = [
                dict(row)
                for row in (await connection.execute(self._select_budgets, keys)).mappings()
            ]
            now = await self._now(connection)
            settled = (await connection.execute(settled_holds, keys)).all()
            for row in rows:
                # A read takes no lock, so it adds what is settled without storing the sum.
                current = await self._current(connection, row, settled, now)
                found[row["team"]].append(_budget(current))
        return [found[team] for team in wanted]

    async def _hold(self, requests: Sequence[HoldRequest]) -> list[HoldResult]:
        teams = {request.team for request in requests}
        results: list[HoldResult] = []
        changed: dict[str, dict[str, Any]] = {}
        async with self._db.writing(team_scope(*teams)) as connection:
            limits = await self._lock(connection, teams)
            held = await self._live_holds(connection, teams)
            # In order: each request is decided with the holds that those before it were granted.
            for request in requests:
                result = _decide(request, limits, held.values(), self._owner)
                results.append(result)
                # A refused question keeps a hold of what it has spent, and nothing beyond.
                if result == "granted" or request.spent or request.id in held:
                    held[request.id] = changed[request.id] = {
                        "id": request.id,
                        "team": request.team,
                        "run_id": request.run_id or ALL_RUNS,
                        "owner": self._owner,
                        "usd": request.spent + (request.max_cost if result == "granted" else 0),
                        "spent_usd": request.spent,
                    }
            if changed:
                rows = [
                    row
                    | {
                        "usd": self._db.usd(row["usd"]),
                        "spent_usd": self._db.usd(row["spent_usd"]),
                        "settled": False,
                    }
                    for row in changed.values()
                ]
                await connection.execute(self._put_holds, {"changed": self._db.pack(rows)})
        return results

    async def _live_holds(
        self, connection: AsyncConnection, teams: Iterable[str]
    ) -> dict[str, dict[str, Any]]:
        """Return the teams' holds whose lease has not ended, by id."""
        h = holds.c
        query = sa.select(h.id, h.team, h.run_id, h.owner, h.usd, h.spent_usd).where(
            self._db.in_keys(h.team, "keys"), h.expires_at > self._db.clock
        )
        rows = await connection.execute(query, {"keys": self._db.keys(teams)})
        return {row["id"]: dict(row) for row in rows.mappings()}

    async def _lock(
        self, connection: AsyncConnection, teams: Iterable[str]
    ) -> list[dict[str, Any]]:
        """Lock the teams' budgets and bring them up to date.

        Settled holds are added to `spent_usd` and deleted, and new windows begin.
        """
        keys = {"keys": self._db.keys(teams)}
        # From here to the commit no other process can grant a hold of these teams.
        rows = await connection.execute(self._select_budgets.with_for_update(), keys)
        stored = [dict(row) for row in rows.mappings()]
        settled = (
            await connection.execute(
                sa.delete(holds)
                .where(self._db.in_keys(holds.c.team, "keys"), holds.c.settled)
                .returning(holds.c.team, holds.c.run_id, holds.c.usd),
                keys,
            )
        ).all()
        now = await self._now(connection)
        current = [await self._current(connection, limit, settled, now) for limit in stored]
        for before, limit in zip(stored, current, strict=True):
            if limit != before:
                await connection.execute(
                    sa.update(budgets)
                    .where(budgets.c.team == limit["team"], budgets.c.run_id == limit["run_id"])
                    .values(since=limit["since"], spent_usd=limit["spent_usd"])
                )
        return current

    async def _current(
        self, connection: AsyncConnection, limit: dict[str, Any], settled: Sequence[Any], now: float
    ) -> dict[str, Any]:
        """Return a budget as it stands now.

        In the same window, what was `settled` since the row was written is added; in a new window
        the ledger is added up.
        """
        if (start := _window_start(limit["period"], now)) > limit["since"]:
            spent = await self._ledger.spent_since(
                connection, limit["team"], limit["run_id"], start
            )
            return limit | {"since": start, "spent_usd": spent}
        # A budget on everything counts the holds of all runs, one on a run only that run's.
        due = sum(
            usd
            for team, run_id, usd in settled
            if team == limit["team"] and limit["run_id"] in (ALL_RUNS, run_id)
        )
        return limit | {"spent_usd": limit["spent_usd"] + due}

    async def _now(self, connection: AsyncConnection) -> float:
        # The database's clock, because those of the processes may differ.
        return float((await connection.execute(sa.select(self._db.clock))).scalar_one())

    async def _release(self, released: Sequence[tuple[str, str]]) -> list[None]:
        async with self._db.writing(team_scope(*(team for team, _ in released))) as connection:
            await connection.execute(
                sa.delete(holds).where(
                    self._db.in_keys(holds.c.team, "teams"),
                    self._db.in_keys(holds.c.id, "keys"),
                    # A settled hold stands for money that was spent; the next grant counts it.
                    ~holds.c.settled,
                ),
                {
                    "teams": self._db.keys(team for team, _ in released),
                    "keys": self._db.keys(key for _, key in released),
                },
            )
        return [None] * len(released)


def _decide(
    request: HoldRequest,
    limits: Sequence[dict[str, Any]],
    held: Iterable[dict[str, Any]],
    owner: str,
) -> HoldResult:
    """Return whether a hold fits all budgets of its team and run.

    `limits`: rows of `budgets`. `held`: live holds. `owner`: this process.
    """
    # The question's own hold is replaced by the one that it asks for.
    others = [hold for hold in held if hold["team"] == request.team and hold["id"] != request.id]
    for limit in limits:
        if (
            limit["team"] != request.team
            or limit["run_id"] not in (ALL_RUNS, request.run_id)
            or limit["hard_usd"] is None
        ):
            continue
        same_budget = [hold for hold in others if limit["run_id"] in (ALL_RUNS, hold["run_id"])]
        spent = limit["spent_usd"] + sum(hold["spent_usd"] for hold in same_budget) + request.spent
        if spent >= limit["hard_usd"]:
            return "spent"
        under_way = [hold for hold in same_budget if hold["usd"] > hold["spent_usd"]]
        reserved = sum(hold["usd"] - hold["spent_usd"] for hold in under_way)
        # Where nothing of this process is under way, one request may go beyond the limit.
        # Otherwise a team whose rest is smaller than any request could never spend it.
        if spent + reserved + request.max_cost > limit["hard_usd"] and any(
            hold["owner"] == owner for hold in under_way
        ):
            return "wait"
    return "granted"


def _window_start(window: str, now: float) -> float:
    """Return the beginning of the current window in UTC. Times are in seconds since 1970."""
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
