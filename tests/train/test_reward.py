"""RubricReward: groups by place, rewards by id, None stays None."""

import copy
import pickle
from types import SimpleNamespace
from typing import Any

import cloudpickle
import numpy
import pytest

from markscheme import AsyncClient, Client
from markscheme.errors import (
    AnswerUnreadable,
    ConnectionFailed,
    InvalidRequest,
    JudgeReplyUnreadable,
    MarkschemeError,
)
from markscheme.integrations import pending
from markscheme.integrations.trl import RubricReward, Unscored
from markscheme.schema import Group, Rollout, ScoreBatch
from markscheme.vocabulary import REASON_HELP, TRANSIENT_REASONS, UnscoredReason
from markscheme_train.training import resume_advice
from train.tiny import ScriptedClient

EOS = 1


def call(reward: RubricReward, prompts: list[Any], **columns: Any) -> list[float | None]:
    completions = columns.pop("completions", [f"answer {i}" for i in range(len(prompts))])
    ids = columns.pop("completion_ids", [[5, EOS]] * len(prompts))
    return reward(
        prompts=prompts,
        completions=completions,
        completion_ids=ids,
        trainer_state=SimpleNamespace(global_step=columns.pop("step", 3)),
        **columns,
    )


def reward_of(client: Any, **options: Any) -> RubricReward:
    return RubricReward(client, num_generations=2, run_id="run", eos_token_ids=[EOS], **options)


def test_the_same_prompt_twice_is_two_groups() -> None:
    client = ScriptedClient(lambda place, rollout: float(place))
    assert call(reward_of(client), ["p", "p", "p", "p"]) == [0.0, 1.0, 0.0, 1.0]
    groups = client.calls[0]["groups"]
    assert [group.prompt for group in groups] == ["p", "p"]
    assert groups[0].id != groups[1].id
    assert [rollout.text for group in groups for rollout in group.rollouts] == [
        f"answer {i}" for i in range(4)
    ]


def test_rewards_are_matched_by_id_whatever_the_order_of_the_answer() -> None:
    class Backwards(ScriptedClient):
        def score(self, groups: Any, **options: Any) -> ScoreBatch:
            batch = super().score(groups, **options)
            return batch.model_copy(update={"groups": batch.groups[::-1]})

    client = Backwards(lambda place, rollout: float(rollout.text.split()[1]) / 10)
    assert call(reward_of(client), ["p", "p", "q", "q"]) == [0.0, 0.1, 0.2, 0.3]


def test_an_unscored_rollout_is_none_and_its_reason_is_counted() -> None:
    reward = reward_of(ScriptedClient(lambda place, rollout: None if place else 0.5))
    assert call(reward, ["p", "p"]) == [0.5, None]
    assert reward.last is not None
    assert (reward.last.unscored, reward.last.reasons) == (1, {"timeout": 1})
    assert (reward.last.criteria[0].met, reward.last.criteria[0].judged) == (1, 1)


def test_signed_rewards_are_asked_for_and_reach_the_trainer() -> None:
    client = ScriptedClient(lambda place, rollout: -1.5)
    assert call(reward_of(client, clamp="signed"), ["p", "p"]) == [-1.5, -1.5]
    assert client.calls[0]["clamp"] == "signed"
    call(reward_of(client), ["p", "p"])
    assert client.calls[1]["clamp"] == "zero"


def test_a_criterion_that_does_not_apply_is_not_counted_as_judged() -> None:
    class PartlyApplicable(ScriptedClient):
        def score(self, groups: Any, **options: Any) -> ScoreBatch:
            batch = super().score(groups, **options)
            first = batch.groups[0].rollouts[0]
            verdict = first.verdicts[0].model_copy(update={"met": None, "applicable": False})
            first.verdicts[0] = verdict
            return batch

    reward = reward_of(PartlyApplicable(lambda place, rollout: 1.0))
    call(reward, ["p", "p"])
    assert reward.last is not None
    assert (reward.last.criteria[0].met, reward.last.criteria[0].judged) == (1, 1)


