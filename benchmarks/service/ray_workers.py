"""Reward workers on a Ray cluster over several replicas of the service behind HAProxy.

    python -m service.ray_workers [--groups 128] [--workers 64] [--out FOLDER]

Each worker is an actor in a process of its own, and calls what verl's manager calls
(`markscheme.integrations.gathering.score_in_group`): one rollout a request, each rollout of a
group from another worker. A full run writes `benchmarks/results/ray-<date>.{md,json}`.
"""

import argparse
import os
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray  # type: ignore[import-not-found]
from redis import Redis
from rich.console import Console

from markscheme import Client
from markscheme.integrations.gathering import loop_client, score_in_group
from service import processes
from service.load_client import TOLERANCE, percentile
from service.machine import PACKAGES, describe
from service.oracle import CRITERION_ID, find_answer_id, is_met
from service.processes import API_KEY, JUDGE_CONCURRENCY, Postgres, Process, Stub
from service.report import save, show, today
from service.results_table import Row, TimeSpent
from service.stub_judge import Settings
from service.workload import Batch, Work, make_batch

SIZE = 8
REPLICAS = (1, 2, 4)
LATENCY_S, SLOW_LATENCY_S = 0.05, 1.0
KILLED_AFTER = 0.25
"""Share of the answers that are there when a replica and a worker are killed."""
UNSTORED_S = 1.0
"""Seconds before a kill in which an answer may not have been stored yet."""
FIGURE = "reward workers on Ray"


@dataclass(frozen=True)
class Scored:
    """What a worker got for one rollout."""

    reward: float
    rubric_id: str
    received: int
    waited_s: float


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)  # type: ignore[untyped-decorator]
class RewardWorker:
    """A reward worker: many rollouts at once, as verl's."""

    def pid(self) -> int:
        """Return its process."""
        return os.getpid()

    async def score(self, url: str, key: str, rollout_id: str, prompt: str, text: str) -> Scored:
        """Return the score of one rollout of a group."""
        asked = time.perf_counter()
        scored = await score_in_group(
            loop_client(url), prompt, text, key=key, rollout_id=rollout_id, size=SIZE, wait_s=120
        )
        assert scored.reward is not None
        assert scored.rubric is not None
        return Scored(
            scored.reward,
            scored.rubric.id,
            scored.group.received,
            time.perf_counter() - asked,
        )


@dataclass
class Cluster:
    """What all runs share."""

    workdir: Path
    stub: Stub
    postgres: Postgres
    redis: Process
    workers: list[Any]
    spent: list[TimeSpent]


@dataclass
class Replicated:
    """A run's replicas behind one address."""

    url: str
    balancer: Process
    replicas: list[Process]


@contextmanager
def replicated(cluster: Cluster, count: int) -> Iterator[Replicated]:
    """Run replicas on a database of their own."""
    name = f"ray{time.monotonic_ns()}"
    with ExitStack() as stack:
        with Redis.from_url(cluster.redis.url) as client:
            client.flushall()
        database = cluster.postgres.fresh(name)
        replicas = [
            stack.enter_context(
                processes.service(
                    cluster.workdir,
                    name=f"{name}-{n}",
                    database=database,
                    redis_url=cluster.redis.url,
                    judge_url=cluster.stub.base_url,
                    settings={},
                )
            )
            for n in range(count)
        ]
        balancer = stack.enter_context(
            processes.balancer(cluster.workdir, [replica.url for replica in replicas])
        )
        yield Replicated(balancer.url, balancer, replicas)


@dataclass
class Outcome:
    """The answers of a batch, in its order, and what the parts counted meanwhile."""

    answers: list[Scored]
    wall_s: float
    cpu_s: dict[str, float]
    counts: dict[str, float]
    judge: dict[str, Any]
    killed_at: float | None = None

    @property
    def paid_twice(self) -> list[float]:
        """When answers were first given that were paid for again, in seconds before the kill."""
        return [
            0.0 if self.killed_at is None else self.killed_at - at
            for at in self.judge["answered_again"]
        ]


