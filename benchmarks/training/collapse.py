"""How soon the collapse guard sees a collapse, and how often it is wrong.

    python -m training.collapse [--seeds 12] [--steps 100]

Trains on the copy task (`training.tasks`) through the unchanged `MarkschemeTrainer`, at a learning
rate at which SDPO collapses. The rules' limits were chosen on seeds 0 to 2; the table counts the
others apart. A finished run is stored under `--workdir` and not run again.
"""

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from markscheme.jsonl import read_lines
from markscheme_train.collapse import CollapseWatch, Finding
from markscheme_train.collapse_guard import METRICS, figures_of
from markscheme_train.training import silence_libraries
from service.machine import describe, sentence
from service.report import markdown_table, today, write
from training.arms import FROZEN, ROLLOUTS, Arm
from training.methods import ensure_model, train
from training.runs import Run
from training.summary import WINDOW, best, last, spread
from training.tasks import TASKS

RATE = 1e-3
TASK = "copy"
WATCHED = (
    Arm(TASK, "grpo", "grpo"),
    Arm(TASK, "sdpo", "sdpo"),
    Arm(TASK, "srpo", "srpo"),
    Arm(TASK, "sdpo-frozen", "sdpo", settings=FROZEN),
    Arm(TASK, "srpo-frozen", "srpo", settings=FROZEN),
)
ACTING = (
    Arm(TASK, "sdpo, freeze_teacher", "sdpo", settings={"on_collapse": "freeze_teacher"}),
    Arm(TASK, "sdpo, grpo", "sdpo", settings={"on_collapse": "grpo"}),
)
CHOSEN_ON = range(3)
"""Seeds on which the limits were chosen."""
ONSET, COLLAPSED, HEALTHY = 0.9, 0.5, 0.8
"""Shares of a run's best mean: where its decline begins; below which it has collapsed at the end;
above which it is healthy at the end."""
IN_TIME = 20
"""Steps after the onset by which a collapse should be seen."""

Result = Mapping[str, Any]


def main() -> None:
    """Run what is missing, and write the report."""
    parser = argparse.ArgumentParser(prog="python -m training.collapse")
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--workdir", type=Path, default=Path("build/collapse"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    arguments.workdir.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    silence_libraries()
    console = Console()
    file = arguments.workdir / "runs.jsonl"
    done = [json.loads(line) for line in read_lines(file)] if file.is_file() else []
    known = {(run["arm"], run["seed"], len(run["curve"])) for run in done}
    ensure_model(arguments.workdir, TASK, TASKS[TASK].steps)
    for seed in range(arguments.seeds):
        for arm in (*WATCHED, *ACTING):
            if (arm.name, seed, arguments.steps) in known:
                continue
            done.append(carried_out(arm, seed, arguments.steps, arguments.workdir))
            with file.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(done[-1]) + "\n")
            console.print(f"{arm.name} seed {seed}: {last(done[-1]['curve']):.2f} at the end")
    runs = [r for r in done if len(r["curve"]) == arguments.steps and r["seed"] < arguments.seeds]
    report(runs, arguments.out, console)


def carried_out(arm: Arm, seed: int, steps: int, workdir: Path) -> dict[str, Any]:
    """Train; return success and what the rules look at, by step."""
    done = train(Run(arm, RATE, seed, steps, TASKS[arm.task].steps), workdir)
    return {
        "task": arm.task,
        "arm": arm.name,
        "learning_rate": RATE,
        "seed": seed,
        "seconds": round(done.seconds, 1),
        "curve": [round(share, 4) for share in done.successes],
        "metrics": [
            {name: rounded(record.metrics.get(name)) for name in METRICS.values()}
            for record in done.records
        ],
    }


def rounded(value: float | None) -> float | None:
    """Return a number with four digits."""
    return None if value is None else float(f"{value:.4g}")


def findings(run: Result) -> list[tuple[int, Finding]]:
    """Return what the rules find in a run, with the step at which they do."""
    watch = CollapseWatch()
    return [
        (step, finding)
        for step, metrics in enumerate(run["metrics"], 1)
        for finding in watch.observe(step, figures_of(metrics))
    ]


def onset(curve: Sequence[float]) -> int:
    """Return the first step from which the mean of ten steps stays under 90 % of its best."""
    means = [statistics.fmean(curve[end - WINDOW : end]) for end in range(WINDOW, len(curve) + 1)]
    good = [place for place, mean in enumerate(means) if mean >= ONSET * max(means)]
    return WINDOW + good[-1] + 1


