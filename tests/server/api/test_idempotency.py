"""Idempotency-Key over HTTP, on both databases: done once, answered as often as it is asked."""

import asyncio
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
import sqlalchemy as sa

from fakes.judge import ScriptedJudge, well_behaved
from fakes.processes import PATIENCE_S, eventually
from fakes.service import running
from markscheme_server.config import Settings
from markscheme_server.store.engine.database import ALL_TEAMS, Database, create_engine
from markscheme_server.store.tables import idempotency_keys

RUBRICS, INDUCE = "/v1/rubrics", "/v1/rubrics:induce"
CREATE = {"prompt": "Name a colour.", "criteria": [{"text": "It names one.", "points": 1}]}
ASK = {"prompt": "Name a colour.", "teacher_responses": ["Blue."], "student_responses": ["Brot."]}
UNREADABLE = {
    "prompt": "Tell me about the sea.",
    "teacher_responses": ["Deep."],
    "student_responses": ["Wet."],
}


@pytest.fixture
def settings(database_url: str, model_settings: dict[str, Any]) -> dict[str, Any]:
    return model_settings | {"database_url": database_url}


@pytest.fixture
def http(serve: Callable[..., str], settings: dict[str, Any]) -> Iterator[httpx.Client]:
    """Connect a client without retries to a service that uses the scripted judge."""
    with httpx.Client(base_url=serve(**settings), timeout=30) as client:
        yield client


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def shared_http(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path
) -> Iterator[httpx.Client]:
    """Connect to a service that tests share, each with a key and a prompt of its own."""
    file = tmp_path_factory.mktemp("shared") / "m.db"
    url = (
        f"sqlite:///{shutil.copy(migrated_sqlite, file)}"
        if request.param == "sqlite"
        else request.getfixturevalue("new_postgres")()
    )
    with (
        running(Settings(_env_file=None, database_url=url, judge="builtin", api_key=None)) as base,
        httpx.Client(base_url=base, timeout=30) as client,
    ):
        yield client


def post(
    http: httpx.Client, key: str | None, body: Any = CREATE, path: str = RUBRICS
) -> httpx.Response:
    return http.post(path, json=body, headers={} if key is None else {"Idempotency-Key": key})


def replayed(response: httpx.Response) -> bool:
    return response.headers.get("idempotent-replayed") == "true"


