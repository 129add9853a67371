"""Test ``kill -9`` of the service: answers sent are stored, and paid calls are not repeated."""

import random
import threading
from typing import Any

import pytest

from fakes import fast_judge
from fakes.bodies import create_rubric, induce, model_judge, score
from fakes.fast_judge import Call, FastJudge, Reply
from fakes.load import Answer, Post, send_all, send_in_turns
from fakes.processes import PATIENCE_S, eventually
from fakes.stores import query

LEASE = {"markscheme_server.app.CLAIM_LEASE_S": 2.0}


@pytest.mark.parametrize(
    "kills", [1, pytest.param(50, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])]
)
def test_nothing_that_a_client_saw_is_lost(
    kills: int, start: Any, judge: FastJudge, database: str
) -> None:
    """Kill under load at random moments. The database alone gives every reward seen again."""
    chance = random.Random(1)
    settings = model_judge(judge.url, database_url=database, constants=LEASE)
    judge.latency_s = 0.05
    seen: dict[str, float] = {}
    rubric_id = ""
    for kill in range(kills):
        process = start(**settings)
        rubric_id = rubric_id or create_rubric(process.url)
        answers: list[Answer] = []

        def post(
            i: int, url: str = process.url, kill: int = kill, rubric_id: str = rubric_id
        ) -> Post:
            return score(
                url, rubric_id, [f"kill {kill} answer {i}"], group=f"kill {kill} answer {i}"
            )

        def load(post: Any = post, answers: list[Answer] = answers) -> None:
            answers.extend(send_in_turns(post, callers=8, for_s=20))

        loading = threading.Thread(target=load)
        threshold = judge.count + chance.randrange(20, 60)
        loading.start()
        for attempt in eventually(every_s=0.005):
            with attempt:
                assert judge.count >= threshold
        process.kill()
        loading.join(PATIENCE_S)
        seen |= {
            a.json["groups"][0]["id"]: a.rewards[0]
            for a in answers
            if a.status == 200 and a.rewards != [None]
        }
    assert len(seen) >= 10 * kills
    assert set(seen.values()) == {1.0}
    url = start(**settings).url
    judge.forget()
    judge.met = lambda criterion, answer: False
    texts = list(seen)
    again = send_all([score(url, rubric_id, texts[i : i + 500]) for i in range(0, len(texts), 500)])
    assert [r for a in again for r in a.rewards] == list(seen.values())
    assert judge.count == 0


def test_a_death_costs_what_was_in_flight_and_no_more(
    start: Any, judge: FastJudge, database: str
) -> None:
    """Kill with a batch half judged, a step's group half judged and a keyed induction running."""
    settings = model_judge(judge.url, database_url=database, constants=LEASE, judge_concurrency=16)
    process = start(**settings)
    rubric_id = create_rubric(process.url)
    texts = [f"answer {i}" for i in range(12)]
    step = {
        "groups": [
            {
                "id": "g",
                "prompt": "A step's prompt.",
                "teacher_responses": ["Blue, since air scatters."],
                "rollouts": [{"id": str(i), "text": f"rollout {i}"} for i in range(4)],
            }
        ],
        "run": {"id": "run-7", "step": 3},
    }
    keyed = {"Idempotency-Key": "k-1"}

    def half(call: Call) -> Reply:
        late = (
            not call.criteria
            and "keyed" in call.text
            or call.criteria
            and call.answers[0][-1] in "389"
        )
        return fast_judge.HANG if late else fast_judge.OK

    def all_of_it(url: str) -> list[Answer]:
        return send_all(
            [
                score(url, rubric_id, texts),
                Post(f"{url}/v1/scores", step),
                induce(url, "A keyed prompt.", headers=keyed),
            ]
        )

    judge.mode, judge.met = (
        half,
        lambda criterion, answer: len(criterion) % 2 == int(answer[-1]) % 2,
    )
    sending = threading.Thread(target=lambda: all_of_it(process.url))
    sending.start()
    for attempt in eventually():
        with (
            attempt
        ):  # done: answers but 3, 8, 9; rollouts but 3. Hanging: those four, and the induction
            assert query(
                database, "SELECT count(DISTINCT (prompt_key, response_key)) FROM verdicts"
            ) == [(9 + 3,)]
            assert judge.in_flight == 3 + 1 + 1
    process.kill()
    sending.join(PATIENCE_S)
    judge.mode = fast_judge.OK
    judge.forget()
    url = start(**settings).url
    for attempt in eventually(
        every_s=0.3
    ):  # the key is the dead process's until its lease has run out
        with attempt:
            batch, again, induced = all_of_it(url)
            assert (batch.status, again.status) == (200, 200)
            assert induced.status in (200, 201)
    assert None not in batch.rewards + again.rewards
    assert judge.count == 5
    assert query(database, "SELECT count(*) FROM rubrics") == [(3,)]
    first, second, replayed = all_of_it(url)
    assert (first.rewards, second.rewards) == (batch.rewards, again.rewards)
    assert (replayed.content, replayed.headers["Idempotent-Replayed"]) == (induced.content, "true")
    assert judge.count == 5
