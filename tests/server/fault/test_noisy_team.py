"""A team that sends ten times what it may is hardly felt by the others."""

import statistics
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import httpx
import pytest

from fakes.bodies import model_judge, rubric_body, score
from fakes.fast_judge import FastJudge
from fakes.load import Answer, Post, quantile, send_at_rate
from fakes.stores import RedisServer
from markscheme_server.accounts.rate_limit import MIN_BURST, SHORT_WINDOW_S

OPERATOR = {"Authorization": "Bearer the operator's own key"}
TIMES = 10
USUAL_PER_S, PHASE_S, ROUNDS = 8.0, 8.0, 5
P95_MOST = 1.25


@pytest.mark.timed
@pytest.mark.slow
@pytest.mark.parametrize("rpm", [60, 300])
def test_a_noisy_team_hardly_slows_another(
    rpm: int,
    start: Any,
    judge: FastJudge,
    database: str,
    redis: RedisServer,
    record_property: Callable[[str, str], None],
) -> None:
    """Both teams send the same requests, of four new answers each.

    Phases with and without the noise take turns. The test compares the other team's p95 in the two.
    The load generator shares the service's cores.
    """
    judge.latency_s = 0.05
    url = start(
        **model_judge(judge.url),
        database_url=database,
        redis_url=redis.url,
        api_key="the operator's own key",
        key_pepper="a pepper for the tests",
    ).url
    usual, noisy = team(url, "usual"), team(url, "noisy")
    assert (
        httpx.patch(
            f"{url}/v1/teams/noisy", json={"rpm": rpm}, headers=OPERATOR, timeout=30
        ).status_code
        == 200
    )
    send_at_rate(usual, per_s=USUAL_PER_S, for_s=3)
    noise = send_at_rate(noisy, per_s=20, for_s=SHORT_WINDOW_S)
    assert [answer.status for answer in noise].count(200) <= 2.5 * max(
        MIN_BURST, rpm / 10
    )  # not a minute's worth
    ratios, noise = [], []
    with ThreadPoolExecutor(1) as pool:
        for _ in range(ROUNDS):
            alone = p95(send_at_rate(usual, per_s=USUAL_PER_S, for_s=PHASE_S))
            sending = pool.submit(send_at_rate, noisy, per_s=TIMES * rpm / 60, for_s=PHASE_S)
            beside = p95(send_at_rate(usual, per_s=USUAL_PER_S, for_s=PHASE_S))
            noise += sending.result()
            ratios.append(beside / alone)
    refused = [answer for answer in noise if answer.status == 429]
    assert {(answer.status, answer.code) for answer in noise if answer.status != 200} == {
        (429, "rate_limited")
    }
    assert len(noise) - len(refused) <= rpm * 1.5
    assert quantile([answer.elapsed_s for answer in refused], 0.5) <= 0.02
    record_property(
        "figure",
        f"{rpm} a minute, {TIMES} times that sent: another's p95 x {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f})",
    )
    assert statistics.median(ratios) <= P95_MOST, ratios


def team(url: str, name: str) -> Callable[[int], Post]:
    """Create a team and return its requests: unjudged rollouts, scored by the team's own rubric."""
    for path, body in (
        ("teams", {"name": name}),
        ("keys", {"team": name, "scopes": ["score", "induce"]}),
    ):
        answer = httpx.post(f"{url}/v1/{path}", json=body, headers=OPERATOR, timeout=30)
        assert answer.status_code == 201, answer.text
    own = {"Authorization": f"Bearer {answer.json()['key']}"}
    rubric = httpx.post(
        f"{url}/v1/rubrics", json=rubric_body(criteria=6), headers=own, timeout=30
    ).json()["id"]
    numbers = count()
    return lambda _: score(
        url, rubric, [f"answer {next(numbers)}, {i}" for i in range(4)], headers=own
    )


def p95(answers: list[Answer]) -> float:
    assert {answer.status for answer in answers} == {200}
    return quantile([answer.elapsed_s for answer in answers], 0.95)
