"""`/compat` over the wire: OpenRLHF's and slime's requests, keys in the path, unknown rewards."""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from fakes.clock import Clock
from fakes.judge import ScriptedJudge, offered, verdicts, well_behaved
from fakes.load import Post, abandon_all, send_all
from fakes.processes import PATIENCE_S, eventually
from growth import assert_linear
from markscheme_server.accounts.auth import CACHE_S
from markscheme_server.api.compat import chat, without_end
from markscheme_server.config import Settings
from markscheme_server.domain import keys
from markscheme_server.store.engine.database import ALL_TEAMS, Database, create_engine
from markscheme_server.store.gathering import GatheringStore
from markscheme_server.store.tables import gathered_groups, gathered_rollouts
from server.deployment import CRITERIA, Deployment
from server.organisation import OPERATOR, PROMPT, RUBRIC, Keys, call

JSON = {"content-type": "application/json"}
CHATML = f"<|im_start|>user\n{PROMPT}<|im_end|>\n<|im_start|>assistant\n"
LLAMA = (
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n"
    f"{PROMPT}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
)


def openrlhf(url: str, key: str, text: str, size: int = 4, **more: Any) -> Post:
    """Build what OpenRLHF's executor posts for a sample; `more`: of the query string."""
    options = "&".join(f"{name}={value}" for name, value in more.items())
    return Post(
        f"{url}/compat/openrlhf/{key}/get_reward?size={size}&{options}",
        {"query": [f"{CHATML}{text}<|im_end|>"], "prompts": [CHATML], "labels": [""]},
        {},
    )


def slime(url: str, key: str, body: dict[str, Any], size: int = 1) -> httpx.Response:
    return httpx.post(f"{url}/compat/slime/{key}?size={size}", json=body, timeout=60)


@pytest.fixture
def count(database_url: str) -> Callable[..., int]:
    """Return a function that counts the stored rows of a table that meet a condition."""

    async def count(table: sa.Table, *condition: sa.ColumnElement[bool]) -> int:
        settings = Settings(_env_file=None, database_url=database_url)
        database = Database(create_engine(settings.sqlalchemy_url))
        try:
            async with database.reading(ALL_TEAMS) as connection:
                stored = sa.select(sa.func.count()).select_from(table).where(*condition)
                return int((await connection.execute(stored)).scalar_one())
        finally:
            await database.close()

    return lambda *asked: asyncio.run(count(*asked))


@pytest.fixture
def colours(organisation: Keys, start: Callable[..., str]) -> tuple[str, str]:
    """Start a service with a rubric of the team red; return it and a key that only scores."""
    url = start()
    call(url, "POST", "/v1/rubrics", organisation.key("red", "induce"), RUBRIC)
    return url, organisation.key("red", "score")


def test_a_group_of_openrlhfs_gets_one_rubric_in_every_epoch(
    deployment: Deployment, judge: ScriptedJudge
) -> None:
    key = deployment.key("red", "score", "induce")
    urls = [deployment.start(), deployment.start()]
    judge.script = lambda request, number: (
        verdicts(request, lambda _criterion, answer: "red" in answer)
        if offered(request)
        else well_behaved(request, number)
    )
    # Two of the four say the same: they are two rollouts all the same.
    texts = ["red", "blue", "red", "green"]
    for _epoch in range(2):
        answers = send_all(
            [openrlhf(urls[i % 2], key, text, run="r") for i, text in enumerate(texts)]
        )
        assert [answer.status for answer in answers] == [200] * 4, answers
        assert [answer.json["rewards"] for answer in answers] == [1.0, 0.0, 1.0, 0.0]
        assert answers[0].json == {"rewards": 1.0, "scores": 1.0, "extra_logs": {"unscored": 0.0}}
        (asked,) = [request for request in judge.requests if not offered(request)]
        assert "blue" in str(asked)
        assert "green" in str(asked)
        assert "<|im_" not in str(judge.requests), "the judge reads the messages"


