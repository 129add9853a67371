"""Test the second judge and re-asks: chosen by text, paid once, and no part of a reward."""

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from fakes.judge import ScriptedJudge, answered_texts, verdicts
from fakes.processes import eventually
from markscheme_server import metrics
from markscheme_server.domain.hashing import prompt_key, text_key
from markscheme_server.scoring import shadow
from markscheme_server.scoring.shadow import ShadowService
from markscheme_server.store.assignments import GroupRef
from server.deployment import CALL_USD, Deployment

PROMPT = "Name a colour."
CRITERIA = [
    {"text": "It is good.", "points": 1},
    {"text": "It says said.", "points": 1, "check": {"kind": "contains", "texts": ["said"]}},
]
Start = Callable[..., str]


@pytest.fixture
def second() -> Iterator[ScriptedJudge]:
    scripted = ScriptedJudge()
    yield scripted
    scripted.close()


@pytest.fixture
def serve(deployment: Deployment, second: ScriptedJudge, tmp_path: Path) -> Start:
    """Start services with a second judge; its call costs `CALL_USD`, as the verifier's does."""
    path = tmp_path / "judges.toml"
    path.write_text(
        f'[judges.second]\nbase_url = "{second.url}"\nmodel = "other"\nrevision = "1"\n'
        "price_input = 1000\nprice_cached = 500\nprice_output = 1000\n"
        '[roles]\nshadow = "second"\n'
    )
    return lambda **settings: deployment.start(config=path, judge_revision="1", **settings)


class Team:
    """A team at a service, with a rubric of one criterion for the judge and one for code."""

    def __init__(self, url: str, key: str) -> None:
        self.url, self.key = url, key
        self.rubric = self("POST", "/v1/rubrics", {"prompt": PROMPT, "criteria": CRITERIA})["id"]

    def __call__(self, method: str, path: str, body: Any = None) -> Any:
        answer = httpx.request(
            method,
            self.url + path,
            json=body,
            timeout=60,
            headers={"Authorization": f"Bearer {self.key}"},
        )
        assert answer.status_code < 300, answer.text
        return answer.json()

    def score(self, step: int, texts: Sequence[str], **more: Any) -> Any:
        rollouts = [{"id": f"r{i}", "text": text} for i, text in enumerate(texts)]
        group = {"id": f"g{step}", "prompt": PROMPT, "rubric_id": self.rubric, "rollouts": rollouts}
        return self("POST", "/v1/scores", {"groups": [group], "run": run(step)} | more)

    def group(self) -> Any:
        (listed,) = self("GET", "/v1/runs/run/groups")["data"]
        return self("GET", f"/v1/groups/{listed['id']}")

    def cost(self) -> dict[str, float]:
        buckets = self("GET", "/v1/usage?group_by=role")["data"]
        return {each["role"]: each["cost_usd"] for each in buckets if each["role"]}


def run(step: int) -> dict[str, Any]:
    return {"id": "run", "step": step}


def good(_criterion: str, text: str) -> bool:
    return "good" in text


def by(met: Callable[[str, str], bool]) -> Callable[[dict[str, Any], int], str]:
    return lambda request, _number: verdicts(request, met)


def seen(judge: ScriptedJudge) -> Counter[str]:
    return Counter(text for each in judge.verifications for _, text in answered_texts(each))


def counted() -> Counter[tuple[str, str]]:
    (family,) = metrics.SHADOW.collect()
    return Counter(
        {
            (sample.labels["kind"], sample.labels["outcome"]): int(sample.value)
            for sample in family.samples
        }
    )


def until_counted(expected: dict[tuple[str, str], int], before: Counter[tuple[str, str]]) -> None:
    """Wait for outcomes: the background tasks of the service in this process."""
    for attempt in eventually():
        with attempt:
            assert counted() - before == Counter(expected)


def texts_of(step: int, count: int = 16) -> list[str]:
    return [f"said {'good' if i % 2 else 'bad'} {step}-{i}" for i in range(count)]


def test_a_second_judge_that_disagrees_is_found(
    deployment: Deployment, serve: Start, judge: ScriptedJudge, second: ScriptedJudge
) -> None:
    parts, before = 10, counted()

    def training(_criterion: str, text: str) -> bool:
        return int(re.findall(r"(\d+)-", text)[0]) >= parts or "good" in text

    judge.script, second.script = by(training), by(good)
    team = Team(serve(shadow_share=1.0), deployment.team("red"))
    for step in range(20):
        team.score(step, texts_of(step), verify="group")
    until_counted({("second", "asked"): 320}, before)
    findings = {each["kind"]: each for each in team("GET", "/v1/runs/run/findings")["data"]}
    found = findings["judges_part"]
    assert abs(found["since_step"] - parts) <= 1
    assert "stopped agreeing" in found["sentence"]
    (report,) = [each for each in team("GET", "/v1/judges/report")["data"] if each["agreement"]]
    (both,) = report["agreement"]
    # The criterion that code decides is no question to either judge.
    assert (both["verdicts"], both["agreement"]) == (320, 0.75)
    detail = team("GET", "/v1/runs/run")
    assert detail["second_judge"] == 320


