"""How a batch of scores is read in Python."""

import builtins
import copy
import json
import pickle
from typing import Any

import pandas
import pytest
from pydantic import ValidationError

from markscheme import Client, ScoreBatch
from markscheme.schema import Group, Rollout, ScoreRequest
from markscheme.schema.base import MAX_ROLLOUTS


def batch_of(*groups: dict[str, float | None]) -> ScoreBatch:
    """Return a batch of groups named `g0`, `g1`, … with rewards by rollout."""
    scores: list[dict[str, Any]] = [
        {
            "id": f"g{number}",
            "status": "scored",
            "error": None,
            "rubric": None,
            "teacher": None,
            "rollouts": [
                {
                    "id": name,
                    "reward": reward,
                    "status": "unscored" if reward is None else "scored",
                    "reason": "timeout" if reward is None else None,
                    "verdicts": [],
                    "feedback": [] if reward == 1.0 else ["It names red."],
                }
                for name, reward in rewards.items()
            ],
        }
        for number, rewards in enumerate(groups)
    ]
    total = sum(map(len, groups))
    unscored = sum(reward is None for rewards in groups for reward in rewards.values())
    usage = ("judge_calls", "prompt_tokens", "completion_tokens", "cached_verdicts")
    answer = {
        "groups": scores,
        "counts": {"rollouts": total, "scored": total - unscored, "unscored": unscored},
        "usage": dict.fromkeys(usage, 0),
    }
    return ScoreBatch.model_validate_json(json.dumps(answer))


BATCH = batch_of({"a": 1.0, "b": None}, {"a": 1 / 3})


def test_rewards_are_lists_by_group_and_none_where_unknown() -> None:
    assert BATCH.rewards == [[1.0, None], [1 / 3]]
    assert BATCH["g0"].rewards == [1.0, None]


def test_groups_are_found_by_id_and_by_position() -> None:
    assert BATCH["g1"] is BATCH[1] is BATCH[-1] is BATCH.groups[1]
    assert BATCH[:1] == BATCH.groups[:1]
    assert list(BATCH) == BATCH.groups
    assert len(BATCH) == 2
    assert "g1" in BATCH
    assert BATCH[0] in BATCH
    assert "g2" not in BATCH
    with pytest.raises(KeyError, match="g2"):
        BATCH["g2"]
    with pytest.raises(IndexError):
        BATCH[2]


def test_a_frame_has_a_row_for_each_rollout() -> None:
    frame = BATCH.to_frame()
    assert list(frame["group"]) == ["g0", "g0", "g1"]
    assert list(frame["rollout"]) == ["a", "b", "a"]
    assert frame["reward"].dtype == "float64"
    assert frame["reward"].isna().tolist() == [False, True, False]
    assert frame["reason"][1] == "timeout"
    assert frame.groupby("group")["reward"].mean().tolist() == [1.0, 1 / 3]
    unknown = batch_of({"a": None}).to_frame()
    assert unknown["reward"].dtype == "float64"
    assert pandas.isna(unknown["reward"][0])


def test_a_frame_without_pandas_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_pandas(name: str, *arguments: Any) -> Any:
        if name == "pandas":
            raise ModuleNotFoundError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without_pandas)
    with pytest.raises(ModuleNotFoundError, match="pip install pandas"):
        BATCH.to_frame()


def test_a_representation_is_short_and_says_what_is_unknown() -> None:
    assert repr(BATCH) == "ScoreBatch(groups=2, rollouts=3, scored=2, timeout=1)"
    assert repr(BATCH[1]) == "GroupScore(id='g1', status='scored', rewards=[0.333])"
    assert repr(BATCH[0].rollouts) == (
        "[RolloutScore(id='a', reward=1.0), RolloutScore(id='b', reward=None, reason='timeout')]"
    )
    many = batch_of({str(number): 0.5 for number in range(1000)})
    assert len(repr(many[0])) < 150
    assert "Ellipsis]" in repr(many[0])


def test_batches_can_be_copied_pickled_and_compared() -> None:
    for twin in (pickle.loads(pickle.dumps(BATCH)), copy.deepcopy(BATCH), copy.copy(BATCH)):
        assert twin == BATCH
        assert twin.rewards == BATCH.rewards


def test_the_order_is_the_order_sent(client: Client) -> None:
    prompt = "Describe a tree. Do not use any commas."
    texts = [f"A tree{', tall' * (number % 2)} {number}" for number in range(6)]
    batch = client.score([{"id": name, "prompt": prompt, "rollouts": texts} for name in "zab"])
    assert [group.id for group in batch] == ["z", "a", "b"]
    assert batch.rewards == [batch["a"].rewards] * 3
    assert len(set(batch["a"].rewards[::2])) == len(set(batch["a"].rewards[1::2])) == 1


def test_a_request_of_too_many_rollouts_says_to_send_several() -> None:
    rollouts = [Rollout(id=str(number), text="") for number in range(MAX_ROLLOUTS // 4)]
    groups = [Group(id=name, prompt="p", rollouts=rollouts) for name in "abcde"]
    with pytest.raises(ValidationError, match="at most 4096 rollouts in one request; send several"):
        ScoreRequest(groups=groups)
