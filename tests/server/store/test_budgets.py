"""Budgets and what is held of them, on both databases."""

from datetime import UTC, datetime

import pytest
import sqlalchemy as sa

from markscheme_server.domain.usage import to_nano
from markscheme_server.store.audit import Actor
from markscheme_server.store.budgets import BudgetStore, HoldRequest
from markscheme_server.store.engine.database import ALL_TEAMS
from markscheme_server.store.store import Store
from markscheme_server.store.tables import budgets, holds, judge_calls


async def test_a_dead_processs_holds_are_believed_until_their_lease_ends(store: Store) -> None:
    ours, dead = (
        BudgetStore(store.database, store.ledger, owner=name, lease_s=60.0)
        for name in ("own_1", "own_2")
    )
    await ours.put("red", None, hard_usd=1.0, soft_usd=None, window="day", actor=Actor())
    assert await dead.hold(HoldRequest("hold_1", "red", None, to_nano(0.9))) == "granted"
    assert (
        await ours.hold(HoldRequest("hold_2", "red", None, to_nano(0.9))) == "granted"
    )  # each process may have one more
    assert await ours.hold(HoldRequest("hold_3", "red", None, to_nano(0.9))) == "wait"
    await ours.release("red", "hold_2")
    assert await ours.hold(HoldRequest("hold_4", "red", None, to_nano(0.05))) == "granted"
    async with store.database.writing(ALL_TEAMS) as connection:
        ended = sa.update(holds).where(holds.c.owner == "own_2").values(expires_at=0)
        await connection.execute(ended)
    assert await ours.hold(HoldRequest("hold_5", "red", None, to_nano(0.9))) == "granted"


async def test_a_window_that_ended_begins_anew(store: Store) -> None:
    await store.budgets.put("red", None, hard_usd=1.0, soft_usd=None, window="day", actor=Actor())
    async with store.database.writing(ALL_TEAMS) as connection:
        await connection.execute(
            sa.update(budgets).values(since=budgets.c.since - 86_400, spent_usd=to_nano(5.0))
        )
    [budget] = await store.budgets.find("red")
    assert budget.spent_usd == 0.0
    assert budget.since.date() == datetime.now(UTC).date()
    assert await store.budgets.hold(HoldRequest("hold_1", "red", None, to_nano(0.5))) == "granted"


async def test_questions_that_ask_again_do_not_wait_for_each_other(store: Store) -> None:
    """Both have spent part of what they held, and neither has a request under way."""
    await store.budgets.put("red", None, hard_usd=10.0, soft_usd=None, window="day", actor=Actor())
    assert await store.budgets.hold(HoldRequest("hold_1", "red", None, to_nano(5))) == "granted"
    assert await store.budgets.hold(HoldRequest("hold_2", "red", None, to_nano(5))) == "granted"
    assert (
        await store.budgets.hold(HoldRequest("hold_1", "red", None, to_nano(6), spent=to_nano(4)))
        == "wait"
    )
    assert (
        await store.budgets.hold(HoldRequest("hold_2", "red", None, to_nano(6), spent=to_nano(4)))
        == "granted"
    )
    assert (
        await store.budgets.hold(HoldRequest("hold_1", "red", None, to_nano(6), spent=to_nano(4)))
        == "wait"
    )
    assert (
        await store.budgets.hold(HoldRequest("hold_2", "red", None, to_nano(6), spent=to_nano(6)))
        == "spent"
    )
    assert await store.budgets.hold(HoldRequest("hold_3", "red", None, to_nano(1))) == "spent"


async def test_a_hold_that_alone_is_beyond_the_limit_is_granted_once(store: Store) -> None:
    await store.budgets.put("red", None, hard_usd=1.0, soft_usd=None, window="day", actor=Actor())
    assert await store.budgets.hold(HoldRequest("hold_1", "red", None, to_nano(50))) == "granted"
    assert await store.budgets.hold(HoldRequest("hold_2", "red", None, to_nano(50))) == "wait"


@pytest.mark.parametrize("count", [1000, pytest.param(1_000_000, marks=pytest.mark.slow)])
async def test_a_million_calls_add_up_exactly(store: Store, count: int) -> None:
    cost = to_nano(0.000123457)
    async with store.database.writing(ALL_TEAMS) as connection:
        each = sa.select(sa.literal(1).label("i")).cte("each", recursive=True)
        each = each.union_all(sa.select(each.c.i + 1).where(each.c.i < count))
        await connection.execute(
            sa.insert(judge_calls).from_select(
                [
                    "id",
                    "team",
                    "role",
                    "judge",
                    "criteria",
                    "calls",
                    "prompt_tokens",
                    "completion_tokens",
                    "cost_usd",
                    "settled_usd",
                    "unpriced_calls",
                    "created_at",
                ],
                sa.select(
                    sa.cast(each.c.i, sa.String),
                    sa.literal("red"),
                    sa.literal("verifier"),
                    sa.literal("judge"),
                    sa.literal([], sa.JSON),
                    *(sa.literal(1),) * 3,
                    *(sa.literal(cost, judge_calls.c.cost_usd.type),) * 2,
                    sa.literal(0),
                    sa.func.current_timestamp(),
                ),
            )
        )
    _, bucket, _ = await store.usage.aggregate("red", [], since=None, until=None)
    assert (bucket.sums["calls"], bucket.sums["cost_usd"]) == (count, count * 123_457 / 1e9)
    made = await store.budgets.put(
        "red", None, hard_usd=500.0, soft_usd=None, window="total", actor=Actor()
    )
    assert made.spent_usd == count * 123_457 / 1e9
