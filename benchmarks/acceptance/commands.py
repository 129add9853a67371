"""A command of a check: what to run, for how long, and what came of it."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

FIGURE = "figure"
"""The property under which a test records a figure for the table (``record_property``)."""
BETWEEN_KILLS_S = 5.0
LAST_FAILURE = Path("build/acceptance-failure.txt")
"""What the command said that failed last."""
_TESTS = [
    sys.executable,
    "-m",
    "pytest",
    "-q",
    "-p",
    "no:cacheprovider",
    "-p",
    "no:schemathesis",
    "-o",
    "junit_family=xunit1",
]


@dataclass(frozen=True)
class Command:
    """A command line that may run for ``limit_s`` seconds at most.

    ``arguments``: those of pytest (``is_pytest``), otherwise a program beside the interpreter and
    its arguments. ``slow``: also run the tests that are marked slow.
    """

    arguments: tuple[str, ...]
    limit_s: float
    slow: bool = False
    is_pytest: bool = True

    @property
    def words(self) -> str:
        """The command line as typed in the project's root."""
        if not self.is_pytest:
            return shlex.join(self.arguments)
        return shlex.join(
            ["pytest", *(["-m", "slow or not slow"] if self.slow else []), *self.arguments]
        )

    def argv(self, report: Path) -> list[str]:
        """Return the command line that is executed. pytest writes its results to ``report``."""
        if not self.is_pytest:
            return [str(Path(sys.executable).with_name(self.arguments[0])), *self.arguments[1:]]
        marked = ["-m", "slow or not slow"] if self.slow else []
        return [*_TESTS, *marked, f"--junitxml={report}", *self.arguments]


@dataclass(frozen=True)
class Outcome:
    """What came of a command. ``fault``: why it failed; empty if it did not."""

    passed: int = 0
    failed: int = 0
    skipped: tuple[str, ...] = ()
    figures: tuple[str, ...] = ()
    fault: str = ""
    seconds: float = 0.0


def run(command: Command, environment: Mapping[str, str] = os.environ) -> Outcome:
    """Run ``command`` to its end, or end it and all that it started after ``limit_s``."""
    with tempfile.TemporaryDirectory(prefix="markscheme-acceptance-") as folder:
        report, said = Path(folder) / "report.xml", Path(folder) / "said"
        begun = time.monotonic()
        with said.open("wb") as output:
            process = subprocess.Popen(
                command.argv(report),
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,
            )
            try:
                status: int | None = process.wait(command.limit_s)
            except subprocess.TimeoutExpired:
                status = None
            finally:
                _end(process)
        seconds = time.monotonic() - begun
        if status != 0:
            LAST_FAILURE.parent.mkdir(exist_ok=True)
            shutil.copyfile(said, LAST_FAILURE)
        last = said.read_text("utf-8", "replace").strip().splitlines()[-1:]
        if status is None:
            return Outcome(fault=f"not done within {command.limit_s:.0f} s", seconds=seconds)
        if not command.is_pytest:
            words = last[0] if last else ""
            return Outcome(
                passed=int(status == 0),
                failed=int(status != 0),
                seconds=seconds,
                figures=(words,) if status == 0 and words else (),
                fault="" if status == 0 else f"status {status}: {words}",
            )
        if not report.exists():
            return Outcome(
                fault=f"status {status}: {last[0] if last else 'nothing was said'}", seconds=seconds
            )
        return read(report.read_text("utf-8"), status=status, seconds=seconds)


def read(report: str, *, status: int, seconds: float) -> Outcome:
    """Read the outcome from pytest's JUnit report and exit status."""
    cases = list(ElementTree.fromstring(report).iter("testcase"))
    bad = [
        case for case in cases if case.find("failure") is not None or case.find("error") is not None
    ]
    skips = [
        (skip.get("message") or "").strip()
        for case in cases
        if (skip := case.find("skipped")) is not None
    ]
    passed = sum(case.find("skipped") is None for case in cases) - len(bad)
    figures = [
        str(entry.get("value"))
        for case in cases
        for entry in case.iter("property")
        if entry.get("name") == FIGURE
    ]
    fault = (
        f"failed: {', '.join(dict.fromkeys(str(case.get('name')) for case in bad[:3]))}"
        if bad
        else ""
    )
    if not fault and status != 0:
        fault = f"status {status}: no test ran" if not cases else f"status {status}"
    return Outcome(
        passed, len(bad), tuple(dict.fromkeys(skips)), tuple(dict.fromkeys(figures)), fault, seconds
    )


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End what is left of the process and of those that it started in its session."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(BETWEEN_KILLS_S)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def total(outcomes: Sequence[Outcome]) -> Outcome:
    """Combine the outcomes of a check's commands."""
    return Outcome(
        sum(o.passed for o in outcomes),
        sum(o.failed for o in outcomes),
        tuple(dict.fromkeys(why for o in outcomes for why in o.skipped)),
        tuple(dict.fromkeys(figure for o in outcomes for figure in o.figures)),
        "; ".join(o.fault for o in outcomes if o.fault),
        sum(o.seconds for o in outcomes),
    )
