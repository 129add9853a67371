"""The adapters against a service, without their trainers: what they ask and what a null becomes."""

import asyncio
import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from fakes.judge import ScriptedJudge, answered_texts, offered, verdicts, well_behaved
from markscheme.errors import ConnectionFailed
from markscheme.integrations import gathering
from markscheme.integrations.gathering import RolloutUnscored, retry_outages, score_in_group
from markscheme.integrations.slime import rubric_rm
from markscheme.integrations.verl import compute_score

PROMPT = "Describe snow. Do not use any commas."
TEXTS = ["Snow falls over the town", "snow, cold, white", "Soft white flakes", "snow, ice"]
REWARDS = [1.0, 0.0, 1.0, 0.0]
RECORDED: dict[str, Any] = json.loads(
    Path(__file__).with_name("signatures.json").read_text("utf-8")
)


@pytest.fixture
def url(
    serve: Callable[..., str],
    judge: ScriptedJudge,
    model_settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> str:
    """Start a service whose judge minds commas and does not answer for `silent`."""
    judge.script = lambda request, number: (
        well_behaved(request, number)
        if not offered(request)
        else 401
        if any("silent" in text for _, text in answered_texts(request))
        else verdicts(request, lambda _criterion, answer: "," not in answer)
    )
    address = serve(**model_settings)
    monkeypatch.setenv("MARKSCHEME_URL", address)
    monkeypatch.setattr(gathering, "_numbers", {})
    return address


def signature(trainer: str, name: str) -> Callable[..., Any]:
    """Return a function with the signature that a trainer's had when it was recorded."""
    [parameters] = [
        text for key, text in RECORDED[trainer]["signatures"].items() if key.endswith(f"::{name}")
    ]
    # Only names and defaults matter here: the types are the trainer's.
    source = (
        f"from __future__ import annotations\ndef recorded{parameters.removeprefix('async ')}: ..."
    )
    found: dict[str, Any] = {}
    exec(source, {"inspect": inspect}, found)
    return found["recorded"]  # type: ignore[no-any-return]


def names(trainer: str, name: str) -> list[str]:
    return list(inspect.signature(signature(trainer, name)).parameters)


def sample(text: str, place: int) -> Any:
    return SimpleNamespace(
        group_index=3,
        index=place,
        prompt=PROMPT,
        response=text,
        metadata={},
        status=SimpleNamespace(value="completed"),
        remove_sample=False,
    )


def test_slime_gets_the_mean_for_an_unscored_sample_and_leaves_it_out_of_the_loss(
    url: str,
) -> None:
    scored = [sample(text, place) for place, text in enumerate(TEXTS)]
    assert asyncio.run(rubric_rm(None, scored)) == REWARDS
    assert not any(each.remove_sample for each in scored)
    unscored = [sample(text, place) for place, text in enumerate([*TEXTS[:3], "silent"])]
    assert asyncio.run(rubric_rm(None, unscored)) == pytest.approx([1.0, 0.0, 1.0, 2 / 3])
    assert [each.remove_sample for each in unscored] == [False, False, False, True]
    with pytest.raises(RolloutUnscored, match="misconfigured"):
        asyncio.run(rubric_rm(None, [sample("silent", 0)]))


def test_slime_calls_it_as_recorded() -> None:
    assert names("slime", "batched_async_rm") == ["args", "samples", "kwargs"]
    inspect.signature(rubric_rm).bind("args", ["sample"], evaluation=False)


def test_verls_rollouts_of_a_prompt_are_gathered_in_every_epoch(
    url: str, judge: ScriptedJudge
) -> None:
    async def epoch() -> list[Any]:
        row = {"prompt": [{"role": "user", "content": PROMPT}]}
        return await asyncio.gather(
            *(compute_score("x", text, "", extra_info=row, size=4) for text in TEXTS)
        )

    for _ in range(2):
        scores = asyncio.run(epoch())
        assert [score["score"] for score in scores] == REWARDS
        # verl wants the same keys for every rollout.
        assert {tuple(score) for score in scores} == {("score", "missed")}
    assert sum(not offered(request) for request in judge.requests) == 1


def test_verls_function_without_a_prompt_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="extra_info"):
        asyncio.run(compute_score("x", "text", "", extra_info={}, size=4))


@pytest.fixture
def verl(monkeypatch: pytest.MonkeyPatch) -> type:
    """Put a base class of verl's recorded signature in its place; return our manager."""
    made = ModuleType("verl.experimental.reward_loop.reward_manager.base")

    class RewardManagerBase:
        def __init__(self, *arguments: Any) -> None:
            recorded = inspect.signature(signature("verl", "RewardManagerBase.__init__"))
            recorded.bind(self, *arguments)
            self.config, self.tokenizer, _ = arguments

    made.RewardManagerBase = RewardManagerBase  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, made.__name__, made)
    from markscheme.integrations import verl as ours

    ours._manager.cache_clear()
    found: type = ours.MarkschemeRewardManager
    ours._manager.cache_clear()
    return found


