"""The report's plots as inline SVG, in tones that read on a light and on a dark page."""

import io
from collections.abc import Callable
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from markscheme_train.demo.evaluate import Evaluation
from markscheme_train.demo.result import Change, DemoResult

INK = "#787878"
"""The only grey here; it becomes the page's own text colour."""
TRAINED, HELD_OUT, THIRD = "#2f7ed8", "#d9822b", "#3fa66b"
CRITERIA_SHOWN = 18
STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.hashsalt": "markscheme",
}


def reward_plot(result: DemoResult) -> str:
    """Plot the mean reward of each step's rollouts, between the evaluations before and after."""

    def draw(axes: Any) -> None:
        known = [
            (record.step, record.reward) for record in result.records if record.reward is not None
        ]
        axes.plot(
            [step for step, _ in known],
            [reward for _, reward in known],
            color=TRAINED,
            linewidth=1.4,
            label="rollouts of the step (2 prompts)",
        )
        last = len(result.records) + 1
        for change, colour, name in (
            (result.trained, TRAINED, "trained prompts, fresh samples"),
            (result.held_out, HELD_OUT, "held-out prompts, fresh samples"),
        ):
            axes.errorbar(
                [0, last],
                [change.before.reward, change.after.reward],
                yerr=[change.before.reward_error, change.after.reward_error],
                color=colour,
                fmt="o--",
                linewidth=0.8,
                capsize=3,
                label=name,
            )
        axes.set(xlabel="step", ylabel="mean reward", ylim=(0, 1))
        axes.legend(loc="lower right", fontsize=9)

    return _svg(draw, height=3.6, label="Mean reward by step")


def criterion_plot(change: Change) -> str:
    """Plot the share of samples that met each criterion, before and after."""
    rows = criterion_changes(change)[:CRITERIA_SHOWN][::-1]

    def draw(axes: Any) -> None:
        for y, (_, before, after) in enumerate(rows):
            axes.plot([before, after], [y, y], color=INK, linewidth=1)
        axes.plot(
            [before for _, before, _ in rows], range(len(rows)), "o", color=HELD_OUT, label="before"
        )
        axes.plot(
            [after for _, _, after in rows], range(len(rows)), "o", color=TRAINED, label="after"
        )
        axes.set_yticks(range(len(rows)), [_short(text) for text, _, _ in rows])
        axes.set(xlabel="share of samples that met it", xlim=(-0.03, 1.03))
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.12), ncols=2, fontsize=9)

    return _svg(draw, height=1.4 + 0.27 * max(1, len(rows)), label="Criteria before and after")


def criterion_changes(change: Change) -> list[tuple[str, float, float]]:
    """Return (text, before, after), equal texts averaged, the largest change first."""
    shares: dict[str, list[tuple[float, float]]] = {}
    for before, after in zip(change.before.results, change.after.results, strict=True):
        for criterion in before.rubric.criteria:
            if criterion.id in before.met and criterion.id in after.met:
                shares.setdefault(criterion.text, []).append(
                    (before.met[criterion.id], after.met[criterion.id])
                )
    rows = [
        (text, sum(b for b, _ in pairs) / len(pairs), sum(a for _, a in pairs) / len(pairs))
        for text, pairs in shares.items()
    ]
    return sorted(rows, key=lambda row: -abs(row[2] - row[1]))


def seconds_plot(result: DemoResult) -> str:
    """Plot the seconds of each step by phase."""

    def draw(axes: Any) -> None:
        steps = [record.step for record in result.records]
        parts = {
            "rollout": [r.rollout_s for r in result.records],
            "scoring": [r.scoring_s for r in result.records],
            "update": [r.update_s for r in result.records],
        }
        axes.stackplot(
            steps,
            *parts.values(),
            labels=parts.keys(),
            colors=[TRAINED, HELD_OUT, THIRD],
            alpha=0.8,
        )
        axes.set(xlabel="step", ylabel="seconds", ylim=(0, None))
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=9)

    return _svg(draw, height=2.6, label="Seconds by step")


def sanity_plot(result: DemoResult) -> str:
    """Plot length and share of non-words before and after, for both splits."""
    measures: tuple[tuple[str, Callable[[Evaluation], float]], ...] = (
        ("mean length, tokens", lambda evaluation: evaluation.tokens),
        ("non-words, %", lambda evaluation: 100 * evaluation.non_words),
    )
    with rc_context(STYLE):
        figure = Figure(figsize=(7.2, 2.6), layout="constrained")
        for place, (name, value) in enumerate(measures, start=1):
            axes: Any = figure.add_subplot(1, 2, place)
            for label, change, colour in (
                ("trained", result.trained, TRAINED),
                ("held out", result.held_out, HELD_OUT),
            ):
                axes.plot(
                    [0, 1],
                    [value(change.before), value(change.after)],
                    "o-",
                    color=colour,
                    label=label,
                )
            axes.set_xticks([0, 1], ["before", "after"])
            axes.set(ylabel=name, ylim=(0, 1.1 * axes.get_ylim()[1]), xlim=(-0.3, 1.3))
            axes.legend(loc="lower right", fontsize=9)
        return _render(figure, "Length and non-words before and after")


def _svg(draw: Callable[[Any], None], *, height: float, label: str) -> str:
    with rc_context(STYLE):
        figure = Figure(figsize=(7.2, height), layout="constrained")
        draw(figure.add_subplot())
        return _render(figure, label)


def _render(figure: Figure, label: str) -> str:
    figure.patch.set_alpha(0)
    for axes in figure.axes:
        axes.patch.set_alpha(0)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def _short(text: str) -> str:
    return text if len(text) <= 58 else text[:57] + "…"
