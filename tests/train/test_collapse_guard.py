"""The collapse guard in the trainer, on a random one-layer model."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from markscheme_train.collapse import WINDOW, Rule
from markscheme_train.collapse_guard import STATE_FILE
from markscheme_train.config import build_config
from markscheme_train.errors import Collapsed
from markscheme_train.self_teacher import ModelCopy
from markscheme_train.self_teacher_lifecycle import teacher_rate
from markscheme_train.step_log import StepRecord, read_records
from markscheme_train.trainer_checkpoint import SELF_TEACHER_FILE
from markscheme_train.training import train
from train.routed_batch import MIXED, PROMPTS, Maker, generate, mixed
from train.tiny import Script, ScriptedClient

# TRL 1.16 and PEFT 0.21 still use names that transformers 5.23 has deprecated.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`.*gradient_checkpointing.*` is deprecated:FutureWarning"
)


def without_successes_after(batches: int) -> Script:
    """Return rewards as in `MIXED` for a number of batches of eight rollouts, then none but 0."""
    asked = 0

    def script(place: int, rollout: Any) -> float:
        nonlocal asked
        asked += 1
        return MIXED[place] if asked <= 8 * batches else 0.0

    return script


def test_the_gain_is_the_self_teachers_log_probability_less_the_students(
    make_srpo_trainer: Maker,
) -> None:
    """On failures that are routed, and on the first success, which was shown the other one."""
    trainer = make_srpo_trainer()
    assert trainer.distillation is not None
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    batch = generate(trainer)
    assert batch["controls"].tolist() == [True, False, False, False] * 2
    assert batch["failures"].tolist() == [False, True, True, False] * 2
    trainer._compute_loss(trainer.model, batch)
    found = trainer.distillation.gains.take(torch.device("cpu"))

    def log_probs(model: Any, prompt: Tensor, completion: Tensor) -> Tensor:
        with torch.no_grad():
            ids = torch.cat([prompt, completion]).unsqueeze(0)
            logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
        return logits.log_softmax(-1).gather(-1, completion.unsqueeze(-1)).squeeze(-1)

    teacher = trainer.distillation.self_teacher
    assert isinstance(teacher, ModelCopy)
    expected = torch.zeros(2, 2)
    for row in range(8):
        kind = 0 if batch["failures"][row] else 1 if batch["controls"][row] else None
        if kind is None:
            continue
        group = row // 4
        completion = batch["completion_ids"][row][batch["completion_mask"][row].bool()]
        prompt = batch["prompt_ids"][row][batch["prompt_mask"][row].bool()]
        # Of the others the best one is shown: the first, and to that the fourth.
        shown = batch["completion_ids"][4 * group + (3 if kind else 0)]
        text = trainer._tokenizer.decode(shown, skip_special_tokens=True)
        told = (
            f"{PROMPTS[group]}\n\nA response to this task that was found to be good:\n\n{text}\n\n"
            "Now give a good response to the task above.\n\n"
        )
        read = torch.tensor(trainer._tokenizer(told)["input_ids"])
        gain = log_probs(teacher.model, read, completion) - log_probs(
            trainer.model, prompt, completion
        )
        expected[kind] += torch.tensor([gain.sum(), float(len(completion))])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("preset", "rows"), [("srpo", 6), ("sdpo", 8)])
def test_the_control_costs_one_row_a_group_in_the_self_teachers_forward_pass_at_most(
    preset: str, rows: int, make_srpo_trainer: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the four rows of each of two groups, srpo routes two, and sdpo all, the control too."""
    seen: list[int] = []
    plain = ModelCopy.states
    monkeypatch.setattr(
        ModelCopy,
        "states",
        lambda self, ids, *rest: seen.append(len(ids)) or plain(self, ids, *rest),
    )
    generate(make_srpo_trainer(preset=preset))
    assert sum(seen) == rows


def test_a_control_is_measured_and_not_learnt_from(make_srpo_trainer: Maker) -> None:
    trainer = make_srpo_trainer()
    batch = generate(trainer)
    losses = []
    for controls in (batch["controls"], torch.zeros_like(batch["controls"])):
        trainer.model.zero_grad()
        trainer._compute_loss(trainer.model, {**batch, "controls": controls}).backward()
        losses.append([p.grad.clone() for p in trainer.model.parameters()])
    assert all(torch.equal(one, two) for one, two in zip(*losses, strict=True))
    assert not batch["routed"][batch["controls"]].any()
    assert not batch["teacher_entropy"][batch["controls"]].any()
    assert all(batch["teacher_states"][row] is None for row in batch["controls"].nonzero())


def test_a_frozen_self_teacher_follows_no_longer(make_srpo_trainer: Maker) -> None:
    trainer = make_srpo_trainer(on_collapse="freeze_teacher")
    assert teacher_rate(trainer) == 0.05
    trainer.guard.watch.found[Rule.SHORT] = 3
    assert teacher_rate(trainer) == 0.0


