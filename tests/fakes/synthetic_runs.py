"""Synthetic runs, healthy or with a planted fault, as the figures that findings are made of.

`synthetic_run(seed)` is healthy; `fault` names one of `FAULTS`, which begins at index `onset`.
"""

import random
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from math import log

from markscheme_server.domain.findings import (
    BudgetFigures,
    CriterionFigures,
    LengthReward,
    PairedRewards,
    PairFigures,
    RunFigures,
    StepFigures,
)

FAULTS = (
    "inverted",
    "falling",
    "judges_part",
    "length_pays",
    "above_teacher",
    "no_spread",
    "unknown",
    "cut_off",
    "collapse",
)
"""Faults with an onset."""
LASTING_FAULTS = ("saturated", "out_of_reach", "repeats", "noisy", "money")
"""Faults of a whole run."""
OUTAGE_STEPS = 20


@dataclass
class _Criterion:
    """Shares of met verdicts at the run's start and end, by students, and by teachers."""

    first: float
    last: float
    teacher: float
    steps: list[int] = field(default_factory=list)
    met: list[int] = field(default_factory=list)
    judged: list[int] = field(default_factory=list)


def synthetic_run(
    seed: int,
    *,
    fault: str | None = None,
    onset: int = 0,
    steps: int = 200,
    groups: int = 4,
    rollouts: int = 8,
    criteria: int = 6,
) -> RunFigures:
    """Return a run whose students learn: each criterion is met more and more often.

    Prompts differ in difficulty and return every epoch, some verdicts are unknown, a second judge
    scores a tenth of the rollouts with errors of its own, and length pays a little.
    """
    rng = random.Random(seed)
    prompts = [rng.gauss(0, 0.12) for _ in range(groups * 12)]
    shapes = [
        _Criterion(first, rng.uniform(first, 0.9), rng.uniform(0.85, 0.97))
        for first in (rng.uniform(0.1, 0.6) for _ in range(criteria))
    ]
    if fault == "inverted":
        shapes[0] = _Criterion(0.35, 0.4, 0.4)
    if fault == "saturated":
        shapes[0] = _Criterion(0.985, 0.99, 0.95)
    if fault == "out_of_reach":
        shapes[0] = _Criterion(0.004, 0.004, 0.9)
    if fault == "above_teacher":
        for shape in shapes:
            shape.last, shape.teacher = shape.first, 0.6
    noise = 0.02
    pace = rng.uniform(1.0, 4.0)
    pairs: Counter[tuple[bool, bool]] = Counter()
    records = []
    for step in range(steps):
        bad = fault is not None and step >= onset
        progress = log(1 + pace * step / steps) / log(1 + pace)
        row: dict[str, float] = defaultdict(float)
        reasons: Counter[str] = Counter()
        marks = [Counter[str]() for _ in shapes]
        scatter = LengthReward()
        for group in range(groups):
            ease = prompts[(step * groups + group) % len(prompts)]
            flat = rng.random() < (0.75 if bad and fault == "no_spread" else 0.1)
            known: list[tuple[float, float]] = []
            shared: list[bool] | None = None
            for _ in range(rollouts):
                met = []
                for n, shape in enumerate(shapes):
                    share = shape.first + (shape.last - shape.first) * progress
                    if bad and fault == "inverted" and n == 0:
                        share = 0.95
                    if bad and fault == "falling":
                        share *= 0.3
                    if bad and fault == "above_teacher":
                        share = 0.75
                    steady = n == 0 and fault in ("saturated", "out_of_reach")
                    met.append(rng.random() < share + (0 if steady else ease))
                if fault == "repeats":
                    met[1] = met[0] if rng.random() < 0.98 else not met[0]
                    pairs[met[0], met[1]] += step >= steps - 100
                if flat:
                    shared = met = shared or met
                reward = sum(met) / len(met)
                pays = 6.0 if bad and fault == "length_pays" else 0.3
                words = max(1, round(60 + rng.gauss(0, 15) + 15 * pays * (reward - 0.5)))
                row["words"] += words
                row["truncated"] += rng.random() < (0.4 if bad and fault == "cut_off" else 0.02)
                lost = 0.004
                if bad and fault == "unknown" and step < onset + OUTAGE_STEPS:
                    lost = 1.0
                if rng.random() < lost:
                    reasons["unavailable"] += 1
                    continue
                for n, each in enumerate(met):
                    marks[n]["met"] += each
                    marks[n]["judged"] += 1
                known.append((words, reward))
                if rng.random() < 0.1:
                    fooled = 0.25 if bad and fault == "judges_part" else 0.0
                    row["seconds"] += 1
                    row["seconds_reward"] += reward
                    row["second_sum"] += reward - fooled + rng.gauss(0, 0.15)
            values = [reward for _, reward in known]
            row["reward_sum"] += sum(values)
            row["reward_squares"] += sum(value * value for value in values)
            if known:
                row["taught"] += len(known)
                mean_teacher = sum(shape.teacher for shape in shapes) / len(shapes)
                row["teacher_sum"] += len(known) * (mean_teacher + rng.gauss(0, 0.05))
            if len(known) >= 2:
                row["comparable"] += 1
                row["flat"] += len(set(values)) == 1
                scatter = LengthReward(
                    *(a + b for a, b in zip(scatter, within_group(known), strict=True))
                )
        for shape, mark in zip(shapes, marks, strict=True):
            if mark["judged"]:
                shape.steps.append(step)
                shape.met.append(mark["met"])
                shape.judged.append(mark["judged"])
        length = 40.0 if bad and fault == "collapse" else 400.0
        metrics = {"completions/mean_length": length}
        if bad and fault == "collapse":
            metrics["collapse/short"] = 1.0
        records.append(
            StepFigures(
                step,
                rollouts=groups * rollouts,
                reasons=reasons,
                reward_sum=row["reward_sum"],
                reward_squares=row["reward_squares"],
                truncated=int(row["truncated"]),
                comparable_groups=int(row["comparable"]),
                flat_groups=int(row["flat"]),
                words=int(row["words"]),
                teacher=PairedRewards(int(row["taught"]), row["reward_sum"], row["teacher_sum"]),
                second_judge=PairedRewards(
                    int(row["seconds"]), row["seconds_reward"], row["second_sum"]
                ),
                length_reward=scatter,
                metrics=metrics,
            )
        )
    return RunFigures(
        steps=records,
        criteria=[
            CriterionFigures(
                f"c{n}",
                f"Criterion {n} of the synthetic rubric",
                points=1,
                steps=shape.steps,
                met=shape.met,
                judged=shape.judged,
                teacher_met=round(200 * shape.teacher),
                teacher_judged=200,
                reasked=150,
                flipped=round(150 * (0.2 if fault == "noisy" and n == 0 else noise)),
            )
            for n, shape in enumerate(shapes)
        ],
        pairs=[
            PairFigures(
                "c0",
                "c1",
                both=pairs[True, True],
                only_first=pairs[True, False],
                only_second=pairs[False, True],
                neither=pairs[False, False],
            )
        ],
        planned_steps=2 * steps,
        cost_usd=steps * 0.01,
        seconds_per_step=60.0,
        budgets=[
            BudgetFigures(
                "total",
                spent_usd=steps * 0.01,
                soft_usd=steps * 0.015,
                hard_usd=steps * (0.015 if fault == "money" else 0.1),
                own=True,
            )
        ],
    )


def within_group(known: list[tuple[float, float]]) -> LengthReward:
    """Return the sums of a group of (words, reward)."""
    n = len(known)
    x, y = (sum(pair[i] for pair in known) for i in (0, 1))
    return LengthReward(
        n,
        1,
        sum(a * a for a, _ in known) - x * x / n,
        sum(b * b for _, b in known) - y * y / n,
        sum(a * b for a, b in known) - x * y / n,
    )