def test_a_rollout_without_its_end_is_marked_as_cut_off() -> None:
    client = ScriptedClient(lambda place, rollout: 1.0)
    call(reward_of(client), ["p", "p"], completion_ids=[[5, EOS], [5, 6]])
    assert [rollout.truncated for rollout in client.calls[0]["groups"][0].rollouts] == [False, True]


def test_teacher_responses_and_run_travel_with_the_group() -> None:
    client = ScriptedClient(lambda place, rollout: 1.0)
    call(
        reward_of(client, reuse="always_new"),
        ["p"] * 4,
        teacher_responses=[["t"], ["t"], None, None],
        other_column=[1, 2, 3, 4],
    )
    sent = client.calls[0]
    assert [group.teacher_responses for group in sent["groups"]] == [["t"], None]
    assert (sent["reuse"], sent["run"].id, sent["run"].step) == ("always_new", "run", 3)


def test_a_rubric_id_travels_with_its_group() -> None:
    client = ScriptedClient(lambda place, rollout: 1.0)
    call(reward_of(client), ["p"] * 6, rubric_id=["rub_1", "rub_1", None, None, "", ""])
    assert [group.rubric_id for group in client.calls[0]["groups"]] == ["rub_1", None, None]


def test_chat_messages_are_sent_as_messages_and_only_the_assistants_words_are_scored() -> None:
    client = ScriptedClient(lambda place, rollout: 1.0)
    prompt = [{"role": "user", "content": "hello"}]
    call(
        reward_of(client),
        [prompt, prompt],
        completions=[[{"role": "assistant", "content": "a"}]] * 2,
    )
    group: Group = client.calls[0]["groups"][0]
    assert not isinstance(group.prompt, str)
    assert group.prompt[0].content == "hello"
    assert group.rollouts[0] == Rollout(id="r0", text="a")


def test_two_calls_in_one_step_have_distinct_groups_and_a_repeated_step_the_same() -> None:
    client = ScriptedClient(lambda place, rollout: 1.0)
    reward = reward_of(client)
    for step in (3, 3, 4):
        call(reward, ["p", "p"], step=step)
    again = reward_of(client)
    call(again, ["p", "p"], step=3)
    ids = [made["groups"][0].id for made in client.calls]
    assert len(set(ids[:3])) == 3
    assert ids[3] == ids[0]


@pytest.mark.parametrize(
    ("prompts", "groups"),
    [
        (["p", "p", "q", "q"], [2, 2]),
        (["p"], [1]),  # one process's share of a group
        (["p", "p", "q"], [2, 1]),
        (["p", "p", "p"], [3]),  # an evaluation with three generations
        (["p", "q"], [1, 1]),
        (["p", "q", "p", "q"], [2, 2]),
    ],
)
def test_rows_that_are_not_pairs_are_grouped_by_their_prompt(
    prompts: list[str], groups: list[int]
) -> None:
    client = ScriptedClient(lambda place, rollout: float(rollout.text.split()[1]) / 10)
    assert call(reward_of(client), prompts) == [i / 10 for i in range(len(prompts))]
    assert [len(group.rollouts) for group in client.calls[0]["groups"]] == groups
    assert all(
        prompts[int(rollout.text.split()[1])] == group.prompt
        for group in client.calls[0]["groups"]
        for rollout in group.rollouts
    )


def test_the_rows_of_a_prompt_with_two_rubrics_are_two_groups() -> None:
    client = ScriptedClient(lambda place, rollout: 1.0)
    call(reward_of(client), ["p", "p", "p"], rubric_id=["rub_1", "rub_2", "rub_1"])
    assert [(g.rubric_id, len(g.rollouts)) for g in client.calls[0]["groups"]] == [
        ("rub_1", 2),
        ("rub_2", 1),
    ]


