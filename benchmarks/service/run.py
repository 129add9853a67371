"""The service's figures: real HTTP, real PostgreSQL and Redis, a stub judge.

    python -m service.run [--quick] [--only NAME]

A full run writes `benchmarks/results/service-<date>.{md,json}`; a partial one writes to
`build/bench/`.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import httpx
from redis import Redis
from rich.console import Console

from markscheme import MarkschemeError
from service import processes
from service.bench import Bench
from service.machine import describe, same_machine
from service.peer_results import PeerFile
from service.report import save, show, today
from service.results_table import Row
from service.scenarios.cold import cold_all, cold_each
from service.scenarios.faults import faults
from service.scenarios.growth import growth
from service.scenarios.load import many, overhead, scaling
from service.scenarios.sharing import sharing
from service.scenarios.warm import warm

RESULTS, PARTIAL = Path("benchmarks/results"), Path("build/bench")
REPEATS, QUICK_REPEATS = 5, 2
SCENARIOS: dict[str, Callable[[Bench], list[Row]]] = {
    "cold-each": cold_each,
    "cold-all": cold_all,
    "warm": warm,
    "sharing": sharing,
    "faults": faults,
    "many": many,
    "overhead": overhead,
    "scaling": scaling,
    "growth": growth,
}


def main() -> None:
    """Measure the scenarios and write the report."""
    arguments = _arguments()
    console = Console(width=160)
    processes.prepare()
    with tempfile.TemporaryDirectory(prefix="markscheme-bench-") as scratch, ExitStack() as stack:
        workdir = Path(scratch)
        stub = stack.enter_context(processes.stub_judge(workdir))
        postgres = stack.enter_context(processes.postgres(workdir))
        redis = stack.enter_context(processes.redis(workdir))
        machine = describe(postgresql=_postgres_version(postgres), redis=_redis_version(redis.url))
        bench = Bench(
            workdir=workdir,
            stub=stub,
            postgres=postgres,
            redis=redis,
            machine=machine,
            peers=PeerFile.find(RESULTS),
            quick=arguments.quick,
            repeats=QUICK_REPEATS if arguments.quick else REPEATS,
        )
        rows: list[Row] = []
        for name in arguments.only or SCENARIOS:
            started = time.perf_counter()
            found = _measure(name, bench)
            rows += found
            show(found, console)
            console.print(f"{name}: {time.perf_counter() - started:.0f} s")
    partial = arguments.quick or arguments.only
    stem = (PARTIAL / "service-partial") if partial else (RESULTS / f"service-{today()}")
    for path in save(
        stem,
        title="The service under load",
        notes=_notes(bench),
        rows=rows,
        spent=bench.spent,
        machine=machine,
    ):
        console.print(f"written: {path}")
    missed = sum(row.met is False for row in rows)
    console.print(f"{sum(row.met is True for row in rows)} goals met, {missed} not met")


def _measure(name: str, bench: Bench) -> list[Row]:
    """Return one scenario's rows; a service that fails under it is a row too."""
    try:
        return SCENARIOS[name](bench)
    except (MarkschemeError, httpx.HTTPError, RuntimeError) as error:
        return [Row(name, "", "the service answers", f"{type(error).__name__}: {error}", False)]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m service.run")
    parser.add_argument(
        "--quick", action="store_true", help="a smoke run: small work, 50 ms, two repetitions"
    )
    parser.add_argument(
        "--only",
        action="append",
        choices=SCENARIOS,
        metavar="NAME",
        help=f"one figure; may be repeated. {', '.join(SCENARIOS)}",
    )
    return parser.parse_args()


def _notes(bench: Bench) -> Sequence[str]:
    peers = bench.peers
    if peers is None:
        dated = (
            "No dated run of the other peers was found (`make bench-peers`); "
            "only `rubric` is compared."
        )
    elif same_machine(peers.machine, bench.machine):
        dated = (
            f"`rubric` was measured in this run; the other peers on {peers.date} on the same "
            "machine."
        )
    else:
        dated = f"The other peers' run of {peers.date} is another machine's and is not compared."
    return (
        "Command: `make bench`. Work is named prompts × rollouts × criteria; a batch is one "
        "request. The deployment has one worker, a key, PostgreSQL and Redis; judge concurrency "
        f"{processes.JUDGE_CONCURRENCY}.",
        "Cold figures: fresh answers each time, one warm-up batch of other texts, median of "
        f"{bench.repeats}, driven with the SDK; the bare SDK takes turns with the service and asks "
        "the very same prompts.",
        f"Every number that came back was held against what the deterministic judge implies. "
        f"{dated}",
    )


def _postgres_version(postgres: processes.Postgres) -> str:
    return str(postgres.server.psql("\\t on\nSHOW server_version").split()[-1])


def _redis_version(url: str) -> str:
    with Redis.from_url(url) as client:
        return str(client.info("server")["redis_version"])


if __name__ == "__main__":
    main()
