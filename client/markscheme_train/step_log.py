"""One record per training step: written as a JSON line and passed to the live view."""

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from markscheme.jsonl import read_lines
from markscheme_train.evaluation import REWARD, known_rewards
from markscheme_train.reward import CriterionRate, RewardReport
from markscheme_train.trainer import MarkschemeTrainer


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One optimiser step.

    Times are seconds; `judge_tokens` are prompt and completion tokens together.

    Attributes:
        step: Number of the step, from 1.
        steps: Steps of the whole run.
        reward: Mean of the known rewards; `None` when none is known.
        rollouts: Rollouts of the step.
        unscored: Rollouts without a reward.
        reasons: Those, by reason.
        origins: Groups by the origin of their rubric.
        criteria: How often each criterion was met.
        rollout_s: Time to sample.
        scoring_s: Time to score.
        teacher_s: Time of the self-teacher.
        update_s: The rest: loss, backward pass, optimiser.
        judge_calls: Calls of the judge, those of a killed attempt at this step included.
        judge_tokens: Tokens of those calls.
        metrics: The trainer's metrics of this step: lengths, clip shares and, with `sdpo` and
            `srpo`, routed shares, the self-teacher's entropy and weights, and the gradient norm
            of each branch at the student's last hidden states.
        teacher: Mean of the known rewards of the teacher responses; `None` where none was scored.
    """

    step: int
    steps: int
    reward: float | None
    rollouts: int
    unscored: int
    reasons: dict[str, int]
    origins: dict[str, int]
    criteria: list[CriterionRate]
    rollout_s: float
    scoring_s: float
    teacher_s: float
    update_s: float
    judge_calls: int
    judge_tokens: int
    metrics: dict[str, float | None]
    teacher: float | None = None


@dataclass(frozen=True, slots=True)
class EvaluationRecord:
    """One evaluation on held-out prompts.

    Attributes:
        step: Steps that the model had taken; 0 is the initial model.
        reward: Mean of the known rewards; `None` when more than `max_unscored` is unknown.
        best: Whether no evaluation of an earlier checkpoint had a reward as high.
        rollouts: Rollouts sampled.
        unscored: Rollouts without a reward.
        reasons: Those, by reason.
        criteria: How often each criterion was met.
        mean_length: Tokens of a rollout, on average.
        clipped_ratio: Share of rollouts that hit the token limit.
        seconds: Time to sample and score.
        judge_calls: Calls of the judge, those of a killed attempt at this evaluation included.
        judge_tokens: Tokens of those calls.
    """

    step: int
    reward: float | None
    best: bool
    rollouts: int
    unscored: int
    reasons: dict[str, int]
    criteria: list[CriterionRate]
    mean_length: float
    clipped_ratio: float
    seconds: float
    judge_calls: int
    judge_tokens: int


EVALUATION = "evaluation"
"""The key that marks the line of an evaluation; its value is `True`."""


def read_records(path: Path) -> list[StepRecord]:
    """Read the steps of a run in order."""
    return [StepRecord(**row) for row in _rows(path) if EVALUATION not in row]


def read_evaluations(path: Path) -> list[EvaluationRecord]:
    """Read the evaluations of a run in order."""
    return [
        EvaluationRecord(**{name: value for name, value in row.items() if name != EVALUATION})
        for row in _rows(path)
        if EVALUATION in row
    ]


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    for row in map(json.loads, read_lines(path)):
        yield row | {"criteria": [CriterionRate(**rate) for rate in row["criteria"]]}


class StepRecorder(TrainerCallback):  # type: ignore[misc]
    """Appends a record of each step and each evaluation to `path`, and passes it on."""

    def __init__(
        self,
        trainer: MarkschemeTrainer,
        path: Path,
        on_record: Callable[[StepRecord], None],
        on_evaluation: Callable[[EvaluationRecord], None] = lambda record: None,
        *,
        resumed: bool = False,
    ) -> None:
        self._trainer = trainer
        self._path = path
        self._on_record, self._on_evaluation = on_record, on_evaluation
        self._started = 0.0
        self._resumed, self._paid = resumed, dict[tuple[bool, int], tuple[int, int]]()
        self._metrics_before: dict[str, int] = {}
        self._counted: RewardReport | None = None
        path.parent.mkdir(parents=True, exist_ok=True)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Drop records of steps that will be repeated, but remember what they cost."""
        if state.is_world_process_zero and self._path.is_file():
            # A killed run may have left half a line at the end.
            complete_only = [
                (line, json.loads(line)) for line in read_lines(self._path, complete_only=True)
            ]
            # An evaluation that the checkpoint knows nothing of is repeated too.
            evaluated = {log["step"] for log in state.log_history if REWARD in log}
            remaining, repeated = [], []
            for line, record in complete_only:
                known = EVALUATION not in record or record["step"] in evaluated
                if record["step"] <= state.global_step and known:
                    remaining.append(line + "\n")
                else:
                    repeated.append(record)
            if self._resumed:
                self._paid = {
                    (EVALUATION in record, record["step"]): (
                        record["judge_calls"],
                        record["judge_tokens"],
                    )
                    for record in repeated
                }
            # Replaced in one rename: a kill meanwhile loses no record.
            partial = self._path.with_suffix(".partial")
            partial.write_text("".join(remaining), encoding="utf-8")
            partial.replace(self._path)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._trainer.seconds = {"rollout": 0.0, "scoring": 0.0, "teacher": 0.0}
        self._metrics_before = {
            name: len(values) for name, values in self._trainer._metrics["train"].items()
        }
        self._started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the record."""
        report = self._trainer.report
        if report is None:
            return
        took, spent = time.perf_counter() - self._started, self._trainer.seconds
        calls, tokens = self._paid.pop((False, state.global_step), (0, 0))
        # A batch is scored once but may serve several steps: count its calls once.
        if report is not self._counted:
            self._counted = report
            calls += report.usage.judge_calls
            tokens += report.usage.prompt_tokens + report.usage.completion_tokens
        known = [reward for reward in report.rewards if reward is not None]
        teacher = [reward for row in report.teacher_scores for reward in row if reward is not None]
        record = StepRecord(
            step=state.global_step,
            steps=state.max_steps,
            reward=sum(known) / len(known) if known else None,
            rollouts=len(report.rewards),
            unscored=report.unscored,
            reasons=report.reasons,
            origins=report.origins,
            criteria=report.criteria,
            rollout_s=spent["rollout"],
            scoring_s=spent["scoring"],
            teacher_s=spent["teacher"],
            update_s=took - sum(spent.values()),
            judge_calls=calls,
            judge_tokens=tokens,
            metrics=self._metrics(),
            teacher=sum(teacher) / len(teacher) if teacher else None,
        )
        if state.is_world_process_zero:
            self._write(dataclasses.asdict(record))
            self._on_record(record)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any
    ) -> None:
        """Write the record of an evaluation."""
        report = self._trainer.eval_reward.last if self._trainer.eval_reward else None
        if report is None or not state.is_world_process_zero:
            return
        calls, tokens = self._paid.pop((True, state.global_step), (0, 0))
        reward = metrics[REWARD]
        # Step 0 is the initial model, of which there is no checkpoint.
        earlier = [
            r for step, r in known_rewards(state.log_history) if 0 < step < state.global_step
        ]
        usage = report.usage
        record = EvaluationRecord(
            step=state.global_step,
            reward=reward,
            best=state.global_step > 0
            and reward is not None
            and all(reward > other for other in earlier),
            rollouts=len(report.rewards),
            unscored=report.unscored,
            reasons=report.reasons,
            criteria=report.criteria,
            mean_length=metrics["eval_completions/mean_length"],
            clipped_ratio=metrics["eval_completions/clipped_ratio"],
            seconds=metrics["eval_runtime"],
            judge_calls=calls + usage.judge_calls,
            judge_tokens=tokens + usage.prompt_tokens + usage.completion_tokens,
        )
        self._write({EVALUATION: True, **dataclasses.asdict(record)})
        self._on_evaluation(record)

    def _write(self, record: dict[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")

    def _metrics(self) -> dict[str, float | None]:
        """Return the means of what this step added to TRL's lists.

        Times, totals and what the record has anyway are left out. TRL writes NaN where there is
        nothing to measure; a mean of nothing is `None`.
        """
        added = {
            name: values[self._metrics_before.get(name, 0) :]
            for name, values in self._trainer._metrics["train"].items()
            if name != "num_tokens"
            and not name.startswith("rubric/")
            and not name.endswith("_time")
        }
        known = {
            name: [value for value in values if not math.isnan(value)]
            for name, values in added.items()
            if values
        }
        return {
            name: sum(values) / len(values) if values else None for name, values in known.items()
        }
