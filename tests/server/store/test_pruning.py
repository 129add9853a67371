"""Pruning on both databases: what goes, what stays, and that writers beside it lose nothing."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from markscheme_server.config import Settings
from markscheme_server.domain.fingerprint import prompt_key, text_key
from markscheme_server.domain.rubric import Criterion, Rubric
from markscheme_server.domain.usage import JudgeUsage
from markscheme_server.store import tables, walking
from markscheme_server.store.assignments import Outcome, Place, ScoredRollout
from markscheme_server.store.audit import Actor
from markscheme_server.store.database import EVERYONE
from markscheme_server.store.idempotency import Address, Begun
from markscheme_server.store.ids import now
from markscheme_server.store.migrating import migrate
from markscheme_server.store.pruning import Pruner
from markscheme_server.store.store import Store
from markscheme_server.store.verdicts import JudgeCall, Reply, StoredVerdict

OLD = timedelta(days=100)
AGE = timedelta(days=90)


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    made = Store(Settings(_env_file=None, database_url=database_url, judge="builtin").sqlalchemy_url,
                 claim_lease_s=600)
    await migrate(made.database)
    yield made
    await made.drain()
    await made.close()


def prompt(name: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": name}]


async def rubric(store: Store, name: str) -> Rubric:
    return await store.rubrics.save(team="t", prompt=prompt(name), criteria=[Criterion("c1", "words", 1)],
                                    origin="induced", provenance={}, actor=Actor("t"), induction=text_key(name))


async def group(store: Store, name: str, texts: Sequence[str], under: Rubric, *, group_id: str = "g") -> str:
    """A scored group whose prompt is ``name``; the assignment's id."""
    place = Place("t", "run", 1, group_id, prompt_key(prompt(name)))
    made = await store.assignments.assign(place, prompt=prompt(name), rubric_id=under.id, origin="induced",
                                          reuse="if_fresh", verify="rollout")
    await store.assignments.finish("t", made.id, Outcome([
        ScoredRollout(f"r{i}", text, False, 0.5, None) for i, text in enumerate(texts)]))
    return made.id


async def verdict(store: Store, name: str) -> None:
    key = text_key(name)
    await store.verdicts.save(Reply("t", [StoredVerdict(key, "p", "c", key, "judge", True, None)],
                                    JudgeCall("verifier", "judge", ("c",), JudgeUsage(1, 10, 5))))


async def answered(store: Store, key: str, *, finished: bool = True) -> None:
    address = Address("t", "/r", key)
    begun = await store.idempotency.begin(address, "f" * 64)
    assert isinstance(begun, Begun)
    if finished:
        await store.idempotency.finish(address, begun.owner, status=200, body="{}")


async def age(store: Store, by: timedelta = OLD) -> None:
    """Everything that is stored now was stored this long ago."""
    async with store.database.writing(EVERYONE) as connection:
        for table in tables.metadata.sorted_tables:
            if "created_at" in table.c and table is not tables.audit_entries:
                await connection.execute(sa.update(table).values(created_at=now() - by))
        await connection.execute(sa.update(tables.claims).values(expires_at=tables.claims.c.expires_at
                                                                 - by.total_seconds()))


async def contents(store: Store) -> dict[str, int]:
    async with store.database.reading(EVERYONE) as connection:
        return {table.name: (await connection.execute(sa.select(sa.func.count()).select_from(table))).scalar_one()
                for table in tables.metadata.sorted_tables}


async def run(store: Store, *, dry: bool = False) -> Counter[str]:
    pruner = Pruner(store.database, now() - AGE, dry=dry)
    removed: Counter[str] = Counter()
    walked, total = 0, await pruner.total()
    async for window in pruner.run():
        removed.update(window.removed)
        walked += window.walked
    assert walked == total
    return removed


async def old_and_new(store: Store) -> None:
    """An old run and a new one that share a prompt, a rubric, a text; a teacher; odds and ends."""
    shared = await rubric(store, "shared")
    for i in range(40):
        await group(store, f"old-{i}", [f"old {i} a", f"old {i} b", "said again"], shared)
    await group(store, "shared", ["old", "a teacher's words"], shared)
    for i in range(30):
        await verdict(store, f"old-{i}")
    await store.verdicts.save(Reply("t", (), JudgeCall("rubricator", "judge", (), JudgeUsage(3), "unavailable")))
    await store.teachers.save("t", prompt("taught"), ["a teacher's words"])
    await answered(store, "old")
    await answered(store, "left running", finished=False)
    await store.claims.acquire("k" * 64)
    await age(store)
    await group(store, "new", ["said again", "new"], shared)
    await verdict(store, "new")
    await answered(store, "new")
    await answered(store, "at work", finished=False)
    await store.claims.acquire("l" * 64)