class Item:
    """One row of verl's `DataProto`."""

    def __init__(self, text: str, session: int, **extra: Any) -> None:
        ids = Ids([ord(char) for char in text])
        self.batch = {"responses": ids, "attention_mask": Ids([1] * (3 + len(ids)))}
        self.non_tensor_batch = {
            "uid": "u1",
            "session_id": session,
            "raw_prompt": [{"role": "user", "content": PROMPT}],
            "extra_info": extra,
        }

    def __getitem__(self, _place: Any) -> Any:
        return self if _place == 0 else self


class Ids(list[int]):
    def sum(self) -> int:
        return sum(self)

    def __getitem__(self, place: Any) -> Any:
        return Ids(super().__getitem__(place))


def test_verls_manager_gathers_by_uid_and_raises_for_a_null(url: str, verl: type) -> None:
    rollout = SimpleNamespace(n=4, val_kwargs=SimpleNamespace(n=1))
    config = SimpleNamespace(actor_rollout_ref=SimpleNamespace(rollout=rollout))
    tokenizer = SimpleNamespace(decode=lambda ids, **_: "".join(map(chr, ids)))
    # As `load_reward_manager` makes it.
    recorded = names("verl", "NaiveRewardManager.__init__")[1:]
    assert list(inspect.signature(verl).parameters) == recorded
    manager = verl(config=config, tokenizer=tokenizer, compute_score=None)

    async def score(items: list[Item]) -> list[Any]:
        return await asyncio.gather(
            *(manager.run_single(item) for item in items), return_exceptions=True
        )

    found = asyncio.run(score([Item(text, place) for place, text in enumerate(TEXTS)]))
    assert [each["reward_score"] for each in found] == REWARDS
    assert found[1]["reward_extra_info"] == {"missed": 4.0}
    alone = Item("silent", 0, split="test")
    alone.non_tensor_batch["uid"] = "u2"
    [error] = asyncio.run(score([alone]))
    assert isinstance(error, RolloutUnscored)


def test_a_null_is_an_error_that_can_travel_between_processes(url: str) -> None:
    import pickle

    async def ask() -> None:
        await score_in_group(gathering.loop_client(), PROMPT, "silent", size=1)

    with pytest.raises(RolloutUnscored) as raised:
        asyncio.run(ask())
    again = pickle.loads(pickle.dumps(raised.value))
    assert str(again) == "the rollout is unscored (misconfigured)"
    assert again.reason == "misconfigured"


def test_a_service_that_is_away_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "FIRST_RETRY_WAIT_S", 0.0)
    answers = iter([ConnectionFailed("away"), ConnectionFailed("away"), "back"])

    async def ask() -> str:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert asyncio.run(retry_outages(ask)) == "back"
    answers = iter([ConnectionFailed("away")])
    with pytest.raises(ConnectionFailed):
        asyncio.run(retry_outages(ask, max_outage_s=0.0))


@pytest.mark.parametrize(
    ("trainer", "name", "expected"),
    [
        ("verl", "load_extern_object", ["module_path", "object_name"]),
        ("verl", "NaiveRewardManager.run_single", ["self", "data"]),
        ("openrlhf", "SingleTurnAgentExecutor.__init__", ["self", "remote_rm_url"]),
        ("slime", "remote_rm", ["args", "sample", "max_retries"]),
        ("verifiers", "Judge.score", ["self", "task", "trace"]),
        ("verifiers", "Trace.record_metric", ["self", "name", "value"]),
        ("inspect_ai", "Scorer.__call__", ["self", "state", "target"]),
        ("skyrl", "SkyRLGymGenerator.generate", ["self", "input_batch", "disable_tqdm"]),
        ("tinker", "EnvGroupBuilder.compute_group_rewards",
         ["self", "trajectory_group", "env_group"]),
        ("nemo_gym", "SimpleResourcesServer.verify", ["self", "body"]),
        ("areal", "RLVRWorkflow._compute_rewards", ["self", "resp", "prompt_str", "task_data"]),
        ("ms_swift", "AsyncORM.__call__", ["self", "kwargs"]),
    ],
)  # fmt: skip
def test_what_a_trainer_calls_is_as_recorded(trainer: str, name: str, expected: list[str]) -> None:
    assert names(trainer, name) == expected


def test_the_other_hooks_are_as_recorded() -> None:
    assert "explanation" in names("inspect_ai", "Score.unscored")
    assert "after_each" in names("art", "gather_trajectory_groups")
    for minor in range(13, 17):
        assert names(f"trl-1.{minor}", "GRPOTrainer._log_metric") == ["self", "name", "value"]
        extra = names(f"trl-1.{minor}", "GRPOTrainer._log_completion_extra")
        assert extra == ["self", "column", "values"]
