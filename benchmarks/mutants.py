"""Mutation tests of the losses and of what feeds them, with mutmut and each module's fast tests.

Prints how many mutants each module's tests kill, and every one that lives; then which tests fail
for each of the larger faults in `PLANTED`. Run by `make mutants` with an interpreter that has
mutmut; module names as arguments limit it to these, `planted` is the second part.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
WORK = ROOT / "build" / "mutants"
PACKAGE = "markscheme_train"
TESTS = {
    "losses": ["test_losses.py"],
    "routing": ["test_routing.py"],
    "distillation": ["test_distillation.py"],
    "reprompt": ["test_reprompt.py"],
    "self_teacher": ["test_self_teacher.py"],
    "self_distillation": ["test_joint_loss.py", "test_self_distillation.py"],
}
"""The fast tests of each module, below `tests/train`."""
SLOW = "not resumed and not adapter_is and not follows_once and not coefficient"
"""Leaves out the tests that train."""
KILLED = {1, 2, 3, 24, -24, 36, 152}
"""Exit statuses of a test that failed, of an error, and of mutmut's time limit."""


@dataclass(frozen=True)
class Fault:
    """A fault that no single mutant has: `old` in a module becomes `new`, and a test file runs."""

    what: str
    module: str
    old: str
    new: str
    tests: str


PLANTED = (
    Fault(
        "no importance cap",
        "self_distillation",
        "importance_cap=config.importance_cap",
        "importance_cap=math.inf",
        "test_joint_loss.py",
    ),
    Fault(
        "no correction of the sampler's mismatch",
        "self_distillation",
        'sampler_weights=batch.get("importance_sampling_ratio")',
        "sampler_weights=None",
        "test_joint_loss.py",
    ),
    Fault(
        "no temperature in the divergence",
        "self_distillation",
        "top_k,\n                temperature=self.config.temperature",
        "top_k,\n                temperature=1.0",
        "test_joint_loss.py",
    ),
    Fault(
        "the feedback of a group's first row for all",
        "self_distillation",
        "                        feedback[index],",
        "                        feedback[0],",
        "test_joint_loss.py",
    ),
    Fault(
        "the self-teacher follows at every optimiser step",
        "self_teacher_lifecycle",
        "trainer._step % (args.steps_per_generation * args.num_iterations) == 0",
        "trainer._step % args.gradient_accumulation_steps == 0",
        "test_self_distillation.py",
    ),
)
"""Faults that once passed all tests, found by a review."""


def main(parts: list[str]) -> None:
    """Test the mutants of each module, and the planted faults; print the results as Markdown."""
    if modules := [part for part in parts if part != "planted"]:
        run_mutmut(modules)
    if "planted" in parts:
        run_planted()


def run_planted() -> None:
    """Print which tests fail for each planted fault."""
    print("| planted fault | tests that fail |\n|---|---|")
    for fault in PLANTED:
        stage = WORK / "planted"
        shutil.rmtree(stage, ignore_errors=True)
        shutil.copytree(ROOT / "client" / PACKAGE, stage / PACKAGE)
        file = stage / PACKAGE / f"{fault.module}.py"
        text = file.read_text("utf-8")
        if text.count(fault.old) != 1:
            raise SystemExit(f"{fault.module}.py has not one `{fault.old}`: mend PLANTED")
        file.write_text(text.replace(fault.old, fault.new), "utf-8")
        failed = [
            line.split("::")[1].split("[")[0]
            for line in python(
                ["pytest", "-q", "-p", "no:cacheprovider", str(ROOT / "tests/train" / fault.tests)],
                cwd=ROOT,
                first=stage,
                check=False,
            ).splitlines()
            if line.startswith("FAILED")
        ]
        names = [f"`{name}` ({failed.count(name)})" for name in dict.fromkeys(failed)]
        print(f"| {fault.what} | {', '.join(names) or '**none**'} |")


def run_mutmut(modules: list[str]) -> None:
    """Test the mutants of each module and print the results as Markdown."""
    counts: dict[str, tuple[int, int]] = {}
    alive: list[str] = []
    for module in modules:
        stage = WORK / module
        prepare(stage, module)
        mutmut(stage, "run", "--max-children", "1")
        statuses = json.loads(
            (stage / "mutants" / PACKAGE / f"{module}.py.meta").read_text("utf-8")
        )["exit_code_by_key"]
        living = [name for name, status in statuses.items() if status not in KILLED]
        counts[module] = (len(statuses), len(statuses) - len(living))
        alive += [f"{name}\n{difference(mutmut(stage, 'show', name))}" for name in living]
    print("| module | mutants | killed | share |\n|---|---|---|---|")
    for module, (count, killed) in counts.items():
        print(f"| `{module}` | {count} | {killed} | {killed / count:.1%} |")
    total, killed = (sum(pair[place] for pair in counts.values()) for place in (0, 1))
    print(f"| together | {total} | {killed} | {killed / total:.1%} |")
    print("\nAlive:\n\n```diff\n" + "\n\n".join(alive) + "\n```")


def prepare(stage: Path, module: str) -> None:
    """Copy package and tests, and say which module is mutated and what tests it."""
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir(parents=True)
    shutil.copytree(ROOT / "client" / PACKAGE, stage / PACKAGE)
    shutil.copytree(ROOT / "tests", stage / "tests")
    options: dict[str, list[str]] = {
        "source_paths": [PACKAGE],
        "only_mutate": [f"{PACKAGE}/{module}.py"],
        "also_copy": ["tests"],
        "pytest_add_cli_args": ["-p", "no:cacheprovider", "-k", SLOW],
        "pytest_add_cli_args_test_selection": [f"tests/train/{name}" for name in TESTS[module]],
        "process_isolation": ["forkserver"],  # torch's threads do not survive a plain fork
        "use_git_change_detection": ["false"],
        # Seconds more than the tests took, times 15: a busy machine must not look like a mutant
        # that loops.
        "timeout_constant": ["10"],
    }
    lines = ["[mutmut]"]
    for key, values in options.items():
        lines += [f"{key}={values[0]}"] if len(values) == 1 else [f"{key}="]
        lines += [f"    {value}" for value in values] if len(values) > 1 else []
    (stage / "setup.cfg").write_text("\n".join(lines) + "\n")


def mutmut(stage: Path, *arguments: str) -> str:
    """Run mutmut in a stage and return what it prints."""
    # `run` fails where a mutant lives.
    return python(["mutmut", *arguments], cwd=stage, check=arguments[0] != "run")


def python(module: list[str], *, cwd: Path, check: bool, first: Path | None = None) -> str:
    """Run a module with its arguments on our code and return what it prints.

    `first` is a folder whose packages come before ours.
    """
    paths = [
        *([first] if first else []),
        *(ROOT / name for name in ("services", "client", "tests")),
    ]
    return subprocess.run(
        [sys.executable, "-m", *module],
        cwd=cwd,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "OMP_NUM_THREADS": "1",
        },
        check=check,
        capture_output=True,
        text=True,
    ).stdout


def difference(shown: str) -> str:
    """Return the changed lines of a diff."""
    return "\n".join(
        line
        for line in shown.splitlines()
        if line.startswith(("-", "+")) and not line.startswith(("---", "+++"))
    )


if __name__ == "__main__":
    main(sys.argv[1:] or [*TESTS, "planted"])
