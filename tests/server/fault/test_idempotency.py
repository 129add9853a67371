"""Test ``Idempotency-Key`` on calls that create: done once, the answer repeated byte for byte."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from fakes import fast_judge
from fakes.bodies import induce, model_judge, rubric_body
from fakes.fast_judge import FastJudge, status
from fakes.load import Answer, Post, send_all
from fakes.processes import PATIENCE_S, eventually
from fakes.service import running
from fakes.stores import RedisServer, query
from markscheme_server.config import Settings

Serve = Callable[..., str]


def keyed(key: str) -> dict[str, str]:
    return {"Idempotency-Key": key}


def create(url: str, key: str, tag: str = "") -> Post:
    return Post(f"{url}/v1/rubrics", rubric_body(tag=tag), keyed(key))


def until_done(posts: list[Post]) -> list[Answer]:
    """Every post's final answer; one that is told that the first still runs is sent again."""
    answers = send_all(posts)
    for attempt in eventually(every_s=0.2):
        with attempt:
            waiting = [i for i, a in enumerate(answers) if a.status == 409]
            for i, again in zip(waiting, send_all([posts[i] for i in waiting]), strict=True):
                assert answers[i].code == "idempotency_key_running"
                assert int(answers[i].headers["Retry-After"]) >= 1
                answers[i] = again
            assert 409 not in {a.status for a in answers}
    return answers


@pytest.mark.parametrize("kind", ["induce", "create"])
def test_many_at_once_are_one(kind: str, serve: Serve, judge: FastJudge, database: str) -> None:
    settings = model_judge(judge.url, database_url=database)
    urls = [serve(**settings) for _ in range(2)]
    judge.latency_s = 0.2
    posts = [
        induce(urls[i % 2], headers=keyed("k")) if kind == "induce" else create(urls[i % 2], "k")
        for i in range(50)
    ]
    answers = until_done(posts)
    assert {a.status for a in answers} <= {200, 201}
    assert len({a.status for a in answers}) == 1
    assert len({a.content for a in answers}) == 1
    assert sum("Idempotent-Replayed" not in a.headers for a in answers) == 1
    assert judge.count == (1 if kind == "induce" else 0)
    assert query(database, "SELECT count(*) FROM rubrics") == [(1,)]
    assert query(database, "SELECT count(*) FROM idempotency_keys WHERE status IS NOT NULL") == [
        (1,)
    ]


def test_another_body_is_refused(serve: Serve) -> None:
    url = serve()
    first = send_all([create(url, "k")])[0]
    refused = send_all([create(url, "k", f" {i}") for i in range(20)])
    assert {(a.status, a.code) for a in refused} == {(422, "idempotency_key_reused")}
    again = send_all([create(url, "k")])[0]
    assert (again.status, again.content, again.headers["Idempotent-Replayed"]) == (
        201,
        first.content,
        "true",
    )


def test_one_key_on_two_routes_is_two_keys(serve: Serve, judge: FastJudge) -> None:
    url = serve(**model_judge(judge.url))
    assert send_all([create(url, "k")])[0].status == 201
    assert send_all([induce(url, "another prompt", headers=keyed("k"))])[0].status in (200, 201)


def test_the_first_still_running_is_said(serve: Serve, judge: FastJudge) -> None:
    url = serve(**model_judge(judge.url))
    judge.mode = fast_judge.HELD
    answers: list[Answer] = []
    first = threading.Thread(
        target=lambda: answers.extend(send_all([induce(url, headers=keyed("k"))]))
    )
    first.start()
    for attempt in eventually():
        with attempt:
            assert judge.in_flight == 1
    second, other = send_all(
        [induce(url, headers=keyed("k")), induce(url, "other prompt", headers=keyed("k"))]
    )
    assert (second.status, second.code) == (409, "idempotency_key_running")
    assert int(second.headers["Retry-After"]) >= 1
    assert (other.status, other.code) == (422, "idempotency_key_reused")
    judge.release()
    first.join(PATIENCE_S)
    third = send_all([induce(url, headers=keyed("k"))])[0]
    assert third.content == answers[0].content
    assert judge.count == 1


def test_a_failure_of_ours_is_not_kept(serve: Serve, judge: FastJudge) -> None:
    """A trainer must be able to get its rubric later, with the same key."""
    url = serve(**model_judge(judge.url))
    judge.mode = status(401)
    failed = send_all([induce(url, headers=keyed("k"))])[0]
    assert failed.status == 502
    judge.mode = fast_judge.OK
    made = send_all([induce(url, headers=keyed("k"))])[0]
    assert made.status in (200, 201)
    assert "Idempotent-Replayed" not in made.headers


def test_a_refused_body_keeps_no_key(serve: Serve) -> None:
    """Nothing began: the caller may mend the body and use the key."""
    url = serve()
    bad = send_all([Post(f"{url}/v1/rubrics", {"prompt": "p", "criteria": []}, keyed("k"))])[0]
    assert bad.status == 422
    assert send_all([create(url, "k")])[0].status == 201


@pytest.mark.parametrize("key", ["", "k" * 256, "caf\u00e9"])
def test_a_key_that_is_none_is_refused(key: str, serve: Serve) -> None:
    refused = send_all([create(serve(), key)])[0]
    assert refused.status in (400, 422)
    assert refused.json["request_id"]


def test_it_outlives_the_process_and_the_cache(
    tmp_path: Path, judge: FastJudge, database: str, redis: RedisServer
) -> None:
    settings = Settings(
        _env_file=None,
        home=tmp_path,
        **model_judge(judge.url, database_url=database, redis_url=redis.url),
    )
    with running(settings) as url:
        before = send_all([induce(url, headers=keyed("k-1")), create(url, "k-2")])
    assert {a.status for a in before} <= {200, 201}
    redis.flush()
    judge.forget()
    with running(settings) as url:
        after = send_all([induce(url, headers=keyed("k-1")), create(url, "k-2")])
    assert [(a.status, a.content) for a in after] == [(a.status, a.content) for a in before]
    assert [a.headers.get("Idempotent-Replayed") for a in after] == ["true", "true"]
    assert judge.count == 0