def code(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


def change(settings: dict[str, Any], **values: Any) -> int:
    """Write into all rows, past the service; how many there are."""

    async def run() -> int:
        database = Database(create_engine(Settings(_env_file=None, **settings).sqlalchemy_url))
        async with database.writing(ALL_TEAMS) as connection:
            changed = await connection.execute(sa.update(idempotency_keys).values(**values))
        await database.close()
        return int(changed.rowcount)

    return asyncio.run(run())


def lease_end(settings: dict[str, Any]) -> float:
    """Return when the lease of the only row ends, in seconds since 1970."""

    async def run() -> float:
        database = Database(create_engine(Settings(_env_file=None, **settings).sqlalchemy_url))
        async with database.reading(ALL_TEAMS) as connection:
            found = await connection.execute(sa.select(idempotency_keys.c.expires_at))
        await database.close()
        return float(found.scalar_one())

    return asyncio.run(run())


class Held:
    """A judge's script that answers when it is let."""

    def __init__(self) -> None:
        self.asked, self.let = threading.Event(), threading.Event()

    def __call__(self, request: dict[str, Any], number: int) -> Any:
        self.asked.set()
        self.let.wait(PATIENCE_S)
        return well_behaved(request, number)


def test_the_same_call_is_answered_with_the_same_bytes(http: httpx.Client) -> None:
    first, second = post(http, "k"), post(http, "k")
    assert (first.status_code, second.status_code) == (201, 201)
    assert second.content == first.content
    assert (replayed(first), replayed(second)) == (False, True)
    assert second.headers["content-type"] == "application/json"
    # A default that is stated asks for nothing else; the order of fields neither.
    assert replayed(post(http, "k", {"tags": []} | CREATE))
    assert not replayed(post(http, None))


def test_replays_outlive_the_process(settings: dict[str, Any], tmp_path: Any) -> None:
    contents = []
    for _ in range(2):
        with (
            running(Settings(_env_file=None, home=tmp_path, **settings)) as url,
            httpx.Client(base_url=url, timeout=60) as http,
        ):
            contents.append(post(http, "k").content)
            last = post(http, "k")
    assert contents[0] == contents[1] == last.content
    assert replayed(last)


def test_another_body_under_the_same_key_is_refused_and_changes_nothing(http: httpx.Client) -> None:
    first = post(http, "k")
    other = post(http, "k", CREATE | {"tags": ["x"]})
    assert code(other) == (422, "idempotency_key_reused")
    assert other.json()["error"]["param"] == "Idempotency-Key"
    assert post(http, "k").content == first.content


def test_routes_are_apart(http: httpx.Client) -> None:
    assert post(http, "k").status_code == 201
    induced = post(http, "k", ASK, INDUCE)
    assert induced.status_code == 200
    assert not replayed(induced)
    assert replayed(post(http, "k", ASK, INDUCE))


def test_a_running_call_is_a_conflict_and_then_replays(
    http: httpx.Client, judge: ScriptedJudge
) -> None:
    judge.script = held = Held()
    with ThreadPoolExecutor() as pool:
        first = pool.submit(post, http, "k", ASK, INDUCE)
        assert held.asked.wait(PATIENCE_S)
        second = post(http, "k", ASK, INDUCE)
        other = post(http, "k", ASK | {"reuse": "always_new"}, INDUCE)
        held.let.set()
        answer = first.result()
    assert code(second) == (409, "idempotency_key_running")
    assert 1 <= int(second.headers["retry-after"]) <= 30
    assert code(other) == (422, "idempotency_key_reused")
    assert answer.status_code == 200
    assert not replayed(answer)
    assert post(http, "k", ASK, INDUCE).content == answer.content
    assert len(judge.requests) == 1


def test_a_lease_is_kept_alive_while_the_work_goes_on(
    serve: Callable[..., str],
    settings: dict[str, Any],
    judge: ScriptedJudge,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is renewed every third of its time."""
    monkeypatch.setattr("markscheme_server.app.CLAIM_LEASE_S", 4.5)
    judge.script = held = Held()
    url = serve(**settings)
    with httpx.Client(base_url=url, timeout=30) as http, ThreadPoolExecutor() as pool:
        first = pool.submit(post, http, "k", ASK, INDUCE)
        assert held.asked.wait(PATIENCE_S)
        ends = lease_end(settings)
        for attempt in eventually(every_s=0.1):
            with attempt:
                assert lease_end(settings) > ends
        assert code(post(http, "k", ASK, INDUCE)) == (409, "idempotency_key_running")
        held.let.set()
        assert first.result().status_code == 200


def test_of_many_senders_at_once_one_creates(http: httpx.Client) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: post(http, "k"), range(8)))
    assert sum(a.status_code == 201 and not replayed(a) for a in answers) == 1
    assert {a.status_code for a in answers} <= {201, 409}
    assert len({a.content for a in answers if a.status_code == 201}) == 1
    assert len(http.get(RUBRICS).json()["data"]) == 1


def test_a_failure_of_the_judge_is_not_kept(http: httpx.Client, judge: ScriptedJudge) -> None:
    judge.script = lambda request, number: 401
    assert post(http, "k", ASK, INDUCE).status_code == 502
    judge.script = well_behaved
    second = post(http, "k", ASK, INDUCE)
    assert second.status_code == 200
    assert not replayed(second)


def test_a_refusal_by_the_work_itself_is_kept(
    serve: Callable[..., str], settings: dict[str, Any]
) -> None:
    with httpx.Client(base_url=serve(**settings | {"judge": "builtin"}), timeout=30) as http:
        first, second = (post(http, "k", UNREADABLE, INDUCE) for _ in range(2))
        assert code(first) == (422, "no_rubric")
        assert second.content == first.content
        assert (replayed(first), replayed(second)) == (False, True)


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "p"},
        {},
        CREATE | {"unknown": 1},
        CREATE | {"criteria": [{"text": "t", "points": 0}]},
        CREATE
        | {"criteria": [{"text": "t", "points": 1, "check": {"kind": "regex", "pattern": "(("}}]},
    ],
)
def test_a_body_that_is_refused_leaves_no_trace(shared_http: httpx.Client, body: Any) -> None:
    key = uuid4().hex
    assert post(shared_http, key, body).status_code == 422
    assert post(shared_http, key, CREATE | {"prompt": key}).status_code == 201


@pytest.mark.parametrize(
    ("key", "status"),
    [
        ("k" * 255, 201),
        ("a key: with ~ all {printable} signs!", 201),
        ("k" * 256, 422),
        ("", 422),
        ("tab\there", 422),
        ("schlüssel".encode("latin-1"), 422),
        ("ключ".encode(), 422),
    ],
)
def test_keys_are_up_to_255_printable_characters(
    shared_http: httpx.Client, key: str | bytes, status: int
) -> None:
    headers = [(b"idempotency-key", key)]
    body = CREATE | {"prompt": uuid4().hex}
    response = shared_http.post(RUBRICS, json=body, headers=headers)  # type: ignore[arg-type]
    assert response.status_code == status


def test_what_a_killed_process_left_is_taken_over_when_its_lease_is_over(
    http: httpx.Client, settings: dict[str, Any]
) -> None:
    first = post(http, "k")
    assert change(settings, status=None, body=None, expires_at=time.time() + 3600) == 1
    waiting = post(http, "k")
    assert code(waiting) == (409, "idempotency_key_running")
    assert 3500 < int(waiting.headers["retry-after"]) <= 3600
    assert change(settings, expires_at=time.time() - 1) == 1
    heir = post(http, "k")
    assert heir.json() == first.json()
    assert not replayed(heir)
    assert replayed(post(http, "k"))


def test_an_owner_that_lost_its_row_gives_the_heirs_answer(
    http: httpx.Client, settings: dict[str, Any], judge: ScriptedJudge
) -> None:
    judge.script = held = Held()
    with ThreadPoolExecutor() as pool:
        first = pool.submit(post, http, "k", ASK, INDUCE)
        assert held.asked.wait(PATIENCE_S)
        assert change(settings, owner="heir", status=200, body='{"the": "heir\'s"}') == 1
        held.let.set()
        assert first.result().json() == {"the": "heir's"}


def test_an_owner_whose_row_ended_with_an_heir_keeps_its_own_answer(
    http: httpx.Client, settings: dict[str, Any], judge: ScriptedJudge
) -> None:
    """The heir took the row over and was killed."""
    judge.script = held = Held()
    with ThreadPoolExecutor() as pool:
        first = pool.submit(post, http, "k", ASK, INDUCE)
        assert held.asked.wait(PATIENCE_S)
        assert change(settings, owner="heir", expires_at=time.time() - 1) == 1
        held.let.set()
        answer = first.result()
    assert (answer.status_code, replayed(answer)) == (200, False)
    again = post(http, "k", ASK, INDUCE)
    assert (again.content, replayed(again)) == (answer.content, True)
    assert len(judge.requests) == 1


def test_a_caller_that_leaves_frees_its_key(http: httpx.Client, judge: ScriptedJudge) -> None:
    judge.script = held = Held()
    leaving = HTTPConnection(http.base_url.host, http.base_url.port, timeout=PATIENCE_S)
    leaving.request(
        "POST",
        INDUCE,
        json.dumps(ASK),
        {"content-type": "application/json", "idempotency-key": "k"},
    )
    assert held.asked.wait(PATIENCE_S)
    leaving.close()
    held.let.set()
    for attempt in eventually(every_s=0.05):
        with attempt:
            assert post(http, "k", ASK, INDUCE).status_code == 200
    assert len(judge.requests) <= 2
