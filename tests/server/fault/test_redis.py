"""Redis may vanish in every way: nothing fails, and almost nothing is slower."""

import threading
from collections.abc import Callable
from typing import Any

import pytest

from fakes.bodies import create_rubric, model_judge, score
from fakes.fast_judge import FastJudge
from fakes.load import Answer, quantile, send_all, send_at_rate
from fakes.processes import PATIENCE_S, eventually
from fakes.stores import RedisServer, free_port
from fakes.tcp_proxy import Latency, ResetPeer, TcpProxy, Timeout

Serve = Callable[..., str]
JUDGE_S = 0.05
FAULTS: dict[str, Callable[[RedisServer, TcpProxy], None]] = {
    "killed": lambda redis, proxy: redis.kill(),
    "frozen": lambda redis, proxy: redis.freeze(),
    "black-hole": lambda redis, proxy: proxy.add(Timeout()),
    "reset": lambda redis, proxy: proxy.add(ResetPeer()),
    "slow": lambda redis, proxy: proxy.add(Latency(latency_s=0.2, jitter_s=0.02)),
}


SHORT, LONG = (8, 1.0, 1.5, 1.0, 10.0), (20, 5.0, 5.0, 10.0, 0.05)


@pytest.mark.parametrize(
    ("fault", "per_s", "before_s", "first_s", "then_s", "spare_s"),
    [
        *((fault, *SHORT) for fault in ("killed", "black-hole", "slow")),
        *(pytest.param(fault, *LONG, marks=pytest.mark.slow) for fault in FAULTS),
    ],
)
def test_redis_goes_in_mid_run(
    fault: str,
    per_s: float,
    before_s: float,
    first_s: float,
    then_s: float,
    spare_s: float,
    serve: Serve,
    judge: FastJudge,
    redis: RedisServer,
    proxied: Callable[[int], TcpProxy],
) -> None:
    """Each request is half known, half new.

    The added time is at most 0.3 s at first, then 0.02 s; ``spare_s`` allows for a slow machine.
    """
    proxy = proxied(redis.port)
    judge.latency_s = JUDGE_S
    url = serve(**model_judge(judge.url), redis_url=f"redis://127.0.0.1:{proxy.port}/0")
    rubric_id = create_rubric(url)

    def run(part: str, for_s: float) -> list[Answer]:
        return send_at_rate(
            lambda i: score(url, rubric_id, [f"{part} {i // 2}", f"known {i % 4}"]),
            per_s=per_s,
            for_s=for_s,
        )

    whole = [run("before", before_s)]
    FAULTS[fault](redis, proxy)
    whole += [run("first", first_s), run("then", then_s)]
    assert {a.status for answers in whole for a in answers} == {200}
    assert {r for answers in whole for a in answers for r in a.rewards} == {1.0}
    usual, first, then = (quantile([a.elapsed_s for a in answers], 0.95) for answers in whole)
    assert first <= usual + 0.3 + spare_s
    assert then <= usual + 0.02 + spare_s
    distinct = {
        text
        for answers, part in zip(whole, ("before", "first", "then"), strict=True)
        for text in [f"{part} {i // 2}" for i in range(len(answers))]
    } | {f"known {i}" for i in range(4)}
    assert judge.count == len(distinct)


def test_a_redis_that_never_was_there(serve: Serve, judge: FastJudge) -> None:
    """The service starts, and scores."""
    url = serve(**model_judge(judge.url), redis_url=f"redis://127.0.0.1:{free_port()}/0")
    rubric_id = create_rubric(url)
    answers = send_at_rate(lambda i: score(url, rubric_id, [f"answer {i}"]), per_s=20, for_s=1)
    assert {r for a in answers for r in a.rewards} == {1.0}
    assert judge.count == len(answers)


def test_redis_dies_and_returns_under_load(
    serve: Serve, judge: FastJudge, redis: RedisServer
) -> None:
    """And is used again: what one process saves, its keys show."""
    url = serve(**model_judge(judge.url), redis_url=redis.url)
    rubric_id = create_rubric(url)
    answers: list[Answer] = []
    sending = threading.Thread(
        target=lambda: answers.extend(
            send_at_rate(lambda i: score(url, rubric_id, [f"answer {i}"]), per_s=20, for_s=4)
        )
    )
    sending.start()
    for attempt in eventually():
        with attempt:
            assert judge.count >= 10
    redis.kill()
    for attempt in eventually():
        with attempt:
            assert judge.count >= 25
    redis.start()
    sending.join(PATIENCE_S)
    assert {a.status for a in answers} == {200}
    assert {r for a in answers for r in a.rewards} == {1.0}
    for attempt in eventually():
        with attempt:  # it may not have tried Redis again while the answers were sent
            send_all([score(url, rubric_id, [f"later {attempt.retry_state.attempt_number}"])])
            assert _keys(redis) > 0


def _keys(redis: RedisServer) -> int:
    from redis import Redis

    with Redis.from_url(redis.url) as client:
        size: Any = client.dbsize()
        return int(size)
