"""Migrations and queries on SQLite and on a real PostgreSQL."""

import asyncio
from pathlib import Path

import pytest
import sqlalchemy as sa

from fakes.stores import PostgresServer, differences
from markscheme_server.domain.rubric import Criterion
from markscheme_server.domain.usage import JudgeUsage
from markscheme_server.domain.verdict import StoredDecision
from markscheme_server.store.audit import Actor
from markscheme_server.store.engine import driver
from markscheme_server.store.engine.database import ALL_TEAMS, NO_TEAM, POOL_SIZE, is_outage
from markscheme_server.store.ledger import CallDescription, JudgeCall
from markscheme_server.store.maintenance.migrate import migrate
from markscheme_server.store.rubrics import Search
from markscheme_server.store.store import Store
from markscheme_server.store.tables import claims
from markscheme_server.store.verdicts import JudgeReply, StoredVerdict


@pytest.fixture(scope="module")
def empty_database(postgres: PostgresServer) -> str:
    """Create a database without tables for this module; return its URL."""
    return postgres.create("empty").replace("postgresql://", "postgresql+asyncpg://")


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        (tmp_path / "m.db").touch()
        return f"sqlite+aiosqlite:///{tmp_path / 'm.db'}"
    return str(request.getfixturevalue("empty_database"))


@pytest.fixture
async def store(url: str) -> Store:
    made = Store(url)
    await migrate(made.database)
    return made


async def test_migrations_build_the_tables_and_two_migrators_get_along(url: str) -> None:
    stores = [Store(url), Store(url)]
    await asyncio.gather(*(migrate(s.database) for s in stores))
    async with stores[0].database.reading(ALL_TEAMS) as connection:
        difference = await connection.run_sync(differences)
    assert difference == []
    for s in stores:
        await s.database.close()


async def test_pages_hold_each_rubric_once(store: Store) -> None:
    made = [
        await store.rubric_versions.save(
            team="pages",
            prompt=[{"role": "user", "content": f"page {i}"}],
            criteria=[Criterion("c1", "t", 1)],
            origin="imported",
            provenance={},
            actor=Actor("pages"),
        )
        for i in range(5)
    ]
    seen, after, more = [], None, True
    while more:
        page, more = await store.rubrics.page("pages", Search(after=after, limit=2))
        seen += [r.id for r in page]
        after = page[-1].id
    assert seen == [r.id for r in reversed(made)]
    await store.database.close()


async def test_the_first_verdict_stands_and_teams_are_apart(store: Store) -> None:
    def verdict(met: bool) -> StoredVerdict:
        return StoredVerdict("k" * 64, "p", "c", "r", "judge", StoredDecision(met, "words", None))

    call = JudgeCall(CallDescription("t", None, "verifier", "judge", ("c",)), JudgeUsage(1, 10, 5))
    assert await store.verdicts.save(JudgeReply("t", [verdict(True)], call))
    assert await store.verdicts.save(JudgeReply("t", [verdict(False)], call))
    assert await store.verdicts.find("t", ["k" * 64, "absent"]) == {
        "k" * 64: StoredDecision(True, "words", None)
    }
    assert await store.verdicts.find("u", ["k" * 64]) == {}
    await store.database.close()


async def test_errors_do_not_show_what_users_sent(store: Store) -> None:
    with pytest.raises(Exception, match="IntegrityError|NOT NULL|null value") as caught:
        await store.verdicts.save(
            JudgeReply(
                "t",
                [
                    StoredVerdict(
                        "q" * 64, "p", "c", "r", None, StoredDecision(True, "secret words", None)
                    )
                ],
            )
        )  # type: ignore[arg-type]
    assert "secret words" not in str(caught.value).split("DETAIL")[0]
    await store.database.close()


async def test_a_transaction_that_falls_silent_holds_nobody_up(
    empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a process that is frozen, or whose machine is gone: PostgreSQL would wait for hours."""
    monkeypatch.setattr(driver, "MAX_IDLE_IN_TRANSACTION_S", 1)
    silent, other = Store(empty_database), Store(empty_database)
    await migrate(silent.database)
    claim = await silent.claims.acquire("the work")
    assert claim is not None
    lock = sa.select(claims.c.key).with_for_update()

    async def fall_silent() -> None:
        async with silent.database.writing(NO_TEAM) as connection:
            await connection.execute(lock)
            async with other.database.writing(NO_TEAM) as waiting:
                assert (await waiting.execute(lock)).scalars().all() == ["the work"]
            await connection.execute(lock)

    with pytest.raises(sa.exc.DBAPIError) as late:
        await fall_silent()
    assert is_outage(late.value)
    await silent.claims.drop(claim)
    assert not await other.claims.is_held("the work")
    for store in (silent, other):
        await store.database.close()


async def test_a_rush_opens_no_connections_beyond_the_pool(store: Store) -> None:
    """An extra connection costs a thread and a page cache in SQLite, a process in PostgreSQL."""
    opened: list[object] = []
    sa.event.listen(
        store.database.engine.sync_engine,
        "connect",
        lambda connection, _: opened.append(connection),
    )
    for _ in range(3):
        await asyncio.gather(*(store.database.ping() for _ in range(40)))
    assert len(opened) <= POOL_SIZE
    await store.database.close()
