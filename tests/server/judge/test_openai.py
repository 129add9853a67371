"""Test what is sent to a judge, learnt from its refusals, and counted, over real HTTP."""

import functools
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from fakes.judge import (
    RUBRIC,
    ScriptedJudge,
    answered_texts,
    offered,
    text_of,
    verdicts,
    well_behaved,
)
from fakes.processes import with_enough_time
from markscheme import Client
from markscheme.errors import MarkschemeError, StatusError
from server.organisation import Keys

PROMPT = "Which colour is the sky, and why?"
NO_TEMPERATURE = {
    "error": {
        "message": "Unsupported value: 'temperature' does not support 0 with this model. "
        "Only the default (1) value is supported.",
        "type": "invalid_request_error",
        "param": "temperature",
        "code": "unsupported_value",
    }
}
NO_MAX_TOKENS = {
    "error": {
        "message": "Unsupported parameter: 'max_tokens' is not supported with this model. "
        "Use 'max_completion_tokens' instead.",
        "type": "invalid_request_error",
        "param": "max_tokens",
        "code": "unsupported_parameter",
    }
}

Serve = Callable[..., str]


def asked(client: Client, *texts: str, **more: Any) -> dict[str, Any]:
    rubric = client.create_rubric(
        PROMPT,
        [{"text": "It names a colour.", "points": 3}, {"text": "It gives a reason.", "points": 1}],
    )
    rollouts = [{"id": f"r{i}", "text": text} for i, text in enumerate(texts or ("Blue.",))]
    return {"id": "g", "prompt": PROMPT, "rubric_id": rubric.id, "rollouts": rollouts, **more}