def score_batch(
    cluster: Cluster, service: Replicated, batch: Batch, *, latency_s: float, kill: bool = False
) -> Outcome:
    """Score all rollouts of a batch at once; each rollout of a group by another worker."""
    cluster.stub.configure(Settings(latency_s=latency_s))
    parts: dict[str, list[Process]] = {
        "service": service.replicas,
        "PostgreSQL": [cluster.postgres],
        "Redis": [cluster.redis],
        "HAProxy": [service.balancer],
        "stub judge": [cluster.stub],
        # Ray's processes are children of this one, and so are the other parts.
        "Ray workers": [Process("", os.getpid())],
    }
    counts, cpu, started = _counts(cluster), _cpu(parts), time.perf_counter()
    pending = [
        cluster.workers[(g + r) % len(cluster.workers)].score.remote(
            service.url, f"{batch.name}-{g}", f"r{r}", task.prompt, text
        )
        for g, (task, texts) in enumerate(zip(batch.tasks, batch.answers, strict=True))
        for r, text in enumerate(texts)
    ]
    killed_at = None
    if kill:
        ray.wait(pending, num_returns=int(KILLED_AFTER * len(pending)))
        killed_at = time.time()
        os.kill(service.replicas[0].pid, signal.SIGKILL)
        os.kill(ray.get(cluster.workers[0].pid.remote()), signal.SIGKILL)
    answers = ray.get(pending)
    wall_s = time.perf_counter() - started
    spent = {} if kill else {part: s - cpu[part] for part, s in _cpu(parts).items()}
    return Outcome(
        answers,
        wall_s,
        spent,
        {name: n - counts[name] for name, n in _counts(cluster).items()},
        cluster.stub.stats(),
        killed_at,
    )


def _cpu(parts: Mapping[str, list[Process]]) -> dict[str, float]:
    seconds = {part: sum(each.cpu_s() for each in of) for part, of in parts.items()}
    own = "Ray workers"
    # PostgreSQL detaches itself from who started it.
    seconds[own] -= sum(s for part, s in seconds.items() if part not in (own, "PostgreSQL"))
    return seconds


def _counts(cluster: Cluster) -> dict[str, float]:
    """Return PostgreSQL's and Redis's own counts."""
    transactions, written = _numbers(
        cluster.postgres,
        "SELECT pg_snapshot_xmax(pg_current_snapshot()),"
        " pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')",
    )
    with Redis.from_url(cluster.redis.url) as client:
        commands = float(client.info("stats")["total_commands_processed"])
    return {
        "writing_transactions": transactions,
        "wal_bytes": written,
        "redis_commands": commands,
    }


def _numbers(postgres: Postgres, query: str) -> list[float]:
    """Return the one row of a query."""
    line = postgres.server.psql(f"\\t on\n{query}").strip()
    return [float(cell) for cell in line.split("|")]


def _deadlocks(postgres: Postgres) -> float:
    """Return the deadlocks so far; a backend reports its own when it ends."""
    return _numbers(postgres, "SELECT sum(deadlocks) FROM pg_stat_database")[0]


def checked(url: str, batch: Batch, outcome: Outcome) -> dict[str, int]:
    """Compare every answer with what the judge's rule implies for its group's rubric."""
    facts: Counter[str] = Counter(lost=len(list(batch.pairs())) - len(outcome.answers))
    with Client(url, api_key=API_KEY) as client:
        answers = iter(outcome.answers)
        for texts in batch.answers:
            group = [next(answers) for _ in texts]
            facts["split"] += len({answer.rubric_id for answer in group}) > 1
            facts["not whole"] += any(answer.received != SIZE for answer in group)
            criteria = client.rubric(group[0].rubric_id).criteria
            total = sum(criterion.points for criterion in criteria)
            for text, answer in zip(texts, group, strict=True):
                met = sum(
                    criterion.points
                    for criterion in criteria
                    if (ref := CRITERION_ID.search(criterion.text))
                    and is_met(ref.group(), find_answer_id(text))
                )
                facts["wrong"] += abs(answer.reward - met / total) > TOLERANCE
    return dict(facts)


def _row(
    load: str, batch: Batch, outcome: Outcome, facts: Mapping[str, int], *, killed: bool = False
) -> list[Row]:
    rollouts, groups = len(outcome.answers), len(batch.tasks)
    judge, counts = outcome.judge, outcome.counts
    waited = [answer.waited_s for answer in outcome.answers]
    again, twice = judge["calls"] - groups - rollouts, outcome.paid_twice
    paid = sum(before_s > UNSTORED_S for before_s in twice) if killed else again
    told = ""
    if killed:
        told = (
            f"; asked again of the killed replica's: {again - len(twice)} calls that it had not "
            f"heard the answer to, {len(twice)} whose answer it had not stored yet"
        )
        if twice:
            told += f" (given at most {max(twice):.2f} s before)"
    else:
        paid += judge["inductions"] - groups
    sound = not any(facts.values()) and not paid
    return [
        Row(
            FIGURE,
            load,
            "groups whole, one rubric each, 0 lost, 0 paid twice",
            f"{rollouts} of {rollouts + facts['lost']} rewards, {facts['wrong']} wrong; "
            f"{facts['split']} of {groups} groups with several rubrics, {facts['not whole']} not "
            f"whole; {paid} answers paid twice; {facts['deadlocks']} deadlocks{told}",
            sound,
            {"facts": dict(facts), "judge": {k: v for k, v in judge.items() if k != "sample"}},
        ),
        Row(
            FIGURE,
            load,
            "",
            f"{rollouts / outcome.wall_s:.0f} rollouts/s ({outcome.wall_s:.1f} s; median wait "
            f"{percentile(waited, 0.5):.1f} s); a rollout: "
            f"{counts['writing_transactions'] / rollouts:.2f} writing transactions and "
            f"{counts['wal_bytes'] / rollouts / 1000:.1f} kB of log in PostgreSQL, "
            f"{counts['redis_commands'] / rollouts:.1f} commands in Redis",
            None,
            {"wall_s": outcome.wall_s, "rollouts": rollouts, **counts},
        ),
    ]


