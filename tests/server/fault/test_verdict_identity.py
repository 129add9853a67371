"""Test verdict identity: judge again if the question changes, not if only the weights change."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from fakes import fast_judge
from fakes.bodies import PROMPT, model_judge, score
from fakes.fast_judge import FastJudge, status
from fakes.load import send_all

Serve = Callable[..., str]
TEXTS = ["It is blue.", "It is red."]
CRITERIA = [
    {"text": "It names a colour.", "points": 3},
    {"text": "It gives a reason.", "points": 1},
]


def rubric(url: str, criteria: list[dict[str, Any]], prompt: str = PROMPT) -> str:
    answer = httpx.post(
        f"{url}/v1/rubrics", json={"prompt": prompt, "criteria": criteria}, verify=False, timeout=60
    )
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


@pytest.fixture
def settings(judge: FastJudge) -> dict[str, Any]:
    return model_judge(judge.url, judge_revision="r1")


@pytest.fixture
def paid(serve: Serve, settings: dict[str, Any], judge: FastJudge) -> str:
    """Start a service that already has the usual verdicts; count judge calls from here on."""
    url = serve(**settings)
    assert send_all([score(url, rubric(url, CRITERIA), TEXTS)])[0].rewards == [1.0, 1.0]
    assert judge.count == 2
    judge.forget()
    return url


@pytest.mark.parametrize(
    "change",
    [
        {"judge_revision": "r2"},
        {"judge_model": "another"},
        {"judge_verifier_temperature": 0.5},
        {"judge_hardening": True},
        {"judge_evidence": True},
        {"judge_max_response_tokens": 100},
    ],
    ids=lambda c: next(iter(c)),
)
@pytest.mark.usefixtures("paid")
def test_another_judge_judges_anew(
    change: dict[str, Any], serve: Serve, settings: dict[str, Any], judge: FastJudge
) -> None:
    judge.met = lambda criterion, answer: criterion in [c["text"] for c in CRITERIA]
    url = serve(**(settings | change))
    assert send_all([score(url, rubric(url, CRITERIA), TEXTS)])[0].rewards == [1.0, 1.0]
    assert judge.count == 2


@pytest.mark.usefixtures("paid")
def test_the_same_judge_elsewhere_does_not(
    serve: Serve, settings: dict[str, Any], judge: FastJudge
) -> None:
    """Its revision says that it is the same; where it is reached and how fast is no matter."""
    url = serve(
        **(
            settings
            | {
                "judge_timeout_s": 5,
                "judge_concurrency": 3,
                "judge_rubricator_temperature": 0.1,
                "judge_base_url": judge.url.replace("127.0.0.1", "localhost"),
            }
        )
    )
    assert send_all([score(url, rubric(url, CRITERIA), TEXTS)])[0].rewards == [1.0, 1.0]
    assert judge.count == 0


@pytest.mark.parametrize(
    ("change", "calls"),
    [
        ("prompt", 2),
        ("criterion text", 2),
        ("response", 1),
        ("verify mode", 1),
        ("points", 0),
        ("criterion order", 0),
        ("rubric id", 0),
        ("group and rollout ids", 0),
        ("white space", 0),
    ],
)
def test_what_is_asked_makes_the_verdict(
    change: str, calls: int, paid: str, judge: FastJudge
) -> None:
    url = paid
    criteria, texts, prompt, more = CRITERIA, TEXTS, PROMPT, dict[str, Any]()
    match change:
        case "prompt":
            prompt = "Which colour is the sea?"
        case "criterion text":
            criteria = [CRITERIA[0], {"text": "It gives a good reason.", "points": 1}]
        case "response":
            texts = [TEXTS[0], "It is green."]
        case "verify mode":
            more["verify"] = "group"
        case "points":
            criteria = [c | {"points": 5 - c["points"]} for c in CRITERIA]
        case "criterion order":
            criteria = CRITERIA[::-1]
        case "rubric id":
            criteria = [c | {"category": "general_reasoning"} for c in CRITERIA]
        case "group and rollout ids":
            more["run"] = {"id": "another run", "step": 5}
        case "white space":
            texts = [f"  {text}\n" for text in TEXTS]
    answer = send_all([score(url, rubric(url, criteria, prompt), texts, prompt=prompt, **more)])[0]
    assert answer.rewards == [1.0, 1.0]
    assert judge.count == calls


def test_one_criterion_edited_is_asked_alone(paid: str, judge: FastJudge) -> None:
    edited = [CRITERIA[0], {"text": "It gives a good reason.", "points": 1}]
    send_all([score(paid, rubric(paid, edited), TEXTS)])
    assert [[words for _, words in call.criteria] for call in judge.calls] == [
        ["It gives a good reason."]
    ] * 2


def test_criteria_may_be_asked_in_several_calls(serve: Serve, judge: FastJudge) -> None:
    url = serve(**model_judge(judge.url, judge_max_criteria=2))
    judge.met = lambda criterion, answer: criterion[-2] in "024"
    criteria = [{"text": f"It meets demand {i}.", "points": 1} for i in range(5)]
    assert send_all([score(url, rubric(url, criteria), ["x"])])[0].rewards == [pytest.approx(3 / 5)]
    assert sorted(len(call.criteria) for call in judge.calls) == [1, 2, 2]


@pytest.mark.parametrize(
    "failure", [status(401), fast_judge.GARBAGE, fast_judge.WRONG_IDS], ids=lambda r: r.kind
)
def test_what_is_not_known_is_never_kept(
    failure: fast_judge.Reply, serve: Serve, judge: FastJudge
) -> None:
    url = serve(**model_judge(judge.url))
    rubric_id = rubric(url, CRITERIA)
    judge.mode = failure
    assert send_all([score(url, rubric_id, TEXTS)])[0].rewards == [None, None]
    judge.mode = fast_judge.OK
    judge.forget()
    again = send_all([score(url, rubric_id, TEXTS)])[0]
    assert again.rewards == [1.0, 1.0]
    assert again.json["usage"]["cached_verdicts"] == 0
    assert judge.count == 2
