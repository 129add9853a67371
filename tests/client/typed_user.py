"""What a user types: `test_typing.py` has mypy and pyright accept it, both strict."""

import asyncio
from collections.abc import Sequence
from typing import TypedDict

import httpx

import markscheme
from markscheme import (
    AsyncClient,
    AsyncRubricPage,
    Client,
    Criterion,
    Group,
    GroupScore,
    MarkschemeError,
    Message,
    Rollout,
    Rubric,
    RubricPage,
    Run,
    ScoreBatch,
    errors,
)


class ChatMessage(TypedDict):
    """A message as OpenAI's package types it."""

    role: str
    content: str


def show(*values: object) -> None: ...


def prompts(messages: list[ChatMessage], plain: list[dict[str, str]]) -> None:
    with Client("http://host", "key", timeout=3, max_retries=0, default_headers={"A": "b"}) as c:
        c.rubrics(messages)
        c.rubrics(plain)
        c.induce([Message(role="user", content="p")], student_responses=["a", plain, messages])


def score(texts: Sequence[str]) -> list[list[float | None]]:
    client = Client(http_client=httpx.Client(), timeout=httpx.Timeout(3.0))
    rubric: Rubric = client.with_options(timeout=None).create_rubric(
        "p", [{"text": "It names red.", "points": 5}, Criterion(text="It is short.", points=1)]
    )
    batch: ScoreBatch = client.score(
        [
            {"prompt": "p", "rollouts": ["a", "b"], "rubric_id": rubric},
            {"prompt": "p", "rollouts": list(texts)},
            Group(id="g", prompt="p", rollouts=[Rollout(id="r", text="a", truncated=True)]),
        ],
        run=Run(id="run", step=1),
        on_group=lambda group: show(group.rewards),
        reuse="frozen",
    )
    first: GroupScore = batch[0]
    named: GroupScore = batch["g"]
    some: list[GroupScore] = batch[:2]
    for group in batch:
        show(group.id, len(batch), first, named, some, group.rollouts[0].reward)
    return batch.rewards


def find(client: Client, rubric: Rubric) -> list[str]:
    page: RubricPage = client.rubrics(tags=["a"])
    following: RubricPage | None = page.next_page()
    client.rubric(rubric)
    if following is not None:
        show(following.has_more)
    return [found.id for found in page]


async def find_async(client: AsyncClient) -> list[str]:
    page: AsyncRubricPage = await client.rubrics()
    show([found.id async for found in page])

    async def hear(group: GroupScore) -> None:
        show(group.id)

    await client.score([{"prompt": "p", "rollouts": ["a"]}], on_group=hear)
    return [found.id async for found in client.rubrics(limit=2)]


def main() -> None:
    try:
        score(["a"])
        asyncio.run(find_async(AsyncClient()))
        asyncio.run(AsyncClient().rubrics())
    except errors.NotFound as error:
        show(error.status, error.code)
    except MarkschemeError as error:
        show(error, markscheme.__version__)
