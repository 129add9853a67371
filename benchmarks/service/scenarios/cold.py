"""Cold: nothing is stored. One criterion a call, and all criteria of a rollout in one call."""

import asyncio
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from service.baseline import BareSdk
from service.bench import SMALL, Bench
from service.load_client import Accuracy, Scorer, TimedBatch
from service.peer_results import PeerResult, fastest
from service.processes import JUDGE_CONCURRENCY, Process
from service.results_table import Row
from service.stub_judge import Settings
from service.workload import Work, make_batch, make_tasks

OVER_BARE_SDK, OVER_IDEAL, TIMES_BEST_PEER = 1.35, {50: 3.0, 500: 1.3}, 4.0
EACH, ALL = "cold, one criterion a call", "cold, all criteria of a rollout in one call"


@dataclass(frozen=True)
class Cell:
    """One load: medians of the service's and the baseline's wall times, measured in turns."""

    work: Work
    latency_ms: int
    calls: int
    wall_s: float
    floor_s: float
    walls_s: list[float]
    floors_s: list[float]
    accuracy: Accuracy

    @property
    def load(self) -> str:
        """The load in words."""
        return f"{self.work}, {self.latency_ms} ms"

    @property
    def ideal_s(self) -> float:
        """Calls × latency ÷ concurrency: the lower bound."""
        return self.calls * self.latency_ms / 1000 / JUDGE_CONCURRENCY

    @property
    def verdicts_per_s(self) -> float:
        """Verdicts a second."""
        return self.work.verdicts / self.wall_s

    @property
    def sound(self) -> bool:
        """Whether every number was right and present."""
        return self.accuracy.wrong == 0 and self.accuracy.scored == self.accuracy.rollouts

    @property
    def flaws(self) -> str:
        """Printed beside a figure that was reached without doing all the work."""
        a = self.accuracy
        return (
            ""
            if self.sound
            else f"; {a.rollouts - a.scored} unscored, {a.wrong} wrong of {a.rollouts}"
        )

    def values(self, **more: float) -> dict[str, object]:
        """Return the raw numbers."""
        return {
            "calls": self.calls,
            "walls_s": self.walls_s,
            "bare_sdk_walls_s": self.floors_s,
            "verdicts_per_s": self.verdicts_per_s,
            **more,
        }


def cold_each(bench: Bench) -> list[Row]:
    """Measure one criterion a call against the bare SDK, the lower bound and every peer."""
    rows = []
    for cell in _cells(bench, EACH, {"judge_max_criteria": "1"}):
        ratio, over_ideal = cell.wall_s / cell.floor_s, cell.wall_s / cell.ideal_s
        most = OVER_IDEAL[cell.latency_ms]
        rows += [
            Row(
                EACH,
                cell.load,
                f"≤ {OVER_BARE_SDK} × the bare SDK's wall",
                f"{ratio:.2f} × ({cell.wall_s:.2f} s; bare SDK {cell.floor_s:.2f} s; {cell.calls} "
                f"calls){cell.flaws}",
                ratio <= OVER_BARE_SDK and cell.sound,
                cell.values(ratio=ratio),
            ),
            Row(
                EACH,
                cell.load,
                f"≤ {most} × calls × latency ÷ concurrency",
                f"{over_ideal:.2f} × ({cell.ideal_s:.2f} s){cell.flaws}",
                over_ideal <= most and cell.sound,
                {"ratio": over_ideal},
            ),
            _against_peers(
                cell,
                fastest(
                    _peers(bench, cell), cell.work, cell.latency_ms, default=False, calls=cell.calls
                ),
                EACH,
                times=1.0,
                goal="faster than every peer, in any mode of as many calls",
            ),
        ]
    return rows


