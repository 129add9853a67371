"""The rules that derive findings from a run's figures. docs/runs.md states them."""

import math
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from operator import sub

from markscheme.vocabulary import GroupSort
from markscheme_server.domain.findings.figures import (
    COLLAPSE,
    COLLAPSE_FIGURES,
    CriterionFigures,
    PairFigures,
    RunFigures,
    StepColumns,
)
from markscheme_server.domain.findings.finding import Finding, GroupFilter
from markscheme_server.domain.findings.series import (
    MIN_KNOWN,
    MIN_STEPS,
    Z95,
    Series,
    Window,
    correlation,
    difference,
    fisher_low,
    mean,
    phi,
    share_variance,
    variance_by_step,
    wilson_low,
)

Z_SURE = 3.0
"""Standard errors that a difference must have."""
INVERTED = 0.25
FALLEN = 0.15
SATURATED, SATURATED_FIRST = 0.97, 0.95
OUT_OF_REACH, REACHED_BY_TEACHER = 0.02, 0.5
OUT_OF_REACH_KNOWN = 200
TEACHER_KNOWN = 8
REPEATS, REPEATS_KNOWN, VARIES = 0.9, 200, 0.03
NOISY = 0.05
JUDGES_PART = 0.05
LENGTH_PAYS, LENGTH_PAYS_SURELY = 0.3, 0.15
ABOVE_TEACHER = 0.05
NO_SPREAD = 0.5
UNKNOWN, UNKNOWN_STEPS = 0.05, 20
CUT_OFF, CUT_OFF_DOUBLED = 0.3, 0.05

_TEXT = 80
"""Characters of a criterion's text in a sentence."""
_COLLAPSED = {
    "short": "Responses have become short",
    "template": "Responses repeat themselves or are alike",
    "teacher_worse": "The self-teacher is worse than the student",
    "teacher_equal": "The self-teacher equals the student",
    "nothing_routed": "Next to nothing learns from the self-teacher",
}
_ORDER = {"alarm": 0, "watch": 1}


def find(run: RunFigures) -> list[Finding]:
    """Return what is wrong with a run: alarms first, then by the step of onset."""
    steps = run.steps if isinstance(run.steps, StepColumns) else StepColumns.of(run.steps)
    if not steps.steps:
        return []
    report = _RunReport(run, steps)
    return _sorted(
        [
            *report.reward(),
            *report.criteria(),
            *report.pairs(),
            *report.judges_part(),
            *report.length_pays(),
            *report.above_teacher(),
            *report.no_spread(),
            *report.unknown(),
            *report.cut_off(),
            *report.money(),
            *report.collapse(),
        ]
    )


def find_in_criteria(
    steps: Sequence[int], criteria: Sequence[CriterionFigures], pairs: Sequence[PairFigures]
) -> list[Finding]:
    """Return what is wrong with criteria alone, in the order of `find`. `steps`: in order."""
    if not steps:
        return []
    report = _Report(RunFigures(criteria=criteria, pairs=pairs), steps)
    return _sorted([*report.criteria(), *report.pairs()])


def _sorted(findings: Iterable[Finding]) -> list[Finding]:
    return sorted(
        findings,
        key=lambda f: (_ORDER[f.level], f.since_step or 0, f.kind, f.criterion or "", f.sentence),
    )


