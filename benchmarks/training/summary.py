"""The trial's report: tables, differences paired by seed, and curves."""

import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from service.machine import describe, sentence
from service.report import markdown_table, today
from training.arms import COMPARISONS, ROLLOUTS, Arm, Groups
from training.plot import Panel, draw

WINDOW = 10
"""Steps in a row whose mean success is one figure."""
EARLY = 30
"""Steps that are early."""

Result = Mapping[str, Any]
Curve = Sequence[float]


def best(curve: Curve) -> float:
    """Return the best mean success of steps in a row: what the papers report."""
    count = min(WINDOW, len(curve))
    return max(
        statistics.fmean(curve[start : start + count]) for start in range(len(curve) - count + 1)
    )


def early(curve: Curve) -> float:
    """Return the best mean success of steps in a row among the first ones."""
    return best(curve[:EARLY])


def last(curve: Curve) -> float:
    """Return the mean success of the last steps."""
    return statistics.fmean(curve[-WINDOW:])


MEASURES: Mapping[str, Callable[[Curve], float]] = {
    f"best {WINDOW} of {EARLY}": early,
    f"best {WINDOW}": best,
    f"last {WINDOW}": last,
}


def spread(values: Sequence[float]) -> str:
    """Return the mean, with its standard error where there are several values."""
    if not values:
        return "–"
    if len(values) == 1:
        return f"{values[0]:.3f}"
    error = statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.fmean(values):.3f} ± {error:.3f}"


class Results:
    """Finished runs by task, arm, learning rate and seed."""

    def __init__(self, runs: Iterable[Result]) -> None:
        self._runs: dict[tuple[str, str], dict[float, dict[int, Result]]] = defaultdict(
            lambda: defaultdict(dict)
        )
        for run in runs:
            self._runs[run["task"], run["arm"]][run["learning_rate"]][run["seed"]] = run

    def rates(self, task: str, arm: str) -> list[float]:
        """Return the learning rates with a result."""
        return sorted(self._runs[task, arm])

    def runs(self, task: str, arm: str, rate: float) -> list[Result]:
        """Return the runs of an arm at a rate, by seed."""
        return [run for _, run in sorted(self._runs[task, arm][rate].items())]

    def best_rate(self, task: str, arm: str, measure: Callable[[Curve], float]) -> float | None:
        """Return the rate at which an arm's mean is best."""
        means = {
            rate: statistics.fmean(measure(run["curve"]) for run in runs.values())
            for rate, runs in self._runs[task, arm].items()
        }
        return max(means, key=means.__getitem__) if means else None

    def differences(
        self, task: str, arm: str, against: str, measure: Callable[[Curve], float]
    ) -> list[float]:
        """Return an arm's measure minus another's for each seed, each at its own best rate."""
        by_seed = []
        for name in (arm, against):
            rate = self.best_rate(task, name, measure)
            runs = {} if rate is None else self._runs[task, name][rate]
            by_seed.append({seed: measure(run["curve"]) for seed, run in runs.items()})
        one, other = by_seed
        return [one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())]


