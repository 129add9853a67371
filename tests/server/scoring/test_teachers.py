"""Test the teacher bank over HTTP: filling, reading, asking the teacher, and inducing rubrics."""

import asyncio
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from fakes.judge import ScriptedJudge, offered, text_of, well_behaved
from markscheme import Client
from markscheme.errors import MarkschemeError
from markscheme_server.config import Settings
from markscheme_server.domain.hashing import messages_of, prompt_key
from markscheme_server.store.maintenance.migrate import prepare
from markscheme_server.store.store import Store

PROMPT = "Name a colour."


def teacher_says(texts: Callable[[int], Any]) -> Callable[[dict[str, Any], int], Any]:
    """Answer a plain prompt as the teacher would: the n-th time with ``texts(n)``."""
    count = iter(range(1, 1000))
    lock = threading.Lock()

    def script(request: dict[str, Any], number: int) -> Any:
        if text_of(request) == PROMPT:
            with lock:
                return texts(next(count))
        return well_behaved(request, number)

    return script


@pytest.fixture
def teacher_settings(model_settings: dict[str, Any], judge: ScriptedJudge) -> dict[str, Any]:
    return model_settings | {
        "teacher_model": "the-teacher",
        "teacher_base_url": judge.url,
        "teacher_api_key": "k-t",
    }


@pytest.fixture
def taught_client(serve: Callable[..., str], teacher_settings: dict[str, Any]) -> Any:
    with Client(serve(**teacher_settings)) as made:
        yield made


def test_what_is_put_in_is_read_back_and_counted_once(client: Client) -> None:
    change = client.save_teacher_responses(
        [
            {"prompt": PROMPT, "responses": ["Red.", "Blue.", "Red."], "model": "gpt"},
            {"prompt": [{"role": "user", "content": PROMPT}], "responses": ["Blue."]},
            {"prompt": "Another.", "responses": ["Yes."]},
        ]
    )
    assert (change.added, change.duplicates) == (3, 2)
    again = client.save_teacher_responses(
        [{"prompt": PROMPT, "responses": ["Red.", "Green."], "model": "other"}]
    )
    assert (again.added, again.duplicates) == (1, 1)
    found = client.teacher_responses(PROMPT)
    assert {(r.text, r.model) for r in found.data} == {
        ("Red.", "gpt"),
        ("Blue.", "gpt"),
        ("Green.", "other"),
    }
    assert all(r.created_at.tzinfo is not None for r in found.data)
    assert client.teacher_responses(prompt_key=found.prompt_key) == found
    assert client.teacher_responses("Never seen.").data == []


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"entries": []}, 422),
        ({"entries": [{"prompt": PROMPT, "responses": []}]}, 422),
        ({"entries": [{"prompt": "a\u0000b", "responses": ["x"]}]}, 422),
        ({"entries": [{"prompt": PROMPT, "responses": ["x"], "price": 1}]}, 422),
    ],
)
def test_bad_entries_change_nothing(body: dict[str, Any], code: int, shared_service: str) -> None:
    answer = httpx.post(f"{shared_service}/v1/teacher-responses", json=body, timeout=60)
    assert answer.status_code == code
    assert (
        httpx.get(
            f"{shared_service}/v1/teacher-responses", params={"prompt": PROMPT}, timeout=60
        ).json()["data"]
        == []
    )


@pytest.mark.parametrize(
    "params", [{}, {"prompt": PROMPT, "prompt_key": "0" * 64}, {"prompt_key": "zz"}]
)
def test_one_prompt_is_read_at_a_time(params: dict[str, str], shared_service: str) -> None:
    assert (
        httpx.get(f"{shared_service}/v1/teacher-responses", params=params, timeout=60).status_code
        == 422
    )


