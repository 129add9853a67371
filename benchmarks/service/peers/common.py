"""Shared by all drivers: the same work, stub and timing; prints one JSON object.

Standard library only: each driver runs in its tool's own virtual environment. A driver gives its
modes; a mode grades a batch and returns the rewards in the order of `Batch.pairs`.
"""

import argparse
import asyncio
import json
import statistics
import time
import urllib.request
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from service.workload import Batch, Work, make_batch

SMALL = Work(8, 8, 6)
SAME = 16
SAME_PASSES = 5
TOLERANCE = 1e-6
Grade = Callable[[Batch], Awaitable[Sequence[float | None]]]


@dataclass(frozen=True)
class Mode:
    """One way of calling a tool.

    Attributes:
        name: Shown in the report.
        grade: Grades a batch.
        default: The way that the tool's documentation shows first.
        one_call: All criteria in one call.
        cached: It stores verdicts, so the same batch again is timed several times.
        close: Called when all modes are measured.
    """

    name: str
    grade: Grade
    default: bool = True
    one_call: bool = False
    cached: bool = False
    close: Callable[[], Awaitable[object]] | None = None


@dataclass(frozen=True)
class Options:
    """Where the stub is, and the load."""

    url: str
    work: Work
    latency_s: float
    repeats: int
    concurrency: int

    @property
    def base_url(self) -> str:
        """The stub's OpenAI-compatible URL."""
        return f"{self.url}/v1"


def run(distribution: str, modes: Callable[[Options], Sequence[Mode]]) -> None:
    """Measure every mode and print the results."""
    options = _options()
    results = asyncio.run(_measure_all(options, modes))
    version = metadata.version(distribution)
    print(json.dumps({"tool": distribution, "version": version, "results": results}))


async def _measure_all(
    options: Options, modes: Callable[[Options], Sequence[Mode]]
) -> list[dict[str, Any]]:
    offered = modes(options)
    results = [await _measure(options, mode) for mode in offered]
    for mode in offered:
        if mode.close is not None:
            await mode.close()
    return results


async def _measure(options: Options, mode: Mode) -> dict[str, Any]:
    _configure(options)
    await mode.grade(
        make_batch(min(options.work, SMALL, key=lambda w: w.verdicts), f"{mode.name} warm-up")
    )
    walls, wrong, unscored = [], 0, 0
    for n in range(options.repeats):
        batch = make_batch(options.work, f"{mode.name} {n}")
        _configure(options)
        wall, rewards = await _timed(mode, batch)
        walls.append(wall)
        calls = _stats(options)["calls"]
        pairs = list(zip(batch.pairs(), rewards, strict=True))
        unscored += sum(reward is None for _, reward in pairs)
        wrong += sum(
            reward is not None and abs(reward - task.reward(answer)) > TOLERANCE
            for (task, answer), reward in pairs
        )
    wall = statistics.median(walls)
    result = {
        "mode": mode.name,
        "default": mode.default,
        "one_call": mode.one_call,
        "work": str(options.work),
        "latency_ms": round(options.latency_s * 1000),
        "concurrency": options.concurrency,
        "walls_s": walls,
        "wall_s": wall,
        "verdicts_per_s": options.work.verdicts / wall,
        "calls": calls,
        "wrong": wrong,
        "unscored": unscored,
    }
    _configure(options)
    passes = [(await _timed(mode, batch))[0] for _ in range(SAME_PASSES if mode.cached else 1)]
    again = statistics.median(passes)
    result["same_batch_again"] = {
        "wall_s": again,
        "verdicts_per_s": options.work.verdicts / again,
        "calls": _stats(options)["calls"] / len(passes),
    }
    _configure(options)
    same = make_batch(Work(1, 1, options.work.criteria), f"{mode.name} same")
    await mode.grade(Batch(same.name, same.tasks, (same.answers[0] * SAME,)))
    result["identical_at_once"] = {"rollouts": SAME, "calls": _stats(options)["calls"]}
    return result


async def _timed(mode: Mode, batch: Batch) -> tuple[float, Sequence[float | None]]:
    started = time.perf_counter()
    rewards = await mode.grade(batch)
    return time.perf_counter() - started, rewards


def _configure(options: Options) -> None:
    body = json.dumps({"latency_s": options.latency_s}).encode()
    urllib.request.urlopen(urllib.request.Request(f"{options.url}/settings", data=body)).read()


def _stats(options: Options) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(urllib.request.urlopen(f"{options.url}/stats").read())
    return answer


def _options() -> Options:
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--work", type=Work.parse, required=True)
    parser.add_argument("--latency-s", type=float, required=True)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--concurrency", type=int, default=64)
    given = parser.parse_args()
    return Options(given.url, given.work, given.latency_s, given.repeats, given.concurrency)
