"""The report of a GPU run says what is not known, and never makes a number of it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gpu.part import Goal, Part
from gpu.report import as_json, markdown, read_outcomes, shown

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    """Record one part that passed, one that failed, one that was killed and one that never ran."""
    (tmp_path / "parts.tsv").write_text(
        "gpu.done\t30\t0\t1.5\ngpu.broken\t60\t1\t2.0\ngpu.killed\t9\t124\t9.0\ngpu.never\t90\t\t\n"
    )
    done = Part(tmp_path / "gpu.done.json", machine={"card": None})
    done.expect(Goal("ratio", at_most=1.05), Goal("slow", at_most=0.9), Goal("noticed"))
    done.measured("ratio", 0.0)
    done.measured("slow", 1.25)
    done.measured("noticed", 7.0)
    done.row("Steps", arm="grpo", tokens_a_second=1200)
    done.row("Steps", arm="srpo", tokens_a_second=None, problem="out of memory")
    broken = Part(tmp_path / "gpu.broken.json")
    broken.expect(Goal("unscored", at_most=0))
    log = "".join(f"line {number}\n" for number in range(40)) + "RuntimeError: no kernel image\n"
    (tmp_path / "gpu.broken.log").write_text(log)
    (tmp_path / "gpu.killed.log").write_text("")
    return tmp_path


@pytest.fixture
def text(workdir: Path) -> str:
    return markdown(read_outcomes(workdir), small=False, total_s=12.0)


@pytest.mark.parametrize(
    "line",
    [
        "| done | done | 1.500 | 30 |",
        "| broken | failed (status 1) | 2.000 | 60 |",
        "| killed | stopped at its limit | 9.000 | 9 |",
        "| never | not run | not known | 90 |",
    ],
)
def test_each_planned_part_has_its_end(text: str, line: str) -> None:
    assert line in text


@pytest.mark.parametrize(
    "line",
    [
        "| done | ratio | 0.000 | ≤ 1.05 | met |  |",
        "| done | slow | 1.250 | ≤ 0.9 | **missed** |  |",
        "| done | noticed | 7.000 |  |  |  |",
        "| broken | unscored | not known | ≤ 0 | not known |  |",
    ],
)
def test_a_goal_is_met_missed_or_not_known(text: str, line: str) -> None:
    assert line in text


def test_what_was_found_before_a_failure_is_kept_and_the_rest_is_not_known(text: str) -> None:
    assert "| grpo | 1200 | not known |" in text
    assert "| srpo | not known | out of memory |" in text


def test_a_failure_shows_the_last_lines_it_wrote(text: str) -> None:
    assert "RuntimeError: no kernel image" in text
    assert "line 39" in text
    assert "line 20" not in text
    assert "(it has written nothing)" in text
    assert "It has left no findings." in text
    assert "It was not run." in text


def test_an_unknown_machine_and_card_are_called_so(workdir: Path) -> None:
    (workdir / "gpu.done.json").unlink()
    text = markdown(read_outcomes(workdir), small=False, total_s=None)
    assert "Card: not known." in text
    assert "Machine: not known." in text
    assert "not known s in all" in text


def test_the_json_has_null_for_what_is_not_known(workdir: Path) -> None:
    data: dict[str, Any] = json.loads(
        json.dumps(as_json(read_outcomes(workdir), small=True, total_s=1.0))
    )
    done, broken, killed, never = data["parts"]
    assert [goal["met"] for goal in done["goals"]] == [True, False, None]
    assert broken["goals"][0] | {"name": ""} == {
        "name": "",
        "value": None,
        "at_most": 0,
        "at_least": None,
        "note": "",
        "met": None,
    }
    assert (killed["goals"], killed["tables"], never["exit"], never["seconds"]) == (
        None,
        None,
        None,
        None,
    )
    assert broken["log_end"][-1] == "RuntimeError: no kernel image"


@pytest.mark.parametrize(
    ("goal", "met"),
    [
        (Goal("g", 1.0, at_most=1.0), True),
        (Goal("g", 1.01, at_most=1.0), False),
        (Goal("g", 0.2, at_least=0.1), True),
        (Goal("g", 0.0, at_least=0.1), False),
        (Goal("g", float("nan"), at_most=1.0), False),
        (Goal("g", None, at_most=1.0), None),
        (Goal("g", 3.0), None),
    ],
)
def test_a_goal_that_is_not_known_is_neither_met_nor_missed(goal: Goal, met: bool | None) -> None:
    assert goal.met is met


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "not known"),
        (0.0, "0.000"),
        (2.5e-6, "2.5e-06"),
        (12.34567, "12.346"),
        (1234.5, "1234"),
        ("a", "a"),
    ],
)
def test_numbers_are_shown_with_what_can_be_relied_on(value: float | str | None, said: str) -> None:
    assert shown(value) == said


def test_a_killed_part_leaves_what_it_had_measured(tmp_path: Path) -> None:
    script = (
        "import os, signal\n"
        "from gpu.part import Goal, run_part\n"
        "def run(part, directory, small):\n"
        "    part.expect(Goal('first'), Goal('second'))\n"
        "    part.measured('first', 1.0)\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        signal.pause()\n"
        "    finally:\n"
        "        part.note('ended its service')\n"
        "run_part('gpu.test', run)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "--out", str(tmp_path / "part.json")],
        env={"PYTHONPATH": str(BENCHMARKS)},
        timeout=30,
        check=False,
    )
    found = json.loads((tmp_path / "part.json").read_text())
    assert done.returncode == 143
    assert [goal["value"] for goal in found["goals"]] == [1.0, None]
    assert found["notes"] == ["ended its service"]
