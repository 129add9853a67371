"""Mutation tests of the losses and of what feeds them, with mutmut and each module's fast tests.

Prints how many mutants each module's tests kill, and every one that lives. Run by `make mutants`
with an interpreter that has mutmut; module names as arguments limit it to these.
"""

import json
import os
import shutil
import subprocess
import sys
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


def main(modules: list[str]) -> None:
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
    }
    lines = ["[mutmut]"]
    for key, values in options.items():
        lines += [f"{key}={values[0]}"] if len(values) == 1 else [f"{key}="]
        lines += [f"    {value}" for value in values] if len(values) > 1 else []
    (stage / "setup.cfg").write_text("\n".join(lines) + "\n")


def mutmut(stage: Path, *arguments: str) -> str:
    """Run mutmut in a stage and return what it prints."""
    paths = [str(ROOT / name) for name in ("services", "client", "tests")]
    return subprocess.run(
        [sys.executable, "-m", "mutmut", *arguments],
        cwd=stage,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        check=arguments[0] != "run",  # `run` fails where a mutant lives
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
    main(sys.argv[1:] or list(TESTS))
