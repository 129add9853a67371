"""Shared by all scenarios: running parts, fresh services, peers' results, a CPU meter."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from redis import Redis

from service.machine import same_machine
from service.peer_results import PeerFile, PeerResult, measure_peer, read_results
from service.processes import Postgres, Process, Stub, service
from service.results_table import TimeSpent
from service.workload import Work

SMALL, LARGE = Work(8, 8, 6), Work(32, 8, 10)


@dataclass
class Bench:
    """One run. `peers` is `None` when there is no dated run of theirs from this machine."""

    workdir: Path
    stub: Stub
    postgres: Postgres
    redis: Process
    peers: PeerFile | None
    machine: dict[str, object]
    repeats: int = 5
    quick: bool = False
    spent: list[TimeSpent] = field(default_factory=list)
    _databases: int = 0
    _rubric: dict[tuple[Work, float], list[PeerResult]] = field(default_factory=dict)

    @property
    def works(self) -> tuple[Work, ...]:
        """Sizes to measure."""
        return (SMALL,) if self.quick else (SMALL, LARGE)

    @property
    def latencies_s(self) -> tuple[float, ...]:
        """Judge latencies to measure, in seconds."""
        return (0.05,) if self.quick else (0.05, 0.5)

    def fresh_database(self) -> str:
        """Return the URL of a new PostgreSQL database, and empty Redis."""
        self._databases += 1
        with Redis.from_url(self.redis.url) as client:
            client.flushall()
        return self.postgres.fresh(f"bench{self._databases}")

    @contextmanager
    def service(
        self,
        settings: Mapping[str, str] = MappingProxyType({}),
        *,
        database: str | None = None,
        redis: bool = True,
        workers: int = 1,
    ) -> Iterator[Process]:
        """Run a service, on its own database unless one is named.

        `settings` are as in `service.processes.service`.
        """
        with service(
            self.workdir,
            name=str(time.monotonic_ns()),
            database=database or self.fresh_database(),
            redis_url=self.redis.url if redis else None,
            judge_url=self.stub.base_url,
            workers=workers,
            settings=settings,
        ) as process:
            yield process

    def rubric(self, work: Work, latency_s: float) -> list[PeerResult]:
        """Return the results of `rubric` in this run; each load is measured once."""
        if (work, latency_s) not in self._rubric:
            printed = measure_peer(
                "rubric",
                url=self.stub.url,
                work=work,
                latency_s=latency_s,
                repeats=1 if self.quick else self.repeats,
            )
            self._rubric[work, latency_s] = read_results(printed)
        return self._rubric[work, latency_s]

    def dated_peers(self) -> list[PeerResult]:
        """Return all peers' dated results, if they are from this machine."""
        if self.peers is None or not same_machine(self.peers.machine, self.machine):
            return []
        return list(self.peers.results)

    def meter(self, figure: str, work: str, process: Process) -> "Meter":
        """Return a meter for one scenario and load."""
        return Meter(self, figure, work, process)


class Meter:
    """Sums wall time and CPU seconds by part over the blocks it is entered for."""

    def __init__(self, bench: Bench, figure: str, work: str, service_process: Process) -> None:
        self._bench, self._figure, self._work = bench, figure, work
        self._parts = {
            "service": service_process,
            "PostgreSQL": bench.postgres,
            "Redis": bench.redis,
            "stub judge": bench.stub,
        }
        self._cpu = dict.fromkeys(("driver", *self._parts), 0.0)
        self._wall_s = 0.0
        self._verdicts = 0

    @contextmanager
    def over(self, verdicts: int) -> Iterator[None]:
        """Meter one block that produces this many verdicts."""
        before, started = self._now(), time.perf_counter()
        yield
        self._wall_s += time.perf_counter() - started
        for part, cpu in self._now().items():
            self._cpu[part] += cpu - before[part]
        self._verdicts += verdicts

    def close(self) -> None:
        """Add the sums to the report."""
        self._bench.spent.append(
            TimeSpent(self._figure, self._work, self._wall_s, self._verdicts, self._cpu)
        )

    def _now(self) -> dict[str, float]:
        return {
            "driver": time.process_time(),
            **{part: process.cpu_s() for part, process in self._parts.items()},
        }