def test_an_unknown_reward_is_the_mean_of_the_known_ones_and_none_at_all_an_error(
    deployment: Deployment, judge: ScriptedJudge, count: Callable[..., int]
) -> None:
    key = deployment.key("red", "score", "induce")
    url, another = deployment.start(), deployment.start()
    judge.script = lambda request, number: (
        401
        if offered(request) and "silent" in str(request)
        else verdicts(request, lambda _criterion, answer: "red" in answer)
        if offered(request)
        else well_behaved(request, number)
    )
    texts = ["red", "blue", "silent", "red too"]
    answers = send_all([openrlhf(url, key, text) for text in texts])
    assert [answer.json["rewards"] for answer in answers] == pytest.approx([1, 0, 2 / 3, 1])
    unscored = [answer.json["extra_logs"]["unscored"] for answer in answers]
    assert unscored == [0.0, 0.0, 1.0, 0.0]
    judge.script = lambda request, number: 401
    posts = [openrlhf(url, key, f"blue {i}", size=2, run="away") for i in range(2)]
    answers = send_all(posts)
    # An endpoint that is set up wrongly is no better at the next try.
    assert {(answer.status, answer.code) for answer in answers} == {(502, "misconfigured")}
    # Asked again, as OpenRLHF does, it is the same group, whichever replica is asked.
    judge.script = well_behaved
    posts = [openrlhf(another, key, f"blue {i}", size=2, run="away") for i in range(2)]
    for attempt in eventually():
        with attempt:
            assert [answer.status for answer in send_all(posts)] == [200, 200]
    assert count(gathered_groups) == 2
    assert count(gathered_rollouts) == 6


def test_a_rollout_that_is_sent_again_to_another_replica_is_the_same_one(
    deployment: Deployment, judge: ScriptedJudge, count: Callable[..., int]
) -> None:
    key = deployment.key("red", "score", "induce")
    urls = [deployment.start(), deployment.start()]
    judge.script = well_behaved
    texts = ["yes", "yes", "no"]
    abandon_all(
        [openrlhf(urls[0], key, text) for text in texts],
        when=lambda: count(gathered_rollouts) == 3,
    )
    for attempt in eventually():
        with attempt:
            assert count(gathered_rollouts, gathered_rollouts.c.asked_until < time.time()) == 3
    # The two that say the same are two all the same, and so is the fourth.
    answers = send_all([openrlhf(urls[1], key, text) for text in [*texts, "yes"]])
    assert [answer.status for answer in answers] == [200] * 4
    assert count(gathered_rollouts) == 4
    assert count(gathered_groups) == 1
    # Each of them has been answered: the next epoch is another group.
    answers = send_all([openrlhf(urls[0], key, text) for text in [*texts, "yes"]])
    assert [answer.status for answer in answers] == [200] * 4
    assert count(gathered_groups) == 2
    assert count(gathered_rollouts) == 8


def test_a_prompt_without_a_rubric_is_the_callers_to_mend(
    organisation: Keys, start: Callable[..., str]
) -> None:
    url, key = start(), organisation.key("red", "score")
    for answer in (
        slime(url, key, {"prompt": "No rubric.", "response": "red"}),
        httpx.post(
            f"{url}/compat/openrlhf/{key}/get_reward?size=1",
            json={"query": ["No rubric. red"], "prompts": ["No rubric."], "labels": [""]},
            timeout=60,
        ),
    ):
        assert answer.status_code == 422
        assert answer.json()["error"]["code"] == "no_rubric"
        assert "Bring one" in answer.json()["error"]["message"]
    # Whoever asks for the group, and however often: a retry cannot help.
    posts = [openrlhf(url, key, text, size=2) for text in ("red", "blue")]
    for _ in range(2):
        assert {(each.status, each.code) for each in send_all(posts)} == {(422, "no_rubric")}


def test_slime_gets_a_bare_number_for_texts_and_messages(colours: tuple[str, str]) -> None:
    url, key = colours
    for prompt in (PROMPT, CHATML, LLAMA, [{"role": "user", "content": PROMPT}]):
        answer = slime(url, key, {"prompt": prompt, "response": "red<|im_end|>\n", "label": None})
        assert (answer.status_code, answer.json()) == (200, 1.0), answer.text
    assert slime(url, key, {"prompt": PROMPT, "response": "blue", "label": "42"}).json() == 0.0


