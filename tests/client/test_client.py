"""Both clients against a real service, and what they say when there is none."""

import asyncio
import inspect
import json
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

import markscheme
from markscheme import AsyncClient, Client, protocol, requests
from markscheme.errors import (
    AuthenticationFailed,
    Conflict,
    ConnectionFailed,
    InvalidArgument,
    InvalidRequest,
    NotFound,
)
from markscheme.schema import GroupScore, Rollout, Rubric, Run, ScoredRollout

PROMPT = "Describe a tree. Do not use any commas. Use at least 5 words."
TEACHER = "An oak is a broad tree with deep roots and a rough dark bark"
ROLLOUTS = [
    {"id": "a", "text": "A tree, tall, green, wide, old and full of birds in spring"},
    {"id": "b", "text": "A tall tree stands in the field and drops its leaves in autumn"},
]
GROUP = {"id": "g", "prompt": PROMPT, "teacher_responses": [TEACHER], "rollouts": ROLLOUTS}


def test_induce_read_list_and_score(client: Client) -> None:
    rubric = client.induce(
        PROMPT, student_responses=[r["text"] for r in ROLLOUTS], teacher_responses=[TEACHER]
    )
    assert rubric.origin == "induced"
    assert rubric.provenance.rubricator is not None
    assert any(c.source and "commas" in c.source for c in rubric.criteria)
    assert client.rubric(rubric.id) == rubric
    assert [r.id for r in client.rubrics(PROMPT).data] == [rubric.id]
    heard = []
    batch = client.score([GROUP], on_group=heard.append)
    assert heard == batch.groups
    low, high = (r.reward for r in batch.groups[0].rollouts)
    assert low is not None
    assert high is not None
    assert low < high
    assert batch.groups[0].rollouts[0].feedback
    assert batch.groups[0].rubric is not None
    assert batch.groups[0].rubric.origin == "reused"


def test_a_resent_step_gets_the_same_rubric_and_rewards(client: Client) -> None:
    run = Run(id="run", step=3)
    first = client.score([GROUP], run=run, reuse="always_new")
    client.create_rubric(
        PROMPT, [{"text": "other", "points": 1, "check": {"kind": "max_words", "value": 1}}]
    )
    second = client.score([GROUP], run=run)
    assert first.groups[0].rubric == second.groups[0].rubric
    assert [r.reward for r in first.groups[0].rollouts] == [
        r.reward for r in second.groups[0].rollouts
    ]


def test_reuse_policies(client: Client) -> None:
    frozen = client.score([GROUP], reuse="frozen")
    assert [(r.reward, r.reason) for r in frozen.groups[0].rollouts] == [(None, "no_rubric")] * 2
    origins = [
        client.score(
            [GROUP | {"rollouts": [{"id": "x", "text": f"A tree number {i} stands here alone"}]}],
            reuse=reuse,
        )
        .groups[0]
        .rubric
        for i, reuse in enumerate(("if_fresh", "frozen", "always_new"))
    ]
    assert [r.origin for r in origins if r] == ["induced", "reused", "induced"]


def test_group_and_rollout_mode_agree_for_the_builtin_judge(client: Client) -> None:
    rewards = {
        mode: [
            r.reward
            for r in client.score([GROUP], verify=mode, score_teachers=True).groups[0].rollouts
        ]
        for mode in ("rollout", "group")
    }
    assert rewards["rollout"] == rewards["group"]


def test_nothing_to_read_is_no_rubric_and_never_a_guess(client: Client) -> None:
    group = {
        "id": "g",
        "prompt": "Tell me about the sea.",
        "teacher_responses": ["The sea is large and deep."],
        "rollouts": [{"id": "a", "text": "Waves."}],
    }
    score = client.score([group]).groups[0]
    assert (score.rollouts[0].reward, score.rollouts[0].reason) == (None, "no_rubric")
    with pytest.raises(InvalidRequest) as caught:
        client.induce(group["prompt"], student_responses=["Waves."])
    assert caught.value.code == "no_rubric"


