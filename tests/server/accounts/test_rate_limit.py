"""Test each team's requests per minute over HTTP: who is refused, how, and where they count."""

import itertools
import re
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from fakes.clock import Clock
from fakes.processes import eventually
from fakes.stores import RedisServer
from markscheme import Client
from markscheme_server import metrics
from markscheme_server.accounts.auth import CACHE_S
from markscheme_server.api.middleware import format_duration
from server.limits.clock import before_the_turn
from server.organisation import OPERATOR, RUBRIC, SCORE, Keys, call

Start = Callable[..., str]
LIMIT, REMAINING, RESET = (
    f"x-ratelimit-{what}-requests" for what in ("limit", "remaining", "reset")
)


def asked(url: str, key: str | None, times: int = 1) -> list[httpx.Response]:
    return [call(url, "GET", "/v1/rubrics", key) for _ in range(times)]


def statuses(url: str, key: str | None, times: int) -> list[int]:
    return [answer.status_code for answer in asked(url, key, times)]


def test_a_team_beyond_its_limit_is_turned_away_and_no_other(
    organisation: Keys, start: Start
) -> None:
    red, red_too, blue = (organisation.key(team, "read") for team in ("red", "red", "blue"))
    organisation.limit("red", 4)
    url = start()
    refused = metrics.REGISTRY.get_sample_value("markscheme_rate_limited_total") or 0.0
    before_the_turn()
    answers = [*asked(url, red, 2), *asked(url, red_too, 3)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 200, 429]
    assert {answer.headers[LIMIT] for answer in answers} == {"4"}
    assert [answer.headers[REMAINING] for answer in answers] == ["3", "2", "1", "0", "0"]
    # The window that begins now ends in 60 s, and counts as the previous one for 60 s more.
    assert all(re.fullmatch(r"1m[\d.]+s|2m0s", answer.headers[RESET]) for answer in answers)
    last = answers[-1]
    assert last.json() == {
        "request_id": last.headers["X-Request-ID"],
        "error": {
            "type": "rate_limit_error",
            "code": "rate_limited",
            "param": None,
            "message": (
                "the team 'red' may send 4 requests a minute; "
                "send this one again after Retry-After seconds"
            ),
        },
    }
    assert 1 <= int(last.headers["Retry-After"]) <= 61
    for answer in asked(url, blue, 6):
        assert answer.status_code == 200
        assert not {LIMIT, REMAINING, RESET} & set(answer.headers)
    assert metrics.REGISTRY.get_sample_value("markscheme_rate_limited_total") == refused + 1
    assert "markscheme_rate_limited_total " in httpx.get(f"{url}/metrics", timeout=60).text
    assert (
        httpx.get(
            f"{url}/readyz", headers={"Authorization": f"Bearer {red}"}, timeout=60
        ).status_code
        == 200
    )


def test_it_is_turned_away_before_its_body_is_read(organisation: Keys, start: Start) -> None:
    key = organisation.key("red", "score")
    organisation.limit("red", 1)
    url = httpx.URL(start())
    before_the_turn()
    assert statuses(str(url), key, 1) == [403]
    head = (
        f"POST /v1/scores HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer {key}\r\n"
        "Content-Length: 1000\r\n\r\n"
    )
    with socket.create_connection((url.host, url.port or 80), timeout=30) as connection:
        connection.sendall(head.encode())
        assert connection.recv(12) == b"HTTP/1.1 429"