class _Report:
    """The rules about criteria, on one run with these steps in order."""

    def __init__(self, run: RunFigures, steps: Sequence[int]) -> None:
        self._run = run
        self._first_step, self._last_step = steps[0], steps[-1]
        width = max(1, min(100, len(steps) // 4))
        self._recent_step = steps[-min(len(steps), 2 * width)]
        self._texts = {each.key: each.text for each in run.criteria}

    def criteria(self) -> Iterator[Finding]:
        """Inverted, falling, saturated, out of reach and noisy: what one criterion shows.

        A criterion that was not judged for two windows is of a rubric that the run no longer uses.
        """
        for criterion in sorted(self._run.criteria, key=lambda each: each.key):
            series = Series.of(criterion.steps, (criterion.judged, criterion.met), mean)
            if not series.steps or series.steps[-1] < self._recent_step:
                continue
            yield from self._inverted(criterion, series)
            yield from self._falling(criterion, series)
            yield from self._saturated(criterion, series)
            yield from self._out_of_reach(criterion, series)
            yield from self._noisy(criterion)

    def _inverted(self, criterion: CriterionFigures, series: Series) -> Iterator[Finding]:
        if criterion.teacher_judged < TEACHER_KNOWN:
            return
        teacher = criterion.teacher_met / criterion.teacher_judged
        teacher_variance = share_variance(criterion.teacher_met, criterion.teacher_judged)

        def holds(window: Window) -> bool:
            gap = series.at(window) - teacher
            variance = _share_variance(series, window) + teacher_variance
            return gap >= INVERTED and gap >= Z_SURE * math.sqrt(variance)

        if (now := series.now(holds)) is None:
            return
        onset, share = series.onset(holds, rising=True), series.at(now)
        yield Finding(
            "inverted",
            "alarm",
            f"A criterion is inverted: {_quote(criterion.text)}. Students meet it in "
            f"{_percent(share)} of rollouts, teachers in {_percent(teacher)} of their responses, "
            f"since step {self._display(onset)}.",
            self._display(onset),
            criterion.key,
            {"now": share, "teacher": teacher, "teacher_judged": criterion.teacher_judged},
            self._groups(onset, criterion.key),
        )

    def _falling(self, criterion: CriterionFigures, series: Series) -> Iterator[Finding]:
        fall = _fall(series, lambda window: share_variance(window.row[1], window.row[0]))
        if fall is None:
            return
        best, now, onset = fall
        yield Finding(
            "falling",
            "watch",
            f"A criterion is met less and less: {_quote(criterion.text)}. Rollouts met it in "
            f"{_percent(series.at(best))} of cases in steps {self._span(series, best)} and in "
            f"{_percent(series.at(now))} now, since step {self._display(onset)}.",
            self._display(onset),
            criterion.key,
            {"best": series.at(best), "now": series.at(now)},
            self._groups(onset, criterion.key),
        )

    def _saturated(self, criterion: CriterionFigures, series: Series) -> Iterator[Finding]:
        now = series.now(lambda window: series.at(window) >= SATURATED)
        if now is None or series.first.row[0] < MIN_KNOWN:
            return
        first = series.at(series.first)
        if first < SATURATED_FIRST:
            return
        onset = series.steps[0]
        yield Finding(
            "saturated",
            "watch",
            f"A criterion teaches nothing: {_quote(criterion.text)}. "
            f"{_percent(first)} of rollouts met it at first, since step "
            f"{self._display(onset)}, and {_percent(series.at(now))} now.",
            self._display(onset),
            criterion.key,
            {"first": first, "now": series.at(now)},
            self._groups(onset, criterion.key),
        )

    def _out_of_reach(self, criterion: CriterionFigures, series: Series) -> Iterator[Finding]:
        if criterion.teacher_judged < TEACHER_KNOWN:
            return
        teacher = criterion.teacher_met / criterion.teacher_judged
        nobody = teacher <= OUT_OF_REACH
        if not nobody and teacher < REACHED_BY_TEACHER:
            return

        def holds(window: Window) -> bool:
            return series.at(window) <= OUT_OF_REACH

        now = series.now(holds)
        if now is None or sum(w.row[0] for w in series.windows[-2:]) < OUT_OF_REACH_KNOWN:
            return
        onset, share = series.onset(holds, rising=False), series.at(now)
        heading = "Nobody meets a criterion" if nobody else "A criterion is out of reach"
        yield Finding(
            "out_of_reach",
            "watch",
            f"{heading}: {_quote(criterion.text)}. Students meet it in {_percent(share)} of "
            f"rollouts, teachers in {_percent(teacher)} of their responses, since step "
            f"{self._display(onset)}.",
            self._display(onset),
            criterion.key,
            {"now": share, "teacher": teacher, "teacher_judged": criterion.teacher_judged},
            self._groups(onset, criterion.key),
        )

    def _noisy(self, criterion: CriterionFigures) -> Iterator[Finding]:
        asked, flipped = criterion.reasked, criterion.flipped
        if asked < MIN_KNOWN or wilson_low(flipped, asked) <= NOISY:
            return
        yield Finding(
            "noisy",
            "watch",
            f"The judge is not sure of a criterion: {_quote(criterion.text)}. Asked again, it "
            f"changed {flipped} of {asked} verdicts ({_percent(flipped / asked)}).",
            None,
            criterion.key,
            {
                "flipped": flipped,
                "reasked": asked,
                "share": flipped / asked,
                "low": wilson_low(flipped, asked),
            },
            GroupFilter(criterion=criterion.key),
        )

    def pairs(self) -> Iterator[Finding]:
        """Repeats. Both criteria must vary, or there is no correlation."""
        for pair in sorted(self._run.pairs, key=lambda pair: (pair.first, pair.second)):
            total = pair.both + pair.only_first + pair.only_second + pair.neither
            if total < REPEATS_KNOWN:
                continue
            first, second = (pair.both + n for n in (pair.only_first, pair.only_second))
            if not all(VARIES <= met / total <= 1 - VARIES for met in (first, second)):
                continue
            value = phi(pair.both, pair.only_first, pair.only_second, pair.neither)
            if value is None or value < REPEATS:
                continue
            yield Finding(
                "repeats",
                "watch",
                f"A criterion repeats another: {_quote(self._texts.get(pair.second, pair.second))} "
                f"and {_quote(self._texts.get(pair.first, pair.first))}. Their verdicts correlate "
                f"at {_number(value)} in {total} rollouts.",
                None,
                pair.second,
                {"phi": value, "rollouts": total, "repeated": pair.first},
                GroupFilter(criterion=pair.second),
            )

    def _display(self, step: int) -> int:
        return step + 1 if self._first_step == 0 else step

    def _span(self, series: Series, window: Window) -> str:
        first, last = series.steps[window.start], series.steps[window.stop - 1]
        return f"{self._display(first)} to {self._display(last)}"

    def _groups(
        self, since: int, criterion: str | None = None, sort: GroupSort = "newest"
    ) -> GroupFilter:
        return GroupFilter(since, self._last_step, criterion, sort)


class _RunReport(_Report):
    """All rules, on one run."""

    def __init__(self, run: RunFigures, steps: StepColumns) -> None:
        super().__init__(run, steps.steps)
        self._steps = steps
        self._known = list(map(sub, steps.rollouts, steps.unknown))

    def reward(self) -> Iterator[Finding]:
        """Falling, of the reward."""
        steps = self._steps
        series = self._series((self._known, steps.reward_sum, steps.reward_squares), mean)

        def variance(window: Window) -> float:
            known, total, squares = window.row
            return max(squares / known - (total / known) ** 2, 0.0) / known

        if (fall := _fall(series, variance)) is not None:
            best, now, onset = fall
            yield Finding(
                "falling",
                "alarm",
                f"The reward is falling. It was {_number(series.at(best))} on average in steps "
                f"{self._span(series, best)} and is {_number(series.at(now))} now, since step "
                f"{self._display(onset)}.",
                self._display(onset),
                None,
                {"best": series.at(best), "now": series.at(now)},
                self._groups(onset),
            )

    def judges_part(self) -> Iterator[Finding]:
        """Judges disagree: the second judge does not see the gain that the training judge sees."""
        series = Series.of(*self._steps.second_judge, difference)
        last = series.windows[-2:]
        # The best window must not show the fault itself: it is what the others are compared with.
        if len(series.windows) < 3:
            return
        best = max(reversed(series.windows[:-2]), key=lambda w: w.row[2] / w.row[0])

        def holds(window: Window) -> bool:
            moved = series.at(window) - series.at(best)
            variance = variance_by_step(series, window) + variance_by_step(series, best)
            return moved >= JUDGES_PART and moved > Z95 * math.sqrt(variance)

        if not all(map(holds, last)):
            return
        onset, now = series.change(best.start, rising=True), last[-1]
        training, second = (now.row[i] / now.row[0] - best.row[i] / best.row[0] for i in (1, 2))
        yield Finding(
            "judges_part",
            "alarm",
            f"The second judge stopped agreeing. Since step {self._display(onset)} the training "
            f"judge's reward moved by {_signed(training)}, the second judge's by "
            f"{_signed(second)} on the same rollouts (against steps {self._span(series, best)}).",
            self._display(onset),
            None,
            {"training": training, "second_judge": second, "rollouts": now.row[0]},
            self._groups(onset, sort="disagreement"),
        )

    def length_pays(self) -> Iterator[Finding]:
        """Length pays. Within groups, because that is what an advantage sees."""
        rollouts, groups, *sums = self._steps.length_reward
        # One degree of freedom is lost for each group's mean, one for the slope.
        freedom = [count - means - 1 for count, means in zip(rollouts, groups, strict=True)]
        series = self._series((freedom, *sums), correlation)

        def holds(window: Window) -> bool:
            r = series.at(window)
            return r >= LENGTH_PAYS and fisher_low(r, window.row[0]) >= LENGTH_PAYS_SURELY

        if (now := series.now(holds)) is None:
            return
        onset, r, r_first = (
            series.onset(holds, rising=True),
            series.at(now),
            series.at(series.first),
        )
        words_first, words_now = self._words(series, series.first), self._words(series, now)
        grew = ""
        if words_first is not None and words_now is not None:
            grew = f" Rollouts had {words_first:.0f} words at first, {words_now:.0f} now."
        yield Finding(
            "length_pays",
            "alarm",
            f"Length pays. Within a group, reward and length correlate at {_number(r)} since step "
            f"{self._display(onset)} (first {series.width} steps: {_number(r_first)}).{grew}",
            self._display(onset),
            None,
            {"first": r_first, "now": r, "words_first": words_first, "words_now": words_now},
            self._groups(onset, sort="length"),
        )

    def above_teacher(self) -> Iterator[Finding]:
        """Above the teacher: the rubric is used up."""
        series = self._series(self._steps.teacher, difference)

        def holds(window: Window) -> bool:
            return series.at(window) >= ABOVE_TEACHER

        if (now := series.now(holds)) is None:
            return
        onset = series.onset(holds, rising=True)
        student, teacher = (now.row[i] / now.row[0] for i in (1, 2))
        yield Finding(
            "above_teacher",
            "watch",
            f"The student is above the teacher. Its mean reward is {_number(student)}, that of the "
            f"teacher responses in the same groups {_number(teacher)}, since step "
            f"{self._display(onset)}: the rubrics have little left to teach.",
            self._display(onset),
            None,
            {"student": student, "teacher": teacher},
            self._groups(onset, sort="above_teacher"),
        )

    def no_spread(self) -> Iterator[Finding]:
        """No spread: groups whose rewards are all equal teach nothing."""
        groups = self._steps.comparable_groups
        # It is a share of groups, so that steps without any are left out too.
        known = [count if of else 0 for count, of in zip(self._known, groups, strict=True)]
        series = self._series((known, self._steps.flat_groups, groups), lambda row: row[1] / row[2])
        now = series.now(lambda window: series.at(window) >= NO_SPREAD)
        if now is None:
            return
        onset = series.onset(lambda window: series.at(window) >= NO_SPREAD, rising=True)
        share, first = series.at(now), series.at(series.first)
        yield Finding(
            "no_spread",
            "watch",
            f"Many groups teach nothing. All rewards are equal in {_percent(share)} of groups, "
            f"since step {self._display(onset)} ({_percent(first)} in the first {series.width} "
            "steps).",
            self._display(onset),
            None,
            {"now": share, "first": first},
            self._groups(onset, sort="flat"),
        )

    def unknown(self) -> Iterator[Finding]:
        """Unknown: the steps whose unknown rewards exceed the limit the most."""
        if not self._steps.reasons:
            return
        scored = [
            row
            for row in zip(
                self._steps.steps, self._steps.rollouts, self._steps.unknown, strict=True
            )
            if row[1] > 0
        ]
        width = min(UNKNOWN_STEPS, len(scored))
        # What there was of each up to each step: a window is a difference of two.
        rollouts_to = list(accumulate((rollouts for _, rollouts, _ in scored), initial=0))
        unknown_to = list(accumulate((unknown for *_, unknown in scored), initial=0))
        if not any(
            (rollouts := rollouts_to[i + width] - rollouts_to[i]) >= MIN_KNOWN
            and unknown_to[i + width] - unknown_to[i] >= UNKNOWN * rollouts
            for i in range(len(scored) - width + 1)
        ):
            return
        start, stop = _largest_sum(
            [unknown - UNKNOWN * rollouts for _, rollouts, unknown in scored]
        )
        some = scored[start:stop]
        reasons: Counter[str] = Counter()
        for step, *_ in some:
            reasons.update(self._steps.reasons.get(step, {}))
        count, rollouts = reasons.total(), rollouts_to[stop] - rollouts_to[start]
        onset, end = some[0][0], some[-1][0]
        named = ", ".join(f"{n} {name}" for name, n in reasons.most_common())
        yield Finding(
            "unknown",
            "watch",
            f"Rewards are not known. {count} of {rollouts} rollouts ({_percent(count / rollouts)}) "
            f"of steps {self._display(onset)} to {self._display(end)} have no reward ({named}); "
            "they are in no mean.",
            self._display(onset),
            None,
            {
                "unknown": count,
                "rollouts": rollouts,
                "share": count / rollouts,
                "until_step": self._display(end),
                **dict(reasons),
            },
            GroupFilter(onset, end, sort="unknown"),
        )

    def cut_off(self) -> Iterator[Finding]:
        """Cut off: rollouts that end at the token limit."""
        series = self._series((self._steps.rollouts, self._steps.truncated), mean)
        if not series.windows or series.first.row[0] < MIN_KNOWN:
            return
        first = series.at(series.first)
        first_variance = _share_variance(series, series.first)

        def holds(window: Window) -> bool:
            share = series.at(window)
            variance = first_variance + _share_variance(series, window)
            return share >= CUT_OFF or (
                share >= max(CUT_OFF_DOUBLED, 2 * first)
                and share - first >= Z_SURE * math.sqrt(variance)
            )

        if (now := series.now(holds)) is None:
            return
        onset, share = series.onset(holds, rising=True), series.at(now)
        yield Finding(
            "cut_off",
            "watch",
            f"Rollouts are cut off. {_percent(share)} of them end at the token limit, since step "
            f"{self._display(onset)} ({_percent(first)} in the first {series.width} steps).",
            self._display(onset),
            None,
            {"now": share, "first": first},
            self._groups(onset, sort="length"),
        )

    def money(self) -> Iterator[Finding]:
        """Money: a budget that is spent, or will be."""
        for budget in self._run.budgets:
            whose = "The run's" if budget.own else "The team's"
            each = {"day": "daily", "month": "monthly", "total": "total"}[budget.window]
            name, spent, hard = f"{whose} {each} budget", budget.spent_usd, budget.hard_usd
            ahead = self._cost_ahead(budget.ends_in_s)
            values = {
                "window": budget.window,
                "spent_usd": spent,
                "soft_usd": budget.soft_usd,
                "hard_usd": hard,
                "projected_usd": None if ahead is None else spent + ahead,
            }
            if hard is not None and ahead and spent + ahead > hard:
                yield Finding(
                    "money",
                    "alarm",
                    f"{name} will not last. {_dollars(spent)} of {_dollars(hard)} is spent, and "
                    f"{self._done()} steps cost {_dollars(self._run.cost_usd)}: at this rate it "
                    f"will be {_dollars(spent + ahead)}.",
                    values=values,
                )
            elif budget.soft_usd is not None and spent > budget.soft_usd:
                yield Finding(
                    "money",
                    "watch",
                    f"{name} is above its soft limit. {_dollars(spent)} is spent, the limit is "
                    f"{_dollars(budget.soft_usd)}.",
                    values=values,
                )

    def collapse(self) -> Iterator[Finding]:
        """Collapse: what the trainer's guard found, which it records as metrics."""
        metrics = self._steps.metrics
        by_step = [(step, metrics[step]) for step in self._steps.steps if step in metrics]
        for name in sorted(set().union(*(of_step for _, of_step in by_step))):
            if not name.startswith(COLLAPSE):
                continue
            since = next((step for step, of_step in by_step if of_step.get(name)), None)
            if since is None:
                continue
            rule = name.removeprefix(COLLAPSE)
            metric = COLLAPSE_FIGURES.get(rule, "")
            known = [v for _, of_step in by_step if (v := of_step.get(metric)) is not None]
            values: dict[str, float | int | str | None] = {"rule": rule}
            figures = ""
            if known:
                values |= {"metric": metric, "first": _average(known[:10])}
                values["now"] = _average(known[-10:])
                figures = (
                    f" {metric} was {values['first']:.3g} in its first 10 records and is "
                    f"{values['now']:.3g} in its last."
                )
            yield Finding(
                "collapse",
                "alarm",
                f"{_COLLAPSED.get(rule, f'The trainer warns of a collapse ({rule})')}. The "
                f"trainer's collapse guard found it at step {self._display(since)}.{figures}",
                self._display(since),
                None,
                values,
                self._groups(since),
            )

    def _series(
        self, columns: Sequence[Sequence[float]], figure: Callable[[tuple[float, ...]], float]
    ) -> Series:
        return Series.of(self._steps.steps, columns, figure)

    def _words(self, series: Series, window: Window) -> float | None:
        """Return the mean words of a rollout in a window, `None` if a step's words are unknown."""
        low, high = series.steps[window.start], series.steps[window.stop - 1]
        start, stop = bisect_left(self._steps.steps, low), bisect_right(self._steps.steps, high)
        rollouts, words = self._steps.rollouts[start:stop], self._steps.words[start:stop]
        known = [w for w, count in zip(words, rollouts, strict=True) if count and w is not None]
        return sum(known) / sum(rollouts) if len(known) == sum(map(bool, rollouts)) else None

    def _done(self) -> int:
        return self._display(self._last_step)

    def _cost_ahead(self, ends_in_s: float | None) -> float | None:
        """Return what the run will spend before its end or a time, in dollars, if that is known."""
        run, done = self._run, self._done()
        if not run.running or run.planned_steps is None or done < MIN_STEPS:
            return None
        steps = float(max(0, run.planned_steps - done))
        if ends_in_s is not None:
            if not run.seconds_per_step:
                return None
            steps = min(steps, ends_in_s / run.seconds_per_step)
        return run.cost_usd / done * steps


def _fall(series: Series, variance: Callable[[Window], float]) -> tuple[Window, Window, int] | None:
    """Return the best window, the last one and the onset if the figure fell since the best."""
    if len(series.windows) < 3:
        return None
    best = max(reversed(series.windows[:-1]), key=series.at)

    def holds(window: Window) -> bool:
        fell = series.at(best) - series.at(window)
        return fell >= FALLEN and fell >= Z_SURE * math.sqrt(sum(map(uncertainty, (best, window))))

    def uncertainty(window: Window) -> float:
        return max(variance(window), variance_by_step(series, window))

    now = series.now(holds)
    return None if now is None else (best, now, series.change(best.start, rising=False))


def _share_variance(series: Series, window: Window) -> float:
    """Return the variance of a share, of rollouts that may be alike within a step."""
    return max(share_variance(window.row[1], window.row[0]), variance_by_step(series, window))


def _largest_sum(values: Sequence[float]) -> tuple[int, int]:
    """Return start and stop of the slice with the largest sum (Kadane's algorithm)."""
    best, best_slice, total, start = -math.inf, (0, 0), 0.0, 0
    for i, value in enumerate(values):
        if total <= 0:
            total, start = 0.0, i
        total += value
        if total > best:
            best, best_slice = total, (start, i + 1)
    return best_slice


def _average(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    # The sum of finite figures may be out of range; their mean never is.
    return mean if math.isfinite(mean) else sum(value / len(values) for value in values)


def _quote(text: str) -> str:
    """Return a criterion's text in quotes on one line, cut at a word if it is long.

    A model wrote it: control characters, which terminals obey, are left out.
    """
    line = " ".join(text.split())
    plain = "".join(char for char in line if char.isprintable()).rstrip(".")
    if len(plain) > _TEXT:
        plain = plain[:_TEXT].rsplit(" ", 1)[0] + " …"
    return f"“{plain}”"


def _percent(share: float) -> str:
    """Return a share in percent; 0 and 100 mean none and all."""
    percent = 100 * share
    if 0 < percent < 1 or 99 < percent < 100:
        return (
            f"{percent:.1f} %" if 0.05 <= percent < 99.95 else ("< 0.1 %", "> 99.9 %")[percent > 50]
        )
    return f"{percent:.0f} %"


def _number(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _dollars(value: float) -> str:
    return f"${value:,.2f}"