def test_a_row_names_its_rubric_and_the_reward_the_others() -> None:
    client = ScriptedClient(lambda place, rollout: 1.0)
    reward = reward_of(client, rubric_id="rub_all")
    call(reward, ["p"] * 4, rubric_id=["rub_1", "rub_1", None, None])
    call(reward, ["p", "p"], rubric_id=["", ""])  # a column of a CSV file
    named = [group.rubric_id for made in client.calls for group in made["groups"]]
    assert named == ["rub_1", "rub_all", "rub_all"]


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("one text", ["one text"]),
        (["one", "two"], ["one", "two"]),
        ([{"role": "assistant", "content": "one"}], ["one"]),
        ([[{"role": "assistant", "content": "one"}], "two"], ["one", "two"]),
        ([], None),
        (None, None),
    ],
)
def test_teacher_responses_may_be_one_or_several_texts_or_messages(given: Any, sent: Any) -> None:
    client = ScriptedClient(lambda place, rollout: 1.0)
    call(reward_of(client), ["p", "p"], teacher_responses=[given, given])
    assert client.calls[0]["groups"][0].teacher_responses == sent


def test_an_async_client_is_refused_at_once() -> None:
    with pytest.raises(TypeError, match="takes a Client, not an AsyncClient"):
        reward_of(AsyncClient("http://127.0.0.1:9"))


def test_without_a_trainers_state_each_call_is_a_step() -> None:
    client = ScriptedClient(lambda place, rollout: 1.0)
    reward = reward_of(client)
    for _ in range(2):
        reward(prompts=["p", "p"], completions=["a", "b"])
    assert [made["run"].step for made in client.calls] == [0, 1]


CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"type": "function", "function": {"name": "mul", "arguments": '{"a": 2}'}}],
}
RESULT = {"role": "tool", "name": "mul", "content": "6"}
SAID = {"role": "assistant", "content": "It is 6."}
PROMPT = [{"role": "user", "content": "2x3?"}]


@pytest.mark.parametrize(
    ("completion", "text"),
    [
        ([SAID], "It is 6."),
        ([SAID | {"tool_calls": None, "name": None, "reasoning_content": ""}], "It is 6."),
        ([SAID | {"content": [{"type": "text", "text": "It "}, {"type": "text", "text": "is"}]}],
         "It is"),
        ([{"role": "assistant", "content": None}], ""),
        ([{"role": "assistant"}], ""),
        ([], ""),
        ("It is 6.", "It is 6."),
    ],
)  # fmt: skip
def test_a_completion_that_only_says_something_is_sent_as_text(completion: Any, text: str) -> None:
    client = ScriptedClient(lambda place, rollout: 1.0)
    call(reward_of(client), [PROMPT] * 2, completions=[completion, "b"])
    rollout = client.calls[0]["groups"][0].rollouts[0]
    assert (rollout.text, rollout.messages) == (text, None)


@pytest.mark.parametrize(
    "completion",
    [
        [CALL, RESULT, SAID],
        [CALL],
        [SAID, {"role": "user", "content": "Why?"}, SAID],
        [SAID | {"reasoning_content": "2 and 2 and 2"}],
        [CALL | {"content": "Let me see."}, RESULT | {"content": [{"type": "text", "text": "6"}]}],
        [{"role": "developer", "content": "Hurry."}, SAID],
    ],
)
def test_a_trajectory_is_sent_as_messages(completion: Any) -> None:
    client = ScriptedClient(lambda place, rollout: 1.0)
    call(reward_of(client, view="full"), [PROMPT] * 2, completions=[completion, "b"])
    rollout = client.calls[0]["groups"][0].rollouts[0]
    assert rollout.text is None
    assert [message.role for message in rollout.messages] == [m["role"] for m in completion]
    assert client.calls[0]["view"] == "full"


