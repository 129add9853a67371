"""The live view of a run: progress bar, last steps, and how often each criterion is met."""

from collections import deque
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from markscheme_train.reward import CriterionRate
from markscheme_train.step_log import EvaluationRecord, StepRecord

STEPS_SHOWN = 10
CRITERIA_SHOWN = 14
ROUTED = "distillation/routed_share"


class LiveTable:
    """A context manager that draws steps; without a terminal it prints one line a step."""

    def __init__(self, console: Console, *, title: str) -> None:
        self._console = console
        self._steps: deque[StepRecord] = deque(maxlen=STEPS_SHOWN)
        self._first: dict[str, float] = {}
        self._progress = Progress(
            TextColumn(title),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._progress.add_task(title, total=None)
        self._live = (
            Live(self._progress, console=console, refresh_per_second=4)
            if console.is_terminal
            else None
        )

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.__exit__(kind, error, trace)

    def show(self, record: StepRecord) -> None:
        """Draw a finished step."""
        self._steps.append(record)
        self._progress.update(self._task, total=record.steps, completed=record.step)
        if self._live is None:
            self._console.print(_line(record), highlight=False, soft_wrap=True)
        else:
            self._live.update(
                Group(_step_table(list(self._steps)), self._criterion_table(record), self._progress)
            )

    def show_evaluation(self, record: EvaluationRecord) -> None:
        """Print an evaluation; it stays above the table."""
        self._console.print(
            f"evaluation after step {record.step}  reward {_number(record.reward)}"
            f"{' (best)' if record.best else ''}  unscored {record.unscored}/{record.rollouts}  "
            f"length {record.mean_length:.0f}  judge calls {record.judge_calls}  "
            f"{record.seconds:.1f} s",
            highlight=False,
            soft_wrap=True,
        )

    def wait(self, why: str, seconds: float) -> None:
        """Print why the run waits for the service, and for how many seconds."""
        self._console.print(
            f"waiting for the rubric service: {why}; next try in {seconds:.0f} s",
            style="yellow",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )

    def _criterion_table(self, record: StepRecord) -> Table:
        table = Table(title="criteria of this step's prompts", title_justify="left", expand=True)
        table.add_column("criterion", ratio=1, no_wrap=True)
        for name in ("points", "met", "at first"):
            table.add_column(name, justify="right")
        for rate in record.criteria[:CRITERIA_SHOWN]:
            share = _share(rate)
            first = (
                self._first.setdefault(f"{rate.rubric} {rate.criterion}", share)
                if share is not None
                else None
            )
            table.add_row(Text(rate.text), str(rate.points), _number(share), _number(first))
        return table


def _step_table(records: list[StepRecord]) -> Table:
    table = Table(title_justify="left", expand=True)
    distils = any(ROUTED in r.metrics for r in records)
    seconds = ("rollout", "scoring", *(["teacher"] if distils else []), "update")
    for name in (
        "step",
        "mean reward",
        "unscored",
        "rubrics",
        "judge calls",
        *(["to teacher"] if distils else []),
        *(f"{phase} s" for phase in seconds),
    ):
        table.add_column(name, justify="right")
    for record in records:
        table.add_row(
            str(record.step),
            _number(record.reward),
            f"{record.unscored}/{record.rollouts}",
            " ".join(f"{count} {origin}" for origin, count in sorted(record.origins.items())),
            str(record.judge_calls),
            *([_percent(record.metrics.get(ROUTED))] if distils else []),
            *(f"{getattr(record, f'{phase}_s'):.1f}" for phase in seconds),
        )
    return table


def _line(record: StepRecord) -> str:
    distils = ROUTED in record.metrics
    return (
        f"step {record.step}/{record.steps}  reward {_number(record.reward)}  "
        f"unscored {record.unscored}/{record.rollouts}  judge calls {record.judge_calls}  "
        + (f"to teacher {_percent(record.metrics[ROUTED])}  " if distils else "")
        + f"rollout {record.rollout_s:.1f} s  scoring {record.scoring_s:.1f} s  "
        + (f"teacher {record.teacher_s:.1f} s  " if distils else "")
        + f"update {record.update_s:.1f} s"
    )


def _share(rate: CriterionRate) -> float | None:
    return rate.met / rate.judged if rate.judged else None


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"
