"""A team's own rubric is read once; another team's may be withdrawn at any time."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from markscheme_server.config import Settings
from markscheme_server.domain.rubric import Criterion, Rubric
from markscheme_server.scoring import rubric_cache
from markscheme_server.scoring.rubric_cache import RubricCache
from markscheme_server.store.audit import Actor
from markscheme_server.store.maintenance.migrate import migrate
from markscheme_server.store.store import Store

RED = Actor("red")


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    made = Store(Settings(_env_file=None, database_url=database_url).sqlalchemy_url)
    await migrate(made.database)
    yield made
    await made.close()


@pytest.fixture
def reads(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Record what is read from the database."""
    find, recorded = store.rubrics.find, list[tuple[str, str]]()

    async def recording(team: str, rubric_id: str) -> Rubric | None:
        recorded.append((team, rubric_id))
        return await find(team, rubric_id)

    monkeypatch.setattr(store.rubrics, "find", recording)
    return recorded


async def make(store: Store, prompt: str = "p", criterion: str = "c", **more: Any) -> Rubric:
    return await store.rubric_versions.save(
        team="red",
        prompt=[{"role": "user", "content": prompt}],
        criteria=[Criterion("c1", criterion, 1)],
        origin="imported",
        provenance={},
        actor=RED,
        **more,
    )


async def test_an_own_rubric_is_read_once(store: Store, reads: list[tuple[str, str]]) -> None:
    made, cache = await make(store), RubricCache(store.rubrics)
    for _ in range(3):
        found = await cache.find("red", made.id)
        assert found is not None
        assert (found.id, found.criteria, found.prompt) == (made.id, made.criteria, made.prompt)
    assert reads == [("red", made.id)]


async def test_a_rubric_that_another_team_withdraws_is_gone_at_once(store: Store) -> None:
    made, cache = await make(store), RubricCache(store.rubrics)
    assert await cache.find("red", made.id) is not None
    assert await cache.find("blue", made.id) is None
    await store.rubrics.change("red", made.id, shared_with=["blue"], actor=RED)
    assert await cache.find("blue", made.id) is not None
    await store.rubrics.change("red", made.id, shared_with=[], actor=RED)
    assert await cache.find("blue", made.id) is None
    assert await cache.find("blue", "rub_none") is None


async def test_long_rubrics_are_not_kept_and_the_oldest_goes_first(
    store: Store, reads: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rubric_cache, "MAX_RUBRICS", 2)
    cache = RubricCache(store.rubrics)
    long = (await make(store, "x" * 200_000)).id
    wordy = (await make(store, "w", criterion="x" * 200_000)).id
    first, second, third = [(await make(store, name)).id for name in ("a", "b", "c")]
    for rubric_id in (long, wordy, long, wordy, first, second, first, third, first, second):
        assert await cache.find("red", rubric_id) is not None
    kept = [first, second, third, second]
    assert [read for _, read in reads] == [long, wordy, long, wordy, *kept]
