"""``benchmarks/gpu/run.sh``: bounds and report on parts made for this, and a small run of all."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu" / "run.sh"
MODULES = {
    "fine": "part.expect(Goal('ratio', at_most=1))\n    part.measured('ratio', 0.5)",
    "broken": "part.expect(Goal('share', at_most=1))\n    raise RuntimeError('no kernel image')",
    "endless": "part.expect(Goal('a', at_most=1), Goal('b', at_most=1))\n"
    "    part.measured('a', 0.25)\n"
    "    import time\n    time.sleep(60)",
}
HEAD = "from gpu.part import Goal, run_part\n\n\ndef run(part, directory, small):\n    "


def run(
    out: Path, *words: str, **environment: str
) -> tuple[subprocess.CompletedProcess[str], float]:
    started = time.monotonic()
    done = subprocess.run(
        ["bash", str(SCRIPT), *words],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        env=os.environ | {"PYTHON": sys.executable, "OUT": str(out), **environment},
    )
    return done, time.monotonic() - started


def report(out: Path) -> dict[str, Any]:
    (file,) = out.glob("gpu-small-*.json")
    found: dict[str, Any] = json.loads(file.read_text())
    return found


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    folder = tmp_path / "modules"
    folder.mkdir()
    for name, body in MODULES.items():
        (folder / f"part_{name}.py").write_text(f"{HEAD}{body}\n\n\nrun_part('part_{name}', run)\n")
    return folder


def test_a_part_that_fails_or_hangs_takes_nothing_from_the_others(
    parts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done, took = run(
        out, "--small", PYTHONPATH=str(parts), PARTS="part_broken:20 part_endless:2 part_fine:20"
    )
    assert done.returncode == 1, done.stderr
    broken, endless, fine = report(out)["parts"]
    assert (broken["status"], endless["status"], fine["status"]) == (
        "failed (status 1)",
        "stopped at its limit",
        "done",
    )
    assert broken["log_end"][-1] == "RuntimeError: no kernel image"
    assert [goal["value"] for goal in endless["goals"]] == [0.25, None]
    assert [goal["met"] for goal in fine["goals"]] == [True]
    assert (
        "| broken | share | not known | ≤ 1 | not known |".replace("broken", "part_broken")
        in done.stdout
    )
    assert took < 30
    assert "no kernel image" in next(out.glob("gpu-small-*.log")).read_text()


def test_parts_for_which_no_time_is_left_are_not_run(parts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done, _ = run(out, "--small", PYTHONPATH=str(parts), PARTS="part_fine:20", TOTAL_S="1")
    assert done.returncode == 1
    assert [part["status"] for part in report(out)["parts"]] == ["not run"]


def test_without_packages_and_wheels_it_says_what_to_do(tmp_path: Path) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    done, _ = run(
        tmp_path / "out",
        "--small",
        PYTHON=str(bare),
        WHEELS=str(tmp_path / "none"),
        PARTS="gpu.environment:20",
    )
    assert done.returncode == 1
    assert "run 'make gpu-wheels' where there is a package index" in done.stdout
    assert "gpu.environment: status 1" in done.stdout


def test_it_takes_no_other_words(tmp_path: Path) -> None:
    done, _ = run(tmp_path, "--large")
    assert done.returncode == 2
    assert "usage" in done.stderr


@pytest.mark.slow
@pytest.mark.model
def test_all_of_it_at_small_sizes(tmp_path: Path) -> None:
    done, took = run(tmp_path, "--small")
    assert done.returncode == 0, done.stdout + done.stderr
    parts = {part["name"]: part for part in report(tmp_path)["parts"]}
    assert list(parts) == ["environment", "gradients", "steps", "shards", "service_run"]
    gradients = parts["gradients"]["goals"]
    assert len(gradients) == 6
    assert all(goal["met"] for goal in gradients), gradients
    steps = {
        (row["arm"], row["response_tokens"]): row for row in parts["steps"]["tables"]["A step"]
    }
    assert {arm for arm, _ in steps} == {"grpo", "sdpo", "srpo", "TRL GRPO", "TRL SDPO"}
    assert not [row["problem"] for row in steps.values() if row["problem"]]
    assert all(goal["met"] for goal in parts["shards"]["goals"]), parts["shards"]
    unscored, gain = parts["service_run"]["goals"]
    assert unscored["met"]
    assert gain["value"] is not None
    assert took <= 240
