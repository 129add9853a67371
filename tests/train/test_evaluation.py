"""Evaluation in training: the curve, the best checkpoint, early stopping, and an untouched run."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from markscheme import Client
from markscheme.errors import ConnectionFailed
from markscheme_train.config import build_config
from markscheme_train.errors import ConfigError, DataError, Interrupted, Stopped, TrainError
from markscheme_train.evaluation import evaluations_since_best
from markscheme_train.step_log import EvaluationRecord, read_evaluations, read_records
from markscheme_train.training import train
from train.tiny import ScriptedClient

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)


def by_length(place: int, rollout: Any) -> float:
    return len(rollout.text.split()) / 10


class Curve(ScriptedClient):
    """Rewards training by length, and evaluations by their step."""

    def __init__(self, curve: Callable[[int], float | None] = lambda step: step / 100) -> None:
        super().__init__(by_length)
        self.curve = curve

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        return [call for call in self.calls if call["run"].id.endswith("-eval")]

    def score(self, groups: Any, **options: Any) -> Any:
        run = options["run"]
        evaluated = run.id.endswith("-eval")
        self.script = (lambda place, rollout: self.curve(run.step)) if evaluated else by_length
        return super().score(groups, **options)


@pytest.fixture
def evaluated(settings: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """Six steps, with an evaluation of 2 prompts x 4 rollouts before and after every two."""
    file = tmp_path / "held_out.jsonl"
    file.write_text('{"prompt": "w20 w21"}\n{"prompt": "w22", "rubric_id": "rub_7"}\n')
    return settings | {
        "eval_data": str(file),
        "eval_steps": 2,
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 100,
    }


def run(
    settings: dict[str, Any], client: Any = None, *, resume: bool = False, **callbacks: Any
) -> Path:
    return train(
        build_config(settings),
        client or Curve(),
        resume=resume,
        **({"on_record": lambda record: None} | callbacks),
    )


def checkpoints(output: Path) -> set[str]:
    return {path.name.removeprefix("checkpoint-") for path in output.glob("checkpoint-*")}


def test_the_curve_is_in_the_log_and_asked_for_under_a_name_of_its_own(
    evaluated: dict[str, Any],
) -> None:
    client, records = Curve(), list[EvaluationRecord]()
    output = run(evaluated | {"run_id": "first"}, client, on_evaluation=records.append)
    read = read_evaluations(output / "steps.jsonl")
    assert read == records
    assert [(r.step, r.reward, r.best) for r in records] == [
        (0, 0.0, False),
        (2, 0.02, True),
        (4, 0.04, True),
        (6, 0.06, True),
    ]
    assert [record.step for record in read_records(output / "steps.jsonl")] == [1, 2, 3, 4, 5, 6]
    first = records[0]
    assert (first.rollouts, first.unscored, first.criteria[0].judged) == (8, 0, 4)
    assert 0 < first.mean_length <= 6
    for call in client.evaluations:
        assert (call["run"].id, call["reuse"]) == ("first-eval", "frozen")
        assert [(g.prompt, len(g.rollouts), g.rubric_id) for g in call["groups"]] == [
            ("w20 w21", 4, None),
            ("w22", 4, "rub_7"),
        ]


@pytest.mark.parametrize("preset", ["ropd", "srpo"])
def test_an_evaluation_changes_nothing_in_the_training(
    preset: str, evaluated: dict[str, Any], tmp_path: Path
) -> None:
    given = evaluated | {"preset": preset, "disable_dropout": False, "distillation_top_k": 5}
    plain = {name: value for name, value in given.items() if not name.startswith("eval_")}
    with_it = run(given)
    without = run(plain | {"output_dir": str(tmp_path / "without")})
    one, two = (load_file(output / "model.safetensors") for output in (with_it, without))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_evaluations_differ_by_the_weights_alone(evaluated: dict[str, Any]) -> None:
    client = Curve()
    run(evaluated | {"learning_rate": 0.0}, client)
    first, *others = (call["groups"] for call in client.evaluations)
    texts = [[rollout.text for group in first for rollout in group.rollouts]]
    for groups in others:
        assert [[rollout.text for group in groups for rollout in group.rollouts]] == texts


def test_the_best_checkpoint_is_kept_and_can_become_the_model(
    evaluated: dict[str, Any], tmp_path: Path
) -> None:
    curve = {0: 0.9, 2: 0.5, 4: 0.3, 6: 0.4}
    given = evaluated | {"save_steps": 3, "save_total_limit": 2}
    output = run(given | {"load_best_model_at_end": True}, Curve(curve.__getitem__))
    assert checkpoints(output) == {"2", "6"}
    model = load_file(output / "model.safetensors")
    best, last = (load_file(output / f"checkpoint-{step}" / "model.safetensors") for step in (2, 6))
    assert all(torch.equal(model[name], best[name]) for name in model)
    assert not all(torch.equal(model[name], last[name]) for name in model)
    usual = run(given | {"output_dir": str(tmp_path / "usual")}, Curve(curve.__getitem__))
    assert checkpoints(usual) == {"2", "6"}
    model = load_file(usual / "model.safetensors")
    assert all(torch.equal(model[name], last[name]) for name in model)


def test_a_new_best_is_saved_between_the_usual_checkpoints(evaluated: dict[str, Any]) -> None:
    output = run(evaluated, Curve({0: 0.0, 2: 0.1, 4: 0.5, 6: 0.2}.__getitem__))
    assert checkpoints(output) == {"2", "4", "6"}
    state = json.loads((output / "checkpoint-6" / "trainer_state.json").read_text())
    assert (state["best_global_step"], state["best_metric"]) == (4, 0.5)
    assert state["best_model_checkpoint"] == str(output / "checkpoint-4")


def test_an_adapter_is_evaluated_and_its_best_is_loaded(evaluated: dict[str, Any]) -> None:
    output = run(
        evaluated | {"lora_rank": 2, "preset": "srpo", "load_best_model_at_end": True},
        Curve({0: 0.0, 2: 0.5, 4: 0.3, 6: 0.4}.__getitem__),
    )
    model, best, last = (
        load_file(folder / "adapter_model.safetensors")
        for folder in (output, output / "checkpoint-2", output / "checkpoint-6")
    )
    assert all(torch.equal(model[name], best[name]) for name in model)
    assert not all(torch.equal(model[name], last[name]) for name in model)


def test_too_much_unscored_is_neither_zero_nor_best(evaluated: dict[str, Any]) -> None:
    records: list[EvaluationRecord] = []
    output = run(
        evaluated,
        Curve({0: 0.1, 2: 0.2, 4: None, 6: 0.1}.__getitem__),
        on_evaluation=records.append,
    )
    assert [(r.reward, r.best, r.unscored) for r in records] == [
        (0.1, False, 0),
        (0.2, True, 0),
        (None, False, 8),
        (0.1, False, 0),
    ]
    assert records[2].reasons == {"timeout": 8}
    assert checkpoints(output) == {"2", "6"}


def test_a_run_whose_rewards_stay_behind_ends_early_and_stays_ended(
    evaluated: dict[str, Any],
) -> None:
    given = evaluated | {"max_steps": 20, "early_stopping_patience": 2}
    said: list[str] = []
    client = Curve({0: 0.9, 2: 0.1, 4: 0.5, 6: 0.4, 8: 0.5}.__getitem__)
    output = run(given, client, on_warning=said.append)
    assert said[1:] == ["stopped early: since step 4 no evaluation has had a better reward (0.50)"]
    assert checkpoints(output) == {"2", "4", "8"}
    again = Curve()
    run(given, again, resume=True)
    assert again.calls == []
    run(given | {"early_stopping_patience": 9, "max_steps": 10}, again, resume=True)
    assert [call["run"].step for call in again.evaluations] == [10]


def test_patience_counts_known_rewards_since_the_first_best_checkpoint() -> None:
    def history(*rewards: float | None) -> list[dict[str, Any]]:
        return [{"step": n, "eval_reward": reward} for n, reward in enumerate(rewards)]

    assert evaluations_since_best([{"step": 1, "loss": 0.1}]) == 0
    assert evaluations_since_best(history(0.9)) == 0
    assert evaluations_since_best(history(0.9, 0.5, 0.4)) == 1
    assert evaluations_since_best(history(0.9, 0.5, None, 0.5, None)) == 1
    assert evaluations_since_best(history(0.9, 0.5, 0.6)) == 0


def test_a_resumed_run_has_the_same_curve_and_the_same_bits(
    evaluated: dict[str, Any], tmp_path: Path
) -> None:
    given = evaluated | {"run_id": "same", "save_steps": 1, "disable_dropout": False}

    def interrupt(record: EvaluationRecord) -> None:
        if record.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    whole = run(given | {"output_dir": str(tmp_path / "whole")})
    parts = given | {"output_dir": str(tmp_path / "parts")}
    with pytest.raises(Stopped):
        run(parts, on_evaluation=interrupt)
    torch.rand(3)
    resumed = run(parts, resume=True)
    curves = [
        [(r.step, r.reward, r.best, r.mean_length) for r in read_evaluations(run / "steps.jsonl")]
        for run in (whole, resumed)
    ]
    assert curves[0] == curves[1]
    one, two = (load_file(output / "model.safetensors") for output in (whole, resumed))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_an_evaluation_that_found_no_service_is_done_when_the_run_is_resumed(
    evaluated: dict[str, Any], tmp_path: Path
) -> None:
    class Away(Curve):
        def score(self, groups: Any, **options: Any) -> Any:
            if options["run"].id.endswith("-eval") and options["run"].step == 4:
                raise ConnectionFailed("connection refused")
            return super().score(groups, **options)

    given = evaluated | {"run_id": "away", "max_outage_s": 0.0}
    with pytest.raises(Interrupted, match=r"Saved .*checkpoint-4; go on with --resume"):
        run(given, Away())
    back = Curve({4: 0.9, 6: 0.1}.__getitem__)
    resumed = run(given | {"load_best_model_at_end": True}, back, resume=True)
    assert [call["run"].step for call in back.calls] == [4, 4, 5, 6]
    assert [r.step for r in read_evaluations(resumed / "steps.jsonl")] == [0, 2, 4, 6]
    model, best = (
        load_file(folder / "model.safetensors") for folder in (resumed, resumed / "checkpoint-4")
    )
    assert all(torch.equal(model[name], best[name]) for name in model)


def test_evaluations_wait_for_the_end_of_the_batch(evaluated: dict[str, Any]) -> None:
    client = Curve()
    run(evaluated | {"num_iterations": 4, "eval_steps": 3, "max_steps": 12}, client)
    assert [call["run"].step for call in client.evaluations] == [0, 4, 8, 12]


def test_other_held_out_prompts_are_another_run(evaluated: dict[str, Any], tmp_path: Path) -> None:
    run(evaluated)
    other = tmp_path / "other.jsonl"
    other.write_text('{"prompt": "w9"}\n')
    with pytest.raises(ConfigError, match=r"other\.jsonl has other contents"):
        run(evaluated | {"eval_data": str(other), "max_steps": 8}, resume=True)


def test_prompts_without_a_rubric_end_the_run_before_its_first_step(
    evaluated: dict[str, Any], service: str
) -> None:
    Path(evaluated["eval_data"]).write_text('{"prompt": "w1"}\n{"prompt": "w2"}\n')
    with (
        Client(service) as client,
        pytest.raises(TrainError, match=r"8 of 8 rollouts of .*run `markscheme induce` on eval_da"),
    ):
        run(evaluated | {"max_unscored": 0.5}, client)


def test_a_real_service_scores_by_the_named_rubrics_and_keeps_training_apart(
    evaluated: dict[str, Any], client: Client, tmp_path: Path
) -> None:
    rubric = client.create_rubric(
        "Describe w20.",
        [
            {
                "text": "It has at most 3 words.",
                "check": {"kind": "max_words", "value": 3},
                "points": 5,
            }
        ],
    )
    held_out, data = tmp_path / "eval.jsonl", tmp_path / "train.jsonl"
    held_out.write_text(json.dumps({"prompt": "Describe w20.", "rubric_id": rubric.id}) + "\n")
    data.write_text(
        "".join(json.dumps({"prompt": f"w{n} Do not use any commas."}) + "\n" for n in range(4))
    )
    output = run(
        evaluated | {"eval_data": str(held_out), "data": str(data), "max_unscored": 1.0}, client
    )
    records = read_evaluations(output / "steps.jsonl")
    assert [record.step for record in records] == [0, 2, 4, 6]
    for record in records:
        assert (record.rollouts, record.unscored) == (4, 0)
        [rate] = record.criteria
        assert (rate.rubric, rate.judged) == (rubric.id, 4)
        assert record.reward == rate.met / 4


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"eval_data": "nowhere.jsonl"}, DataError, "there is no file or folder nowhere.jsonl"),
        ({"num_generations_eval": 4096}, ConfigError, "has 8192 rollouts, more than the 4096"),
    ],
)
def test_what_cannot_be_evaluated_is_found_before_anything_is_asked(
    change: dict[str, Any], error: type[Exception], message: str, evaluated: dict[str, Any]
) -> None:
    client = Curve()
    with pytest.raises(error, match=message):
        run(evaluated | {"per_device_eval_batch_size": 4096} | change, client)
    assert client.calls == []


def test_evaluations_have_a_size_of_their_own(evaluated: dict[str, Any]) -> None:
    client = Curve()
    run(evaluated | {"num_generations_eval": 2, "per_device_eval_batch_size": 2}, client)
    assert {len(group.rollouts) for call in client.evaluations for group in call["groups"]} == {2}