def test_a_judge_that_says_otherwise_when_asked_again_is_found(
    deployment: Deployment, serve: Start, judge: ScriptedJudge
) -> None:
    asked: Counter[str] = Counter()

    def unsure(_criterion: str, text: str) -> bool:
        asked[text] += 1
        return good(_criterion, text) != (asked[text] == 2 and text.endswith(("0", "5")))

    before = counted()
    judge.script = by(unsure)
    team = Team(serve(reask_share=1.0), deployment.team("red"))
    for step in range(20):
        team.score(step, texts_of(step, 10), verify="group")
    until_counted({("again", "asked"): 200}, before)
    findings = {each["kind"]: each for each in team("GET", "/v1/runs/run/findings")["data"]}
    found = findings["noisy"]
    assert (found["values"]["reasked"], found["values"]["flipped"]) == (200, 40)
    (report,) = team("GET", "/v1/judges/report")["data"]
    assert (report["repeats"]["verdicts"], report["repeats"]["flipped"]) == (200, 40)
    # What counts is what the judge said first.
    again = team.score(0, texts_of(0, 10), verify="group")["groups"][0]
    assert [each["reward"] for each in again["rollouts"]] == [0.5, 1.0] * 5


def test_nothing_is_asked_twice_and_its_cost_is_apart(
    deployment: Deployment, serve: Start, judge: ScriptedJudge, second: ScriptedJudge
) -> None:
    judge.script, second.script, before = by(good), by(lambda *_: False), counted()
    url = serve(shadow_share=1.0, reask_share=1.0)
    team = Team(url, deployment.team("red"))
    texts = ["said good", "said bad", "said good"]
    answer = team.score(0, texts)
    # An answer has its own cost only.
    assert answer["usage"]["judge_calls"] == 2
    assert [each["reward"] for each in answer["groups"][0]["rollouts"]] == [1.0, 0.5, 1.0]
    until_counted({("second", "asked"): 3, ("again", "asked"): 3}, before)
    assert seen(second) == {"said good": 1, "said bad": 1}
    assert seen(judge) == {"said good": 2, "said bad": 2}
    assert team.cost() == {
        "verifier": pytest.approx(2 * CALL_USD),
        "shadow": pytest.approx(4 * CALL_USD),
    }
    shown = [(each["second_judge_reward"], each["verdicts"]) for each in team.group()["rollouts"]]
    assert [reward for reward, _ in shown] == [0.5, 0.5, 0.5]
    # Code gave the verdict on the other criterion, not the second judge.
    assert [v["second_judge_met"] for v in shown[0][1]] == [False, None]

    other = Team(serve(shadow_share=1.0, reask_share=1.0), team.key)
    for each in (team, other):
        each.rubric = team.rubric
        each.score(0, texts)
    until_counted(
        {
            ("second", "asked"): 3,
            ("again", "asked"): 3,
            ("second", "known"): 6,
            ("again", "known"): 6,
        },
        before,
    )
    assert (sum(seen(judge).values()), sum(seen(second).values())) == (4, 2)
    page = httpx.get(
        f"{url}/pages/cost", headers={"Authorization": f"Bearer {team.key}"}, timeout=60
    )
    assert page.status_code in (200, 303)


def test_a_share_is_of_the_same_texts_in_every_process(
    deployment: Deployment, serve: Start, judge: ScriptedJudge, second: ScriptedJudge
) -> None:
    judge.script, second.script, before = by(good), by(good), counted()
    texts = texts_of(0, 40)
    team = Team(serve(shadow_share=0.3), deployment.team("red"))
    ref = GroupRef("red", "run", 0, "g", prompt_key([{"role": "user", "content": PROMPT}]))
    chosen = {text for text in texts if shadow._is_chosen(0.3, "second", ref, text_key(text))}
    assert 0 < len(chosen) < len(texts)
    team.score(0, texts)
    until_counted({("second", "asked"): len(chosen)}, before)
    assert seen(second) == dict.fromkeys(chosen, 1)
    # Another step, so that other rows are to be written: the second judge's verdicts are stored.
    other = Team(serve(shadow_share=0.3), team.key)
    other.score(1, texts)
    until_counted({("second", "asked"): 2 * len(chosen)}, before)
    assert seen(second) == dict.fromkeys(chosen, 1)


