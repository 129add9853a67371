"""The live view of a run: progress bar, last steps, and how often each criterion is met."""

from collections import Counter, deque
from collections.abc import Sequence
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

from markscheme.run_text import STYLES, finding_counts, finding_line, sparkline
from markscheme.schema import Finding, FindingCounts
from markscheme_train.reward import CriterionRate
from markscheme_train.step_log import EvaluationRecord, StepRecord

STEPS_SHOWN = 10
CRITERIA_SHOWN = 14
OTHER_LINES = 8
"""Lines of the view that are no step and no criterion: titles, heads, findings, progress."""
FINDINGS_PRINTED = 10
ROUTED = "distillation/routed_share"


class LiveTable:
    """A context manager that draws steps; without a terminal it prints one line a step."""

    def __init__(self, console: Console, *, title: str) -> None:
        self._console = console
        self._steps: deque[StepRecord] = deque(maxlen=STEPS_SHOWN)
        self._rewards: list[float | None] = []
        self._findings: list[Finding] = []
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
        self._rewards.append(record.reward)
        self._progress.update(self._task, total=record.steps, completed=record.step)
        if self._live is None:
            self._console.print(_line(record), highlight=False, soft_wrap=True)
            return
        room = max(2, self._console.height - OTHER_LINES)
        steps = list(self._steps)[-min(STEPS_SHOWN, room // 2) :]
        criteria = min(CRITERIA_SHOWN, room - len(steps))
        self._live.update(
            Group(
                self._title(record),
                _step_table(steps),
                self._criterion_table(record, criteria),
                *([_finding_summary(self._findings)] if self._findings else []),
                self._progress,
            )
        )

    def show_url(self, url: str) -> None:
        """Print the address of the run's page; it stays above the table."""
        self._console.print(f"run: {url}", markup=False, highlight=False, soft_wrap=True)

    def show_findings(self, findings: list[Finding]) -> None:
        """Draw what is wrong with the run from the next step on."""
        self._findings = findings

    def warn(self, message: str) -> None:
        """Print a warning; it stays above the table."""
        self._console.print(message, style="yellow", markup=False, highlight=False, soft_wrap=True)

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
        self.warn(f"waiting for the rubric service: {why}; next try in {seconds:.0f} s")

    def _title(self, record: StepRecord) -> Text:
        teacher = f"  teacher {_number(record.teacher)}" if record.teacher is not None else ""
        curve = sparkline(self._rewards)
        return Text(f"reward {curve} {_number(record.reward)}{teacher}", style="italic")

    def _criterion_table(self, record: StepRecord, rows: int) -> Table:
        table = Table(
            title="criteria of this step's prompts",
            title_justify="left",
            box=None,
            pad_edge=False,
            expand=True,
        )
        table.add_column("criterion", ratio=1, no_wrap=True)
        for name in ("points", "met", "at first"):
            table.add_column(name, justify="right")
        for rate in record.criteria[:rows]:
            share = _share(rate)
            first = (
                self._first.setdefault(f"{rate.rubric} {rate.criterion}", share)
                if share is not None
                else None
            )
            table.add_row(Text(rate.text), str(rate.points), _number(share), _number(first))
        return table


def print_end(console: Console, findings: Sequence[Finding], url: str | None) -> None:
    """Print what is wrong with a run, and the address of its page."""
    for finding in findings[:FINDINGS_PRINTED]:
        console.print(Text(finding_line(finding), STYLES[finding.level]), soft_wrap=True)
    if more := findings[FINDINGS_PRINTED:]:
        console.print(f"{len(more)} more findings are on the run's page", highlight=False)
    if url is not None:
        console.print(f"run: {url}", markup=False, highlight=False, soft_wrap=True)


def _finding_summary(findings: Sequence[Finding]) -> Text:
    """Return the first finding, with the number of all, on one line."""
    counts = Counter(finding.level for finding in findings)
    total = finding_counts(FindingCounts(alarm=counts["alarm"], watch=counts["watch"]))
    first = findings[0]
    return Text(
        f"{total}  {first.sentence}", STYLES[first.level], no_wrap=True, overflow="ellipsis"
    )


def _step_table(records: list[StepRecord]) -> Table:
    distils = any(ROUTED in r.metrics for r in records)
    phases = ("rollout", "scoring", *(["teacher"] if distils else []), "update")
    table = Table(
        box=None,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        expand=True,
        caption=f"seconds: {' + '.join(phases)}",
        caption_justify="right",
    )
    for name in (
        "step",
        "reward",
        "unscored",
        "rubrics",
        "calls",
        *(["to teacher"] if distils else []),
        "seconds",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for record in records:
        table.add_row(
            str(record.step),
            _number(record.reward),
            f"{record.unscored}/{record.rollouts}",
            " ".join(f"{count} {origin}" for origin, count in sorted(record.origins.items())),
            str(record.judge_calls),
            *([_percent(record.metrics.get(ROUTED))] if distils else []),
            " + ".join(_seconds(getattr(record, f"{phase}_s")) for phase in phases),
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


def _seconds(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"
