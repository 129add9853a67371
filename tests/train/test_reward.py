"""RubricReward: groups by place, rewards by id, None stays None."""

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import tenacity

from markscheme.errors import (
    AnswerUnreadable,
    ConnectionFailed,
    InvalidRequest,
    JudgeReplyUnreadable,
    MarkschemeError,
)
from markscheme.schema import Group, Rollout, ScoreBatch
from markscheme.vocabulary import REASON_HELP, TRANSIENT_REASONS, UnscoredReason
from markscheme_train.errors import Unscored
from markscheme_train.reward import RubricReward
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


@pytest.mark.parametrize("prompts", [["p", "p", "p"], ["p", "q"]])
def test_rows_that_are_not_whole_groups_are_refused(prompts: list[str]) -> None:
    with pytest.raises(ValueError, match="rows"):
        call(reward_of(ScriptedClient(lambda place, rollout: 1.0)), prompts)


def test_it_waits_for_a_service_that_is_away_and_asks_the_same_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tenacity.nap.time, "sleep", lambda seconds: None)

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
    assert caught.value.advice.startswith(f"4 {reason.value}: {REASON_HELP[reason]} ")
    assert ("--resume alone does not help" in caught.value.advice) is not caught.value.may_pass
    assert "\n" not in caught.value.advice


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
    assert all(REASON_HELP[reason] in caught.value.advice for reason in known)


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


def test_importing_the_reward_needs_no_torch() -> None:
    code = (
        "import sys, markscheme_train; "
        "assert 'torch' not in sys.modules and 'trl' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