def test_tool_calls_of_a_prompt_are_sent() -> None:
    client = ScriptedClient(lambda place, rollout: 1.0)
    prompt = [*PROMPT, CALL, RESULT]
    call(reward_of(client), [prompt] * 2)
    sent = client.calls[0]["groups"][0].prompt
    assert [message.role for message in sent] == ["user", "assistant", "tool"]
    assert sent[1].tool_calls[0].function.arguments == {"a": 2}


IMAGE = {"type": "image", "image": object()}


def test_an_image_in_a_rollout_is_named_to_the_service_and_its_bytes_stay_here() -> None:
    client = ScriptedClient(lambda place, rollout: 1.0)
    seen = [CALL, RESULT | {"content": [IMAGE, {"type": "text", "text": "a cat"}]}, SAID]
    call(reward_of(client), [PROMPT] * 2, completions=[seen, [SAID]])
    sent = client.calls[0]["groups"][0].rollouts[0].messages
    assert sent[1].content == [{"type": "image"}, {"type": "text", "text": "a cat"}]


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ([{"role": "user", "content": 3}], "must be a text"),
        ([{"role": "alien", "content": "secret"}], "prompt[0].role: Input should be"),
        ([], "prompt"),
        ("", "prompt"),
        (None, "prompt: must be a text or a list of messages"),
    ],
)
def test_a_prompt_that_cannot_be_sent_leaves_its_group_unscored_and_no_other(
    prompt: Any, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    client = ScriptedClient(lambda place, rollout: 1.0)
    reward = reward_of(client)
    assert call(reward, [prompt, prompt, "q", "q"]) == [None, None, 1.0, 1.0]
    assert reward.last is not None
    assert reward.last.reasons == {"not_supported": 2}
    assert [group.prompt for group in client.calls[0]["groups"]] == ["q"]
    assert "2 of 4 rollouts cannot be sent" in caplog.text
    assert said in caplog.text
    assert "secret" not in caplog.text


def test_the_service_leaves_unscored_what_has_an_image(client: Client) -> None:
    """In a prompt its group, in a rollout that rollout; the others have rewards."""
    seen = [CALL, RESULT | {"content": [IMAGE]}, SAID]
    shown = [{"role": "user", "content": [IMAGE, {"type": "text", "text": "What is this?"}]}]
    asked = [{"role": "user", "content": "Describe rain."}]
    check = {"kind": "contains", "texts": ["softly"]}
    rubric = client.create_rubric(asked, [{"text": "Says how.", "points": 1, "check": check}])
    reward = reward_of(client, view="full")
    rewards = call(
        reward,
        [shown, shown, asked, asked],
        completions=["a", "b", seen, "Rain falls softly."],
        rubric_id=[None, None, rubric.id, rubric.id],
    )
    assert rewards == [None, None, None, 1.0]
    assert reward.last is not None
    assert reward.last.reasons == {"not_supported": 3}


def test_a_completion_that_cannot_be_sent_leaves_itself_unscored() -> None:
    client = ScriptedClient(lambda place, rollout: 1.0)
    assert call(reward_of(client), ["p", "p"], completions=[[{"role": "alien"}], "b"]) == [
        None,
        1.0,
    ]


def nested(levels: int) -> Any:
    value: Any = {}
    for _ in range(levels):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    "columns",
    [
        {"prompts": [nested(3000)] * 2 + ["q"] * 2},
        {"completions": [[{"role": "assistant", "content": "a", "name": nested(3000)}], *"abc"]},
        {"completions": [None, "a", "b", "c"]},
        {"completions": [5, "a", "b", "c"]},
        {"teacher_responses": [numpy.array(["t", "u"])] * 2 + [None] * 2},
        {"teacher_responses": [float("nan")] * 2 + [None] * 2},
        {"rubric_id": [numpy.array(["t", "u"])] * 2 + [None] * 2},
        {"rubric_id": [5, 5, None, None]},
    ],
)
def test_a_row_that_cannot_be_read_takes_no_neighbour_along(columns: dict[str, Any]) -> None:
    reward = reward_of(ScriptedClient(lambda place, rollout: 0.5))
    given = {"prompts": ["p", "p", "q", "q"]} | columns
    rewards = call(reward, **given)
    assert rewards[0] is None
    assert rewards[2:] == [0.5, 0.5]
    assert reward.last is not None
    assert set(reward.last.reasons) == {"not_supported"}