@pytest.fixture
def connect(serve: Serve, model_settings: dict[str, Any]) -> Iterator[Callable[..., Client]]:
    """Return a function that connects a client to a service with these settings."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(Client(serve(**(model_settings | settings))))


def test_a_call_says_how_long_a_reply_may_be(
    connect: Callable[..., Client], judge: ScriptedJudge
) -> None:
    client = connect()
    client.score([asked(client)])
    client.score([asked(client, "Red.", "Green.")], verify="group")
    (one, pool) = judge.requests
    assert one["temperature"] == 0.0
    assert 4096 < one["max_tokens"] < pool["max_tokens"] < 8192


def test_what_the_operator_sets_is_what_is_sent(
    connect: Callable[..., Client], judge: ScriptedJudge
) -> None:
    client = connect(
        judge_max_tokens=777,
        judge_temperature="default",
        judge_reasoning_effort="low",
        judge_seed=7,
        judge_extra_body={"chat_template_kwargs": {"enable_thinking": False}},
    )
    client.score([asked(client)])
    (request,) = judge.requests
    assert request["max_tokens"] == 777
    assert "temperature" not in request
    assert (request["reasoning_effort"], request["seed"]) == ("low", 7)
    assert request["chat_template_kwargs"] == {"enable_thinking": False}


def test_each_request_has_the_headers_of_the_first_and_a_body_of_its_own(
    connect: Callable[..., Client], judge: ScriptedJudge
) -> None:
    client = connect(judge_extra_headers={"X-Tenant": "red"})
    for text in ("Blue.", "Red, because of the sunset — écarlate."):
        client.score([asked(client, text)])
    first, second = (dict(headers) for headers in judge.headers)
    assert int(first.pop("content-length")) < int(second.pop("content-length"))
    assert first == second
    assert first["authorization"].startswith("Bearer ")
    assert first["x-tenant"] == "red"
    assert "écarlate" in judge.requests[1]["messages"][0]["content"]


@pytest.mark.parametrize(
    "name", ["messages", "model", "stream", "max_tokens", "temperature", "response_format"]
)
def test_extra_fields_must_not_replace_ours(connect: Callable[..., Client], name: str) -> None:
    with pytest.raises(ValueError, match=f"extra_body must not hold {name}"):
        connect(judge_extra_body={name: 1})


def refusing(name: str, error: dict[str, Any]) -> Callable[[dict[str, Any], int], Any]:
    return lambda request, number: (
        (400, error) if name in request else well_behaved(request, number)
    )


def test_a_parameter_that_we_added_is_left_out_once_it_is_refused(
    connect: Callable[..., Client], judge: ScriptedJudge
) -> None:
    judge.script = refusing("temperature", NO_TEMPERATURE)
    client = connect()
    batch = client.score([asked(client)])
    assert (batch.counts.scored, batch.usage.judge_calls) == (1, 2)
    assert client.score([asked(client, "Red.")]).usage.judge_calls == 1
    assert ["temperature" in request for request in judge.requests] == [True, False, False]
    assert {request["response_format"]["type"] for request in judge.requests} == {"json_schema"}


def test_a_parameter_that_the_operator_set_is_not_left_out(
    connect: Callable[..., Client], judge: ScriptedJudge
) -> None:
    judge.script = refusing("temperature", NO_TEMPERATURE)
    client = connect(judge_verifier_temperature=0.0)
    (rollout,) = client.score([asked(client)]).groups[0].rollouts
    assert (rollout.reward, rollout.reason) == (None, "misconfigured")
    assert len(judge.requests) == 1


def test_the_length_is_named_as_the_endpoint_names_it(
    connect: Callable[..., Client], judge: ScriptedJudge
) -> None:
    judge.script = refusing("max_tokens", NO_MAX_TOKENS)
    client = connect(judge_max_tokens=900)
    assert client.score([asked(client)]).counts.scored == 1
    assert judge.requests[-1]["max_completion_tokens"] == 900


def test_what_is_learnt_changes_no_verdicts_address(
    connect: Callable[..., Client], judge: ScriptedJudge
) -> None:
    judge.script = refusing("temperature", NO_TEMPERATURE)
    client = connect()
    group = asked(client)
    client.score([group])
    again = connect(judge_max_tokens=5000).score([group])
    assert (again.usage.judge_calls, again.usage.cached_verdicts) == (0, 2)


def test_a_reply_that_was_cut_off_is_asked_for_once_with_more_room(
    connect: Callable[..., Client], judge: ScriptedJudge
) -> None:
    judge.finish = lambda request: "length" if request["max_tokens"] < 10_000 else "stop"
    client = connect()
    batch = client.score([asked(client)])
    assert (batch.counts.scored, batch.usage.judge_calls) == (1, 2)
    assert judge.requests[1]["max_tokens"] == 4 * judge.requests[0]["max_tokens"]
    judge.finish = lambda request: "length"
    (rollout,) = client.score([asked(client, "Red.")]).groups[0].rollouts
    assert (rollout.reward, rollout.reason) == (None, "truncated")
    assert len(judge.requests) == 4


def test_an_endpoint_that_takes_no_more_is_not_asked_for_more(
    connect: Callable[..., Client], judge: ScriptedJudge
) -> None:
    too_large = {
        "error": {
            "message": (
                "max_tokens is too large. This model supports at most 500 completion tokens."
            ),
            "param": "max_tokens",
            "code": "invalid_value",
        }
    }
    judge.script = lambda request, number: (
        (400, too_large) if request["max_tokens"] > 500 else verdicts(request)
    )
    judge.finish = lambda request: "length"
    client = connect()
    (rollout,) = client.score([asked(client)]).groups[0].rollouts
    assert rollout.reason == "truncated"
    assert [request["max_tokens"] for request in judge.requests][1:] == [500]


def test_no_ask_repeats_an_earlier_one(
    connect: Callable[..., Client], judge: ScriptedJudge
) -> None:
    judge.script = lambda request, number: "no"
    client = connect()
    (rollout,) = client.score([asked(client)]).groups[0].rollouts
    assert rollout.reason == "parse_failure"
    bodies = [json.dumps(request, sort_keys=True) for request in judge.requests]
    assert len(bodies) == len(set(bodies)) == 3


def test_a_rationale_is_asked_for_stored_and_told(
    connect: Callable[..., Client], judge: ScriptedJudge
) -> None:
    def argued(request: dict[str, Any], _number: int) -> str:
        assert list(
            request["response_format"]["json_schema"]["schema"]["properties"]["verdicts"]["items"][
                "properties"
            ]
        ) == ["id", "rationale", "met"]
        return json.dumps(
            {
                "verdicts": [
                    {"id": "c1", "rationale": "It says blue.", "met": True},
                    {"id": "c2", "rationale": "No cause is given.", "met": False},
                ]
            }
        )

    judge.script = argued
    client = connect(judge_rationale="short")
    group = asked(client)
    for cached in (False, True):
        (rollout,) = client.score([group]).groups[0].rollouts
        assert {v.rationale for v in rollout.verdicts} == {"It says blue.", "No cause is given."}
        assert {v.cached for v in rollout.verdicts} == {cached}
        (told,) = rollout.feedback
        assert told.startswith("It ")
        assert told.endswith(" (No cause is given.)")


def test_without_a_rationale_prompts_and_schemas_are_as_they_were(
    connect: Callable[..., Client], judge: ScriptedJudge
) -> None:
    client = connect()
    client.score([asked(client)])
    assert "rationale" not in json.dumps(judge.requests[0])


def test_evidence_is_looked_for_in_what_was_shown(
    connect: Callable[..., Client], judge: ScriptedJudge
) -> None:
    def quoting(request: dict[str, Any], _number: int) -> str:
        shown = answered_texts(request)[0][1]
        return json.dumps(
            {"verdicts": [{"id": i, "evidence": shown, "met": True} for i in offered(request)]}
        )

    judge.script = quoting
    client = connect(judge_evidence=True)
    texts = (
        "می\u200cخواهم سلام",
        "Hel\u00adlo\u200b there",
        "Fine \U0001f468\u200d\U0001f469\u200d\U0001f467",
        "a\u2028b c",
    )
    batch = client.score([asked(client, *texts)])
    assert [r.reward for r in batch.groups[0].rollouts] == [1.0] * 4
    assert batch.usage.judge_calls == 4
    judge.script = lambda request, number: verdicts(request).replace(
        '"met"', '"evidence": "e", "met"'
    )
    (rollout,) = client.score([asked(client, "hello there")]).groups[0].rollouts
    assert rollout.reason == "parse_failure"


@pytest.mark.parametrize(
    ("thinking", "shown"),
    [
        ("auto", ["a thought</think>Blue.", "Red."]),
        ("strip", ["Blue.", "Red."]),
        ("keep", ["a thought</think>Blue.", "<think>x</think>Red."]),
    ],
)
def test_the_run_says_whether_its_student_thinks(
    thinking: str, shown: list[str], connect: Callable[..., Client], judge: ScriptedJudge
) -> None:
    client = connect()
    group = asked(client, "a thought</think>Blue.", "<think>x</think>Red.")
    response = httpx.post(
        f"{client.base_url}/v1/scores",
        json={"groups": [group], "thinking": thinking},
        timeout=60,
    )
    assert response.status_code == 200
    told = sorted(answered_texts(request)[0][1].replace("< ", "<") for request in judge.requests)
    assert told == sorted(shown)


POISON = {
    "a surrogate in evidence": (
        '{"verdicts":[{"id":"c1","evidence":"\\ud83d","met":false},{"id":"c2","met":false}]}'
    ),
    "deep nesting": '{"verdicts":' + "[" * 50_000 + "]" * 50_000 + "}",
    "a long number": '{"verdicts":[{"id":"c1","met":' + "9" * 5000 + "}]}",
    "braces": "{" * 60_000,
    "a draft": '<think>{"verdicts":[{"id":"c1","met":true},{"id":"c2","met":true}]} but',
}


@pytest.fixture(scope="module")
def shared_judge() -> Iterator[ScriptedJudge]:
    made = ScriptedJudge()
    yield made
    made.close()


@pytest.fixture(scope="module")
def url_of(shared_start: Serve, shared_judge: ScriptedJudge) -> Callable[[bool], str]:
    """Return a function that starts a service with or without evidence, once each."""
    return functools.cache(
        lambda evidence: shared_start(judge_evidence=evidence, **shared_judge.settings)
    )


@pytest.mark.parametrize("accept", ["application/json", "application/x-ndjson"])
@pytest.mark.parametrize("poison", POISON)
def test_one_poisonous_reply_takes_no_neighbour_along(
    poison: str,
    accept: str,
    url_of: Callable[[bool], str],
    shared_judge: ScriptedJudge,
    shared_keys: Keys,
) -> None:
    judge, with_evidence = shared_judge, poison.endswith("evidence")
    said = '"evidence": "Blue", "met"' if with_evidence else '"met"'
    judge.script = lambda request, number: (
        POISON[poison] if "cursed" in text_of(request) else verdicts(request).replace('"met"', said)
    )
    team = f"{poison} {accept}".translate({ord(c): "-" for c in " /"})
    shared_keys.team(team)
    key = shared_keys.key(team, "read", "score", "induce")
    with Client(url_of(with_evidence), key) as client:
        groups = [
            asked(client, "Blue sky.", "Blue sea.") | {"id": "a"},
            asked(client, "Blue moon.", "cursed") | {"id": "b"},
        ]
        answer = httpx.post(
            f"{client.base_url}/v1/scores",
            timeout=60,
            json={"groups": groups},
            headers={"accept": accept, "authorization": f"Bearer {key}"},
        )
        assert answer.status_code == 200
        lines = [json.loads(line) for line in answer.text.split("\n") if line]
        told = {g["id"]: g for line in lines for g in line.get("groups", [line]) if "rollouts" in g}
        rewards = {i: [r["reward"] for r in g["rollouts"]] for i, g in told.items()}
        assert rewards["a"] == [1.0, 1.0]
        assert rewards["b"][0] == 1.0
        assert rewards["b"][1] in (None, 0.0)
        calls = len(judge.requests)
        client.score(groups)
        assert len(judge.requests) - calls <= 3


HTML = b"<html>busy \xff</html>"
NO_HTTP = {
    "no status line": b"SSH-2.0-OpenSSH_9.6\r\n",
    "a status that is no number": b"HTTP/1.1 abc X\r\n\r\n",
    "a long header": b"HTTP/1.1 200 OK\r\nx-a: " + b"a" * 20_000 + b"\r\n\r\n{}",
    "a NUL in a header": b"HTTP/1.1 200 OK\r\nx-a: a\x00b\r\n\r\n{}",
    "no chunk": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n{}",
    "a charset without text": b"HTTP/1.1 500 X\r\ncontent-type: text/html; charset=hex\r\n"
    b"content-length: %d\r\n\r\n%b" % (len(HTML), HTML),
    "a date far away": b"HTTP/1.1 429 X\r\ncontent-length: 0\r\n"
    b"retry-after: Mon, 01 Jan 99999999999999999999 00:00:00 GMT\r\n\r\n",
}


@pytest.mark.parametrize("name", NO_HTTP)
def test_an_answer_that_cannot_be_read_leaves_one_rollout_unscored(
    name: str, connect: Callable[..., Client], judge: ScriptedJudge
) -> None:
    judge.script = lambda request, number: (
        NO_HTTP[name] if "cursed" in text_of(request) else verdicts(request)
    )
    client = connect()
    for texts in (["cursed"], ["Blue.", "cursed again", "Red."]):
        (group,) = client.score([asked(client, *texts)]).groups
        for text, rollout in zip(texts, group.rollouts, strict=True):
            assert rollout.reward == (None if "cursed" in text else 1.0)
            expected = {"a charset without text": "unavailable", "a date far away": "rate_limited"}
            if "cursed" in text:
                assert rollout.reason == expected.get(name, "parse_failure")
    with pytest.raises(StatusError) as error:
        client.induce("Why?", student_responses=["cursed"], teacher_responses=["Blue, since…"])
    assert error.value.status in (502, 503)


def test_a_fault_of_ours_stays_in_its_group(
    connect: Callable[..., Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    from markscheme_server.scoring.scores import ScoreService

    whole = ScoreService._rollout_scores

    async def faulty(self: Any, lookup: Any, *more: Any) -> Any:
        if lookup.group.id == "b":
            raise LookupError("a bug")
        return await whole(self, lookup, *more)

    monkeypatch.setattr(ScoreService, "_rollout_scores", faulty)
    client = connect()
    batch = client.score([asked(client) | {"id": "a"}, asked(client, "Red.") | {"id": "b"}])
    assert [group.rollouts[0].reward for group in batch.groups] == [1.0, None]
    assert batch.groups[1].rollouts[0].reason == "unavailable"
    assert "a bug" not in batch.groups[1].model_dump_json()


def bad_rubric(_request: dict[str, Any], _number: int) -> str:
    return json.dumps({"criteria": RUBRIC["criteria"][:2]})


def test_a_failed_induction_is_remembered_until_the_responses_change(
    connect: Callable[..., Client], judge: ScriptedJudge
) -> None:
    judge.script = bad_rubric
    client = connect()
    group = {
        "id": "g",
        "prompt": PROMPT,
        "teacher_responses": ["Blue, since…"],
        "rollouts": [{"id": "r", "text": "Blue."}],
    }
    for _ in range(5):
        assert client.score([group]).groups[0].rollouts[0].reason == "parse_failure"
    assert len(judge.requests) == 3
    for step in range(4):
        client.score([group | {"rollouts": [{"id": "r", "text": f"Blue {step}."}]}])
    assert len(judge.requests) == 7
    judge.script = well_behaved
    assert client.score([group | {"rollouts": [{"id": "r", "text": "Green."}]}]).counts.scored == 1


def test_a_reply_that_cannot_be_read_is_no_outage(
    connect: Callable[..., Client], judge: ScriptedJudge
) -> None:
    judge.script = bad_rubric
    client = connect()
    with pytest.raises(StatusError) as error:
        client.induce(PROMPT, student_responses=["Blue."], teacher_responses=["Blue, since…"])
    assert (error.value.status, error.value.code) == (502, "judge_reply")
    assert len(judge.requests) == 3


def test_a_fair_criterion_is_not_refused_for_a_word(
    connect: Callable[..., Client], judge: ScriptedJudge
) -> None:
    def says(*texts: str) -> str:
        return json.dumps(
            {
                "criteria": [
                    {"criterion": text, "category": "Task-Fulfillment", "points": 2.0}
                    for text in (*texts, "It is short.", "It is polite.", "It is true.")
                ]
            }
        )

    client = connect()
    for text in (
        "Says how many hours a student visa allows",
        "States that the judge may dismiss the claim",
        "Uses x >> 3",
        "The title stands as <<title>>",
        "Cites a reference for each claim",
    ):
        judge.script = lambda request, number, text=text: says(text)
        made = client.induce(f"Q {text}", student_responses=["a"], teacher_responses=["b"])
        assert made.criteria[0].text == text
    judge.script = lambda request, number: says("It is better than Student 3")
    with pytest.raises(MarkschemeError, match="must not name an answer of this call"):
        client.induce("Q", student_responses=["a"], teacher_responses=["b"])
    judge.script = lambda request, number: says("It names Student 3")
    assert client.induce(
        "Who is student 3 of the list?", student_responses=["a"], teacher_responses=["b"]
    ).criteria


def test_a_call_that_was_cut_off_is_counted(
    connect: Callable[..., Client], judge: ScriptedJudge
) -> None:
    judge.script = lambda request, number: None
    client = connect()
    body = {"groups": [asked(client)]}

    def send(limit_s: float) -> Any:
        headers = {"X-Deadline-Ms": str(round(limit_s * 1000))}
        return httpx.post(
            f"{client.base_url}/v1/scores", timeout=60, json=body, headers=headers
        ).json()

    answer = with_enough_time(send, lambda _: bool(judge.requests), first_s=2)
    assert answer["groups"][0]["rollouts"][0]["reason"] == "timeout"
    assert answer["usage"]["judge_calls"] == 1
    (row,) = [row for row in client.usage(["role"]).data if row.role == "verifier"]
    assert row.calls == 1
