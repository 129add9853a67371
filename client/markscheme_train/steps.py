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
    """One optimiser step. ``reward`` is the mean of the known rewards; ``None`` when none is known."""

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


class StepRecorder(TrainerCallback):  # type: ignore[misc]
    """Makes a :class:`StepRecord` of each step, appends it to ``path`` and calls ``on_record``."""

    def __init__(self, trainer: MarkschemeTrainer, path: Path, on_record: Callable[[StepRecord], None]) -> None:
        self._trainer = trainer
        self._path = path
        self._on_record = on_record
        self._started = 0.0
        path.parent.mkdir(parents=True, exist_ok=True)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._trainer.seconds = {"rollout": 0.0, "scoring": 0.0, "teacher": 0.0}
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
            teacher_s=spent["teacher"], update_s=took - sum(spent.values()))
        if state.is_world_process_zero:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(dataclasses.asdict(record), ensure_ascii=False) + "\n")
            self._on_record(record)