def test_a_batch_of_which_nothing_can_be_sent_asks_nothing() -> None:
    client = ScriptedClient(lambda place, rollout: 1.0)
    assert call(reward_of(client), ["", ""]) == [None, None]
    assert client.calls == []


def brevity(completions: Any, **_columns: Any) -> list[float]:
    return [0.5] * len(completions)


async def async_brevity(completions: Any, **_columns: Any) -> list[float]:
    return [0.5] * len(completions)


async def test_beside_the_reward_another_function_is_null_where_it_is() -> None:
    reward = reward_of(ScriptedClient(lambda place, rollout: None if place else 0.8))
    completions = ["a", "b"]
    assert call(reward, ["p", "p"], completions=completions) == [0.8, None]
    other = reward.where_scored(brevity)
    assert other(prompts=["p", "p"], completions=completions) == [0.5, None]
    later = reward.where_scored(async_brevity)
    assert await later(prompts=["p", "p"], completions=completions) == [0.5, None]
    assert [function.__name__ for function in (other, later)] == ["brevity", "async_brevity"]
    with pytest.raises(ValueError, match="must list the rubric's reward before"):
        other(prompts=["p", "p"], completions=["a", "b"])


@pytest.mark.parametrize(
    "copied",
    [
        copy.deepcopy,
        lambda value: pickle.loads(pickle.dumps(value)),
        lambda value: pickle.loads(cloudpickle.dumps(value)),
    ],
    ids=["deepcopy", "pickle", "cloudpickle"],
)
def test_rewards_can_be_copied_to_another_process(copied: Any) -> None:
    reward = reward_of(Client("http://127.0.0.1:9", "mk_key"), view="full")
    there, other = copied([reward, reward.where_scored(brevity)])
    there.client = ScriptedClient(lambda place, rollout: None if place else 0.8)
    completions = ["a", "b"]
    assert call(there, ["p", "p"], completions=completions) == [0.8, None]
    assert other(completions=completions) == [0.5, None]
    assert there.view == "full"


def test_it_waits_for_a_service_that_is_away_and_asks_the_same_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pending, "FIRST_RETRY_WAIT_S", 0.0)

    class Away(ScriptedClient):
        left = 2

        def score(self, groups: Any, **options: Any) -> ScoreBatch:
            batch = super().score(groups, **options)
            self.left -= 1
            if self.left >= 0:
                raise ConnectionFailed("connection refused")
            return batch

    waits: list[tuple[str, float]] = []
    client = Away(lambda place, rollout: float(place))
    reward = reward_of(
        client, max_outage_s=60.0, on_wait=lambda why, seconds: waits.append((why, seconds))
    )
    assert call(reward, ["p", "p"]) == [0.0, 1.0]
    assert [why for why, _ in waits] == ["connection refused"] * 2
    assert client.calls[0] == client.calls[1] == client.calls[2]


@pytest.mark.parametrize(
    "error",
    [
        ConnectionFailed("gone"),
        InvalidRequest("no such judge", status=422),
        AnswerUnreadable("not ours"),
        JudgeReplyUnreadable("no JSON", status=502, code="judge_reply"),
    ],
)
def test_what_will_not_pass_is_not_waited_for(error: MarkschemeError) -> None:
    class Broken(ScriptedClient):
        def score(self, groups: Any, **options: Any) -> ScoreBatch:
            super().score(groups, **options)
            raise error

    client = Broken(lambda place, rollout: 1.0)
    outage_s = 0.0 if type(error) is ConnectionFailed else 60.0
    with pytest.raises(type(error)):
        call(reward_of(client, max_outage_s=outage_s), ["p", "p"])
    assert len(client.calls) == 1


