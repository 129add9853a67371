"""The collapse guard: applies `collapse`'s rules to the metrics of each batch, and acts."""

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from markscheme_train.collapse import CollapseWatch, Figures, Finding

if TYPE_CHECKING:
    from markscheme_train.trainer import MarkschemeTrainer

STATE_FILE = "collapse.json"
LENGTH_RATIO = "completions/length_ratio"
METRICS = {
    "reward": "reward",
    "length": "completions/mean_length",
    "repetition": "completions/repetition",
    "distinct": "completions/distinct",
    "failed": "distillation/failed_share",
    "routed": "distillation/routed_share",
    "divergence": "distillation/divergence",
    "gain_failure": "distillation/teacher_gain",
    "gain_success": "distillation/teacher_gain_success",
}
"""The metric of each field of `Figures`."""

log = logging.getLogger(__name__)


def figures_of(metrics: Mapping[str, float | None]) -> Figures:
    """Return the figures that the rules read, from a batch's metrics as in `steps.jsonl`."""
    return Figures(**{field: metrics.get(name) for field, name in METRICS.items()})


class CollapseGuard(TrainerCallback):  # type: ignore[misc]
    """Warns once for each rule that a run meets, and acts as `on_collapse` says.

    All processes see the same metrics, so they come to the same decision.

    Attributes:
        watch: The rules and their state.
        stopped_by: The finding that ends the run.
    """

    def __init__(self, trainer: "MarkschemeTrainer") -> None:
        self._trainer = trainer
        self.watch = CollapseWatch()
        self.stopped_by: Finding | None = None
        self._before: dict[str, int] = {}
        self._batch: dict[str, list[float]] = {}

    @property
    def freezes_teacher(self) -> bool:
        """Whether the self-teacher follows the student no longer."""
        return self._trainer.args.on_collapse == "freeze_teacher" and bool(self.watch.found)

    @property
    def routes_nothing(self) -> bool:
        """Whether every rollout learns from its reward."""
        return self._trainer.args.on_collapse == "grpo" and bool(self.watch.found)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note which metrics are known already."""
        metrics = self._trainer._metrics["train"]
        self._before = {name: len(metrics[name]) for name in METRICS.values() if name in metrics}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Collect the step's metrics; at the end of the batch apply the rules."""
        metrics = self._trainer._metrics["train"]
        for name in METRICS.values():
            added = metrics[name][self._before.get(name, 0) :] if name in metrics else []
            self._batch.setdefault(name, []).extend(v for v in added if not math.isnan(v))
        # `_step` counts micro-batches, and this was not the last one of the generated batch.
        if self._trainer._step % (args.steps_per_generation * args.num_iterations):
            return
        means = {name: fmean(values) for name, values in self._batch.items() if values}
        self._batch = {}
        figures = figures_of(means)
        findings = self.watch.observe(state.global_step, figures)
        ratio = self.watch.length_ratio(figures)
        if ratio is not None:
            metrics[LENGTH_RATIO].append(ratio)
        for rule in self.watch.found:
            metrics[f"collapse/{rule}"].append(1.0)
        for finding in findings:
            if state.is_world_process_zero:
                log.warning("%s", finding.message)
            if args.on_collapse == "stop":
                self.stopped_by = self.stopped_by or finding
                control.should_save = control.should_training_stop = True

    def save(self, directory: Path) -> None:
        """Write the state beside a checkpoint."""
        (directory / STATE_FILE).write_text(json.dumps(self.watch.state()) + "\n")

    def restore(self, directory: Path) -> None:
        """Read the state of a checkpoint; one of an older version has none."""
        file = directory / STATE_FILE
        if file.is_file():
            self.watch.restore(json.loads(file.read_text()))