def report(
    runs: Sequence[Result],
    models: Sequence[Result],
    groups: Groups,
    stem: Path,
    console: Console,
) -> None:
    """Print the tables; write them with the curves and all recorded figures.

    Args:
        runs: Finished runs.
        models: The pre-trained models' figures.
        groups: The arms, under the headings of their tables.
        stem: Path of the files, without date and suffix.
        console: Where to print.
    """
    results = Results(runs)
    machine = describe(("markscheme", "torch", "transformers", "trl"))
    stem = stem.with_name(f"{stem.name}-{today()}")
    lines = [
        f"# Training methods, {today()}",
        "",
        f"Machine: {sentence(machine)}.",
        "",
        "Success is the share of a step's rollouts that are the right answer, whatever an arm's "
        f"reward is: the best mean of {WINDOW} steps in a row, among the first {EARLY} steps and "
        f"among all, and that of the last {WINDOW}. Figures are means ± standard errors over "
        "seeds, which differ in the order of prompts and in sampling; the pre-trained model is the "
        "same. *Teacher's gain*: nats a token by which the self-teacher, which has read the right "
        "answer, finds it likelier than the student does, at the first step and at the end. "
        "*Shown*: success of the trained student when it is shown the right answer. A step has 8 "
        f"prompts, or as many as its arm's name says, with {ROLLOUTS} rollouts each.",
        "",
        "## Before",
        "",
        *_models(models),
    ]
    for heading, arms in groups.items():
        rows = list(_arms(results, arms))
        if rows:
            lines += ["", f"## {heading}", "", *markdown_table(COLUMNS, rows)]
    lines += [
        "",
        "## Differences, paired by seed",
        "",
        "Each arm at the learning rate that is best for it by the figure compared.",
        "",
        *markdown_table(
            ("task", "arm", "against", *MEASURES, "seeds"),
            list(_differences(results)),
        ),
        "",
        f"![success by step]({stem.name}.svg)",
    ]
    stem.parent.mkdir(parents=True, exist_ok=True)
    draw(stem.with_name(f"{stem.name}.svg"), _panels(results, groups))
    head = json.dumps({"date": today(), "machine": machine, "models": list(models)})[:-1]
    rows_of_runs = ",\n".join(json.dumps(run) for run in runs)
    stem.with_name(f"{stem.name}.json").write_text(f'{head}, "runs": [\n{rows_of_runs}\n]}}\n')
    page = stem.with_name(f"{stem.name}.md")
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")
    console.print("\n".join(lines[4:]), highlight=False, markup=False, soft_wrap=True)
    console.print(f"{len(runs)} runs; written to {page}", highlight=False)


COLUMNS = (
    "task",
    "arm",
    "rate",
    "seeds",
    *MEASURES,
    "teacher's gain",
    "shown",
)


def _models(models: Sequence[Result]) -> list[str]:
    return markdown_table(
        ("task", "weights", "success", "shown the answer", "held out"),
        [
            (
                model["task"],
                f"{model['weights']:,}",
                f"{model['alone']:.3f}",
                f"{model['shown_the_answer']:.3f}",
                f"{model['held_out']:.3f}" if "held_out" in model else "–",
            )
            for model in models
        ],
    )


def _arms(results: Results, arms: Sequence[Arm]) -> Iterable[tuple[object, ...]]:
    for arm in arms:
        for rate in results.rates(arm.task, arm.name):
            runs = results.runs(arm.task, arm.name, rate)
            curves = [run["curve"] for run in runs]
            gains = [run["teacher_gain_on_answers"] for run in runs]
            gain = (
                f"{statistics.fmean(g[0] for g in gains):+.3f} → "
                f"{statistics.fmean(g[-1] for g in gains):+.3f}"
                if all(gains)
                else "–"
            )
            yield (
                arm.task,
                arm.name,
                f"{rate:g}",
                len(runs),
                *(spread([measure(curve) for curve in curves]) for measure in MEASURES.values()),
                gain,
                spread([run["after"]["shown_the_answer"] for run in runs]),
            )


def _differences(results: Results) -> Iterable[tuple[object, ...]]:
    for task, arm, against in COMPARISONS:
        paired = [results.differences(task, arm, against, measure) for measure in MEASURES.values()]
        if all(paired):
            yield (
                task,
                arm,
                against,
                *("+" * (statistics.fmean(values) >= 0) + spread(values) for values in paired),
                len(paired[0]),
            )


def _panels(results: Results, groups: Groups) -> list[Panel]:
    """Return a panel for each group of arms and learning rate with results."""
    panels = []
    for heading, arms in groups.items():
        for rate in sorted({rate for arm in arms for rate in results.rates(arm.task, arm.name)}):
            curves = {
                arm.name: [run["curve"] for run in results.runs(arm.task, arm.name, rate)]
                for arm in arms
                if rate in results.rates(arm.task, arm.name)
            }
            panels.append(Panel(f"{heading}\nlearning rate {rate:g}", curves))
    return panels
