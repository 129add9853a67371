"""All peers under the same load and the same stub judge, each in its own environment.

    python -m service.compare_peers [--quick]

Writes `benchmarks/results/peers-<date>.{md,json}`; `make bench` reads the newest.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from service import processes
from service.bench import LARGE, SMALL
from service.machine import describe, sentence
from service.peer_results import PeerResult, measure_peer, read_results
from service.report import markdown_table, today, write

TOOLS = ("rubric", "autorubric", "py-openjudge", "verifiers")
LOADS = ((SMALL, 0.05, 3), (SMALL, 0.5, 3), (LARGE, 0.05, 1), (LARGE, 0.5, 1))
"""Work, judge latency in seconds, repetitions. Large loads take some tools minutes: once will do.
"""
COLUMNS = (
    "tool and mode",
    "work",
    "judge",
    "calls",
    "wall",
    "verdicts/s",
    "same batch again",
    "calls then",
    "calls for 16 identical rollouts",
    "wrong",
    "unscored",
)


def main() -> None:
    """Measure every peer and write the report."""
    parser = argparse.ArgumentParser(prog="python -m service.compare_peers")
    parser.add_argument(
        "--quick", action="store_true", help="the small load only, once; writes to build/bench"
    )
    quick = parser.parse_args().quick
    console = Console(width=160)
    processes.prepare()
    machine = describe()
    tools: list[dict[str, Any]] = []
    with (
        tempfile.TemporaryDirectory(prefix="markscheme-bench-") as scratch,
        processes.stub_judge(Path(scratch)) as stub,
    ):
        for tool in TOOLS:
            for work, latency_s, repeats in LOADS[:1] if quick else LOADS:
                printed = measure_peer(
                    tool,
                    url=stub.url,
                    work=work,
                    latency_s=latency_s,
                    repeats=1 if quick else repeats,
                )
                tools.append(printed)
                for result in read_results(printed):
                    console.print(
                        f"{result.name}, {work}, {latency_s * 1000:.0f} ms: {result.wall_s:.2f} s, "
                        f"{result.verdicts_per_s:.0f} verdicts/s"
                    )
    lines = [_line(result) for printed in tools for result in read_results(printed)]
    markdown = (
        "\n".join(
            [
                f"# Peers, {today()}",
                "",
                f"Machine: {sentence(machine)}.",
                "Command: `make bench-peers`. Each tool in its own process and virtual "
                "environment, against the stub judge of "
                "`benchmarks/service`, concurrency 64. A mode with a star is not the one its "
                "documentation shows first.",
                "“Same batch again”: verdicts/s when the last batch is graded once more. Wrong: "
                "rewards other than the judge's "
                "verdicts imply.",
                "",
                *markdown_table(COLUMNS, lines),
            ]
        )
        + "\n"
    )
    stem = (
        Path("build/bench/peers-partial") if quick else Path(f"benchmarks/results/peers-{today()}")
    )
    for path in write(stem, markdown, {"date": today(), "machine": machine, "tools": tools}):
        console.print(f"written: {path}")


def _line(result: PeerResult) -> tuple[object, ...]:
    raw = result.raw
    return (
        result.name + ("" if result.default else " *"),
        result.work,
        f"{result.latency_ms} ms",
        raw["calls"],
        f"{result.wall_s:.2f} s",
        f"{result.verdicts_per_s:,.0f}",
        f"{result.again_per_s:,.0f}",
        f"{raw['same_batch_again']['calls']:.0f}",
        raw["identical_at_once"]["calls"],
        raw["wrong"],
        raw["unscored"],
    )


if __name__ == "__main__":
    main()