LLAMA_TOOLS = (
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nWhat is the sky?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n<|python_tag|>look_up()<|eom_id|>"
    "<|start_header_id|>ipython<|end_header_id|>\n\nblue<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
CHATML_TOOLS = (
    "<|im_start|>user\nWhat is the sky?<|im_end|>\n"
    "<|im_start|>assistant\n<|python_tag|>look_up()<|im_end|>\n"
    "<|im_start|>{}\nblue<|im_end|>\n<|im_start|>assistant\n"
)
ROLES = ("tool", "function", "observation", "tool_response", "environment name=<|interpreter|>")


@pytest.mark.parametrize("prompt", [LLAMA_TOOLS, *map(CHATML_TOOLS.format, ROLES)])
def test_what_a_template_calls_a_tools_result_is_one(
    organisation: Keys, start: Callable[..., str], prompt: str
) -> None:
    url, key = start(), organisation.key("red", "score")
    messages = [
        {"role": "user", "content": "What is the sky?"},
        {"role": "assistant", "content": "<|python_tag|>look_up()"},
        {"role": "tool", "content": "blue"},
    ]
    call(
        url, "POST", "/v1/rubrics", organisation.key("red", "induce"), RUBRIC | {"prompt": messages}
    )
    assert slime(url, key, {"prompt": prompt, "response": "red<|eot_id|>"}).json() == 1.0
    named = [*messages[:2], {"role": "ipython", "content": "blue"}]
    assert slime(url, key, {"prompt": named, "response": "red"}).json() == 1.0
    answer = httpx.post(
        f"{url}/compat/openrlhf/{key}/get_reward?size=1",
        json={"query": [f"{prompt}blue<|eot_id|>"], "prompts": [prompt], "labels": [""]},
        timeout=60,
    )
    assert (answer.status_code, answer.json()["rewards"]) == (200, 0.0)


def test_a_label_may_name_the_rubric(organisation: Keys, start: Callable[..., str]) -> None:
    url, key = start(), organisation.key("red", "score")
    made = call(url, "POST", "/v1/rubrics", organisation.key("red", "induce"), RUBRIC).json()
    asked = {"prompt": "Another prompt.", "response": "red", "label": made["id"]}
    assert slime(url, key, asked).json() == 1.0
    assert slime(url, key, asked | {"label": None}).json()["error"]["code"] == "no_rubric"


def test_several_queries_get_lists(colours: tuple[str, str]) -> None:
    url, key = colours
    body = {"query": [f"{PROMPT} red", f"<s>{PROMPT} blue</s>"], "prompts": [PROMPT] * 2}
    answer = httpx.post(f"{url}/compat/openrlhf/{key}/get_reward?size=2", json=body, timeout=60)
    assert answer.json() == {
        "rewards": [1.0, 0.0],
        "scores": [1.0, 0.0],
        "extra_logs": {"unscored": [0.0, 0.0]},
    }


def test_a_request_that_cannot_be_meant_is_refused(colours: tuple[str, str]) -> None:
    url, key = colours
    place = f"{url}/compat/openrlhf/{key}/get_reward"
    for query, body, why in (
        ("", {"query": ["a b"], "prompts": ["a"]}, "size"),
        ("?size=4", {"query": ["a b"], "prompts": ["a", "a"]}, "same length"),
        ("?size=4", {"query": ["b"], "prompts": ["a"]}, "must hold its prompt"),
    ):
        answer = httpx.post(place + query, json=body, timeout=60)
        assert answer.status_code == 422
        assert why in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("query", "prompt", "label"),
    [
        ("x", "", ""),
        ("qx", "q", "rub_" + "x" * 5000),
        ("<|im_start|>nobody\nhi<|im_end|>x", "<|im_start|>nobody\nhi<|im_end|>", ""),
    ],
)
def test_what_a_rollout_may_not_say_is_refused(
    colours: tuple[str, str], query: str, prompt: str, label: str
) -> None:
    url, key = colours
    body = {"query": [query], "prompts": [prompt], "labels": [label]}
    answer = httpx.post(f"{url}/compat/openrlhf/{key}/get_reward?size=1", json=body, timeout=60)
    assert answer.status_code == 422


