"""The clients' connections: shared by copies, and not by processes, event loops or pickles."""

import asyncio
import copy
import gc
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import cloudpickle
import httpx
import pytest

from markscheme import AsyncClient, Client, ClientClosed, MarkschemeError

ONE = {"prompt": "Describe a tree. No commas.", "rollouts": ["A tree", "A tree, tall"]}


def cloudpickled(client: Any) -> Any:
    return pickle.loads(cloudpickle.dumps(client))


def pickled(client: Any) -> Any:
    return pickle.loads(pickle.dumps(client))


class TeamClient(Client):
    """A client of a user's own, with a field more."""

    def __init__(self, url: str, team: str) -> None:
        super().__init__(url, "mk_1", timeout=30, max_retries=4, default_headers={"X": "y"})
        self.team = team


@pytest.mark.parametrize("copied", [pickled, cloudpickled, copy.copy, copy.deepcopy])
def test_a_copy_is_a_client_with_the_same_options(
    copied: Callable[[Any], Any], service: str
) -> None:
    with TeamClient(service, "red") as client:
        client.rubrics()
        twin = copied(client)
        assert type(twin) is TeamClient
        assert (twin.team, twin.base_url, twin.api_key) == ("red", service, "mk_1")
        assert (twin.timeout, twin.max_retries) == (httpx.Timeout(30), 4)
        assert twin.default_headers == {"X": "y"}
        assert twin.rubrics().data == []
    if copied is not copy.copy:  # a shallow copy shares the connections
        assert twin.rubrics().data == []
        twin.close()


@pytest.mark.parametrize("copied", [pickled, cloudpickled, copy.copy, copy.deepcopy])
async def test_an_asynchronous_client_can_be_copied(
    copied: Callable[[Any], Any], service: str
) -> None:
    async with AsyncClient(service) as client:
        await client.rubrics()
        async with copied(client) as twin:
            assert (await twin.rubrics()).data == []


def test_a_client_that_is_dropped_leaves_no_socket_open(service: str) -> None:
    client = Client(service)
    client.rubrics()
    del client
    gc.collect()  # a socket left open would be a warning, and so a failure


def test_one_asynchronous_client_serves_several_event_loops(service: str) -> None:
    client = AsyncClient(service)

    async def call() -> Any:
        batches = await asyncio.gather(*(client.score([ONE]) for _ in range(3)))
        return [batch.rewards for batch in batches]

    async def call_and_close() -> Any:
        async with client:
            return await call()

    first, second = asyncio.run(call()), asyncio.run(call_and_close())
    assert first == second


def test_the_users_own_asynchronous_client_outlives_a_loop() -> None:
    page = {"object": "list", "data": [], "has_more": False}
    answer = httpx.MockTransport(lambda request: httpx.Response(200, json=page))
    client = AsyncClient("http://host", http_client=httpx.AsyncClient(transport=answer))
    for _ in range(2):
        assert asyncio.run(client.rubrics()).data == []


def test_a_call_after_the_end_is_said_plainly(service: str) -> None:
    client = Client(service)
    copies = [client.with_options(timeout=3), copy.copy(client)]
    client.rubrics()
    client.close()
    client.close()
    for closed in (client, *copies):
        for call in (closed.rubrics, lambda closed=closed: closed.score([ONE])):
            with pytest.raises(ClientClosed, match="the client was closed") as caught:
                call()
            assert isinstance(caught.value, MarkschemeError)
            assert isinstance(caught.value, RuntimeError)


async def test_an_asynchronous_call_after_the_end_is_said_plainly(service: str) -> None:
    client = AsyncClient(service)
    await client.rubrics()
    await client.close()
    await client.close()
    with pytest.raises(ClientClosed):
        await client.rubrics()
    with pytest.raises(ClientClosed):
        await client.score([ONE])


def test_requests_go_through_the_users_own_client(service: str) -> None:
    sent = []
    own = httpx.Client(
        headers={"X-Gateway": "1", "Authorization": "Basic x"},
        event_hooks={"request": [lambda request: sent.append(request)]},
    )
    with Client(service, http_client=own) as client:
        rewards = client.score([ONE]).rewards
        assert rewards == Client(service).score([ONE]).rewards
    assert [str(request.url) for request in sent] == [f"{service}/v1/scores"]
    assert sent[0].headers["x-gateway"] == "1"
    assert sent[0].headers["authorization"] == "Basic x"
    assert own.is_closed


def test_a_users_own_client_is_retried_and_held_to_the_deadline() -> None:
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.headers.get("x-deadline-ms"))
        return httpx.Response(503)

    own = httpx.Client(transport=httpx.MockTransport(answer))
    with Client("http://host", http_client=own) as client, pytest.raises(MarkschemeError):
        client.teach("p", deadline_s=30)
    assert len(asked) == 3
    assert all(int(left) > 0 for left in asked)


def test_a_users_own_client_that_is_closed_is_said_plainly() -> None:
    own = httpx.Client()
    client = Client("http://host", http_client=own)
    own.close()
    with pytest.raises(ClientClosed):
        client.rubric("r")


def test_a_client_on_the_users_own_cannot_be_pickled_but_copied() -> None:
    client = Client("http://host", http_client=httpx.Client())
    with pytest.raises(TypeError, match="http_client of your own cannot be pickled"):
        pickle.dumps(client)
    assert copy.deepcopy(client).base_url == "http://host"


FORK = """
import os, sys
from markscheme import Client
client = Client(sys.argv[1])
client.rubrics()
reading, writing = os.pipe()
if os.fork() == 0:
    for _ in range(20):
        client.rubrics(limit=1)
    os.write(writing, b"ok")
    os._exit(0)
for _ in range(20):
    client.score([{"prompt": "Describe a tree. No commas.", "rollouts": ["A tree"]}])
os.wait()
assert os.read(reading, 2) == b"ok"
"""


def test_a_forked_process_has_connections_of_its_own(service: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORK, service], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
