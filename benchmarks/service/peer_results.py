"""Results of peers: run the drivers that measure them, and compare what they print."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.processes import BENCHMARKS, clean_environment
from service.workload import Work

VENVS = Path("build/bench")
TIMEOUT_S = 1800


@dataclass(frozen=True)
class PeerResult:
    """One mode of one tool under one load."""

    name: str
    default: bool
    one_call: bool
    work: Work
    latency_ms: int
    wall_s: float
    verdicts_per_s: float
    again_per_s: float
    raw: dict[str, Any]

    @classmethod
    def read(cls, tool: str, version: str, raw: dict[str, Any]) -> "PeerResult":
        """Parse one result of a driver."""
        return cls(
            f"{tool} {version}, {raw['mode']}",
            raw["default"],
            raw["one_call"],
            Work.parse(raw["work"]),
            raw["latency_ms"],
            raw["wall_s"],
            raw["verdicts_per_s"],
            raw["same_batch_again"]["verdicts_per_s"],
            raw,
        )


def measure_peer(
    tool: str, *, url: str, work: Work, latency_s: float, repeats: int
) -> dict[str, Any]:
    """Run one tool's driver in the tool's own virtual environment; return what it prints."""
    module = tool.removeprefix("py-")
    python = (VENVS / f"venv-{module}" / "bin" / "python").absolute()
    command = [
        str(python),
        "-m",
        f"service.peers.{module}",
        "--url",
        url,
        "--work",
        str(work),
        "--latency-s",
        str(latency_s),
        "--repeats",
        str(repeats),
    ]
    environment = clean_environment(
        {"PYTHONPATH": str(BENCHMARKS), "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    )
    answer = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    if answer.returncode:
        raise RuntimeError(f"{tool}'s driver failed: {answer.stderr[-2000:]}")
    printed: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return printed


def read_results(printed: dict[str, Any]) -> list[PeerResult]:
    """Parse a driver's output."""
    return [PeerResult.read(printed["tool"], printed["version"], raw) for raw in printed["results"]]


@dataclass(frozen=True)
class PeerFile:
    """The newest dated run of all peers."""

    date: str
    machine: dict[str, Any]
    results: tuple[PeerResult, ...]

    @classmethod
    def find(cls, directory: Path) -> "PeerFile | None":
        """Return it from a folder of results, or `None`."""
        files = sorted(directory.glob("peers-*.json"))
        if not files:
            return None
        found = json.loads(files[-1].read_text(encoding="utf-8"))
        return cls(
            found["date"],
            found["machine"],
            tuple(result for printed in found["tools"] for result in read_results(printed)),
        )


def fastest(
    results: list[PeerResult],
    work: Work,
    latency_ms: int,
    *,
    default: bool = True,
    calls: int | None = None,
) -> PeerResult | None:
    """Return the result with the most verdicts a second under this load.

    Args:
        results: All results.
        work: Size of the batch.
        latency_ms: Latency of the judge.
        default: Only modes that a tool's documentation shows first.
        calls: Only results with this many calls.
    """
    fitting = [
        r
        for r in results
        if r.work == work
        and r.latency_ms == latency_ms
        and (r.default or not default)
        and calls in (None, r.raw["calls"])
    ]
    return max(fitting, key=lambda r: r.verdicts_per_s, default=None)


def best_cache(results: list[PeerResult], work: Work, *, default: bool = True) -> PeerResult | None:
    """Return autorubric's best cached result: the same batch again, most verdicts a second."""
    fitting = [
        r for r in results if r.work == work and "cache" in r.name and (r.default or not default)
    ]
    return max(fitting, key=lambda r: r.again_per_s, default=None)
