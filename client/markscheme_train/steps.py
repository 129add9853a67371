"""What each training step did, as one record: written as a JSON line and handed to whoever shows it."""

import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from markscheme_train.reward import CriterionRate
from markscheme_train.trainer import MarkschemeTrainer


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One optimiser step. ``reward`` is the mean of the known rewards; ``None`` when none is known.

    ``judge_calls`` and ``judge_tokens`` (asked and answered) are what the judge was really asked for it. ``metrics``
    are the trainer's own, of this step alone: lengths, clip shares, and with ``sdpo`` and ``srpo`` the shares that were
    routed to the self-teacher and that it knew more of, its entropy and weights, and ``gradient_norm/policy`` and
    ``gradient_norm/distillation``, how strongly each branch pulls at the student's last hidden states.
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
    metrics: dict[str, float]


class StepRecorder(TrainerCallback):  # type: ignore[misc]
    """Makes a :class:`StepRecord` of each step, appends it to ``path`` and calls ``on_record``."""

    def __init__(self, trainer: MarkschemeTrainer, path: Path, on_record: Callable[[StepRecord], None]) -> None:
        self._trainer = trainer
        self._path = path
        self._on_record = on_record
        self._started = 0.0
        self._metrics_before: dict[str, int] = {}
        path.parent.mkdir(parents=True, exist_ok=True)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Drop what an earlier part of the run noted of steps that come again."""
        if state.is_world_process_zero and self._path.is_file():
            lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= state.global_step]
            shorter = self._path.with_suffix(".partial")
            shorter.write_text("".join(kept), encoding="utf-8")
            shorter.replace(self._path)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._trainer.seconds = {"rollout": 0.0, "scoring": 0.0, "teacher": 0.0}
        self._metrics_before = {name: len(values) for name, values in self._trainer._metrics["train"].items()}
        self._started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        report = self._trainer.reward.last
        if report is None:
            return
        took, spent = time.perf_counter() - self._started, self._trainer.seconds
        known = [reward for reward in report.rewards if reward is not None]
        record = StepRecord(
            step=state.global_step, steps=state.max_steps, reward=sum(known) / len(known) if known else None,
            rollouts=len(report.rewards), unscored=report.unscored, reasons=report.reasons, origins=report.origins,
            criteria=report.criteria, rollout_s=spent["rollout"], scoring_s=spent["scoring"],
            teacher_s=spent["teacher"], update_s=took - sum(spent.values()), judge_calls=report.usage.judge_calls,
            judge_tokens=report.usage.prompt_tokens + report.usage.completion_tokens, metrics=self._metrics())
        if state.is_world_process_zero:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(dataclasses.asdict(record), ensure_ascii=False) + "\n")
            self._on_record(record)

    def _metrics(self) -> dict[str, float]:
        """The means of what this step added to TRL's lists; times, totals and what the record has are left out."""
        added = {name: values[self._metrics_before.get(name, 0):]
                 for name, values in self._trainer._metrics["train"].items()
                 if name != "num_tokens" and not name.startswith("rubric/") and not name.endswith("_time")}
        return {name: sum(values) / len(values) for name, values in added.items() if values}