@pytest.mark.parametrize("odd", ["\\u0000", "\\ud83d", "\\ude00"])
def test_half_an_emoji_or_a_nul_of_the_student_is_no_reason_to_refuse(
    colours: tuple[str, str], odd: str
) -> None:
    url, key = colours
    said = f'"{PROMPT} {odd}red"'
    for place, body in (
        ("slime/{}", f'{{"prompt": "{PROMPT}", "response": {said}}}'),
        ("openrlhf/{}/get_reward", f'{{"query": [{said}], "prompts": ["{PROMPT}"]}}'),
    ):
        place = f"{url}/compat/{place.format(key)}?size=1"
        answer = httpx.post(place, content=body, headers=JSON)
        assert answer.status_code == 200, answer.text
        # Nobody can have meant it in a prompt.
        refused = body.replace(PROMPT, f"{odd}{PROMPT}")
        answer = httpx.post(place, content=refused, headers=JSON)
        assert answer.status_code == 422
        assert key not in answer.text


WRONG = [None, True, 1, 1.5, "", [], {}, [None], [1], [[]], [{}], {"a": []}]


def test_a_value_of_another_type_is_refused(colours: tuple[str, str]) -> None:
    url, key = colours
    sent = {
        "slime/{}": {"prompt": PROMPT, "response": "red"},
        "openrlhf/{}/get_reward": {"query": [f"{PROMPT} red"], "prompts": [PROMPT], "labels": [""]},
    }
    with httpx.Client(base_url=f"{url}/compat", timeout=60) as http:
        for place, body in sent.items():
            for field in body:
                for wrong in WRONG:
                    answer = http.post(f"{place.format(key)}?size=1", json={**body, field: wrong})
                    # What a label is, is the trainer's matter.
                    is_fine = (field, wrong) in [("response", ""), ("labels", None)] or (
                        field == "labels" and isinstance(wrong, list)
                    )
                    assert answer.status_code == (200 if is_fine else 422), (field, wrong)
                    assert key not in answer.text
            for deep in ("[" * 100_000, '{"a":' * 100_000):
                body_so_far = f'{{"label": {deep}'
                answer = http.post(f"{place.format(key)}?size=1", content=body_so_far, headers=JSON)
                assert answer.status_code == 400
            for size in ("0", "-1", "1.5", "one", "257", "1e3", "true", ""):
                answer = http.post(f"{place.format(key)}?size={size}", json=body)
                assert answer.status_code == 422, size


def test_ten_megabytes_are_scored(colours: tuple[str, str]) -> None:
    url, key = colours
    answer = slime(url, key, {"prompt": PROMPT, "response": "red " * 2_500_000})
    assert (answer.status_code, answer.json()) == (200, 1.0)


@pytest.mark.parametrize("end", ["<|im_end|>", " </s>", "\n", "<|", ">|a", "<|a<|"])
def test_the_tokens_that_end_a_text_are_found_in_linear_time(end: str) -> None:
    assert_linear(without_end, lambda size: f"red{end * (size // len(end))}blue", size=200_000)
    assert_linear(without_end, lambda size: f"red{end * (size // len(end))}", size=200_000)


@pytest.mark.parametrize(
    "part",
    [
        "<|im_start|>user\n",
        "<|im_end|>",
        "<|im_start|>",
        "<|im_start|>a name=",
        "<|start_header_id|>a",
    ],
)
def test_the_turns_of_a_prompt_are_found_in_linear_time(part: str) -> None:
    assert_linear(chat, lambda size: part * (size // len(part)), size=200_000)


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("red<|im_end|>\n", "red"),
        ("red \n<|eot_id|> </s><pad>\n ", "red"),
        ("red\n", "red\n"),
        ("red</s>blue", "red</s>blue"),
        ("<eos>", ""),
        ("a <|b|c|>", "a <|b|c|>"),
    ],
)
def test_only_the_tokens_at_the_end_are_taken_away(text: str, rest: str) -> None:
    assert without_end(text) == rest


