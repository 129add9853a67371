"""Test the caller's deadline: what is undecided by then is null, and the answer still comes."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from fakes import fast_judge
from fakes.bodies import PROMPT, create_rubric, induce, model_judge, score
from fakes.fast_judge import FastJudge
from fakes.load import Answer, send_all
from fakes.processes import eventually, with_enough_time
from markscheme import Client, ScoreBatch
from markscheme.errors import DeadlineExceeded

Serve = Callable[..., str]

LATE_S = 20.0
"""An answer takes this much longer only if the deadline is ignored: a call may take 60 s."""


def within(seconds: float) -> dict[str, str]:
    return {"X-Deadline-Ms": str(round(seconds * 1000))}


def has_a_reward(answer: Answer) -> bool:
    return any(reward is not None for reward in answer.rewards)


def test_what_hangs_is_a_timeout_and_the_rest_is_kept(serve: Serve, judge: FastJudge) -> None:
    url = serve(**model_judge(judge.url))
    rubric_id = create_rubric(url)
    judge.mode = lambda call: fast_judge.HANG if "slow" in call.answers[0] else fast_judge.OK

    def send(limit_s: float) -> Answer:
        texts = ["one", "slow", "two"]
        answer = send_all([score(url, rubric_id, texts, headers=within(limit_s))])[0]
        assert answer.elapsed_s <= limit_s + LATE_S
        return answer

    answer = with_enough_time(
        send, lambda answer: sum(r is not None for r in answer.rewards) == 2, first_s=2
    )
    assert [(r["reward"], r["reason"]) for r in answer.json["groups"][0]["rollouts"]] == [
        (1.0, None),
        (None, "timeout"),
        (1.0, None),
    ]
    for attempt in eventually():
        with attempt:
            assert judge.in_flight == 0


def test_expired_work_is_dropped_before_it_is_sent(serve: Serve, judge: FastJudge) -> None:
    """Calls run one at a time: at most two fit the deadline, and the rest are not sent."""
    url = serve(**model_judge(judge.url, judge_concurrency=1))
    rubric_id = create_rubric(url)

    def send(limit_s: float) -> Answer:
        judge.latency_s, before = limit_s / 2.5, judge.count
        texts = [f"answer {i} in {limit_s} s" for i in range(10)]
        answer = send_all([score(url, rubric_id, texts, headers=within(limit_s))])[0]
        assert answer.elapsed_s <= limit_s + LATE_S
        for attempt in eventually():
            with attempt:
                assert judge.in_flight == 0
        assert judge.count - before <= 3
        return answer

    answer = with_enough_time(send, has_a_reward, first_s=2.5)
    assert 1 <= sum(r == 1.0 for r in answer.rewards) <= 2
    assert answer.reasons == {None, "timeout"}


def test_units_that_were_not_begun_are_timeouts_too(serve: Serve, judge: FastJudge) -> None:
    url = serve(**model_judge(judge.url))
    rubric_id = create_rubric(url)
    judge.mode = fast_judge.HANG
    answer = send_all(
        [score(url, rubric_id, [f"answer {i}" for i in range(200)], headers=within(0.8))]
    )[0]
    assert answer.elapsed_s <= LATE_S
    assert (answer.status, answer.rewards, answer.reasons) == (200, [None] * 200, {"timeout"})
    assert judge.count <= 32  # the judge's places


def test_an_induction_keeps_to_it_too(serve: Serve, judge: FastJudge) -> None:
    url = serve(**model_judge(judge.url))
    judge.mode = fast_judge.HANG
    answer = send_all([induce(url, headers=within(0.7))])[0]
    assert (answer.status, answer.code) == (503, "timeout")
    assert answer.elapsed_s <= LATE_S


def test_a_streamed_answer_ends_in_time_and_in_order(serve: Serve, judge: FastJudge) -> None:
    url = serve(**model_judge(judge.url))
    rubric_id = create_rubric(url)
    judge.mode = lambda call: fast_judge.HANG if "slow" in call.answers[0] else fast_judge.OK

    def send(limit_s: float) -> list[Any]:
        headers = within(limit_s) | {"Accept": "application/x-ndjson"}
        answer = send_all([score(url, rubric_id, ["quick", "slow"], headers=headers)])[0]
        assert answer.elapsed_s <= limit_s + LATE_S
        return [json.loads(line) for line in answer.content.splitlines()]

    lines = with_enough_time(
        send, lambda lines: lines[-1].get("counts", {}).get("scored") == 1, first_s=3
    )
    assert lines[-1]["object"] == "score.summary"
    assert lines[-1]["counts"] == {"rollouts": 2, "scored": 1, "unscored": 1}


@pytest.mark.parametrize("value", ["soon", "-5", "1.5", "NaN", "99999999999999999999999"])
def test_what_is_no_time_is_refused(value: str, serve: Serve, judge: FastJudge) -> None:
    url = serve(**model_judge(judge.url))
    rubric_id = create_rubric(url)
    answer = send_all([score(url, rubric_id, ["x"], headers={"X-Deadline-Ms": value})])[0]
    assert answer.status in (400, 422)
    assert answer.json["request_id"]
    assert judge.count == 0


def test_the_sdk_passes_its_time_on(serve: Serve, judge: FastJudge) -> None:
    url = serve(**model_judge(judge.url))
    rubric_id = create_rubric(url)
    judge.mode = fast_judge.HANG
    group = {
        "id": "g",
        "prompt": PROMPT,
        "rubric_id": rubric_id,
        "rollouts": [{"id": "a", "text": "x"}],
    }
    with Client(url) as client:

        def send(limit_s: float) -> ScoreBatch | None:
            try:
                return client.score([group], deadline_s=limit_s)
            except DeadlineExceeded:  # the answer was on its way
                return None

        batch = with_enough_time(send, lambda batch: batch is not None, first_s=4)
    assert batch is not None
    assert [(r.reward, r.reason) for r in batch.groups[0].rollouts] == [(None, "timeout")]


def test_ids_and_metrics_are_there(serve: Serve, judge: FastJudge) -> None:
    """A request's id comes back; every metric of ours bears the service's name."""
    url = serve(**model_judge(judge.url))
    rubric_id = create_rubric(url)
    answer = send_all([score(url, rubric_id, ["x"], headers={"X-Request-ID": "step-7"})])[0]
    assert answer.headers["X-Request-ID"] == "step-7"
    said = httpx.get(f"{url}/metrics", verify=False, timeout=60)
    assert said.status_code == 200
    names = {line.split()[2] for line in said.text.splitlines() if line.startswith("# TYPE ")}
    assert len(names) >= 5
    assert [
        name for name in names if not name.startswith(("markscheme_", "process_", "python_"))
    ] == []