@pytest.mark.parametrize("preset", ["srpo", "sdpo"])
def test_after_a_collapse_with_grpo_every_rollout_learns_from_its_reward(
    preset: str, make_srpo_trainer: Maker
) -> None:
    trainer = make_srpo_trainer(preset=preset, on_collapse="grpo")
    trainer.guard.watch.found[Rule.SHORT] = 3
    batch = generate(trainer)
    assert "routed" not in batch
    assert batch["advantages"].tolist() == pytest.approx([0.6, -0.4, -0.4, 0.2] * 2)
    assert int(batch["num_items_in_batch"]) == int(batch["completion_mask"].sum()) > 0
    ours = trainer._compute_loss(trainer.model, batch)
    trainer.distillation = None
    assert ours.item() == trainer._compute_loss(trainer.model, batch).item()


def test_a_collapse_warns_once_and_is_in_the_steps_log(
    settings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    steps = WINDOW + 2
    config = build_config({**settings, "preset": "srpo", "max_steps": steps})
    records: list[StepRecord] = []
    with caplog.at_level(logging.WARNING, logger="markscheme_train.collapse_guard"):
        output = train(
            config,
            ScriptedClient(without_successes_after(1)),
            resume=False,
            on_record=records.append,
        )
    said = [r.getMessage() for r in caplog.records if r.name == "markscheme_train.collapse_guard"]
    assert len(said) == 1
    assert said[0].startswith("Next to nothing learns from the self-teacher: 0.0% of the rollouts")
    assert f"(means of steps 2 to {WINDOW + 1})" in said[0]
    written = [record.metrics for record in read_records(output / "steps.jsonl")]
    name = "collapse/nothing_routed"
    assert [name in metrics for metrics in written] == [False] * WINDOW + [True] * 2
    assert {
        "entropy",
        "completions/length_ratio",
        "completions/repetition",
        "completions/distinct",
        "distillation/divergence",
        "distillation/routed_token_share",
        "distillation/weight_std",
        "distillation/teacher_gain",
        "distillation/teacher_gain_success",
    } <= written[0].keys()
    assert written[0]["completions/length_ratio"] == 1.0
    assert written[1]["distillation/divergence"] is None
    assert written[1]["distillation/teacher_gain_success"] is None


def test_a_collapse_stops_the_run_saved_and_a_resumed_one_goes_on(
    settings: dict[str, Any],
) -> None:
    config = {
        **settings,
        "preset": "srpo",
        "max_steps": WINDOW + 3,
        "save_strategy": "steps",
        "save_steps": 100,
        "on_collapse": "stop",
    }
    script = without_successes_after(0)
    with pytest.raises(Collapsed) as stopped:
        train(build_config(config), ScriptedClient(script), resume=False, on_record=lambda r: None)
    message = str(stopped.value)
    assert message.startswith(f"stopped after step {WINDOW} of {WINDOW + 3}, as on_collapse says")
    assert "Next to nothing learns from the self-teacher" in message
    output = Path(settings["output_dir"])
    state = json.loads((output / f"checkpoint-{WINDOW}" / STATE_FILE).read_text())
    assert state["found"] == {"nothing_routed": 1}
    records: list[StepRecord] = []
    done = train(
        build_config(config), ScriptedClient(script), resume=True, on_record=records.append
    )
    assert [record.step for record in records] == [WINDOW + 1, WINDOW + 2, WINDOW + 3]
    assert (done / "model.safetensors").is_file()


@pytest.mark.parametrize("action", ["freeze_teacher", "grpo"])
def test_a_run_that_acted_resumes_to_the_bit(
    action: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    """Nothing is routed for ten steps; then there are successes again, and the action shows."""
    last = WINDOW + 3

    def script() -> Script:
        asked = 0

        def reward(place: int, rollout: Any) -> float:
            nonlocal asked
            asked += 1
            return 0.0 if asked <= 8 * WINDOW else MIXED[place]

        return reward

    class Killed(Exception):
        pass

    def kill(record: StepRecord) -> None:
        if record.step == last - 1:
            raise Killed

    def run(
        name: str, script: Script, resume: bool, on_record: Callable[[StepRecord], None]
    ) -> Any:
        config = {
            **settings,
            "preset": "srpo",
            "max_steps": last,
            "save_strategy": "steps",
            "save_steps": 1,
            "on_collapse": action,
            "output_dir": str(tmp_path / name),
        }
        client = ScriptedClient(script)
        return train(build_config(config), client, resume=resume, on_record=on_record)

    whole = run("whole", script(), False, lambda record: None)
    with pytest.raises(Killed):
        run("parts", script(), False, kill)
    resumed = run("parts", mixed, True, lambda record: None)
    for name in ("model.safetensors", SELF_TEACHER_FILE):
        read = load_file if name.endswith("safetensors") else torch.load
        one, two = (read(path / f"checkpoint-{last}" / name) for path in (whole, resumed))
        assert all(torch.equal(one[key], two[key]) for key in one)
    states = [(path / f"checkpoint-{last}" / STATE_FILE).read_text() for path in (whole, resumed)]
    assert states[0] == states[1]
    routed = [
        "distillation/routed_share" in record.metrics
        for record in read_records(resumed / "steps.jsonl")
    ]
    assert routed == [True] * WINDOW + [action != "grpo"] * 3
    if action == "freeze_teacher":
        first, second = (
            torch.load(whole / f"checkpoint-{step}" / SELF_TEACHER_FILE)
            for step in (WINDOW - 1, last)
        )
        assert all(torch.equal(first[key], second[key]) for key in first)
