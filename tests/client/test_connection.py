"""Where clients connect to, with what key, and the options that OpenAI's client has too."""

import random
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from client.scripted import (
    ONE,
    Reply,
    ScriptedService,
    induce,
    induce_async,
    refusal,
)
from markscheme import (
    AsyncClient,
    Client,
    ConnectionFailed,
    InvalidArgument,
    NotFound,
    ServiceUnavailable,
    requests,
)
from markscheme.connection import Connection
from markscheme.protocol import retry_policy

BOTH = pytest.mark.parametrize("kind", [Client, AsyncClient])
Kind = type[Client] | type[AsyncClient]


@pytest.fixture
def service() -> Iterator[ScriptedService]:
    scripted = ScriptedService()
    yield scripted
    scripted.close()


@BOTH
def test_address_and_key_come_from_the_environment(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (kind().base_url, kind().api_key) == ("http://127.0.0.1:8321", None)
    monkeypatch.setenv("MARKSCHEME_URL", " http://there:1/v1 ")
    monkeypatch.setenv("MARKSCHEME_API_KEY", "mk_1\n")
    assert (kind().base_url, kind().api_key) == ("http://there:1", "mk_1")
    assert (kind("http://here:1").base_url, kind(api_key="mk_2").api_key) == (
        "http://here:1",
        "mk_2",
    )
    assert kind(api_key="").api_key is None
    monkeypatch.setenv("MARKSCHEME_URL", "there:1")
    with pytest.raises(InvalidArgument, match="MARKSCHEME_URL: 'there:1' has no scheme"):
        kind()
    assert kind("http://here:1").base_url == "http://here:1"
    monkeypatch.setenv("MARKSCHEME_URL", "")
    assert kind().base_url == "http://127.0.0.1:8321"


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/", "//"])
@BOTH
def test_the_end_of_an_address_does_not_matter(kind: Kind, end: str) -> None:
    assert kind(f"https://host/team{end}").base_url == "https://host/team"
    assert kind(httpx.URL(f"http://host:8321{end}")).base_url == "http://host:8321"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("127.0.0.1:8321", r"base_url: '127.0.0.1:8321' has no scheme: write http://"),
        ("", "base_url: '' has no scheme"),
        ("ftp://host", "base_url: must be an http:// or https:// address with a host"),
        ("http://", "base_url: must be an http:// or https:// address with a host"),
        ("http://host:port", "base_url: is no address"),
        ("http://host?team=red", "base_url: must have no"),
        (8321, "base_url: must be a text, not a int"),
    ],
)
@BOTH
def test_an_address_that_cannot_be_one_is_refused(kind: Kind, url: Any, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        kind(url)


@BOTH
@pytest.mark.parametrize(
    "options",
    [
        {"api_key": "ключ"},
        {"api_key": "a\r\nX-Injected: b"},
        {"timeout": 0},
        {"timeout": float("inf")},
        {"timeout": "3"},
        {"max_retries": -1},
        {"max_retries": 1.5},
        {"default_headers": {"X": "a\nb"}},
        {"default_headers": {"X Y": "a"}},
        {"default_headers": [("X", "a")]},
        {"http_client": "proxy"},
    ],
)
def test_an_option_that_cannot_be_used_is_named(kind: Kind, options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(InvalidArgument, match=name) as caught:
        kind("http://host", **options)
    assert caught.value.param == name
    if name == "api_key":
        assert options["api_key"] not in str(caught.value)


@BOTH
def test_a_client_shows_its_address_and_never_a_secret(kind: Kind) -> None:
    client = kind("http://user:password@host:1/v1", api_key="mk_secret")
    assert repr(client) == str(client) == f"{kind.__name__}('http://host:1')"


def test_an_error_of_the_connection_shows_no_password() -> None:
    with (
        Client("http://user:password@127.0.0.1:1", max_retries=0) as client,
        pytest.raises(ConnectionFailed) as caught,
    ):
        client.rubric("r")
    assert "password" not in str(caught.value)


@pytest.mark.parametrize("call", [induce, induce_async])
def test_headers_are_sent_and_may_replace_the_clients_own(
    call: Any, service: ScriptedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MARKSCHEME_API_KEY", "mk_1")
    call(service.url)
    assert service.header("authorization") == ["Bearer mk_1"]


def test_copies_change_one_option_and_keep_the_others(service: ScriptedService) -> None:
    client = Client(service.url, "mk_1", default_headers={"X-A": "1", "X-B": "1"})
    copy = client.with_options(
        default_headers={"x-b": "2", "authorization": "Basic x"}, max_retries=5, timeout=7
    )
    with client:
        copy.rubric("r")
        client.rubric("r")
    assert service.header("x-a") == ["1", "1"]
    assert service.header("x-b") == ["2", "1"]
    assert service.header("authorization") == ["Basic x", "Bearer mk_1"]
    assert (copy.max_retries, copy.timeout) == (5, httpx.Timeout(7))
    assert (client.max_retries, client.timeout) == (2, None)
    assert copy.with_options().timeout == httpx.Timeout(7)
    assert copy.with_options(timeout=None).timeout == httpx.Timeout(None)
    assert copy.with_options(base_url="http://there", api_key="").base_url == "http://there"


@pytest.mark.parametrize("max_retries", [0, 1, 3])
def test_a_call_is_retried_as_often_as_said(max_retries: int, service: ScriptedService) -> None:
    service.replies = [refusal(503, "overloaded", "0")]
    with Client(service.url, max_retries=max_retries) as client:
        with pytest.raises(ServiceUnavailable):
            client.rubric("r")
        assert len(service.asked) == 1 + max_retries
        with pytest.raises(ServiceUnavailable):
            client.with_options(max_retries=0).score([ONE])
        assert len(service.asked) == 2 + max_retries


def test_more_retries_may_wait_longer_in_all() -> None:
    assert retry_policy().total_timeout == retry_policy(max_retries=0).total_timeout == 65
    assert retry_policy(max_retries=10).total_timeout == 325


def test_waits_between_retries_leave_pythons_generator_alone() -> None:
    """A training's random numbers must not depend on how often the service was away."""
    policy, state = retry_policy().increment().increment(), random.getstate()
    waits = {policy.backoff_strategy() for _ in range(20)}
    assert random.getstate() == state
    assert len(waits) == 20
    assert all(0 <= wait_s < 2 for wait_s in waits)


def test_a_time_limit_holds_for_every_call(service: ScriptedService) -> None:
    service.replies = [Reply(wait_s=60)]
    client = Client(service.url, timeout=0.3, max_retries=0)
    started = time.monotonic()
    with client:
        for call in (
            lambda: client.induce("p", student_responses=["a"]),
            lambda: client.score([ONE]),
        ):
            with pytest.raises(ConnectionFailed, match="ReadTimeout"):
                call()
    assert time.monotonic() - started < 30


def sent_timeout(client: Connection[Any], call: Any) -> httpx.Timeout:
    options = client._request_options(call)
    assert isinstance(options["timeout"], httpx.Timeout)
    return options["timeout"]


def test_induction_may_take_longer_unless_a_limit_is_given() -> None:
    slow, quick = requests.teach("p", 1, None), requests.rubric("r")
    assert sent_timeout(Client(), slow).read == 630
    assert sent_timeout(Client(), quick).read == 60
    assert sent_timeout(Client(timeout=3), slow).read == 3
    assert sent_timeout(Client(http_client=httpx.Client(timeout=9)), slow).read == 9
    assert sent_timeout(Client(http_client=httpx.Client()), slow).read == 630


def test_an_answer_that_is_no_services_says_so(service: ScriptedService) -> None:
    service.replies = [Reply(404, [b"<html>"])]
    with Client(service.url) as client, pytest.raises(NotFound, match="is this a Markscheme"):
        client.rubric("r")
