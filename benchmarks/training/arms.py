"""What is compared: every arm's task, reward and settings.

All arms of a task start from the same weights, see the same prompts in the same order by seed, and
sample as many rollouts. They are run at every learning rate of their task, because the methods'
best ones differ (the papers' own are 1e-6, 1e-5 and 5e-6).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from training.graders import Scale

ROLLOUTS = 8
RATES = (1e-4, 3e-4, 1e-3)

Settings = Mapping[str, Any]
FROZEN: Settings = {"self_teacher": "frozen"}
TRUST_REGION: Settings = {"self_teacher": "trust_region"}


@dataclass(frozen=True)
class Arm:
    """One way to learn a task.

    Attributes:
        task: A name in `training.tasks.TASKS`.
        name: Its name in results.
        preset: The trainer's preset.
        scale: What its rewards are.
        settings: Keys of the trainer that differ from the preset.
        rates: Learning rates.
        steps: Optimiser steps.
        prompts: Prompts of a step, of 8 rollouts each.
    """

    task: str
    name: str
    preset: str
    scale: Scale = "verdict"
    settings: Settings = field(default_factory=dict)
    rates: Sequence[float] = RATES
    steps: int = 100
    prompts: int = 8


def _late(name: str, preset: str, prompts: int = 8, task: str = "copy", **settings: Any) -> Arm:
    """Return an arm of the open question, whether SRPO ends above GRPO: it runs for longer."""
    return Arm(task, name, preset, settings=settings, rates=(3e-4,), steps=200, prompts=prompts)


COPY = (
    Arm("copy", "grpo", "grpo"),
    Arm("copy", "sdpo", "sdpo"),
    Arm("copy", "srpo", "srpo"),
    Arm("copy", "srpo-unweighted", "srpo", settings={"entropy_beta": 0.0}),
    Arm("copy", "sdpo-frozen", "sdpo", settings=FROZEN),
    Arm("copy", "srpo-frozen", "srpo", settings=FROZEN),
    Arm("copy", "sdpo-trust-region", "sdpo", settings=TRUST_REGION),
    Arm("copy", "srpo-trust-region", "srpo", settings=TRUST_REGION),
)
WEAK = tuple(Arm("copy-weak", method, method, rates=(3e-4,)) for method in ("grpo", "sdpo", "srpo"))
SPARSE = tuple(
    Arm("copy-sparse", method, method, rates=(3e-4, 1e-3)) for method in ("grpo", "sdpo", "srpo")
)
RUBRIC = (
    Arm("copy-rubric", "grpo", "grpo"),
    Arm("copy-rubric", "srpo", "srpo"),
    Arm("copy-rubric", "ropd", "ropd", "rubric"),
    Arm("copy-rubric", "srpo-rubric", "srpo-rubric", "rubric"),
    Arm(
        "copy-rubric",
        "srpo-rubric-no-feedback",
        "srpo-rubric",
        "rubric",
        {"rubric_feedback": False},
    ),
)
RUBRIC_SPARSE = tuple(
    Arm("copy-rubric-sparse", preset, preset, scale, rates=(3e-4,))
    for preset, scale in (
        ("grpo", "verdict"),
        ("srpo", "verdict"),
        ("ropd", "rubric"),
        ("srpo-rubric", "rubric"),
    )
)
RATING = tuple(
    Arm("copy-rubric", f"{name}-{scale}", preset, scale, rates=(3e-4,))
    for name, preset in (("grpo", "grpo"), ("srpo", "srpo-rubric"))
    for scale in ("noisy-rubric", "rating", "calibrated-rating")
)
LATE = (
    _late("late-grpo", "grpo"),
    _late("late-srpo", "srpo"),
    _late("late-srpo-trust-region", "srpo", **TRUST_REGION),
    _late("late-srpo-slow-teacher", "srpo", teacher_update_rate=0.01),
    _late("late-srpo-schedule", "srpo", teacher_rate_schedule="cosine"),
    _late("late-srpo-guarded", "srpo", on_collapse="grpo"),
    _late("late-grpo-32-prompts", "grpo", 32),
    _late("late-srpo-32-prompts", "srpo", 32),
    _late("late-srpo-trust-region-32-prompts", "srpo", 32, **TRUST_REGION),
)
LAGGED = tuple(
    Arm("copy", f"{method}-lagged", method, settings={"reward_lag": 1}, rates=(3e-4,))
    for method in ("grpo", "srpo")
)
EXACT = tuple(
    _late(name, name.removesuffix("-frozen"), task="copy-exact", **settings)
    for name, settings in (
        ("grpo", {}),
        ("sdpo", {}),
        ("srpo", {}),
        ("sdpo-frozen", FROZEN),
        ("srpo-frozen", FROZEN),
    )
)
FAMILIES = tuple(
    Arm("families", name, preset, settings=settings, rates=(1e-4, 3e-4))
    for name, preset, settings in (
        ("grpo", "grpo", {}),
        ("sdpo", "sdpo", {}),
        ("srpo", "srpo", {}),
        ("srpo-frozen", "srpo", FROZEN),
    )
)
Groups = Mapping[str, Sequence[Arm]]
SMALL: Groups = {
    "The copy task": COPY,
    "Rubric scores": RUBRIC,
    "Rubric scores where hardly any answer is right": RUBRIC_SPARSE,
    "A self-teacher that a demonstration does not help": WEAK,
    "Few successes": SPARSE,
    "A rubric or one number, by a judge that errs": RATING,
    "Longer runs": LATE,
    "Learning from the batch before": LAGGED,
    "A self-teacher that stays better": EXACT,
}
LARGE: Groups = {"Six families of functions": FAMILIES}
"""The arms of the two commands, under the headings of their reports."""

COMPARISONS = (
    *(
        (task, arm, against)
        for task in ("copy", "copy-exact", "copy-sparse", "copy-weak", "families")
        for arm, against in (("srpo", "grpo"), ("srpo", "sdpo"), ("sdpo", "grpo"))
    ),
    ("copy", "srpo", "srpo-unweighted"),
    ("copy", "srpo-frozen", "srpo"),
    ("copy", "srpo-frozen", "grpo"),
    ("copy", "srpo-trust-region", "srpo"),
    ("copy", "srpo-trust-region", "grpo"),
    ("copy", "sdpo-frozen", "sdpo"),
    ("copy", "sdpo-trust-region", "sdpo"),
    ("copy-exact", "srpo-frozen", "grpo"),
    ("copy-exact", "sdpo-frozen", "grpo"),
    ("copy-exact", "srpo-frozen", "sdpo-frozen"),
    ("families", "srpo-frozen", "grpo"),
    ("copy-rubric", "ropd", "grpo"),
    ("copy-rubric", "srpo", "grpo"),
    ("copy-rubric", "srpo-rubric", "ropd"),
    ("copy-rubric", "srpo-rubric", "srpo"),
    ("copy-rubric", "srpo-rubric", "srpo-rubric-no-feedback"),
    ("copy-rubric-sparse", "ropd", "grpo"),
    ("copy-rubric-sparse", "srpo-rubric", "srpo"),
    ("copy-rubric-sparse", "srpo-rubric", "ropd"),
    *(
        ("copy-rubric", f"{method}-noisy-rubric", f"{method}-{scale}")
        for method in ("grpo", "srpo")
        for scale in ("rating", "calibrated-rating")
    ),
    *(("copy", f"{method}-lagged", method) for method in ("grpo", "srpo")),
    *(("copy", arm.name, "late-grpo") for arm in LATE[1:6]),
    ("copy", "late-srpo-32-prompts", "late-grpo-32-prompts"),
    ("copy", "late-srpo-trust-region-32-prompts", "late-grpo-32-prompts"),
)
"""Task, arm, and the arm that it is compared with."""
