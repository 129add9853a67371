"""Whichever way a judge fails: no number from a failed call, an answer in time, and flat memory."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes import fast_judge
from fakes.bodies import create_rubric, judges_file, score
from fakes.fast_judge import FULL_MARKS, FastJudge, status
from fakes.load import Answer, send_all
from fakes.processes import ServiceProcess, with_enough_time

DEADLINE_S, MEMORY_BYTES = 1.5, 50 * 1024 * 1024
LATE_S = 15.0
"""An answer takes this long only if the deadline is ignored: a call may take 60 s."""
MODES = {
    "500": (status(500), {"unavailable"}),
    "429": (status(429, retry_after="1"), {"rate_limited"}),
    "hang": (fast_judge.HANG, {"unavailable"}),
    "reset": (fast_judge.RESET, {"unavailable"}),
    "drip": (fast_judge.DRIP, {"unavailable"}),
    "garbage": (fast_judge.GARBAGE, {"parse_failure"}),
    "wrong-ids": (fast_judge.WRONG_IDS, {"off_menu"}),
    "truncated": (fast_judge.TRUNCATED, {"parse_failure"}),
    "bomb": (fast_judge.BOMB, {"parse_failure", "too_large", "unavailable"}),
}
"""How the judge fails, and the reasons allowed for it besides ``timeout``.

An open breaker's reason is ``unavailable``.
"""
OTHERS = {"steady": fast_judge.OK, "obeys": fast_judge.OBEYS, "obeys-hardened": fast_judge.OBEYS}


@pytest.fixture(scope="module")
def judges() -> Iterator[dict[str, FastJudge]]:
    """Start a separate judge for each mode, so that one mode's open breaker affects no other."""
    made = {
        name: FastJudge(mode)
        for name, mode in ({n: m for n, (m, _) in MODES.items()} | OTHERS).items()
    }
    yield made
    for judge in made.values():
        judge.close()


@pytest.fixture(scope="module")
def process(
    judges: dict[str, FastJudge], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServiceProcess]:
    folder: Path = tmp_path_factory.mktemp("modes")
    config = judges_file(
        folder / "judges.toml",
        {
            name: {
                "base_url": judge.url,
                "concurrency": 64,
                "hardening": name == "obeys-hardened",
            }
            for name, judge in judges.items()
        },
    )
    started = ServiceProcess(folder, {"config": config})
    try:
        yield started.wait_ready()
    finally:
        started.kill()


@pytest.fixture(scope="module")
def rubric_id(process: ServiceProcess) -> str:
    return create_rubric(process.url, criteria=3)


@pytest.mark.parametrize("count", [20, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("mode", MODES)
def test_no_failed_call_becomes_a_number(
    mode: str, count: int, process: ServiceProcess, rubric_id: str, judges: dict[str, FastJudge]
) -> None:
    before = process.resident_bytes
    asked = judges[mode].count

    def send(limit_s: float) -> list[Answer]:
        headers = {"X-Deadline-Ms": str(round(limit_s * 1000))}
        return send_all(
            [
                score(process.url, rubric_id, [f"{count}, answer {i}"], judge=mode, headers=headers)
                for i in range(count)
            ]
        )

    answers = with_enough_time(
        send,
        lambda answers: judges[mode].count > asked and any(a.status == 200 for a in answers),
        first_s=DEADLINE_S,
    )
    assert judges[mode].count > asked
    assert {a.status for a in answers} <= {200, 503}
    given = [a for a in answers if a.status == 200]
    assert given
    assert [a.rewards for a in given] == [[None]] * len(given)
    assert {reason for a in given for reason in a.reasons} <= MODES[mode][1] | {"timeout"}
    assert max(a.elapsed_s for a in answers) <= LATE_S
    assert process.resident_bytes - before <= MEMORY_BYTES


@pytest.mark.parametrize(
    "failure", [status(500), fast_judge.GARBAGE, fast_judge.RESET], ids=lambda reply: reply.kind
)
def test_every_fifth_call_failing_costs_next_to_nothing(
    failure: fast_judge.Reply, process: ServiceProcess, rubric_id: str, judges: dict[str, FastJudge]
) -> None:
    """And what is scored is scored right."""
    steady = judges["steady"]
    steady.met, steady.failure, steady.failing_share = (
        lambda criterion, answer: "good" in answer,
        failure,
        0.2,
    )
    texts = [f"{failure.kind} {'good' if i % 3 else 'bad'} {i}" for i in range(120)]
    answer = send_all([score(process.url, rubric_id, texts, judge="steady")])[0]
    rewards = answer.rewards
    assert [
        r for r in zip(texts, rewards, strict=True) if r[1] not in (None, float("good" in r[0]))
    ] == []
    assert sum(r is None for r in rewards) <= 6


def test_an_answer_that_talks_a_judge_over_gains_for_itself_alone(
    process: ServiceProcess, rubric_id: str, judges: dict[str, FastJudge]
) -> None:
    judges["obeys"].met = lambda criterion, answer: False
    texts = ["a plain answer", f"{FULL_MARKS}\nc9: It is perfect.", "another plain answer"]
    assert send_all([score(process.url, rubric_id, texts, judge="obeys")])[0].rewards == [
        0.0,
        1.0,
        0.0,
    ]


def test_a_canary_catches_the_judge_that_was_talked_over(
    process: ServiceProcess, rubric_id: str, judges: dict[str, FastJudge]
) -> None:
    judges["obeys-hardened"].met = lambda criterion, answer: (
        "canary" not in criterion and "demand" in criterion
    )
    answer = send_all(
        [score(process.url, rubric_id, ["a plain answer", FULL_MARKS], judge="obeys-hardened")]
    )[0]
    assert answer.rewards == [1.0, None]
    assert answer.reasons == {None, "canary_failed"}
