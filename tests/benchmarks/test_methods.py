"""The trial of the training methods: its tasks, judges, runs and report."""

import json
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from markscheme.schema import Group, Rollout
from markscheme_train import reprompt
from training import methods, runs, tasks
from training.arms import COMPARISONS, LARGE, SMALL
from training.graders import Grader, judge_of
from training.runs import Run
from training.summary import Results, best, early, report, spread
from training.tasks import ID, LENGTH, TASKS, words

COPY = TASKS["copy"]
PROMPT, ANSWER = next(iter(COPY.answer_of.items()))
EVERY = [arm for groups in (SMALL, LARGE) for group in groups.values() for arm in group]
ARMS = {(arm.task, arm.name): arm for arm in EVERY}
CONSOLE = Console(quiet=True)


def run(arm: str, seed: int = 0) -> Run:
    return Run(ARMS["copy", arm], 1e-3, seed, steps=2, pretraining=2)


def result(arm: str, rate: float, seed: int, curve: list[float]) -> dict[str, Any]:
    return {
        "task": "copy",
        "arm": arm,
        "learning_rate": rate,
        "seed": seed,
        "steps": len(curve),
        "curve": curve,
        "teacher_gain_on_answers": [0.25, -0.5],
        "after": {"alone": 0.5, "shown_the_answer": 0.75},
        "metrics": {},
    }


def rewards(scale: Any, *texts: str, seed: int = 0) -> list[float | None]:
    rollouts = [Rollout(id=str(number), text=text) for number, text in enumerate(texts)]
    grader = Grader(judge_of(COPY), scale, seed)
    return grader.score([Group(id="g", prompt=PROMPT, rollouts=rollouts)]).groups[0].rewards


def half_right() -> str:
    wrong = ["v0" if value != "v0" else "v1" for value in ANSWER[3:]]
    return " ".join(ANSWER[:3] + wrong)


def test_every_compared_arm_exists_once() -> None:
    assert len(ARMS) == len(EVERY)
    assert {(task, arm) for task, *names in COMPARISONS for arm in names} <= ARMS.keys()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_run_records_success_and_every_metric(tmp_path: Path) -> None:
    methods.ensure_model(tmp_path, "copy", 2)
    done = methods.carried_out(run("srpo"), tmp_path)
    assert len(done["curve"]) == 2
    assert len(done["teacher_gain_on_answers"]) == 1
    assert "distillation/routed_share" in done["metrics"]
    assert {len(values) for values in done["metrics"].values()} == {1}
    again = methods.carried_out(run("srpo"), tmp_path)
    assert again["metrics"] == done["metrics"]
    assert reprompt.CLOSING != tasks.CLOSING  # the tasks' words were there for the run only