def cold_all(bench: Bench) -> list[Row]:
    """Measure all criteria of a rollout in one call, the default, against the best peer."""
    rows = []
    for cell in _cells(bench, ALL):
        rows.append(
            _against_peers(
                cell,
                fastest(_peers(bench, cell), cell.work, cell.latency_ms),
                ALL,
                times=TIMES_BEST_PEER,
                goal=f"≥ {TIMES_BEST_PEER:.0f} × the best peer's verdicts/s, as documented",
            )
        )
        best = fastest(_peers(bench, cell), cell.work, cell.latency_ms, default=False)
        if best is not None:
            ratio = cell.verdicts_per_s / best.verdicts_per_s
            rows.append(
                Row(
                    ALL,
                    cell.load,
                    "(for information: peers in any mode)",
                    f"{ratio:.2f} × {best.name} ({best.verdicts_per_s:.0f}/s)",
                    values={
                        "ratio": ratio,
                        "peer": best.name,
                        "peer_verdicts_per_s": best.verdicts_per_s,
                    },
                )
            )
        ratio = cell.wall_s / cell.floor_s
        rows.append(
            Row(
                ALL,
                cell.load,
                "(for information: the bare SDK)",
                f"{ratio:.2f} × the bare SDK's wall ({cell.wall_s:.3f} s; {cell.floor_s:.3f} s; "
                f"{cell.calls} calls)",
                values={"ratio": ratio},
            )
        )
    return rows


def _against_peers(
    cell: Cell, best: PeerResult | None, figure: str, *, times: float, goal: str
) -> Row:
    if best is None:
        return Row(
            figure, cell.load, goal, f"{cell.verdicts_per_s:.0f} verdicts/s; no peer measured", None
        )
    ratio = cell.verdicts_per_s / best.verdicts_per_s
    return Row(
        figure,
        cell.load,
        goal,
        f"{ratio:.2f} × ({cell.verdicts_per_s:.0f} verdicts/s; {best.name}: "
        f"{best.verdicts_per_s:.0f}/s){cell.flaws}",
        ratio >= times and cell.sound,
        cell.values(ratio=ratio) | {"peer": best.name, "peer_verdicts_per_s": best.verdicts_per_s},
    )


def _peers(bench: Bench, cell: Cell) -> list[PeerResult]:
    """Return `rubric` of this run, and the others' dated results."""
    own = bench.rubric(cell.work, cell.latency_ms / 1000)
    return own + [r for r in bench.dated_peers() if not r.name.startswith("rubric ")]


def _cells(bench: Bench, figure: str, settings: Mapping[str, str] | None = None) -> list[Cell]:
    cells = []
    for latency_s in bench.latencies_s:
        with bench.service(settings or {}) as service:
            cells += [
                asyncio.run(_measure(bench, service, figure, work, latency_s))
                for work in bench.works
            ]
    return cells


async def _measure(
    bench: Bench, service: Process, figure: str, work: Work, latency_s: float
) -> Cell:
    name = f"{figure}, {work}, {latency_s}"
    meter = bench.meter(figure, f"{work}, {latency_s * 1000:.0f} ms", service)
    accuracy = Accuracy()
    ours: list[TimedBatch] = []
    floors: list[float] = []
    async with (
        Scorer(service.url) as scorer,
        BareSdk(bench.stub.base_url, JUDGE_CONCURRENCY) as bare,
    ):
        tasks = make_tasks(work, name)
        warm_up = make_batch(SMALL, f"{name}, warm-up")
        await scorer.prepare([*tasks, *warm_up.tasks])
        bench.stub.configure(Settings(latency_s=latency_s))
        await scorer.score(warm_up)
        seen = bench.stub.stats()
        await bare.wall_s(seen["sample"], seen["calls"], "warm-up")
        for n in range(bench.repeats):
            batch = make_batch(work, f"{name}, {n}", tasks)
            bench.stub.configure(Settings(latency_s=latency_s))
            with meter.over(work.verdicts):
                ours.append(await scorer.score(batch))
            accuracy.add(batch, ours[-1].batch)
            seen = bench.stub.stats()
            floors.append(await bare.wall_s(seen["sample"], seen["calls"], f"{n}"))
    meter.close()
    walls = [timed.wall_s for timed in ours]
    return Cell(
        work,
        round(latency_s * 1000),
        seen["calls"],
        statistics.median(walls),
        statistics.median(floors),
        walls,
        floors,
        accuracy,
    )
