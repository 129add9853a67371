"""Our trainer's step beside TRL's: the same model, rollouts and settings, in turns.

    python -m training.speed [--length 512] [--pairs 5]

Every arm is a process (`training.worker`) that does one step on command. In each round the compared
arms do one step each, in changing order, so that a slow minute of the machine hits all. The first
round warms up and is not counted. SmolLM2-135M, one prompt, five recorded rollouts of which two
failed: `srpo` sends 40 % to its self-teacher, SDPO all. A step is everything after the rollouts:
self-teacher, loss, backward pass, optimiser. `grpo` and `sdpo` have the same objective as TRL's
trainers here (rollouts of one length), so losses and gradient norms must agree.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from rich.console import Console

from markscheme_train.demo.model import ensure_model
from service.machine import describe, sentence
from service.processes import BENCHMARKS, clean_environment
from service.report import markdown_table, today, write

PAIRS = (
    ("grpo", "TRL GRPO", 1.05, None),
    ("sdpo", "TRL SDPO", None, None),
    ("srpo", "TRL SDPO", 0.9, 0.9),
)
"""Our arm, theirs, and the goals: maximum share of their seconds and of their memory."""
TOGETHER = (("grpo", "TRL GRPO"), ("sdpo", "srpo", "TRL SDPO"))
"""Arms that are compared take turns; all five at once would not fit into 24 GiB."""
AGREE = 1e-5
WORKDIR = Path("build/bench-train")
"""Finished rounds and the trainers' logs; remove it to measure anew."""


@dataclass(frozen=True)
class Step:
    """What one step took. `peak_gib` is above what is allocated between steps."""

    seconds: float
    peak_gib: float
    loss: float
    grad_norm: float


class Worker:
    """A trainer that waits for commands."""

    def __init__(self, arm: str, model: Path, length: int, steps: int, log: IO[bytes]) -> None:
        self.arm = arm
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "training.worker",
                arm,
                "--model",
                str(model.absolute()),
                "--length",
                str(length),
                "--steps",
                str(steps),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=clean_environment({"PYTHONPATH": str(BENCHMARKS), "HF_HUB_OFFLINE": "1"}),
        )
        self._answer()

    def step(self) -> Step:
        """Do one step."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return Step(**self._answer())

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the trainer of {self.arm} has ended; see its log")
        return json.loads(line)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m training.speed")
    parser.add_argument("--length", type=int, default=512, help="tokens of each rollout")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--model", type=Path, default=Path("build/smollm2"))
    arguments = parser.parse_args()
    console = Console(width=160)
    machine = describe(("markscheme", "torch", "transformers", "trl"))
    steps = measure(ensure_model(arguments.model), arguments.length, arguments.pairs, console)
    table, agreement = compared(steps), agreed(steps)
    lines = [
        f"# A step of the trainer beside TRL's, {today()}",
        "",
        f"Machine: {sentence(machine)}.",
        "Command: `make bench-train`. SmolLM2-135M in fp32, one prompt, five recorded rollouts of "
        f"{arguments.length} tokens, two of them failed; {arguments.pairs} rounds of all arms in "
        "turns after one to warm up. A step is everything after the rollouts. Memory is the "
        "process's peak above what lies there between steps (weights, optimiser, self-teacher). "
        "Ratios are of the two steps of one round: median, and lowest to highest.",
        "On a CPU TRL's GRPO projects the prompt's positions onto the vocabulary as well; ours "
        "the rollouts' alone, and reads the prompt that they share once. No GPU was at hand: what "
        "holds there was not measured.",
        "",
        *table,
        "",
        "The same objective, the same numbers (largest difference over the rounds):",
        "",
        *agreement,
    ]
    console.print("\n".join(lines))
    data = {
        "date": today(),
        "machine": machine,
        "length": arguments.length,
        "steps": {arm: [asdict(step) for step in taken] for arm, taken in steps.items()},
    }
    for path in write(Path(f"benchmarks/results/train-{today()}"), "\n".join(lines) + "\n", data):
        console.print(f"written: {path}")


def measure(model: Path, length: int, pairs: int, console: Console) -> dict[str, list[Step]]:
    """Return each arm's steps, round by round, without the first."""
    taken: dict[str, list[Step]] = {}
    for arms in TOGETHER:
        kept = WORKDIR / f"{length}-tokens-{pairs}-pairs-{'-'.join(arms).replace(' ', '-')}.json"
        if not kept.is_file():
            found = in_turns(arms, model, length, pairs, console)
            kept.write_text(
                json.dumps({arm: [asdict(step) for step in steps] for arm, steps in found.items()})
            )
        taken |= {
            arm: [Step(**step) for step in steps]
            for arm, steps in json.loads(kept.read_text()).items()
        }
    return taken


