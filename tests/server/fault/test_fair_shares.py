"""Test that one team's many, poisonous or costly requests hardly slow another team."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from fakes import fast_judge
from fakes.bodies import model_judge, score
from fakes.fast_judge import Call, FastJudge, Reply, status
from fakes.load import Answer, Post, in_background, quantile, send_all, send_at_rate
from fakes.processes import PATIENCE_S, eventually

OPERATOR = {"Authorization": "Bearer the operator's own key"}
POISON = "make it fail"
CALL_S = 0.4


def serve_teams(start: Any, judge: FastJudge, **settings: Any) -> tuple[str, list[dict[str, str]]]:
    """Start the service with two teams; return its URL and each team's headers."""
    url = start(
        **model_judge(judge.url),
        api_key="the operator's own key",
        key_pepper="a pepper for the tests",
        **settings,
    ).url
    headers = []
    for name in ("many", "one"):
        for path, body in (
            ("teams", {"name": name}),
            ("keys", {"team": name, "scopes": ["score", "induce"]}),
        ):
            answer = httpx.post(f"{url}/v1/{path}", json=body, headers=OPERATOR, timeout=30)
            assert answer.status_code == 201, answer.text
        headers.append({"Authorization": f"Bearer {answer.json()['key']}"})
    return url, headers


def create(url: str, headers: dict[str, str], *checks: dict[str, Any]) -> str:
    criteria = [
        {"text": f"Demand {i}.", "points": 1} | ({"check": check} if check else {})
        for i, check in enumerate(checks or ({},))
    ]
    answer = httpx.post(
        f"{url}/v1/rubrics", json={"prompt": "p", "criteria": criteria}, headers=headers, timeout=30
    )
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def one_after_another(posts: list[Post]) -> list[Answer]:
    return [answer for post in posts for answer in send_all([post])]


@pytest.mark.timed
def test_one_rollout_behind_another_teams_many_waits_for_one_call(
    start: Any, judge: FastJudge
) -> None:
    judge.latency_s = CALL_S
    url, (many, one) = serve_teams(start, judge, judge_concurrency=8)
    rubrics = create(url, many), create(url, one)
    sending, _ = in_background(
        [score(url, rubrics[0], [f"answer {i}" for i in range(120)], prompt="p", headers=many)]
    )
    for attempt in eventually():
        with attempt:
            assert judge.in_flight == 8
    answer = send_all([score(url, rubrics[1], ["an answer"], prompt="p", headers=one)])[0]
    assert answer.rewards == [1.0]
    assert answer.elapsed_s <= 10 * CALL_S  # behind all of them it would take 16 calls
    sending.join(PATIENCE_S)


def test_poisonous_rollouts_of_one_team_do_not_make_the_judge_unavailable(
    start: Any, judge: FastJudge
) -> None:
    def poisoned(call: Call) -> Reply:
        return status(500) if POISON in call.text else fast_judge.OK

    judge.mode, judge.latency_s = poisoned, CALL_S / 2
    url, (many, one) = serve_teams(start, judge)
    rubrics = create(url, many), create(url, one)
    numbers = iter(range(1000))

    def usual() -> Post:
        return score(url, rubrics[1], [f"answer {next(numbers)}"], prompt="p", headers=one)

    alone = one_after_another([usual() for _ in range(12)])
    texts = [f"{POISON} {i}" for i in range(10)]
    sending, poisonous = in_background([score(url, rubrics[0], texts, prompt="p", headers=many)])
    beside = one_after_another([usual() for _ in range(12)])
    sending.join(PATIENCE_S)
    assert poisonous[0].reasons == {"unavailable"}
    assert [answer.rewards for answer in beside] == [[1.0]] * 12
    middle = [
        quantile([answer.elapsed_s for answer in answers], 0.5) for answers in (alone, beside)
    ]
    assert middle[1] <= middle[0] + 10 * CALL_S
    canned = [
        call for call in judge.calls if "answer" not in call.answers[0] and POISON not in call.text
    ]
    assert 1 <= len(canned) <= 5
    figures = httpx.get(f"{url}/metrics", timeout=30).text
    assert (
        f'markscheme_canned_questions_total{{judge="default",outcome="answered"}} {len(canned)}.0'
        in figures
    )


@pytest.mark.timed
def test_costly_checks_keep_their_deadline_and_hold_nobody_up(start: Any, judge: FastJudge) -> None:
    url, (many, one) = serve_teams(start, judge)
    costly = create(
        url, many, *({"kind": "regex", "pattern": f"(?:.{{0,30}}a){{{20 + i}}}c"} for i in range(8))
    )
    usual = create(url, one, {"kind": "max_words", "value": 3})
    texts = ["ab" * (10_000 + i) for i in range(8)]
    sending, answers = in_background(
        [score(url, costly, texts, prompt="p", headers=many | {"X-Deadline-Ms": "2000"})]
    )
    beside = send_at_rate(
        lambda i: score(url, usual, [f"answer {i}"], prompt="p", headers=one), per_s=5, for_s=2
    )
    sending.join(PATIENCE_S)
    assert answers[0].elapsed_s <= 20  # all checks take minutes
    assert answers[0].reasons == {"timeout"}
    assert {reward for answer in beside for reward in answer.rewards} == {1.0}
    assert quantile([answer.elapsed_s for answer in beside], 0.5) <= 5


def test_of_a_large_request_no_more_is_claimed_than_is_about_to_be_asked(
    serve: Any, judge: FastJudge, tmp_path: Path
) -> None:
    judge.mode = fast_judge.HELD
    url = serve(**model_judge(judge.url, judge_concurrency=50))
    sending, answers = in_background(
        [score(url, create(url, {}), [f"answer {i}" for i in range(300)], prompt="p")]
    )
    for attempt in eventually():
        with attempt:
            assert judge.in_flight == 50
    with closing(sqlite3.connect(tmp_path / "markscheme.db")) as database:
        assert database.execute("SELECT count(*) FROM claims").fetchone() == (100,)
    judge.release()
    sending.join(PATIENCE_S)
    assert answers[0].rewards == [1.0] * 300


def test_a_batch_of_too_many_verdicts_is_refused_with_the_figures(
    start: Any, judge: FastJudge
) -> None:
    url, (many, _) = serve_teams(start, judge, constants={"markscheme_server.app.MAX_VERDICTS": 20})
    rubric = create(url, many, {}, {}, {})
    refused, taken = send_all(
        [
            score(url, rubric, [f"answer {i}" for i in range(n)], prompt="p", headers=many)
            for n in (7, 6)
        ]
    )
    assert (refused.status, refused.code) == (413, "too_many_verdicts")
    assert "21 verdicts" in refused.json["error"]["message"]
    assert "20" in refused.json["error"]["message"]
    assert taken.rewards == [1.0] * 6