def test_a_query_that_fails_ends_the_others_of_its_request(
    deployment: Deployment, count: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the database still stores the others."""
    store = GatheringStore._arrive

    async def store_slowly(*given: Any) -> Any:
        await asyncio.sleep(0.3)
        return await store(*given)

    monkeypatch.setattr(GatheringStore, "_arrive", store_slowly)
    url, key = deployment.start(), deployment.key("red", "score", "induce")
    call(url, "POST", "/v1/rubrics", key, RUBRIC)
    # The first waits for the other rollout of its group; the rubric of the second is not there.
    body = {
        "query": [f"{PROMPT} red", "b c"],
        "prompts": [PROMPT, "b"],
        "labels": ["", "rub_none"],
    }
    for _try in range(2):
        answer = httpx.post(f"{url}/compat/openrlhf/{key}/get_reward?size=2", json=body, timeout=60)
        assert answer.status_code == 404
    time.sleep(1)
    assert count(gathered_rollouts) == 1, "sent again, it is the same rollout"


def test_a_caller_that_leaves_while_it_takes_a_place_gives_it_back(
    deployment: Deployment,
    judge: ScriptedJudge,
    count: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    take, taken, left = GatheringStore.resume, threading.Event(), threading.Event()

    async def take_slowly(*given: Any) -> Any:
        place = await take(*given)
        if place is not None:
            taken.set()
            await asyncio.to_thread(left.wait, PATIENCE_S)
            await asyncio.sleep(0.5)  # the service learns of it
        return place

    monkeypatch.setattr(GatheringStore, "resume", take_slowly)
    url, key = deployment.start(), deployment.key("red", "score", "induce")
    call(url, "POST", "/v1/rubrics", key, {"prompt": PROMPT, "criteria": CRITERIA})
    judge.script = lambda request, number: 401
    body = {"query": [f"{PROMPT} red"], "prompts": [PROMPT], "labels": [""]}
    address = f"{url}/compat/openrlhf/{key}/get_reward?size=1"
    assert httpx.post(address, json=body, timeout=60).status_code == 502
    judge.script = lambda request, number: verdicts(request, lambda *_: True)
    abandon_all([Post(address, body, {})], when=taken.is_set)
    assert count(gathered_rollouts, gathered_rollouts.c.asked_until > time.time()) == 1
    left.set()
    for attempt in eventually():
        with attempt:
            assert count(gathered_rollouts, gathered_rollouts.c.asked_until > time.time()) == 0
    assert httpx.post(address, json=body, timeout=60).json()["rewards"] == 1.0
    assert count(gathered_rollouts) == 1, "sent again, it is the same rollout"


def test_the_name_of_a_run_is_an_identifier(colours: tuple[str, str]) -> None:
    url, key = colours
    body = {"prompt": PROMPT, "response": "red"}
    answer = httpx.post(f"{url}/compat/slime/{key}?size=1&run=%00", json=body, timeout=60)
    assert answer.status_code == 422


def test_a_key_in_a_path_may_score_and_induce_and_nothing_else(
    organisation: Keys, start: Callable[..., str], clock: Clock
) -> None:
    scoring = organisation.key("red", "score")
    inducing = organisation.key("red", "score", "induce")
    url = start(api_key=OPERATOR)
    call(url, "POST", "/v1/rubrics", inducing, RUBRIC)
    body = {"prompt": PROMPT, "response": "red"}
    for key in (scoring, inducing):
        assert slime(url, key, body).json() == 1.0
    # A key that only scores makes no rubric.
    other = {"prompt": "Use no commas.", "response": "a"}
    assert slime(url, scoring, other).json()["error"]["code"] == "no_rubric"
    assert slime(url, inducing, other).status_code == 200
    for key, status, code in (
        (keys.new_key(), 401, "unknown_key"),
        ("mk_nonsense", 401, "malformed_key"),
        (OPERATOR, 403, "too_many_scopes"),
        (organisation.key("red", "score", "read"), 403, "too_many_scopes"),
        (organisation.key("red", "score", "admin"), 403, "too_many_scopes"),
        (organisation.key("red", "induce"), 403, "missing_scope"),
    ):
        answer = slime(url, key, body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
        assert key not in answer.text
        # The key before the body.
        assert slime(url, key, {}).json()["error"]["code"] == code
    organisation.revoke(scoring)
    clock.advance(CACHE_S)
    assert slime(url, scoring, body).json()["error"]["code"] == "revoked_key"


def test_without_keys_any_word_stands_for_one(start: Callable[..., str]) -> None:
    asked = {"prompt": "Use no commas.", "response": "a"}
    assert slime(start(), "none", asked).status_code == 200