def main() -> None:
    """Measure one, two and four replicas, a slow judge, and a run with two processes killed."""
    parser = argparse.ArgumentParser(prog="python -m service.ray_workers")
    parser.add_argument("--groups", type=int, default=128)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    console = Console(width=160)
    processes.prepare()
    os.environ["MARKSCHEME_API_KEY"] = API_KEY
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="markscheme-ray-") as scratch, ExitStack() as stack:
        workdir = Path(scratch)
        stub = stack.enter_context(processes.stub_judge(workdir))
        postgres = stack.enter_context(processes.postgres(workdir))
        redis = stack.enter_context(processes.redis(workdir))
        machine = describe((*PACKAGES, "ray"))
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        stack.callback(ray.shutdown)
        workers = [
            RewardWorker.options(max_concurrency=1024).remote() for _ in range(arguments.workers)
        ]
        ray.get([worker.pid.remote() for worker in workers])
        console.print(f"{len(workers)} workers run")
        cluster = Cluster(workdir, stub, postgres, redis, workers, [])
        work = Work(arguments.groups, SIZE, 4)

        def measure(load: str, replicas: int, latency_s: float, *, kill: bool = False) -> None:
            deadlocks = _deadlocks(cluster.postgres)
            with replicated(cluster, replicas) as service:
                warm_up = make_batch(Work(16, SIZE, 4), f"{load}, warm-up")
                score_batch(cluster, service, warm_up, latency_s=LATENCY_S)
                batch = make_batch(work, load)
                outcome = score_batch(cluster, service, batch, latency_s=latency_s, kill=kill)
                facts = checked(service.replicas[-1].url, batch, outcome)
                if outcome.cpu_s:
                    cluster.spent.append(
                        TimeSpent(FIGURE, load, outcome.wall_s, work.answers, outcome.cpu_s)
                    )
            facts["deadlocks"] = int(_deadlocks(cluster.postgres) - deadlocks)
            named = f"{load}, {work.prompts} groups of {SIZE}, judge {latency_s:g} s"
            found = _row(named, batch, outcome, facts, killed=kill)
            rows.extend(found)
            show(found, console)

        for count in REPLICAS:
            measure(f"{count} replica{'s' * (count > 1)}", count, LATENCY_S)
        measure("4 replicas, slow judge", 4, SLOW_LATENCY_S)
        # Slow, so that the replica has calls under way when it is killed.
        measure("4 replicas, a replica and a worker killed", 4, SLOW_LATENCY_S, kill=True)
        spent = cluster.spent
    paths = save(
        arguments.out / f"ray-{today()}",
        title="Reward workers on Ray",
        notes=(
            f"Command: `make bench-ray`. {arguments.workers} Ray actors, each a process; the "
            "rollouts of a group come one request each from as many actors, all of a batch at "
            "once, over HAProxy (`deploy/haproxy.cfg`) to the replicas, on PostgreSQL and Redis; "
            f"judge concurrency {JUDGE_CONCURRENCY}. All of it, the judge and the workers too, "
            "shares this machine's cores. Every reward was held against what the judge's rule "
            "implies for its group's rubric; another induction would have made another rubric.",
            "In the table of the time, a rollout is counted as a verdict; the Ray workers hold the "
            "SDK, Ray itself and the driver.",
        ),
        rows=rows,
        spent=spent,
        machine=machine,
    )
    for path in paths:
        console.print(f"written: {path}")
    missed = sum(row.met is False for row in rows)
    raise SystemExit(f"{missed} goals not met" if missed else 0)


if __name__ == "__main__":
    main()