def unscored_for(*reasons: str) -> dict[str, Any]:
    """Make a client that leaves one row unscored for each reason; ``-``: the row has a reward."""

    class Reasons(ScriptedClient):
        def score(self, groups: Any, **options: Any) -> ScoreBatch:
            batch, left = super().score(groups, **options), iter(reasons)
            return batch.model_copy(
                update={
                    "groups": [
                        group.model_copy(
                            update={
                                "rollouts": [
                                    rollout
                                    if (reason := next(left)) == "-"
                                    else rollout.model_copy(
                                        update={
                                            "reward": None,
                                            "status": "unscored",
                                            "reason": UnscoredReason(reason),
                                        }
                                    )
                                    for rollout in group.rollouts
                                ]
                            }
                        )
                        for group in batch.groups
                    ]
                }
            )

    return {
        "reward": reward_of(Reasons(lambda place, rollout: 1.0), max_unscored=0.5),
        "prompts": ["p"] * len(reasons),
    }


@pytest.mark.parametrize("reason", UnscoredReason)
def test_a_batch_unscored_for_one_reason_may_pass_as_that_reason(reason: UnscoredReason) -> None:
    said = rf"4 of 4 rollouts of step 4 are unscored \(4 {reason.value}\)"
    with pytest.raises(Unscored, match=said) as caught:
        call(**unscored_for(*[reason.value] * 4))
    assert caught.value.may_pass is (reason in TRANSIENT_REASONS)
    assert resume_advice(caught.value).startswith(f"4 {reason.value}: {REASON_HELP[reason]} ")
    assert (
        "--resume alone does not help" in resume_advice(caught.value)
    ) is not caught.value.may_pass
    assert "\n" not in resume_advice(caught.value)


@pytest.mark.parametrize(
    ("reasons", "may_pass"),
    [
        (["rate_limited", "rate_limited", "rate_limited", "refused"], True),
        (["rate_limited", "timeout", "refused", "quota"], True),
        (["rate_limited", "refused", "misconfigured", "quota"], False),
        (["unavailable", "rate_limited", "refused", "-"], True),
        (["refused", "refused", "misconfigured", "-"], False),
    ],
)
def test_of_several_reasons_those_that_stay_decide(reasons: list[str], may_pass: bool) -> None:
    """Whether they alone would be too many: then waiting for the others is in vain."""
    with pytest.raises(Unscored) as caught:
        call(**unscored_for(*reasons))
    assert caught.value.may_pass is may_pass
    known = {UnscoredReason(reason) for reason in reasons if reason != "-"}
    assert all(REASON_HELP[reason] in resume_advice(caught.value) for reason in known)


def test_a_refused_rollout_alone_stops_nothing() -> None:
    assert call(**unscored_for("refused", "-", "misconfigured", "-")) == [None, 1.0, None, 1.0]


def test_a_rollout_with_nul_is_sent_with_it_made_visible() -> None:
    client = ScriptedClient(lambda place, rollout: 1.0)
    call(reward_of(client), ["p\0", "p\0"], completions=["a\0", "b"])
    group = client.calls[0]["groups"][0]
    assert (group.prompt, group.rollouts[0].text) == ("p\ufffd", "a\ufffd")


def test_metrics_name_the_unscored_rate_and_where_rubrics_came_from() -> None:
    logged: dict[str, float] = {}
    reward = reward_of(ScriptedClient(lambda place, rollout: None if place else 1.0))
    call(reward, ["p", "p"], log_metric=logged.__setitem__)
    assert logged["rubric/unscored_rate"] == 0.5
    assert (logged["rubric/origin_induced"], logged["rubric/origin_reused"]) == (1.0, 0.0)
    assert logged["rubric/met_task_fulfilment"] == 1.0
