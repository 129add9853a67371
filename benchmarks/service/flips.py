"""How often a verdict flips when its criterion is judged alone instead of among six.

    python -m service.flips [--rollouts 60]

SmolLM2-135M behind `service.local_judge` is asked by the service itself: four services on their own
databases, one with a criterion a call and three with all six in one. Two of those three share a
secret, so that their questions are identical; the third has other fences around the material, a
change that should not matter. The rollouts are the same model's responses to IFEval prompts. A
judge this small is poor and easily swayed: read the rate as an upper bound.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import httpx
from rich.console import Console

from ifeval import load_items, load_rollouts
from markscheme import Client
from markscheme_server.store import tables
from markscheme_server.store.engine.database import NO_TEAM
from markscheme_server.store.maintenance.migrate import prepare
from markscheme_server.store.store import Store
from markscheme_train.demo.model import ensure_model
from service import processes
from service.flip_statistics import Comparison, compare
from service.machine import describe, sentence
from service.report import markdown_table, today, write

CRITERIA = (
    "The answer stays on the topic of the task from beginning to end.",
    "The answer is written in complete, grammatical sentences.",
    "The answer gives at least one concrete detail or example.",
    "The answer obeys every formatting instruction of the task.",
    "The answer does not repeat a phrase or a sentence.",
    "The answer ends with a finished thought.",
)
ALONE, AMONG, AGAIN, REFENCED = "alone", "among six", "among six again", "among six, other fences"
WAYS = (ALONE, AMONG, AGAIN, REFENCED)
PAIRS = ((AMONG, AGAIN), (AMONG, REFENCED), (ALONE, AMONG))
JUDGE_TIMEOUT_S, REQUEST_TIMEOUT_S = 600, 3600


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m service.flips")
    parser.add_argument("--rollouts", type=int, default=60)
    parser.add_argument("--model", type=Path, default=Path("build/smollm2"))
    arguments = parser.parse_args()
    console = Console(width=160)
    processes.prepare()
    chosen = choose(arguments.rollouts)
    started = time.perf_counter()
    margins = ask_all(ensure_model(arguments.model), chosen, console)
    rows = [
        (
            f"{one} against {other}",
            threshold,
            compare(margins[one], margins[other], balanced=balanced),
        )
        for one, other in PAIRS
        for threshold, balanced in (("0", False), ("its median", True))
    ]
    table = markdown_table(
        (
            "asked",
            "threshold",
            "verdicts",
            "flipped",
            "if the two knew nothing in common",
            "met",
            "correlation of margins",
        ),
        [(pair, threshold, *_cells(comparison)) for pair, threshold, comparison in rows],
    )
    machine = describe()
    lines = [
        f"# Verdicts alone and among six, {today()}",
        "",
        f"Machine: {sentence(machine)}.",
        f"Command: `make bench-flips` ({time.perf_counter() - started:.0f} s). Judge: "
        "SmolLM2-135M-Instruct, the JSON forced, `met` by the larger of the logits of true and "
        f"false; {len(chosen)} of its own responses to IFEval prompts, {len(CRITERIA)} general "
        "criteria. ± one standard error, clustered by rollout.",
        "Threshold 0 is what the judge says. “Its median” calls met what is above the median "
        "margin of that criterion asked that way: it takes out the judge's leaning towards one "
        "answer.",
        "",
        *table,
        "",
        "The criteria:",
        "",
        *(f"{n}. {text}" for n, text in enumerate(CRITERIA, 1)),
    ]
    console.print("\n".join(table))
    data = {
        "date": today(),
        "machine": machine,
        "criteria": CRITERIA,
        "margins": margins,
        "comparisons": [{"asked": pair, "threshold": t, **asdict(c)} for pair, t, c in rows],
    }
    for path in write(Path(f"benchmarks/results/flips-{today()}"), "\n".join(lines) + "\n", data):
        console.print(f"written: {path}")


def choose(count: int) -> list[tuple[str, str]]:
    """Return (prompt, response) pairs: the first response of every prompt, then the second, …."""
    prompts = {item.id: item.prompt for item in load_items()}
    groups = [
        (prompts[i], [r.text for r in rollouts if r.text.strip()])
        for i, rollouts in load_rollouts().items()
    ]
    longest = max(len(texts) for _, texts in groups)
    pairs = [
        (prompt, texts[n]) for n in range(longest) for prompt, texts in groups if n < len(texts)
    ]
    return list(dict.fromkeys((prompt, text.strip()) for prompt, text in pairs))[:count]


def ask_all(
    model: Path, chosen: Sequence[tuple[str, str]], console: Console
) -> dict[str, list[list[float]]]:
    """Return the margins of every rollout's criteria, by way of asking."""
    margins: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory(prefix="markscheme-flips-") as scratch, ExitStack() as stack:
        workdir = Path(scratch)
        environment = processes.clean_environment({"PYTHONPATH": str(processes.BENCHMARKS)})
        command = [sys.executable, "-m", "service.local_judge", "--model", str(model.absolute())]
        judge = stack.enter_context(
            processes.listening(command, environment, workdir / "judge.log")
        )
        clients = {
            way: stack.enter_context(_client(stack, workdir, way, judge.url)) for way in WAYS
        }
        for number, (prompt, text) in enumerate(chosen, 1):
            for way, client in clients.items():
                margins[way].append(_ask(client, judge.url, prompt, text))
            console.print(f"{number} of {len(chosen)} rollouts", end="\r")
    return margins