def test_model_output_with_nul_and_surrogates_can_be_sent(client: Client) -> None:
    odd = GROUP | {
        "rollouts": [{"id": "a", "text": "a\x00b\ud800 c d e f g h"}, {"id": "b", "text": ""}]
    }
    assert client.score([odd]).counts.scored == 2


async def test_the_async_client_works_inside_a_loop(service: str) -> None:
    async with AsyncClient(service) as client:
        rubric = await client.induce(PROMPT, student_responses=["x"], teacher_responses=[TEACHER])
        batches = await asyncio.gather(*(client.score([GROUP | {"id": f"g{i}"}]) for i in range(4)))
        assert {b.counts.scored for b in batches} == {2}
        assert (await client.rubric(rubric.id)).id == rubric.id
        assert (await client.rubrics()).has_more is False
        with pytest.raises(NotFound):
            await client.rubric("rub_none")


async def test_rollouts_that_are_sent_one_by_one_are_scored_as_a_group(service: str) -> None:
    group: dict[str, Any] = {"key": "g", "size": 3, "teacher_responses": [TEACHER], "run": "run"}
    third = {"id": "c", "messages": [{"role": "assistant", "content": "A tree\ud800"}]}

    def sync_rollout() -> ScoredRollout:
        with Client(service) as client:
            return client.rollout(PROMPT, ROLLOUTS[0], **group)

    async with AsyncClient(service) as client:
        first, *others = await asyncio.gather(
            asyncio.to_thread(sync_rollout),
            client.rollout(PROMPT, Rollout.model_validate(ROLLOUTS[1]), **group),
            client.rollout(PROMPT, third, **group),
        )
        batch = await client.score(
            [
                {"id": "g", "prompt": PROMPT, "teacher_responses": [TEACHER]}
                | {"rollouts": [*ROLLOUTS, third]}
            ],
            run="run",
        )
        assert [each.reward for each in (first, *others)] == batch[0].rewards
        assert {each.rubric.id for each in (first, *others) if each.rubric} == {batch[0].rubric.id}  # type: ignore[union-attr]
        assert first.group.complete
        assert repr(first).startswith("ScoredRollout(id='a', reward=")
        with pytest.raises(Conflict, match="another key"):
            await client.rollout(PROMPT, ROLLOUTS[0] | {"text": "x"}, **group)


async def test_rollouts_that_wait_keep_no_other_from_being_sent(service: str) -> None:
    """There are more than the 100 connections that httpx opens by itself."""
    async with AsyncClient(service) as client:
        answers = await asyncio.gather(
            *(
                client.rollout(PROMPT, ROLLOUTS[number], key=f"g{group}", size=2, reuse="frozen")
                for number in range(2)
                for group in range(110)
            )
        )
    assert all(answer.group.complete for answer in answers)


@pytest.mark.parametrize(
    ("rollout", "words"),
    [
        ("a text alone", "id of its own"),
        ([{"role": "assistant", "content": "x"}], "id of its own"),
        ({"id": "a"}, "exactly one of text and messages"),
        (7, "must be a text"),
    ],
)
def test_a_rollout_that_cannot_be_told_apart_is_refused_before_sending(
    rollout: Any, words: str
) -> None:
    with Client("http://127.0.0.1:1") as client, pytest.raises(InvalidArgument, match=words):
        client.rollout(PROMPT, rollout, key="g", size=2)


def test_a_missing_service_is_said_plainly() -> None:
    with (
        Client("http://127.0.0.1:1") as client,
        pytest.raises(ConnectionFailed, match="markscheme serve"),
    ):
        client.rubric("x")


def test_the_shared_key(serve: Callable[..., str]) -> None:
    url = serve(api_key="right")
    for key in (None, "wrong", "right-or-not", "€"):
        with (
            Client(url, api_key=key and key.encode("ascii", "replace").decode()) as client,
            pytest.raises(AuthenticationFailed),
        ):
            client.rubrics()
    with Client(url, api_key="right") as client:
        assert client.rubrics().data == []


