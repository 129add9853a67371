"""Requests by the hundred, at once or at a rate, each answer with its time.

A connection that fails is an answer too. This is any HTTP client, not the SDK: it retries nothing.
"""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import aiohttp

from fakes.processes import PATIENCE_S, eventually

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Post:
    """One POST to send."""

    url: str
    body: Any
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer and when its request was sent (monotonic). Status 0: none came; see ``error``."""

    status: int
    headers: Mapping[str, str]
    content: bytes
    sent: float
    elapsed_s: float
    error: str = ""

    @property
    def json(self) -> Any:
        return json.loads(self.content)

    @property
    def code(self) -> str:
        """The stated error's code."""
        return str(self.json["error"]["code"])

    @property
    def rewards(self) -> list[float | None]:
        """Of all rollouts, in order; none if the answer is an error."""
        return [r["reward"] for g in self.json.get("groups", []) for r in g["rollouts"]]

    @property
    def reasons(self) -> set[str | None]:
        return {r["reason"] for g in self.json.get("groups", []) for r in g["rollouts"]}


def send_all(posts: Sequence[Post], *, timeout_s: float = 60) -> list[Answer]:
    """Send all at once; the answers in the order of ``posts``."""

    async def run(session: aiohttp.ClientSession) -> list[Answer]:
        return await asyncio.gather(*(_send(session, post) for post in posts))

    return _with_session(run, timeout_s)


def send_at_rate(
    make: Callable[[int], Post], *, per_s: float, for_s: float, timeout_s: float = 60
) -> list[Answer]:
    """Send ``make(0)``, ``make(1)``, … at a steady rate whatever becomes of them (an open loop)."""

    async def run(session: aiohttp.ClientSession) -> list[Answer]:
        loop, running = asyncio.get_running_loop(), []
        start = loop.time()
        for i in range(round(per_s * for_s)):
            await asyncio.sleep(max(0.0, start + i / per_s - loop.time()))
            running.append(asyncio.ensure_future(_send(session, make(i))))
        return await asyncio.gather(*running)

    return _with_session(run, timeout_s)


def send_in_turns(
    make: Callable[[int], Post], *, callers: int, for_s: float, timeout_s: float = 60
) -> list[Answer]:
    """``callers`` of them, each sending its next when the last is answered (a closed loop).

    A caller that gets no answer stops.
    """

    async def run(session: aiohttp.ClientSession) -> list[Answer]:
        loop, answers = asyncio.get_running_loop(), []
        end, number = loop.time() + for_s, iter(range(10**9))

        async def call() -> None:
            while loop.time() < end and (not answers or answers[-1].status):
                answers.append(await _send(session, make(next(number))))

        await asyncio.gather(*(call() for _ in range(callers)))
        return answers

    return _with_session(run, timeout_s)


def in_background(posts: Sequence[Post]) -> tuple[threading.Thread, list[Answer]]:
    """Send all at once from a thread: the thread, and the answers once it has ended."""
    answers: list[Answer] = []
    sending = threading.Thread(target=lambda: answers.extend(send_all(posts)))
    sending.start()
    return sending, answers


def abandon_all(
    posts: Sequence[Post], *, when: Callable[[], bool], within_s: float = PATIENCE_S
) -> None:
    """Send all at once, and break every connection off as soon as ``when()`` holds."""

    async def run(session: aiohttp.ClientSession) -> None:
        running = [asyncio.ensure_future(_send(session, post)) for post in posts]
        try:
            await asyncio.to_thread(_poll, when, within_s)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    _with_session(run, within_s + 10)


def _poll(when: Callable[[], bool], within_s: float) -> None:
    for attempt in eventually(within_s, every_s=0.01):
        with attempt:
            assert when()


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value that ``share`` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _with_session(
    run: Callable[[aiohttp.ClientSession], Coroutine[Any, Any, T]], timeout_s: float
) -> T:
    async def whole() -> T:
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=timeout_s)
        ) as session:
            return await run(session)

    return asyncio.run(whole())


async def _send(session: aiohttp.ClientSession, post: Post) -> Answer:
    sent = time.monotonic()
    try:
        async with session.post(post.url, json=post.body, headers=post.headers) as response:
            content = await response.read()
            return Answer(response.status, response.headers, content, sent, time.monotonic() - sent)
    except (aiohttp.ClientError, TimeoutError) as error:
        return Answer(0, {}, b"", sent, time.monotonic() - sent, type(error).__name__)