def test_a_failing_second_judge_changes_no_score(
    deployment: Deployment, serve: Start, judge: ScriptedJudge, second: ScriptedJudge
) -> None:
    judge.script, before = by(good), counted()
    second.script = lambda _request, _number: "no JSON"
    team = Team(serve(shadow_share=1.0), deployment.team("red"))
    scored = team.score(0, ["said good"])["groups"][0]
    assert scored["rollouts"][0]["reward"] == 1.0
    until_counted({("second", "failed"): 1}, before)
    assert team.group()["rollouts"][0]["second_judge_reward"] is None
    # When the step is sent again, the second judge has another chance.
    second.script = by(good)
    team.score(0, ["said good"])
    until_counted({("second", "failed"): 1, ("second", "asked"): 1}, before)
    assert team.group()["rollouts"][0]["second_judge_reward"] == 1.0


def test_no_answer_waits_for_the_second_judge(
    deployment: Deployment, serve: Start, judge: ScriptedJudge, second: ScriptedJudge
) -> None:
    judge.script = by(good)
    second.script = lambda _request, _number: None  # never answers
    team = Team(serve(shadow_share=1.0), deployment.team("red"))
    for step in range(3):
        assert team.score(step, ["said good"])["counts"]["scored"] == 1
    for attempt in eventually():
        with attempt:
            assert second.requests
    second.released.set()


def test_a_spent_budget_stops_the_second_judge_and_not_the_scoring(
    deployment: Deployment, serve: Start, judge: ScriptedJudge, second: ScriptedJudge
) -> None:
    judge.script, second.script, before = by(good), by(good), counted()
    free = {"judge_price_input": 0.0, "judge_price_cached": 0.0, "judge_price_output": 0.0}
    url = serve(shadow_share=1.0, **free)
    team = Team(url, deployment.team("red"))
    deployment.admin(
        url, "PUT", "/v1/teams/red/budget", json={"hard_usd": 2 * CALL_USD, "window": "total"}
    )
    for step in range(6):
        assert team.score(step, [f"said good {step}"])["counts"]["scored"] == 1
        for attempt in eventually():
            with attempt:
                assert (counted() - before).total() == step + 1
    assert counted() - before == {("second", "asked"): 2, ("second", "failed"): 4}
    assert team.cost()["shadow"] == pytest.approx(2 * CALL_USD)


def test_the_judge_that_scored_is_no_second_judge(
    deployment: Deployment, serve: Start, judge: ScriptedJudge, second: ScriptedJudge
) -> None:
    judge.script, second.script, before = by(good), by(good), counted()
    team = Team(serve(shadow_share=1.0), deployment.team("red"))
    team.score(0, ["said good"], judge="second")
    team.score(1, ["said good 1"])
    until_counted({("second", "asked"): 1}, before)
    assert seen(second) == {"said good": 1, "said good 1": 1}


def test_a_share_grows_without_changing_what_it_had() -> None:
    ref = GroupRef("red", "run", 0, "g", "p")
    keys = [f"key {i}" for i in range(1000)]
    chosen = [
        {key for key in keys if shadow._is_chosen(share, "second", ref, key)}
        for share in (0.0, 0.1, 0.5, 1.0)
    ]
    assert chosen[0] == set()
    assert chosen[0] < chosen[1] < chosen[2] < chosen[3] == set(keys)
    assert 60 < len(chosen[1]) < 140
    again = {key for key in keys if shadow._is_chosen(0.1, "again", ref, key)}
    assert again != chosen[1]


class Waiting(ShadowService):
    """Its questions wait for an event."""

    def __init__(self) -> None:
        self._tasks = set()
        self.asked, self.answer, self.done = asyncio.Event(), asyncio.Event(), 0

    def ask(self) -> None:
        self._begin(asyncio.ensure_future(self._wait()))

    async def _wait(self) -> None:
        self.asked.set()
        await self.answer.wait()
        self.done += 1


async def test_a_shutdown_waits_for_questions_under_way_and_then_ends_them() -> None:
    service = Waiting()
    service.ask()
    draining = asyncio.ensure_future(service.drain(60))
    await service.asked.wait()
    assert not draining.done()
    service.answer.set()
    await draining
    assert service.done == 1
    service.answer.clear()
    service.ask()
    await service.drain(0)
    assert (service.done, service._tasks) == (1, set())