def test_bad_arguments_are_refused_before_sending(client: Client) -> None:
    with pytest.raises(InvalidArgument) as caught:
        client.score([{"id": "g", "prompt": PROMPT, "rollouts": []}])
    assert caught.value.param == "groups[0].rollouts"


def test_plain_texts_without_ids_are_scored_in_their_order(client: Client) -> None:
    texts = [rollout["text"] for rollout in ROLLOUTS]
    group = {"prompt": PROMPT, "teacher_responses": [TEACHER], "rollouts": texts}
    named = client.score([GROUP]).rewards
    batch = client.score([group, group | {"rollouts": texts[::-1]}])
    assert batch.rewards == [named[0], named[0][::-1]]
    assert [each.id for each in batch] == ["g0", "g1"]
    assert [rollout.id for rollout in batch["g0"].rollouts] == ["r0", "r1"]


def test_a_rubric_stands_for_its_id(client: Client) -> None:
    rubric = client.create_rubric(PROMPT, [{"text": "It names red.", "points": 1}])
    assert client.rubric(rubric) == rubric
    assert client.lineage(rubric).rubric_id == rubric.id
    criteria = [{"text": "It names red.", "points": 2}]
    assert client.fork_rubric(rubric, criteria).parent_id == rubric.id
    assert client.change_rubric(rubric, retired=True).retired_at is not None
    assert client.export_rubric(rubric).content
    batch = client.score([{"prompt": PROMPT, "rubric_id": rubric, "rollouts": ["red"]}])
    assert batch[0].rubric is not None
    assert batch[0].rubric.id == rubric.id
    assert client.rubric(batch[0].rubric).id == rubric.id


@pytest.mark.parametrize("name", ["a/b", "a?b", "a#b", "a%2Fb", "ü 1"])
def test_an_id_cannot_lead_to_another_path(name: str, client: Client) -> None:
    with pytest.raises(NotFound):
        client.rubric(name)


MESSAGES = [
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Name a "}, "colour."], "name": None},
]


def test_prompts_of_messages_and_long_ones_find_their_rubrics(client: Client) -> None:
    criteria = [{"text": "It names red.", "points": 1}]
    for prompt in (MESSAGES, "long " * 40_000, "a + b & c = d?"):
        made = client.create_rubric(prompt, criteria)
        assert [each.id for each in client.rubrics(prompt)] == [made.id]
        client.save_teacher_responses([{"prompt": prompt, "responses": ["Red."]}])
        found = client.teacher_responses(prompt)
        assert [each.text for each in found.data] == ["Red."]
        assert found.prompt_key == made.prompt_key
    with pytest.raises(InvalidArgument, match="either prompt or prompt_key"):
        client.rubrics("p", prompt_key="k")


def test_trajectories_are_scored_in_a_view(client: Client) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    trajectory = [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "red sky"},
        {"role": "assistant", "content": "It will be fine."},
    ]
    check = {"kind": "contains", "texts": ["red"], "match": "any"}
    rubric = client.create_rubric(
        MESSAGES, [{"text": "It names red.", "points": 1, "check": check}], view="full"
    )
    assert rubric.view == "full"
    forked = client.fork_rubric(rubric, view="reply", metadata={"note": "as a reader sees it"})
    assert (forked.view, forked.metadata) == ("reply", {"note": "as a reader sees it"})
    group = {"prompt": MESSAGES, "rubric_id": rubric, "rollouts": [trajectory, "Red."]}
    batch = client.score([group])
    assert batch.rewards == [[0.0, 1.0]]  # a check reads the reply unless it says otherwise
    induced = client.induce(
        PROMPT, student_responses=[trajectory, "a, b"], teacher_responses=[trajectory, TEACHER]
    )
    assert induced.origin == "induced"


async def test_async_callbacks_are_awaited(service: str) -> None:
    heard = []

    async def hear(group: GroupScore) -> None:
        await asyncio.sleep(0)
        heard.append(group.id)

    async with AsyncClient(service) as client:
        await client.score([GROUP], on_group=hear)
        await client.score([GROUP], on_group=lambda group: heard.append(group.id))
    assert heard == ["g", "g"]