def test_the_teacher_is_asked_for_what_is_missing_and_for_no_more(
    taught_client: Client, judge: ScriptedJudge
) -> None:
    judge.script = teacher_says(lambda n: f"Colour {n}.")
    taught_client.save_teacher_responses([{"prompt": PROMPT, "responses": ["Red."]}])
    taught = taught_client.teach(PROMPT, 3)
    assert (taught.added, taught.duplicates, taught.usage.judge_calls) == (2, 0, 2)
    assert {(r.text, r.model) for r in taught.data} == {
        ("Red.", None),
        ("Colour 1.", "the-teacher"),
        ("Colour 2.", "the-teacher"),
    }
    asked = judge.requests[-1]
    assert asked["model"] == "the-teacher"
    assert asked["messages"] == [{"role": "user", "content": PROMPT}]
    assert "response_format" not in asked
    assert taught_client.teach(PROMPT, 3).usage.judge_calls == 0
    assert len(judge.requests) == 2


def test_a_teacher_that_says_the_same_is_asked_once_a_response(
    taught_client: Client, judge: ScriptedJudge
) -> None:
    judge.script = teacher_says(lambda n: "Red.")
    taught = taught_client.teach(PROMPT, 4)
    assert (taught.added, taught.duplicates, len(taught.data)) == (1, 3, 1)
    assert len(judge.requests) == 4


def test_what_the_teacher_said_is_kept_when_it_fails_later(
    taught_client: Client, judge: ScriptedJudge
) -> None:
    judge.script = teacher_says(lambda n: "Red." if n == 1 else 400)
    with pytest.raises(MarkschemeError):
        taught_client.teach(PROMPT, 3, deadline_s=3)  # no time to ask again
    assert [r.text for r in taught_client.teacher_responses(PROMPT).data] == ["Red."]
    judge.script = teacher_says(lambda n: f"Colour {n}.")
    assert taught_client.teach(PROMPT, 3).added == 2


@pytest.mark.parametrize("reply", ["", "   "])
def test_an_empty_response_is_none(reply: str, taught_client: Client, judge: ScriptedJudge) -> None:
    judge.script = teacher_says(lambda n: reply)
    refused = httpx.post(
        f"{taught_client.base_url}/v1/teacher-responses:sample", json={"prompt": PROMPT}, timeout=30
    )
    assert (refused.status_code, "the teacher's response is empty" in refused.text) == (502, True)
    assert taught_client.teacher_responses(PROMPT).data == []


def test_without_a_teacher_it_says_what_to_set(model_client: Client) -> None:
    with pytest.raises(MarkschemeError, match="MARKSCHEME_TEACHER_MODEL"):
        model_client.teach(PROMPT, 1)
    with pytest.raises(MarkschemeError, match="MARKSCHEME_TEACHER_MODEL"):
        model_client.score(
            [{"id": "g", "prompt": PROMPT, "rollouts": [{"id": "a", "text": "Red."}]}],
            ask_teacher=1,
        )


def test_many_that_want_the_same_are_taught_once(
    serve: Callable[..., str], teacher_settings: dict[str, Any], judge: ScriptedJudge
) -> None:
    """Two services on one database."""
    judge.script = teacher_says(lambda n: f"Colour {n}.")
    clients = [Client(serve(**teacher_settings)) for _ in range(2)]
    with ThreadPoolExecutor(6) as pool:
        outcomes = list(pool.map(lambda i: clients[i % 2].teach(PROMPT, 2), range(6)))
    assert len(judge.requests) == 2
    assert {tuple(sorted(r.text for r in taught.data)) for taught in outcomes} == {
        ("Colour 1.", "Colour 2.")
    }
    assert sorted(taught.added for taught in outcomes) == [0, 0, 0, 0, 0, 2]
    for client in clients:
        client.close()