def test_a_batch_is_one_request_and_every_answer_tells_what_is_left(
    organisation: Keys,
    start: Start,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key = organisation.key("red", "score", "induce")
    organisation.limit("red", 100)
    monkeypatch.setattr("markscheme_server.app.MAX_BODY_BYTES", 20_000)
    url = start()
    before_the_turn()
    groups = [SCORE["groups"][0] | {"id": f"g{i}"} for i in range(20)]  # type: ignore[index]
    sent = [
        (201, {"method": "POST", "url": "/v1/rubrics", "json": RUBRIC}),
        (200, {"method": "POST", "url": "/v1/scores", "json": SCORE | {"groups": groups}}),
        (
            200,
            {
                "method": "POST",
                "url": "/v1/scores",
                "json": SCORE,
                "headers": {"Accept": "application/x-ndjson"},
            },
        ),
        (403, {"method": "GET", "url": "/v1/rubrics"}),
        (404, {"method": "POST", "url": "/v1/nothing"}),
        (405, {"method": "DELETE", "url": "/v1/scores"}),
        (413, {"method": "POST", "url": "/v1/scores", "content": iter([b" " * 15_000] * 2)}),
        (422, {"method": "POST", "url": "/v1/scores", "json": {}}),
    ]
    with httpx.Client(
        base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=30
    ) as client:
        for left, (status, request) in zip(itertools.count(99, -1), sent):
            answer = client.request(**request)
            assert (answer.status_code, answer.headers[REMAINING]) == (status, str(left)), request


def test_a_change_reaches_every_worker_and_null_is_the_deployments_limit(
    organisation: Keys,
    start: Start,
    clock: Clock,
) -> None:
    key = organisation.key("red", "read")
    urls = [start(api_key=OPERATOR, team_rpm=50) for _ in range(2)]
    assert [asked(url, key)[0].headers[LIMIT] for url in urls] == ["50", "50"]
    for rpm, expected in ((7, "7"), (None, "50"), (1_000_000, "1000000")):
        told = call(urls[0], "PATCH", "/v1/teams/red", OPERATOR, {"rpm": rpm})
        assert (told.status_code, told.json()["rpm"]) == (200, rpm)
        clock.advance(CACHE_S)
        assert [asked(url, key)[0].headers[LIMIT] for url in urls] == [expected, expected]
    listed = call(urls[1], "GET", "/v1/teams", OPERATOR).json()["data"]
    assert {team["name"]: team["rpm"] for team in listed} == {
        "blue": None,
        "default": None,
        "red": 1_000_000,
    }


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        *(
            ("red", body, 422, "invalid_value")
            for body in (
                {},
                {"rpm": 0},
                {"rpm": -1},
                {"rpm": 1.5},
                {"rpm": "600"},
                {"rpm": True},
                {"rpm": 10**7},
                {"rpm": 5, "name": "x"},
            )
        ),
        ("nobody", {"rpm": 5}, 404, "team_not_found"),
        ("Red!", {"rpm": 5}, 422, "invalid_value"),
    ],
)
def test_a_limit_that_cannot_be_is_not(
    path: str, body: dict[str, Any], status: int, code: str, shared_service: str
) -> None:
    answer = call(shared_service, "PATCH", f"/v1/teams/{path}", None, body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert [
        team["rpm"] for team in call(shared_service, "GET", "/v1/teams", None).json()["data"]
    ] == [None]


def test_the_operator_is_limited_as_the_team_default_is(
    organisation: Keys, start: Start, clock: Clock
) -> None:
    guarded, single = start(api_key=OPERATOR), start()
    assert LIMIT not in asked(guarded, OPERATOR)[0].headers
    assert LIMIT not in asked(single, None)[0].headers
    organisation.limit("default", 2)
    clock.advance(CACHE_S)
    before_the_turn()
    assert statuses(guarded, OPERATOR, 3) == [200, 200, 429]
    assert statuses(single, None, 3) == [200, 200, 429]
    organisation.limit(
        "default", None
    )  # the commands work on the database, so nobody shuts themselves out
    clock.advance(CACHE_S)
    assert statuses(guarded, OPERATOR, 3) == [200, 200, 200]


class TestWithRedis:
    """Two services, one count."""

    @pytest.fixture
    def database_url(self, tmp_path: Path, migrated_sqlite: Path) -> str:
        return f"sqlite:///{shutil.copy(migrated_sqlite, tmp_path / 'm.db')}"

    def test_it_is_one_count_for_all(
        self, organisation: Keys, start: Start, redis: RedisServer
    ) -> None:
        key = organisation.key("red", "read")
        organisation.limit("red", 7)
        urls = [start(redis_url=redis.url, workers=2) for _ in range(2)]
        answers = [asked(url, key)[0] for _ in range(6) for url in urls]
        assert [answer.status_code for answer in answers] == [200] * 7 + [429] * 5
        assert [answer.headers[REMAINING] for answer in answers[:8]] == [
            "6",
            "5",
            "4",
            "3",
            "2",
            "1",
            "0",
            "0",
        ]

    def test_without_redis_each_worker_goes_on_with_its_part(
        self,
        organisation: Keys,
        start: Start,
        redis: RedisServer,
    ) -> None:
        """Less what it has let in before: Redis may be gone for a second, again and again."""
        key = organisation.key("red", "read")
        organisation.limit("red", 8)
        one, other = (start(redis_url=redis.url, workers=2) for _ in range(2))
        before_the_turn()
        assert statuses(one, key, 3) == [200] * 3
        redis.kill()
        assert [statuses(url, key, 5) for url in (one, other)] == [
            [200, 429, 429, 429, 429],
            [200] * 4 + [429],
        ]
        redis.start()
        for attempt in eventually():
            with attempt:
                assert asked(one, key)[0].status_code == 200

    def test_the_sdk_waits_as_it_is_told_and_succeeds(
        self,
        organisation: Keys,
        start: Start,
        redis: RedisServer,
    ) -> None:
        key = organisation.key("red", "read")
        organisation.limit("red", 2)
        url = start(redis_url=redis.url)
        assert statuses(url, key, 2) == [200, 200]
        redis.hasten("markscheme:quota*", left_ms=60_000 + 900)
        with Client(url, api_key=key) as client:
            begun = time.monotonic()
            assert client.rubrics().data == []
            assert 0.9 <= time.monotonic() - begun <= 30


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0, "0ms"),
        (0.0123, "13ms"),
        (0.9995, "1s"),
        (1.14, "1.2s"),
        (30, "30s"),
        (59.97, "1m0s"),
        (63.25, "1m3.3s"),
        (120, "2m0s"),
    ],
)
def test_how_a_duration_is_told(seconds: float, told: str) -> None:
    assert format_duration(seconds) == told
