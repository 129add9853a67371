"""The verdict cache on a real Redis: shared, and allowed to vanish."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes.judge import ScriptedJudge
from fakes.stores import RedisServer
from markscheme import Client
from markscheme_server.cache.redis import Redis as Shared
from markscheme_server.cache.verdicts import VerdictCache


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path)
    yield server
    server.kill()


async def test_what_one_process_saves_another_finds(redis: RedisServer) -> None:
    shared = [Shared(redis.url), Shared(redis.url)]
    one, other = (VerdictCache(each) for each in shared)
    await one.save({"a": (True, "words"), "b": (False, None)})
    assert await other.find(["a", "b", "c"]) == {"a": (True, "words"), "b": (False, None)}
    for each in shared:
        await each.aclose()


async def test_a_dead_redis_is_a_miss_and_is_not_asked_again_at_once(redis: RedisServer) -> None:
    shared = Shared(redis.url)
    saving, finding = VerdictCache(shared), VerdictCache(shared)
    await saving.save({"a": (True, None)})
    redis.kill()
    assert await finding.find(["a"]) == {}
    assert not shared.up
    started = time.perf_counter()
    await saving.save({"b": (True, None)})
    assert await finding.find(["a"]) == {}
    assert time.perf_counter() - started < 0.05
    assert await saving.find(["a", "b"]) == {"a": (True, None), "b": (True, None)}
    await shared.aclose()


def test_scoring_goes_on_when_redis_dies(redis: RedisServer, serve: Callable[..., str], model_settings: dict[str, Any],
                                         judge: ScriptedJudge) -> None:
    with Client(serve(**model_settings, redis_url=redis.url)) as client:
        rubric = client.create_rubric("p", [{"text": "It is kind.", "points": 1}])
        group = {"id": "g", "prompt": "p", "rubric_id": rubric.id, "rollouts": [{"id": "a", "text": "hello"}]}
        assert client.score([group]).groups[0].rollouts[0].reward == 1.0
        redis.kill()
        again = client.score([group])
        assert again.groups[0].rollouts[0].reward == 1.0
        assert len(judge.requests) == 1


async def test_memory_keeps_the_most_recently_used() -> None:
    cache = VerdictCache(size=2)
    await cache.save({"a": (True, None), "b": (True, None)})
    await cache.find(["a"])
    await cache.save({"c": (False, None)})
    assert set(await cache.find(["a", "b", "c"])) == {"a", "c"}
