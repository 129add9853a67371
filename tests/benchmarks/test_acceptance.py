"""Test that the table of the 58 checks reports what was run, its outcome, and nothing else."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from acceptance import run as acceptance
from acceptance.checks import CHECKS, Check
from acceptance.commands import Command, Outcome, read, run

PASSES = "def test_one(record_property):\n    record_property('figure', '7 apples')\n"
FAILS = "def test_two():\n    assert False\n"
SKIPS = "import pytest\n\n\ndef test_three():\n    pytest.skip('no apples here')\n"


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a project folder with room for the two files."""
    for name in ("docs", "benchmarks/results"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def of(workdir: Path, text: str, limit_s: float = 60) -> Outcome:
    (workdir / "test_it.py").write_text(text)
    return run(Command(("test_it.py",), limit_s))


def test_the_checks_are_58_and_each_has_a_command_or_a_reason() -> None:
    assert list(CHECKS) == list(range(1, 59))
    for check in CHECKS.values():
        assert bool(check.commands) != bool(check.not_applicable), check.number


def test_what_the_commands_name_is_there() -> None:
    root = Path(__file__).parents[2]
    for check in CHECKS.values():
        for command in check.commands:
            for word in (w for w in command.arguments if w.startswith("tests/")):
                path, _, name = word.partition("::")
                assert (root / path).exists(), word
                assert (
                    name.rpartition("::")[2] in (root / path).read_text("utf-8") if name else True
                ), word


@pytest.mark.parametrize(
    ("text", "status", "said"),
    [
        (PASSES, "shown", "7 apples"),
        (PASSES + FAILS, "failed", "failed: test_two"),
        (PASSES + SKIPS, "part", "no apples here"),
        ("", "failed", "no test ran"),
        ("import nothing_of_that", "failed", "1 failed"),
    ],
)
def test_a_row_says_what_came_of_it(workdir: Path, text: str, status: str, said: str) -> None:
    row = acceptance.judge(CHECKS[4], [of(workdir, text)])
    assert row.status == status
    assert said in row.figure


def test_what_takes_too_long_is_ended_with_all_that_it_started(workdir: Path) -> None:
    hangs = (
        "import subprocess, sys\n\n\ndef test_it():\n"
        f"    subprocess.run([{sys.executable!r}, '-c', '{{}}'])\n"
    )
    begun = time.monotonic()
    outcome = of(
        workdir, hangs.format('import time; open("began", "w"); time.sleep(600)'), limit_s=3
    )
    assert time.monotonic() - begun < 200  # it would sleep for 600 s
    assert outcome.fault == "not done within 3 s"
    assert acceptance.judge(CHECKS[4], [outcome]).status == "failed"


def test_what_shows_less_is_part_and_what_fails_is_failed_all_the_same() -> None:
    check = Check(1, "a", "It holds.", (Command(("x",), 1),), part="half of it")
    assert acceptance.judge(check, [Outcome(passed=1)]).status == "part"
    assert (
        acceptance.judge(check, [Outcome(passed=1), Outcome(failed=1, fault="failed: x")]).status
        == "failed"
    )


def test_rows_of_other_checks_stay_and_what_was_not_run_is_said(workdir: Path) -> None:
    acceptance.save({4: acceptance.Row("shown", "3 passed in 1 s", "2026-01-01")})
    acceptance.save(acceptance.load() | {5: acceptance.Row("failed", "1 failed | x", "2026-01-02")})
    lines = (workdir / "docs/reliability.md").read_text().splitlines()
    rows = {line.split(" | ")[0].strip("| "): line for line in lines if line.startswith("| ")}
    assert "shown" in rows["4"]
    assert "2026-01-01" in rows["4"]
    assert "1 failed \\| x" in rows["5"]
    assert "not run yet" in rows["6"]
    assert "not applicable" in rows["38"]
    assert acceptance.counts(acceptance.load())["not run yet"] == 58 - 2 - sum(
        bool(check.not_applicable) for check in CHECKS.values()
    )


def test_a_row_of_another_command_is_not_kept(workdir: Path) -> None:
    acceptance.save({4: acceptance.Row("shown", "3 passed in 1 s", "2026-01-01")})
    kept = json.loads(acceptance.ROWS.read_text())
    kept["rows"]["4"]["commands"] = ["pytest tests/of_once.py"]
    acceptance.ROWS.write_text(json.dumps(kept))
    assert acceptance.load() == {}


@pytest.mark.parametrize("words", ["0", "59", "four", "4,", ""])
def test_a_check_that_there_is_not_is_refused(
    words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["run", "--only", words])
    with pytest.raises(SystemExit) as ended:
        acceptance.main()
    assert ended.value.code == 2
    assert "numbers from 1 to 58" in capsys.readouterr().err


def test_the_module_is_a_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "acceptance.run", "--list", "--only", "4"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2] / "benchmarks",
        timeout=60,
        check=True,
    )
    assert done.stdout.lstrip().startswith("4  ")


def test_a_failed_check_ends_with_one(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptance, "run", lambda command: Outcome(failed=1, fault="failed: it"))
    monkeypatch.setattr(sys, "argv", ["run", "--only", "4"])
    with pytest.raises(SystemExit) as ended:
        acceptance.main()
    assert ended.value.code == 1
    assert acceptance.load()[4].status == "failed"


def test_an_interrupted_check_goes_on(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = CHECKS[57].commands[:2]
    asked: list[Command] = []

    def once(command: Command) -> Outcome:
        asked.append(command)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return Outcome(passed=3, skipped=("no",), seconds=1.5)

    monkeypatch.setattr(acceptance, "run", once)
    monkeypatch.setattr(acceptance, "commit", lambda: "abc")
    monkeypatch.setattr(sys, "argv", ["run", "--only", "57"])
    with pytest.raises(KeyboardInterrupt):
        acceptance.main()
    with pytest.raises(SystemExit):
        acceptance.main()
    assert asked == [first, second, *CHECKS[57].commands[1:]]
    assert acceptance.load()[57].figure.startswith("15 passed in 8 s")
    assert not acceptance.UNDER_WAY.exists()
    # Another commit begins anew, and so does what was changed since the last one.
    acceptance.UNDER_WAY.write_text(json.dumps({f"abc {first.words}": {"passed": 3}}))
    monkeypatch.setattr(acceptance, "commit", lambda: "def")
    acceptance.finish(first)
    assert asked[-1] is first


def test_a_report_without_tests_is_no_success() -> None:
    assert read("<testsuites/>", status=5, seconds=1).fault