def in_turns(
    arms: Sequence[str], model: Path, length: int, pairs: int, console: Console
) -> dict[str, list[Step]]:
    """Return the steps of compared arms; finished ones are stored, so that a run can resume."""
    taken: dict[str, list[Step]] = {arm: [] for arm in arms}
    workers: list[Worker] = []
    WORKDIR.mkdir(parents=True, exist_ok=True)
    try:
        for arm in arms:
            with (WORKDIR / f"{arm.replace(' ', '-')}.log").open("wb") as log:
                workers.append(Worker(arm, model, length, pairs + 1, log))
        for number in range(pairs + 1):
            for worker in [*workers[number % len(workers) :], *workers[: number % len(workers)]]:
                step = worker.step()
                if number:
                    taken[worker.arm].append(step)
                console.print(
                    f"round {number} of {pairs}  {worker.arm:8}  {step.seconds:6.1f} s  "
                    f"{step.peak_gib:.2f} GiB",
                    highlight=False,
                )
    finally:
        for worker in workers:
            worker.close()
    return taken


def compared(steps: Mapping[str, Sequence[Step]]) -> list[str]:
    """Return the table of ratios, with each goal and whether it was met."""
    rows = []
    for ours, theirs, faster, leaner in PAIRS:
        for name, goal in (("seconds", faster), ("peak_gib", leaner)):
            own, other = ([getattr(step, name) for step in steps[arm]] for arm in (ours, theirs))
            ratios = [one / two for one, two in zip(own, other, strict=True)]
            middle = statistics.median(ratios)
            met = "" if goal is None else "met" if middle <= goal else "missed"
            unit = "s" if name == "seconds" else "GiB"
            rows.append(
                (
                    f"{ours} / {theirs}",
                    "seconds" if name == "seconds" else "memory",
                    f"{statistics.median(own):.2f} {unit}",
                    f"{statistics.median(other):.2f} {unit}",
                    f"**{middle:.2f}** ({min(ratios):.2f} to {max(ratios):.2f})",
                    "" if goal is None else f"≤ {goal}",
                    met,
                )
            )
    return markdown_table(("", "", "ours", "TRL's", "ratio", "goal", ""), rows)


def agreed(steps: Mapping[str, Sequence[Step]]) -> list[str]:
    """Return how far losses and gradient norms differ where the objective is the same.

    GRPO's loss is 0 here whoever computes it (rollouts of one length, on policy): compare its
    gradient norm.
    """
    rows = []
    for ours, theirs in (("grpo", "TRL GRPO"), ("sdpo", "TRL SDPO")):
        pairs = list(zip(steps[ours], steps[theirs], strict=True))
        loss = max(abs(one.loss - two.loss) for one, two in pairs)
        norm = max(abs(one.grad_norm - two.grad_norm) / two.grad_norm for one, two in pairs)
        met = max(loss, norm) <= AGREE
        rows.append(
            (f"{ours} / {theirs}", f"{loss:.1e}", f"{norm:.1e}", "met" if met else "missed")
        )
    return markdown_table(("", "loss", "gradient norm, relative", f"both within {AGREE:g}"), rows)


if __name__ == "__main__":
    main()