def outcome(curve: Sequence[float]) -> str:
    """Return whether a run collapsed, declined or ended healthy."""
    share = last(curve) / best(curve)
    return "collapsed" if share < COLLAPSED else "healthy" if share >= HEALTHY else "declined"


def report(runs: Sequence[Result], out: Path, console: Console) -> None:
    """Write the tables as Markdown, and the runs as JSON."""
    seen = {(run["arm"], run["seed"]): findings(run) for run in runs}
    detections = []
    others = range(len(CHOSEN_ON), 1 + max(run["seed"] for run in runs))
    for seeds in (CHOSEN_ON, others):
        for arm in WATCHED:
            of_arm = [r for r in runs if r["arm"] == arm.name and r["seed"] in seeds]
            for kind in ("collapsed", "declined", "healthy"):
                some = [run for run in of_arm if outcome(run["curve"]) == kind]
                found = [seen[run["arm"], run["seed"]] for run in some]
                delays = [
                    each[0][0] - onset(run["curve"])
                    for run, each in zip(some, found, strict=True)
                    if each
                ]
                if some:
                    detections.append(
                        (
                            f"{seeds[0]} to {seeds[-1]}",
                            arm.name,
                            kind,
                            str(len(some)),
                            f"{sum(map(bool, found))}",
                            str(sum(delay <= IN_TIME for delay in delays)),
                            ", ".join(map(str, sorted(delays))) if delays else "–",
                            ", ".join(sorted({str(f.rule) for each in found for _, f in each[:1]}))
                            or "–",
                        )
                    )
    actions = [
        (
            arm.name,
            spread([best(r["curve"]) for r in of_arm]),
            spread([last(r["curve"]) for r in of_arm]),
        )
        for arm in (WATCHED[1], *ACTING)
        if (of_arm := [r for r in runs if r["arm"] == arm.name])
    ]
    machine = describe(("markscheme", "torch", "transformers", "trl"))
    lines = [
        f"# The collapse guard on the copy task, {today()}",
        "",
        f"Machine: {sentence(machine)}.",
        f"Command: `make bench-collapse`. {len(runs)} runs of {len(runs[0]['curve'])} steps, 8 "
        f"prompts of {ROLLOUTS} rollouts each, learning rate {RATE:g}.",
        f"A run has collapsed if its last {WINDOW} steps have less than {COLLAPSED:.0%} of its "
        f"best {WINDOW}, and is healthy with {HEALTHY:.0%} or more. A decline begins (onset) at "
        f"the first step from which the mean of {WINDOW} steps stays under {ONSET:.0%} of the "
        "best. The limits of the rules were chosen on seeds 0 to 2.",
        "",
        *markdown_table(
            (
                "seeds",
                "arm",
                "outcome",
                "runs",
                "with a finding",
                f"by {IN_TIME} steps after the onset",
                "steps from onset to finding",
                "first rule",
            ),
            detections,
        ),
        "",
        "What acting on the first finding does to success (mean ± standard error over seeds):",
        "",
        *markdown_table(("arm", "best ten steps", "last ten steps"), actions),
    ]
    stored = [
        {
            **run,
            "metrics": by_block(run["metrics"]),
            "outcome": outcome(run["curve"]),
            "onset": onset(run["curve"]),
            "findings": [
                {"step": step, "rule": finding.rule, "message": finding.message}
                for step, finding in seen[run["arm"], run["seed"]]
            ],
        }
        for run in runs
    ]
    text = "\n".join(lines) + "\n"
    paths = write(out / f"collapse-{today()}", text, {"machine": machine, "runs": stored})
    console.print(text, markup=False)
    console.print(f"written: {', '.join(map(str, paths))}", markup=False)


def by_block(metrics: Sequence[Mapping[str, float | None]]) -> dict[str, list[float | None]]:
    """Return each metric's means over ten steps; `None` where it was not measured."""
    blocks = [metrics[start : start + WINDOW] for start in range(0, len(metrics), WINDOW)]
    return {
        name: [
            rounded(statistics.fmean(known))
            if (known := [value for step in block if (value := step[name]) is not None])
            else None
            for block in blocks
        ]
        for name in metrics[0]
    }


if __name__ == "__main__":
    main()