def _client(stack: ExitStack, workdir: Path, way: str, judge_url: str) -> Client:
    name = "".join(c if c.isalnum() else "-" for c in way)
    database = f"sqlite+aiosqlite:///{workdir / name}.db"
    asyncio.run(_set_secret(database, "other" if way == REFENCED else "same"))
    settings = {
        "judge_model": "SmolLM2-135M-Instruct",
        "judge_concurrency": "1",
        "judge_timeout_s": str(JUDGE_TIMEOUT_S),
        "request_timeout_s": str(REQUEST_TIMEOUT_S),
    }
    if way == ALONE:
        settings["judge_max_criteria"] = "1"
    service = stack.enter_context(
        processes.service(
            workdir,
            name=name,
            database=database,
            redis_url=None,
            judge_url=f"{judge_url}/v1",
            settings=settings,
        )
    )
    return Client(service.url, api_key=processes.API_KEY)


async def _set_secret(database: str, value: str) -> None:
    """Set the secret that prompt fences are derived from; a service keeps what it finds."""
    await prepare(database)
    store = Store(database)
    try:
        async with store.database.writing(NO_TEAM) as connection:
            await connection.execute(
                tables.secrets.insert().values(name="marks", value=f"{value} of this benchmark")
            )
    finally:
        await store.close()


def _ask(client: Client, judge_url: str, prompt: str, text: str) -> list[float]:
    """Score one rollout; return the margins of its criteria in order."""
    rubric = client.create_rubric(
        prompt, [{"text": criterion, "points": 1} for criterion in CRITERIA]
    )
    batch = client.score(
        [
            {
                "id": "g",
                "prompt": prompt,
                "rubric_id": rubric.id,
                "rollouts": [{"id": "r", "text": text}],
            }
        ]
    )
    decisions = httpx.get(f"{judge_url}/decisions").raise_for_status().json()
    margins = {decision["criterion"]: decision["margin"] for decision in decisions}
    for criterion, verdict in zip(CRITERIA, batch.groups[0].rollouts[0].verdicts, strict=True):
        if verdict.met is not (margins[criterion] > 0):
            raise RuntimeError("the service reports another verdict than the judge gave")
    return [margins[criterion] for criterion in CRITERIA]


def _cells(c: Comparison) -> tuple[str, ...]:
    return (
        str(c.verdicts),
        f"{c.flips:.1%} ± {c.error:.1%}",
        f"{c.expected:.1%}",
        f"{c.met[0]:.0%} / {c.met[1]:.0%}",
        f"{c.correlation:.2f}",
    )


if __name__ == "__main__":
    main()