def test_an_async_callback_of_the_synchronous_client_is_refused(client: Client) -> None:
    async def hear(_group: GroupScore) -> None: ...

    with pytest.raises(InvalidArgument, match="AsyncClient"):
        client.score([GROUP], on_group=hear)


def test_both_clients_have_the_same_methods_with_the_same_arguments() -> None:
    public = {name for name, _ in inspect.getmembers(Client, inspect.isfunction) if name[0] != "_"}
    assert {"score", "induce", "run_steps", "close"} <= public
    assert public == {
        name for name, _ in inspect.getmembers(AsyncClient, inspect.isfunction) if name[0] != "_"
    }
    for name in public:
        here, there = (
            list(inspect.signature(getattr(client, name)).parameters.values())
            for client in (Client, AsyncClient)
        )
        assert [(each.name, each.kind, each.default) for each in here] == [
            (each.name, each.kind, each.default) for each in there
        ]


def test_what_a_user_imports_is_at_the_top_level() -> None:
    for name in markscheme.__all__:
        assert hasattr(markscheme, name)
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))
    assert markscheme.__version__ == project["project"]["version"]
    raised = {
        name
        for name, value in vars(markscheme.errors).items()
        if isinstance(value, type) and issubclass(value, markscheme.MarkschemeError)
    }
    assert raised <= set(markscheme.__all__)


def test_the_sdk_pulls_in_neither_torch_nor_the_server() -> None:
    code = (
        "import sys, markscheme; "
        "bad = {'torch', 'numpy', 'fastapi', 'sqlalchemy', 'markscheme_server'} & set(sys.modules);"
        " print(bad)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def _with_news(value: Any) -> Any:
    """As a later version of the service may answer: a field more in every object but metadata."""
    if isinstance(value, dict):
        news = {
            name: each if name == "metadata" else _with_news(each) for name, each in value.items()
        }
        return news | {"of_a_later_version": 1}
    return [_with_news(each) for each in value] if isinstance(value, list) else value


def test_fields_of_this_version_are_sent_only_where_they_say_something() -> None:
    """So that an older service takes what it knows."""
    criteria = [{"text": "Red.", "may_not_apply": True}, {"text": "Blue."}]
    call = requests.create_rubric(PROMPT, [each | {"points": 1} for each in criteria], [], None, {})
    sent, plain = call.json["criteria"]
    assert sent["may_not_apply"] is True
    assert "may_not_apply" not in plain
    assert "metadata" not in call.json.keys() | plain.keys()
    options: dict[str, Any] = dict.fromkeys(
        ("judge", "teacher_model", "rubricator", "reuse_scope", "view", "run", "deadline_s")
    )
    options |= {"reuse": "if_fresh", "verify": "rollout", "thinking": "auto", "ask_teacher": 0}
    options |= {"score_teachers": False}
    zero, _ = requests.score([GROUP], **options, clamp="zero")
    signed, _ = requests.score([GROUP], **options, clamp="signed")
    assert "clamp" not in zero.json
    assert signed.json == zero.json | {"clamp": "signed"}


def test_an_older_client_reads_what_a_newer_service_answers(client: Client) -> None:
    """Services are upgraded before those that call them."""
    rubric = client.create_rubric(PROMPT, [{"text": "It names red.", "points": 1}])
    batch = client.score(
        [{"id": "g", "prompt": PROMPT, "rollouts": [{"id": "r", "text": "red"}]}], reuse="frozen"
    )
    newer = json.dumps(_with_news(rubric.model_dump(mode="json")))
    assert protocol.read(httpx.Response(200, text=newer), Rubric) == rubric
    reader = protocol.BatchReader(["g"], None)
    assert (
        reader.line(json.dumps(_with_news(batch.groups[0].model_dump(mode="json"))))
        == batch.groups[0]
    )
    refused = httpx.Response(
        404,
        json=_with_news(
            {
                "error": {"message": "gone", "type": "not_found_error", "code": "x"},
                "request_id": "r",
            }
        ),
    )
    with pytest.raises(NotFound, match="gone"):
        protocol.raise_for_status(refused)