GONE = {"assignments": 41, "rollouts": 122, "verdicts": 30, "judge_calls": 31, "idempotency_keys": 1, "claims": 1,
        "texts": 81, "prompts": 40}
"""``idempotency_keys``: the one left running is old, but its lease was not set back with it."""


async def test_old_runs_go_and_rubrics_and_teachers_stay(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walking, "WINDOW", 7)
    await old_and_new(store)
    before = await contents(store)
    assert await run(store, dry=True) == GONE
    assert await contents(store) == before
    assert await run(store) == GONE
    after = await contents(store)
    assert {name: before[name] - after[name] for name in before} == dict.fromkeys(before, 0) | GONE
    assert [kept.text for kept in await store.teachers.find("t", prompt_key(prompt("taught")))] == ["a teacher's words"]
    assert await store.rubrics.find_induced("t", text_key("shared")) is not None
    assert set(await store.verdicts.find("t", [text_key("old-1"), text_key("new")])) == {text_key("new")}
    assert await run(store) == dict.fromkeys(GONE, 0)


async def test_a_running_request_loses_its_row_only_with_its_lease(store: Store) -> None:
    await answered(store, "stuck", finished=False)
    await age(store)
    assert (await run(store))["idempotency_keys"] == 0
    async with store.database.writing(EVERYONE) as connection:
        await connection.execute(sa.update(tables.idempotency_keys).values(expires_at=1.0))
    assert (await run(store))["idempotency_keys"] == 1


async def test_a_step_sent_again_after_pruning_is_a_new_one(store: Store) -> None:
    made = await rubric(store, "again")
    first = await group(store, "again", ["x"], made)
    await age(store)
    await run(store)
    second = await group(store, "again", ["x"], made)
    assert second != first
    assert (await contents(store))["rollouts"] == 1


async def test_writers_beside_it_find_what_they_refer_to(store: Store) -> None:
    """New groups keep saying what old ones said, while that is being removed by two at once."""
    made = await rubric(store, "shared")
    for i in range(60):
        await group(store, "shared", [f"said {i}", f"said {i} twice"], made, group_id=f"old-{i}")
    await age(store)
    stopped = False

    async def write(number: int) -> int:
        turn = 0
        while not stopped:
            said = (turn * 7 + number) % 60
            await group(store, "shared", [f"said {said}", f"said {said} twice"], made, group_id=f"new-{number}-{turn}")
            turn += 1
        return turn

    async def prune() -> Counter[str]:
        removed: Counter[str] = Counter()
        async for window in Pruner(store.database, now() - AGE, dry=False).run():
            removed.update(window.removed)
        return removed

    writers = [asyncio.create_task(write(number)) for number in range(4)]
    await asyncio.sleep(0.05)
    removed = await asyncio.gather(prune(), prune())
    stopped = True
    turns = await asyncio.gather(*writers)
    assert sum(r["assignments"] for r in removed) == 60
    left = await contents(store)
    assert left["rollouts"] == 2 * left["assignments"] == 2 * sum(turns)


async def test_a_text_that_is_being_referred_to_again_is_waited_for(store: Store) -> None:
    """A writer that passes by an old text finds it still there when it comes to refer to it."""
    made = await rubric(store, "p")
    await group(store, "p", ["said"], made, group_id="old")
    await age(store)
    new = await store.assignments.assign(Place("t", "run", 2, "g", made.prompt_key), prompt=prompt("p"),
                                         rubric_id=made.id, origin="reused", reuse="if_fresh", verify="rollout")
    async with store.database.writing(EVERYONE) as connection:
        await store.database.insert_new(connection, tables.texts, [
            {"key": text_key("said"), "text": "said", "created_at": now()}])
        pruning_it = asyncio.create_task(run(store))
        await asyncio.sleep(0.3)
        await connection.execute(tables.rollouts.insert().values(
            assignment_id=new.id, rollout_id="r0", text_key=text_key("said"), truncated=False))
    assert (await pruning_it)["texts"] == 0
    assert (await contents(store))["texts"] == 1


async def test_a_sqlite_file_shrinks_when_asked(tmp_path: Any) -> None:
    file = tmp_path / "m.db"
    store = Store(f"sqlite+aiosqlite:///{file}")
    await migrate(store.database)
    made = await rubric(store, "p")
    for i in range(20):
        await group(store, f"old-{i}", [f"{i} " + "words " * 20_000], made)
    await age(store)
    await run(store)
    pruner = Pruner(store.database, now() - AGE, dry=False)
    large = file.stat().st_size
    await pruner.give_back()
    assert file.stat().st_size < large / 4
    assert (await contents(store))["rubrics"] == 1
    await store.close()
