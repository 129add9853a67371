"""Listing rubrics reads page after page."""

import asyncio
import json
import pickle
from collections.abc import Iterator

import pytest

from markscheme import AsyncClient, AsyncRubricPage, Client, InvalidRequest, RubricPage
from markscheme.schema import RubricList

CRITERIA = [{"text": "It names red.", "points": 1}]


@pytest.fixture
def made(client: Client) -> Iterator[list[str]]:
    """Store five rubrics, of which one has a tag; return their ids, newest first."""
    rubrics = [
        client.create_rubric(f"prompt {n}", CRITERIA, tags=["odd"] if n == 3 else [])
        for n in range(5)
    ]
    return [rubric.id for rubric in rubrics[::-1]]


def test_iteration_goes_over_all_pages(client: Client, made: list[str]) -> None:
    for limit in (1, 2, 5, 100):
        assert [rubric.id for rubric in client.rubrics(limit=limit)] == made
    assert [rubric.id for rubric in client.rubrics(tags=["odd"], limit=1)] == [made[1]]
    assert [rubric.id for rubric in client.rubrics(limit=2, after=made[2])] == made[3:]
    assert list(client.rubrics("no such prompt")) == []


def test_a_page_can_be_read_alone(client: Client, made: list[str]) -> None:
    page = client.rubrics(limit=2)
    assert isinstance(page, RubricPage)
    assert isinstance(page, RubricList)
    seen = []
    while page is not None:
        seen.append([rubric.id for rubric in page.data])
        last, page = page, page.next_page()
    assert seen == [made[:2], made[2:4], made[4:]]
    assert not last.has_more
    assert json.loads(last.model_dump_json())["data"][0]["id"] == made[4]


def test_iteration_begins_anew_each_time(client: Client, made: list[str]) -> None:
    page = pickle.loads(pickle.dumps(client.rubrics(limit=2)))
    assert [[rubric.id for rubric in page] for _ in range(2)] == [made, made]


async def test_an_asynchronous_client_pages_too(service: str, made: list[str]) -> None:
    async with AsyncClient(service) as client:
        assert [rubric.id async for rubric in client.rubrics(limit=2)] == made
        page = await client.rubrics(limit=3)
        assert isinstance(page, AsyncRubricPage)
        assert [rubric.id for rubric in page.data] == made[:3]
        assert [rubric.id async for rubric in page] == made
        following = await page.next_page()
        assert following is not None
        assert [rubric.id for rubric in following.data] == made[3:]
        assert await following.next_page() is None
        both = await asyncio.gather(client.rubrics(limit=1), client.rubrics(limit=1))
        assert [page.data[0].id for page in both] == [made[0]] * 2
        task = asyncio.create_task(client.rubrics(limit=0))
        with pytest.raises(InvalidRequest):
            await task
        client.rubrics()  # nothing was asked, and nothing warns


def test_a_page_can_be_asked_for_by_asyncio_run(service: str, made: list[str]) -> None:
    assert asyncio.run(AsyncClient(service).rubrics(limit=1)).data[0].id == made[0]
