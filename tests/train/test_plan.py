"""The figures of a run, against TRL's way of dealing out batches."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from markscheme_train.data import Example
from markscheme_train.errors import TrainError
from markscheme_train.plan import plan, plan_of

CONFIG = {
    "generation_batch_size": 16,
    "num_generations": 8,
    "steps_per_generation": 1,
    "num_iterations": 1,
    "gradient_accumulation_steps": 1,
    "max_steps": -1,
    "num_train_epochs": 3,
    "max_completion_length": 64,
    "reuse": "if_fresh",
    "verify": "rollout",
    "data": "d.jsonl",
}
EXAMPLES = [
    Example(prompt="ten chars!", teacher_responses=["abcd", "abcdef"]),
    *[Example(prompt="x" * 20)] * 9,
]


@pytest.mark.parametrize(
    ("changes", "steps", "batches"),
    [
        ({}, 15, 15),  # 5 batches of 2 prompts, 3 times
        ({"max_steps": 7}, 7, 7),
        ({"num_train_epochs": 0.5}, 3, 3),
        ({"steps_per_generation": 2, "gradient_accumulation_steps": 2}, 15, 15),
        ({"num_iterations": 2}, 30, 15),  # each batch is trained on twice
        ({"num_iterations": 2, "max_steps": 7}, 7, 4),
        ({"gradient_accumulation_steps": 2, "max_steps": 7}, 7, 14),  # a step takes two batches
        ({"generation_batch_size": 64}, 3, 3),  # 8 of the 10 prompts an epoch
    ],
)
def test_steps_and_batches(changes: dict[str, Any], steps: int, batches: int) -> None:
    made = plan_of(SimpleNamespace(**(CONFIG | changes)), EXAMPLES)  # type: ignore[arg-type]
    assert (made.steps, made.batches) == (steps, batches)
    assert made.groups == batches * (changes.get("generation_batch_size", 16) // 8)
    assert made.rollouts == made.groups * 8


def test_lengths_are_those_of_the_data() -> None:
    made = plan_of(SimpleNamespace(**CONFIG), EXAMPLES)  # type: ignore[arg-type]
    assert (made.prompts, made.prompt_characters, made.response_tokens) == (10, 19, 64)
    assert (made.teacher_responses, made.teacher_characters) == (2, 5)


def test_tool_calls_count_as_long_as_they_are() -> None:
    call = {"function": {"name": "look_up", "arguments": {"words": "x" * 100}}}
    messages = [{"role": "assistant", "content": "abcd", "tool_calls": [call]}]
    example = Example.model_validate({"prompt": "p", "teacher_responses": [messages]})
    made = plan_of(SimpleNamespace(**CONFIG), [example] * 2)  # type: ignore[arg-type]
    assert 115 <= made.teacher_characters <= 150


def test_evaluations_are_counted(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"prompt": "p"}\n' * 4)
    (tmp_path / "e.jsonl").write_text('{"prompt": "p"}\n' * 3)
    file = tmp_path / "train.yaml"
    file.write_text(
        f"model: m\ndata: {tmp_path}/d.jsonl\neval_data: {tmp_path}/e.jsonl\neval_steps: 10\n"
        "per_device_train_batch_size: 16\ngradient_accumulation_steps: 1\nmax_steps: 25\n"
        "num_generations_eval: 2\n"
    )
    made = plan(file, [])
    assert (made.evaluation_groups, made.evaluation_rollouts) == (4 * 3, 4 * 3 * 2)


def test_fewer_prompts_than_a_batch_is_said() -> None:
    with pytest.raises(TrainError, match="fewer than the 16"):
        plan_of(SimpleNamespace(**CONFIG | {"generation_batch_size": 128}), EXAMPLES)  # type: ignore[arg-type]


def test_a_configuration_is_read_as_for_training(tmp_path: Path) -> None:
    data, file = tmp_path / "d.jsonl", tmp_path / "train.yaml"
    data.write_text('{"prompt": "p"}\n' * 4)
    file.write_text(
        f"model: m\ndata: {data}\nper_device_train_batch_size: 16\n"
        "gradient_accumulation_steps: 1\nmax_steps: 20\n"
    )
    made = plan(file, ["max_steps=30"])
    assert (made.steps, made.groups, made.rollouts) == (30, 60, 480)
    with pytest.raises(TrainError, match="did you mean `max_steps`"):
        plan(file, ["max_step=30"])