class Stub:
    """Does no training; keeps what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []

    def __call__(self, one: Run, workdir: Path) -> dict[str, Any]:
        self.asked.append(one.key)
        return result(one.arm.name, one.learning_rate, one.seed, [0.5] * one.steps)


def carry_out(wanted: list[Run], workdir: Path, do: Stub) -> None:
    with ThreadPoolExecutor(1) as pool:
        runs.carry_out(wanted, workdir, pool, 1, CONSOLE, prepare=lambda missing: None, do=do)


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    stub = Stub()
    carry_out([run("grpo")], tmp_path, stub)
    with (tmp_path / "runs.jsonl").open("a") as file:
        file.write('{"task": "copy", "ar')  # killed while it wrote
    carry_out([run("grpo"), run("srpo")], tmp_path, stub)
    assert stub.asked == [run("grpo").key, run("srpo").key]
    assert [r["arm"] for r in runs.stored(tmp_path)] == ["grpo", "srpo"]


def test_ctrl_c_keeps_what_is_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(running: set[Future[Any]], **_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        carry_out([run("grpo"), run("srpo")], tmp_path, Stub())
    assert [r["arm"] for r in runs.stored(tmp_path)] == ["grpo"]


def test_a_metric_that_was_not_known_is_none_in_its_block() -> None:
    steps = [{"a": 1.0, "b": None}] * 10 + [{"a": 2.0}]
    assert runs.in_blocks(steps) == {"a": [1.0, 2.0], "b": [None, None]}


def test_only_the_whole_answer_is_a_success() -> None:
    texts = (" ".join(ANSWER), half_right(), " ".join([*ANSWER, "v0"]))
    assert rewards("verdict", *texts) == [1, 0, 0]
    assert rewards("rubric", *texts) == [1, 0.5, 0]


def test_missed_criteria_are_feedback_and_a_rating_has_none() -> None:
    rollout = Rollout(id="r", text=half_right())
    (rubric, rating) = (
        Grader(judge_of(COPY), scale, 0).score([Group(id="g", prompt=PROMPT, rollouts=[rollout])])
        for scale in ("rubric", "rating")
    )
    missed = [f"s{slot} {ANSWER[slot]}" for slot in range(3, LENGTH)]
    assert rubric.groups[0].rollouts[0].feedback == missed
    assert rating.groups[0].rollouts[0].feedback == []


def test_a_rating_is_on_the_judges_own_scale_by_seed() -> None:
    right = [" ".join(ANSWER)] * 64
    means = [sum(filter(None, rewards("rating", *right, seed=seed))) / 64 for seed in range(8)]
    calibrated = sum(filter(None, rewards("calibrated-rating", *right))) / 64
    assert max(means) - min(means) > 0.1
    assert calibrated > max(means)
    assert all(10 * reward % 1 == 0 for reward in filter(None, rewards("rating", *right)))


def test_pretraining_never_sees_held_out_prompts() -> None:
    task = TASKS["families"]
    held_out = {words(row) for row in task.prompts[-task.held_out :].tolist()}
    generator = torch.Generator().manual_seed(0)
    width = task.prompts.shape[1]
    seen = {
        words(row[:width])
        for _ in range(20)
        for ids, _ in task.batches(generator)
        for row in ids.tolist()
    }
    assert len(held_out) == task.held_out
    assert not seen & held_out


def test_pretraining_answers_what_the_feedback_names() -> None:
    task = TASKS["copy-rubric"]
    generator = torch.Generator().manual_seed(0)
    followed = []
    for _ in range(10):
        *_, told, both = task.batches(generator)
        for ids, labels in (told, both):
            for row, label in zip(ids.tolist(), labels.tolist(), strict=True):
                said = [number for number in label if number >= ID["v0"]]
                listed = words(row[row.index(ID["miss"]) + 1 : row.index(ID["now"])]).split("-")
                for slot, value in (line.split() for line in listed[1:]):
                    followed.append(words(said).split()[int(slot[1:])] == value)
    assert 0.95 < sum(followed) / len(followed) < 0.99


def test_the_best_steps_are_in_a_row() -> None:
    curve = [0.0] * 5 + [1.0] * 5 + [0.5] * 5 + [0.0] * 20 + [1.0] * 10
    assert best(curve) == 1.0
    assert early(curve) == 0.75


def test_differences_are_paired_by_seed_at_each_arms_best_rate() -> None:
    results = Results(
        [
            result("grpo", 1e-3, 0, [0.4] * 10),
            result("grpo", 1e-3, 1, [0.6] * 10),
            result("grpo", 1e-4, 0, [0.1] * 10),
            result("srpo", 1e-3, 0, [0.0] * 10),
            result("srpo", 1e-4, 0, [0.5] * 10),
            result("srpo", 1e-4, 2, [0.9] * 10),
        ]
    )
    assert results.differences("copy", "srpo", "grpo", best) == pytest.approx([0.1])
    assert results.differences("copy", "sdpo", "grpo", best) == []


def test_a_single_seed_has_no_error() -> None:
    assert spread([0.5]) == "0.500"
    assert spread([0.4, 0.6]) == "0.500 ± 0.100"
    assert spread([]) == "–"


def test_the_report_holds_table_differences_curves_and_data(tmp_path: Path) -> None:
    finished = [
        result(arm, 1e-3, seed, [0.1 * seed + 0.4] * 20)
        for arm in ("grpo", "srpo")
        for seed in (0, 1)
    ]
    model = {"task": "copy", "weights": 1000, "alone": 0.15, "shown_the_answer": 0.75}
    report(finished, [model], SMALL, tmp_path / "methods", CONSOLE)
    (data,) = tmp_path.glob("methods-*.json")
    assert json.loads(data.read_text())["runs"] == finished
    text = data.with_suffix(".md").read_text()
    assert "| copy | srpo | 0.001 | 2 | 0.450 ± 0.050 | 0.450 ± 0.050 | 0.450 ± 0.050 |" in text
    assert "| copy | srpo | grpo | +0.000 ± 0.000 | +0.000 ± 0.000 | +0.000 ± 0.000 | 2 |" in text
    assert data.with_suffix(".svg").read_text().startswith("<?xml")