def test_a_new_rubric_is_contrasted_with_what_the_teacher_says(
    taught_client: Client, judge: ScriptedJudge
) -> None:
    judge.script = teacher_says(lambda n: f"Vermilion, say {n}.")
    group = {
        "id": "g",
        "prompt": PROMPT,
        "rollouts": [{"id": "a", "text": "Red."}, {"id": "b", "text": "Blue."}],
    }
    batch = taught_client.score([group], ask_teacher=2, score_teachers=True)
    assert [r.reward for r in batch.groups[0].rollouts] == [1.0, 1.0]
    assert batch.groups[0].teacher is not None
    assert len(batch.groups[0].teacher.rewards) == 2
    asked = [text_of(r) for r in judge.requests]
    assert sum(text == PROMPT for text in asked) == 2
    inductions = [
        text
        for text, r in zip(asked, judge.requests, strict=True)
        if text != PROMPT and not offered(r)
    ]
    assert len(inductions) == 1
    assert "Vermilion, say 1." in inductions[0]
    assert batch.usage.judge_calls == len(judge.requests)
    before = len(judge.requests)
    taught_client.score([group | {"id": "h"}], ask_teacher=2, reuse="always_new")
    assert not [r for r in judge.requests[before:] if text_of(r) == PROMPT]


def test_a_teacher_that_fails_leaves_the_group_unscored(
    taught_client: Client, judge: ScriptedJudge
) -> None:
    judge.script = teacher_says(lambda n: 400)
    batch = taught_client.score(
        [{"id": "g", "prompt": PROMPT, "rollouts": [{"id": "a", "text": "Red."}]}], ask_teacher=2
    )
    assert batch.groups[0].rollouts[0].reward is None
    assert batch.groups[0].rollouts[0].reason is not None
    assert batch.usage.judge_calls == 2


def test_postgres_counts_alike(serve: Callable[..., str], new_postgres: Callable[[], str]) -> None:
    with Client(serve(database_url=new_postgres())) as client:
        entry = {"prompt": PROMPT, "responses": ["Red.", "Blue."]}
        assert client.save_teacher_responses([entry]).added == 2
        assert client.save_teacher_responses([entry | {"responses": ["Red.", "Green."]}]).added == 1
        assert len(client.teacher_responses(PROMPT).data) == 3


def test_the_teacher_of_the_judges_file(tmp_path: Any) -> None:
    file = tmp_path / "markscheme.toml"
    file.write_text(
        '[judges.big]\nmodel = "b"\nbase_url = "http://x/v1"\n[judges.small]\nmodel = "s"\n'
        '[roles]\nrubricator = "small"\nverifier = "small"\nteacher = "big"\n'
    )
    settings = Settings(_env_file=None, config=file)
    assert settings.roles == {"rubricator": "small", "verifier": "small", "teacher": "big"}
    file.write_text('[roles]\nteacher = "builtin"\n')
    with pytest.raises(ValidationError, match="cannot be the teacher"):
        Settings(_env_file=None, config=file)


def test_the_teacher_of_the_environment_judges_nothing() -> None:
    settings = Settings(
        _env_file=None, teacher_model="t", teacher_base_url="http://x/v1", teacher_api_key="k"
    )
    assert settings.roles == {"rubricator": "builtin", "verifier": "builtin", "teacher": "teacher"}
    key = settings.key_of("teacher")
    assert key is not None
    assert key.get_secret_value() == "k"
    assert "k" not in json.dumps(repr(settings.teacher.api_key))


async def test_a_response_that_is_handed_in_is_kept_though_its_caller_leaves(
    tmp_path: Path,
) -> None:
    """As at the end of the process, which drains the store before it closes it."""
    url = f"sqlite+aiosqlite:///{tmp_path / 'bank.db'}"
    await prepare(url)
    store = Store(url)
    prompt = messages_of(PROMPT)
    leaving = asyncio.ensure_future(store.teachers.save("t", prompt, ["Red."]))
    await asyncio.sleep(0)
    leaving.cancel()
    await store.drain()
    assert [kept.response for kept in await store.teachers.find("t", prompt_key(prompt))] == [
        "Red."
    ]
    await store.close()
