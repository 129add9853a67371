"""Dynamic sampling: which groups are replaced, by what, and at which cost."""

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from markscheme_train.config import build_config
from markscheme_train.dynamic_sampling import _other_prompts
from markscheme_train.errors import Stopped
from markscheme_train.step_log import StepRecord
from markscheme_train.training import train
from train.tiny import ScriptedClient

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)
PROMPTS = [f"w{n} w{n + 1}" for n in range(4, 16)]


class ByPrompt(ScriptedClient):
    """Rewards a rollout by its place, but those of some prompts all alike or not at all."""

    def __init__(self, equal: set[str], unscored: set[str] = frozenset()) -> None:  # type: ignore[assignment]
        super().__init__(lambda place, rollout: place / 4)
        self.equal, self.unscored = equal, unscored

    def _group(self, group: Any) -> Any:
        if group.prompt in self.unscored:
            self.script = lambda place, rollout: None
        elif group.prompt in self.equal:
            self.script = lambda place, rollout: 0.5
        else:
            self.script = lambda place, rollout: place / 4
        return super()._group(group)

    @property
    def prompts(self) -> list[list[str]]:
        return [[group.prompt for group in call["groups"]] for call in self.calls]


@pytest.fixture
def resampled(settings: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    return settings | {"data": str(file), "max_resampling_rounds": 3}


def run(
    settings: dict[str, Any], client: ScriptedClient, *, resume: bool = False, **callbacks: Any
) -> list[StepRecord]:
    records: list[StepRecord] = []
    train(
        build_config(settings),
        client,
        resume=resume,
        **({"on_record": records.append} | callbacks),
    )
    return records


def test_groups_of_equal_rewards_are_replaced_by_other_prompts(resampled: dict[str, Any]) -> None:
    plain = ByPrompt(set())
    run(resampled | {"output_dir": resampled["output_dir"] + "-plain", "max_steps": 1}, plain)
    [[first, second]] = plain.prompts
    client = ByPrompt({first})
    [record] = run(resampled | {"max_steps": 1}, client)
    [batch, [other]] = client.prompts
    assert batch == [first, second]
    assert other not in (first, second)
    # The record counts every rollout that was paid for, the metrics what is learnt from.
    assert (record.rollouts, record.reward) == (12, pytest.approx((0.5 + 0.375 + 0.375) / 3))
    assert record.metrics["dynamic_sampling/redrawn_groups"] == 1
    assert record.metrics["dynamic_sampling/equal_groups"] == 0
    assert record.metrics["frac_reward_zero_std"] == 0
    assert record.metrics["reward"] == pytest.approx(0.375)


def test_the_rounds_are_bounded_and_no_prompt_comes_twice(resampled: dict[str, Any]) -> None:
    client = ByPrompt(set(PROMPTS))
    [record] = run(resampled | {"max_steps": 1}, client)
    assert [len(prompts) for prompts in client.prompts] == [2, 2, 2, 2]
    asked = [prompt for prompts in client.prompts for prompt in prompts]
    assert len(set(asked)) == len(asked)
    assert record.metrics["dynamic_sampling/equal_groups"] == 2


def test_a_small_data_set_ends_the_rounds(resampled: dict[str, Any]) -> None:
    file = Path(resampled["data"])
    file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS[:3]))
    client = ByPrompt(set(PROMPTS))
    run(resampled | {"max_steps": 1}, client)
    assert [len(prompts) for prompts in client.prompts] == [2, 1]


def test_each_step_and_round_draws_in_an_order_of_its_own() -> None:
    def drawn(step: int, attempt: int) -> list[str]:
        trainer = SimpleNamespace(
            train_dataset=[{"prompt": prompt} for prompt in PROMPTS],
            args=SimpleNamespace(seed=1),
            state=SimpleNamespace(global_step=step),
        )
        rows = _other_prompts(trainer, {repr(PROMPTS[0])}, 11, attempt)  # type: ignore[arg-type]
        return [row["prompt"] for row in rows]

    orders = [drawn(0, 0), drawn(1, 0), drawn(0, 1)]
    assert [sorted(order) for order in orders] == [sorted(PROMPTS[1:])] * 3
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert drawn(1, 0) == orders[1]


def test_an_unscored_group_is_not_replaced_and_replaces_none(resampled: dict[str, Any]) -> None:
    plain = ByPrompt(set())
    run(resampled | {"output_dir": resampled["output_dir"] + "-plain", "max_steps": 1}, plain)
    [[first, second]] = plain.prompts
    client = ByPrompt(set(), {first})
    run(resampled | {"max_steps": 1}, client)
    assert client.prompts == [[first, second]]
    others = set(PROMPTS) - {first, second}
    client = ByPrompt({first}, others)
    [record] = run(
        resampled | {"output_dir": resampled["output_dir"] + "-2", "max_steps": 1}, client
    )
    assert len(client.prompts) == 4
    assert record.metrics["dynamic_sampling/equal_groups"] == 1


def test_with_spread_everywhere_the_run_is_the_same(
    resampled: dict[str, Any], tmp_path: Path
) -> None:
    one, two = tmp_path / "with", tmp_path / "without"
    run(resampled | {"preset": "srpo", "output_dir": str(one)}, ByPrompt(set()))
    run(
        resampled | {"preset": "srpo", "output_dir": str(two), "max_resampling_rounds": 0},
        ByPrompt(set()),
    )
    with_it, without = (load_file(folder / "model.safetensors") for folder in (one, two))
    assert all(torch.equal(with_it[name], without[name]) for name in with_it)


def test_a_resumed_run_draws_the_same_prompts(resampled: dict[str, Any], tmp_path: Path) -> None:
    equal = set(PROMPTS[::2])
    given = resampled | {
        "preset": "srpo",
        "run_id": "same",
        "max_steps": 4,
        "save_strategy": "steps",
        "save_steps": 1,
    }
    whole, first, second = ByPrompt(equal), ByPrompt(equal), ByPrompt(equal)
    run(given | {"output_dir": str(tmp_path / "whole")}, whole)

    def interrupt(record: StepRecord) -> None:
        if record.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    parts = given | {"output_dir": str(tmp_path / "parts")}
    with pytest.raises(Stopped):
        run(parts, first, on_record=interrupt)
    run(parts, second, resume=True)
    assert [call["groups"] for call in first.calls + second.calls] == [
        call["groups"] for call in whole.calls
    ]
    assert len(whole.calls) > 4
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(one[name], two[name]) for name in one)
