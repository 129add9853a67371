"""Groups whose rollouts arrive one request each, at two services on one database of each kind."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from fakes.judge import ScriptedJudge, offered, verdicts, well_behaved
from fakes.load import Answer, Post, abandon_all, in_background, send_all
from fakes.processes import PATIENCE_S, eventually
from markscheme_server.config import Settings
from markscheme_server.scoring import rollouts
from markscheme_server.store.engine.database import ALL_TEAMS, Database, create_engine
from markscheme_server.store.gathering import GatheringStore
from markscheme_server.store.tables import gathered_rollouts
from server.deployment import Deployment
from server.organisation import OPERATOR

PROMPT = "Which colour is the sky, and why?"
SIZE = 8


def arriving(url: str, number: int, key: str = "g", *, bearer: Any = OPERATOR, **more: Any) -> Post:
    """Build the request of one rollout; `more`: of its group, `rollout` and the request."""
    group = {"key": key, "size": more.pop("size", SIZE), "wait_s": more.pop("wait_s", 60)}
    rollout = {"id": f"r{number}", "text": f"Answer number {number}: blue."}
    body = {
        "group": group,
        "prompt": PROMPT,
        "teacher_responses": ["Blue: air scatters short waves most."],
        "rollout": more.pop("rollout", rollout),
    }
    return Post(f"{url}/v1/rollouts", body | more, {"Authorization": f"Bearer {bearer}"})


def send(post: Post, **headers: str) -> httpx.Response:
    return httpx.post(post.url, json=post.body, headers={**post.headers, **headers}, timeout=60)


@pytest.fixture
def arrived(database_url: str) -> Callable[[], int]:
    """Return a function that counts the rollouts that are stored."""

    async def count() -> int:
        database = Database(
            create_engine(Settings(_env_file=None, database_url=database_url).sqlalchemy_url)
        )
        try:
            async with database.reading(ALL_TEAMS) as connection:
                stored = sa.select(sa.func.count()).select_from(gathered_rollouts)
                return int((await connection.execute(stored)).scalar_one())
        finally:
            await database.close()

    return lambda: asyncio.run(count())


@pytest.fixture
def pair(deployment: Deployment) -> list[str]:
    return [deployment.start(), deployment.start()]


def test_rollouts_that_arrive_alone_at_two_services_are_one_group(
    pair: list[str], judge: ScriptedJudge
) -> None:
    posts = [arriving(pair[i % 2], i) for i in range(SIZE)]
    answers = send_all(posts)
    assert [a.status for a in answers] == [200] * SIZE
    assert [a.json["rollout"]["reward"] for a in answers] == [1.0] * SIZE
    assert [a.json["rollout"]["id"] for a in answers] == [f"r{i}" for i in range(SIZE)]
    assert len({a.json["rubric"]["id"] for a in answers}) == 1
    whole = {"key": "g", "size": SIZE, "received": SIZE, "complete": True, "late": False}
    assert all(a.json["group"] == whole for a in answers)
    # One induction, which saw all of them, and one call a rollout.
    (asked,) = [request for request in judge.requests if not offered(request)]
    assert all(f"Answer number {i}: blue." in str(asked) for i in range(SIZE))
    assert len(judge.requests) == 1 + SIZE
    again = send_all([arriving(pair[1], i) for i in range(SIZE)])
    assert [a.json for a in again] == [a.json for a in answers]
    assert len(judge.requests) == 1 + SIZE


def test_an_answer_is_that_of_a_batch(pair: list[str], judge: ScriptedJudge) -> None:
    """With the same rubric, options and rollouts, in the group mode and with signed rewards."""
    judge.script = lambda request, number: verdicts(
        request, lambda criterion, answer: criterion == "c2" or "number 1" in answer
    )
    bearer = {"Authorization": f"Bearer {OPERATOR}"}
    criteria = [{"text": "It is right.", "points": 2}, {"text": "It is rude.", "points": -1}]
    made = httpx.post(
        f"{pair[0]}/v1/rubrics",
        json={"prompt": PROMPT, "criteria": criteria},
        headers=bearer,
        timeout=60,
    ).json()
    options: dict[str, Any] = {
        "clamp": "signed",
        "verify": "group",
        "score_teachers": True,
        "view": "full",
    }
    teachers = ["Blue: air scatters short waves most."]
    said = [
        {"id": "r0", "text": "Answer number 0: blue.", "truncated": True},
        {"id": "r1", "messages": [{"role": "assistant", "content": "Answer number 1: blue."}]},
    ]
    group = {"prompt": PROMPT, "rubric_id": made["id"], "teacher_responses": teachers}
    batch = httpx.post(
        f"{pair[0]}/v1/scores",
        json={"groups": [group | {"id": "g", "rollouts": said}]} | options,
        headers=bearer,
        timeout=60,
    ).json()["groups"][0]
    calls = len(judge.requests)
    answers = send_all(
        [
            arriving(pair[i], i, size=2, rollout=rollout, rubric_id=made["id"], **options)
            for i, rollout in enumerate(said)
        ]
    )
    assert len(judge.requests) == calls, "the verdicts are stored"
    for answer, rollout in zip(answers, batch["rollouts"], strict=True):
        for verdict in rollout["verdicts"]:
            verdict["cached"] = True
        assert answer.json["rollout"] == rollout
        for shared in ("rubric", "reward_range", "teacher", "error"):
            assert answer.json[shared] == batch[shared]


def test_what_contradicts_its_group_is_a_conflict(pair: list[str], judge: ScriptedJudge) -> None:
    assert send(arriving(pair[0], 0, size=2, wait_s=0)).status_code == 200
    calls = len(judge.requests)
    text = {"id": "r0", "text": "another text"}
    cut_off = {"id": "r0", "text": "Answer number 0: blue.", "truncated": True}
    for code, post in (
        ("group_other_terms", arriving(pair[1], 1, size=3)),
        ("group_other_terms", arriving(pair[1], 1, size=2, prompt="Another?")),
        ("group_other_terms", arriving(pair[1], 1, size=2, verify="group")),
        ("group_other_content", arriving(pair[1], 0, size=2, rollout=text)),
        ("group_other_content", arriving(pair[1], 0, size=2, rollout=cut_off)),
    ):
        answer = send(post)
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, code)
    assert len(judge.requests) == calls
    # The same prompt as messages, and another time to wait, are no contradiction.
    same = arriving(pair[1], 1, size=2, wait_s=1, prompt=[{"role": "user", "content": PROMPT}])
    assert send(same).json()["group"]["late"]
    full = send(arriving(pair[0], 2, size=2))
    assert (full.status_code, full.json()["error"]["code"]) == (409, "group_full")


def test_a_key_is_the_teams_and_the_runs(
    pair: list[str], deployment: Deployment, judge: ScriptedJudge
) -> None:
    red, blue = deployment.team("red"), deployment.team("blue")
    runs: list[dict[str, Any]] = [
        {},
        {"run": {"id": "a", "step": 0}},
        {"run": {"id": "b", "step": 0}},
    ]
    posts = [
        arriving(
            pair[0], 0, size=1, bearer=bearer, rollout={"id": "r", "text": f"{n} {bearer}"}, **run
        )
        for bearer in (red, blue)
        for n, run in enumerate(runs)
    ]
    assert [a.status for a in send_all(posts)] == [200] * 6


def test_after_the_wait_those_that_are_there_are_scored_and_a_late_one_alone(
    pair: list[str], judge: ScriptedJudge
) -> None:
    run: dict[str, Any] = {"run": {"id": "run-7", "step": 3}}
    early = send_all([arriving(pair[i % 2], i, wait_s=1, **run) for i in range(3)])
    progress = {"key": "g", "size": SIZE, "received": 3, "complete": False, "late": False}
    assert [a.json["group"] for a in early] == [progress] * 3
    assert [a.json["rollout"]["reward"] for a in early] == [1.0] * 3
    assert len(judge.requests) == 1 + 3
    late = send_all([arriving(pair[i % 2], i, wait_s=1, **run) for i in (3, 4)])
    assert [a.json["group"] for a in late] == [progress | {"late": True}] * 2
    assert [a.json["rollout"]["reward"] for a in late] == [1.0] * 2
    assert {a.json["rubric"]["id"] for a in late} == {early[0].json["rubric"]["id"]}
    assert len(judge.requests) == 1 + 3 + 2
    again = send_all([arriving(pair[0], i, wait_s=1, **run) for i in range(5)])
    assert [a.json for a in again] == [a.json for a in early + late]
    assert len(judge.requests) == 1 + 3 + 2


def test_a_caller_that_leaves_loses_no_other_its_answer(
    pair: list[str], judge: ScriptedJudge, arrived: Callable[[], int]
) -> None:
    leaving = [arriving(url, number, size=4) for number, url in enumerate(pair)]
    abandon_all(leaving, when=lambda: arrived() == 2)
    answers = send_all([arriving(pair[0], 2, size=4), arriving(pair[1], 3, size=4)])
    assert [a.json["group"]["received"] for a in answers] == [4, 4]
    assert [a.json["rollout"]["reward"] for a in answers] == [1.0, 1.0]
    assert len(judge.requests) == 1 + 4


def test_a_retry_after_a_restart_finds_the_group(
    deployment: Deployment, judge: ScriptedJudge, arrived: Callable[[], int]
) -> None:
    first = deployment.start()
    abandon_all([arriving(first, 0, size=2)], when=lambda: arrived() == 1)
    second = deployment.start()
    answers = send_all([arriving(second, 1, size=2), arriving(second, 0, size=2)])
    assert [a.json["group"]["complete"] for a in answers] == [True, True]
    assert len(judge.requests) == 1 + 2


def test_a_deadline_ends_one_callers_wait_only(pair: list[str], judge: ScriptedJudge) -> None:
    short = send(arriving(pair[0], 0, size=2), **{"X-Deadline-Ms": "300"}).json()
    assert (short["rollout"]["reward"], short["rollout"]["reason"]) == (None, "timeout")
    assert short["group"] == {
        "key": "g",
        "size": 2,
        "received": 1,
        "complete": False,
        "late": False,
    }
    assert judge.requests == []
    answers = send_all([arriving(url, i, size=2) for i, url in enumerate(pair)])
    assert [a.json["rollout"]["reward"] for a in answers] == [1.0, 1.0]


def test_what_is_not_known_is_null_for_all_who_wait_and_asked_again_for_who_comes_again(
    pair: list[str], judge: ScriptedJudge
) -> None:
    judge.script = lambda request, number: 401
    posts = [arriving(pair[i % 2], i, size=4) for i in range(4)]
    answers = send_all(posts)
    assert [a.json["rollout"]["reward"] for a in answers] == [None] * 4
    assert {a.json["rollout"]["reason"] for a in answers} == {"misconfigured"}
    assert {a.json["error"]["code"] for a in answers} == {"misconfigured"}
    assert len(judge.requests) == 1, "one induction failed, whoever waited for it"
    judge.script = lambda request, number: (
        401 if "number 2" in str(request) and offered(request) else well_behaved(request, number)
    )
    rewards: list[float | None] = [1.0, 1.0, None, 1.0]
    answers = send_all(posts)
    # A failed induction is not tried again at once: the group waits until it is.
    for attempt in eventually():
        with attempt:
            answers = send_all(posts)
            assert [a.json["rollout"]["reward"] for a in answers] == rewards
    rubric = answers[0].json["rubric"]
    assert answers[2].json["rollout"]["reason"] == "misconfigured"
    judge.script = well_behaved
    asked = len(judge.requests)
    again = send(posts[2]).json()
    assert again["rollout"]["reward"] == 1.0
    assert again["rubric"] == rubric
    assert not again["group"]["late"]
    assert len(judge.requests) == asked + 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"key": ""},
        {"key": "k" * 201},
        {"key": "a\x00b"},
        {"key": 7},
        {"size": 0},
        {"size": 1025},
        {"size": 10**30},
        {"size": 2.5},
        {"wait_s": -1},
        {"wait_s": 301},
        {"wait_s": "1"},
        {"more": 1},
    ],
)
def test_a_group_that_cannot_be_is_refused(wrong: dict[str, Any], shared_service: str) -> None:
    post = arriving(shared_service, 0)
    answer = send(Post(post.url, post.body | {"group": post.body["group"] | wrong}))
    assert answer.status_code == 422
    assert answer.json()["error"]["param"].startswith("group.")


def test_what_names_nothing_is_refused_before_the_wait(
    pair: list[str], judge: ScriptedJudge
) -> None:
    for status, wrong in (
        (404, {"rubric_id": "rub_none"}),
        (422, {"judge": "nobody"}),
        (422, {"ask_teacher": 1}),
    ):
        answer = send(arriving(pair[0], 0, **wrong))
        assert answer.status_code == status, answer.text
    assert judge.requests == []


def test_a_key_that_may_not_induce_gets_frozen_rubrics_only(
    pair: list[str], deployment: Deployment
) -> None:
    deployment.team("red")
    bearer = deployment._organisation.key("red", "score")
    assert send(arriving(pair[0], 0, bearer=bearer)).status_code == 403
    frozen = send(arriving(pair[0], 0, bearer=bearer, size=1, reuse="frozen")).json()
    assert frozen["rollout"]["reason"] == "no_rubric"


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of each query for the states of open groups: how many groups it was for."""
    made: list[int] = []
    states = GatheringStore.states

    async def counted(self: GatheringStore, team_of: Mapping[str, str]) -> Any:
        made.append(len(team_of))
        return await states(self, team_of)

    monkeypatch.setattr(GatheringStore, "states", counted)
    return made


def test_a_process_looks_for_all_its_open_groups_in_one_query(
    deployment: Deployment, looks: list[int]
) -> None:
    url = deployment.start()
    waiting, answers = in_background([arriving(url, 0, f"g{i}", size=2) for i in range(20)])
    for attempt in eventually():
        with attempt:
            assert looks[-2:] == [20, 20]
    whole = send_all([arriving(url, 1, f"g{i}", size=2) for i in range(20)])
    waiting.join(PATIENCE_S)
    both: list[Answer] = whole + answers
    assert [a.json["group"]["complete"] for a in both] == [True] * 40


def test_the_last_rollout_wakes_its_group_at_the_same_process(
    deployment: Deployment, looks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollouts, "POLL_S", 3600)
    url = deployment.start()
    answers = send_all([arriving(url, i) for i in range(SIZE)])
    assert [a.json["group"]["complete"] for a in answers] == [True] * SIZE
    assert looks == []
