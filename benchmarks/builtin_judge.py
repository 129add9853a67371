"""Quality of the builtin judge on 402 IFEval prompts, with GPT-4's and SmolLM2's responses.

    NLTK_DATA=… python benchmarks/builtin_judge.py [--out benchmarks/results]

Ground truth is IFEval's official verifier (`benchmarks/ifeval.py` says what it needs). A quarter of
the prompts is blind: never read while the rules were written. Figures of the reward use all
prompts, since weights and gate were tuned on them.
"""

import argparse
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ifeval import (
    DATA,
    Item,
    Rollout,
    atoms,
    checks_of,
    load_items,
    load_rollouts,
    official,
    wanted_atoms,
)
from markscheme_server.domain.rubric import Criterion, maximum_score
from markscheme_server.judge.base import InductionTask, JudgeFailure, StudentResponse
from markscheme_server.rules.checks import run_check
from markscheme_server.rules.contrast import contrast_words
from markscheme_server.rules.languages import language_of
from markscheme_server.rules.parse import parse_constraints
from markscheme_server.rules.rubricator import induce_criteria

MACHINE = "2 shared CPU cores, no GPU; single-threaded Python 3.11"
GUARD_SHARE = 0.2
"""Weight of the guards where they are summed instead of gating."""
Rubric = tuple[Criterion, ...]
Rubrics = dict[str, Rubric]


@dataclass(frozen=True)
class Section:
    """One table of the report."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]


def reading(items: Sequence[Item]) -> list[Section]:
    """Return precision and recall of what is read from the prompts."""
    asked: Counter[tuple[str, bool]] = Counter()
    found: Counter[tuple[str, bool]] = Counter()
    read: Counter[bool] = Counter()
    right: Counter[bool] = Counter()
    whole: Counter[bool] = Counter()
    for item in items:
        checks = [dict(candidate.check) for candidate in parse_constraints(item.prompt)]
        seen = atoms(checks)
        complete = True
        for name, arguments in item.instructions:
            hit = atoms(checks_of(name, arguments)) <= seen
            asked[name, item.blind] += 1
            found[name, item.blind] += hit
            complete = complete and hit
        read[item.blind] += len(checks)
        right[item.blind] += sum(atoms([check]) <= wanted_atoms(item) for check in checks)
        whole[item.blind] += complete
    names = sorted({name for name, _ in asked})
    by_name = [
        (
            name,
            asked[name, False],
            share(found[name, False], asked[name, False]),
            asked[name, True],
            share(found[name, True], asked[name, True]),
        )
        for name in names
    ]
    prompts = Counter(item.blind for item in items)
    totals = [
        (
            "blind" if blind else "read while writing",
            prompts[blind],
            share(
                sum(n for (_, b), n in found.items() if b == blind),
                sum(n for (_, b), n in asked.items() if b == blind),
            ),
            share(right[blind], read[blind]),
            share(whole[blind], prompts[blind]),
        )
        for blind in (False, True)
    ]
    return [
        Section(
            "Constraints read from the prompt",
            ("prompts", "n", "recall", "precision", "all of a prompt's"),
            totals,
        ),
        Section(
            "Recall by instruction",
            ("instruction", "n", "recall", "n blind", "recall blind"),
            by_name,
        ),
    ]


def paraphrases() -> Section:
    """Return recall on constraints worded differently from IFEval; half were not used to tune."""
    rows = [
        json.loads(line)
        for line in (DATA / "paraphrases.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    table = []
    for tuned in (True, False):
        asked = found = extra = 0
        for row in (r for r in rows if r["tuned"] is tuned):
            checks = [dict(candidate.check) for candidate in parse_constraints(row["prompt"])]
            asked += len(row["expected"])
            found += sum(atoms([check]) <= atoms(checks) for check in row["expected"])
            extra += sum(not atoms([check]) <= atoms(row["expected"]) for check in checks)
        table.append(
            ("used while tuning" if tuned else "not used", asked, share(found, asked), extra)
        )
    return Section("Paraphrases", ("set", "constraints", "recall", "read and not meant"), table)


def agreement(items: Sequence[Item], rollouts: dict[str, list[Rollout]]) -> Section:
    """Return how often a check agrees with the official verdict, given the instruction."""
    pairs: Counter[str] = Counter()
    same: Counter[str] = Counter()
    for item in items:
        for text in [item.teacher, *(r.text for r in rollouts.get(item.id, []))]:
            verdicts = official(item.id, text)
            for (name, arguments), verdict in zip(item.instructions, verdicts, strict=True):
                pairs[name] += 1
                same[name] += (
                    all(run_check(c, text).met for c in checks_of(name, arguments)) == verdict
                )
    rows = [
        (name, pairs[name], share(same[name], pairs[name]))
        for name in sorted(pairs)
        if same[name] < pairs[name]
    ]
    return Section(
        "Checks against official verdicts (instructions that always agree are left out)",
        ("instruction", "pairs", "agreement"),
        [("all", pairs.total(), share(same.total(), pairs.total())), *rows],
    )


def induce(item: Item, teachers: Sequence[str], students: Iterable[Rollout]) -> Rubric:
    """Return the rubric of a prompt; empty where there is none."""
    task = InductionTask(
        ({"role": "user", "content": item.prompt},),
        tuple(teachers),
        tuple(StudentResponse(r.text, r.truncated) for r in students),
    )
    try:
        return induce_criteria(task)
    except JudgeFailure:
        return ()


def summed(rubric: Rubric) -> Rubric:
    """Return the same rubric with its guards as criteria instead of the gate."""
    guards = (rubric[0].check or {})["checks"][:-1]
    plain = [
        Criterion(c.id, c.text, c.points, c.category, (c.check or {})["checks"][-1]) for c in rubric
    ]
    points = max(1, round(GUARD_SHARE / (1 - GUARD_SHARE) * maximum_score(rubric) / len(guards)))
    return (
        *plain,
        *(Criterion(f"g{n}", "guard", points, check=check) for n, check in enumerate(guards)),
    )


def earned(rubric: Rubric, text: str) -> float:
    """Return the reward of a response."""
    return sum(c.points for c in rubric if run_check(c.check or {}, text).met) / maximum_score(
        rubric
    )


def rewards(
    items: Sequence[Item], rollouts: dict[str, list[Rollout]], rubrics: Rubrics, name: str
) -> tuple[Any, ...]:
    """Return how the rewards of students and teachers agree with the official verdicts."""
    scores, shares, lengths, english = [], [], [], []
    spread = 0
    groups = [item for item in items if item.id in rollouts and item.id in rubrics]
    for item in groups:
        values = [earned(rubrics[item.id], r.text) for r in rollouts[item.id]]
        scores += values
        shares += [passed(item, r.text) for r in rollouts[item.id]]
        lengths += [len(r.text.split()) for r in rollouts[item.id]]
        english += [language_of(r.text) == "en" for r in rollouts[item.id]]
        spread += max(values) > min(values)
    teachers = [
        (earned(rubrics[i.id], i.teacher), passed(i, i.teacher)) for i in items if i.id in rubrics
    ]
    fluent = [(s, p) for s, p, e in zip(scores, shares, english, strict=True) if e]
    return (
        name,
        auc(scores, shares),
        auc(*zip(*fluent, strict=True)),
        pearson(scores, shares),
        share(spread, len(groups)),
        pearson(scores, lengths),
        auc(*zip(*teachers, strict=True)),
        pearson(*zip(*teachers, strict=True)),
    )


def passed(item: Item, text: str) -> float:
    """Return the share of a prompt's instructions that a response follows officially."""
    verdicts = official(item.id, text)
    return sum(verdicts) / len(verdicts)


def auc(scores: Sequence[float], shares: Sequence[float]) -> float:
    """Return the probability that a following response gets more than one that is not."""
    good = [s for s, p in zip(scores, shares, strict=True) if p == 1]
    bad = [s for s, p in zip(scores, shares, strict=True) if p < 1]
    return sum((g > b) + 0.5 * (g == b) for g in good for b in bad) / (len(good) * len(bad))


def pearson(left: Sequence[float], right: Sequence[float]) -> float:
    """Return Pearson's correlation."""
    return statistics.correlation(list(left), list(right))


CHEATS: dict[str, Callable[[Item], str]] = {
    "“ok”": lambda _: "ok",
    "the prompt": lambda item: item.prompt,
    "one word 60 times": lambda _: " ".join(["good"] * 60),
    "a prompt word 60 times": lambda item: " ".join([max(item.prompt.split(), key=len)] * 60),
}


def cheats(items: Sequence[Item], rubrics: Rubrics, name: str) -> list[tuple[Any, ...]]:
    """Return what a cheat earns, and on how many prompts that is less than the teacher."""
    rows = []
    for cheat, build in CHEATS.items():
        pairs = [
            (earned(rubrics[i.id], build(i)), earned(rubrics[i.id], i.teacher))
            for i in items
            if i.id in rubrics
        ]
        rows.append(
            (
                name,
                cheat,
                statistics.mean(c for c, _ in pairs),
                statistics.mean(t for _, t in pairs),
                share(sum(c < t for c, t in pairs), len(pairs)),
            )
        )
    return rows


def null_test(items: Sequence[Item], rollouts: dict[str, list[Rollout]]) -> Section:
    """Count contrast words with the own teacher, another prompt's, and a student as teacher."""
    found: dict[str, list[int]] = {
        "its own teacher": [],
        "another prompt's teacher": [],
        "a student posing as teacher": [],
    }
    for item, other in zip(items, [*items[1:], items[0]], strict=True):
        if item.id not in rollouts:
            continue
        students = [StudentResponse(r.text, r.truncated) for r in rollouts[item.id]]
        for name, teacher, rest in (
            ("its own teacher", item.teacher, students),
            ("another prompt's teacher", other.teacher, students),
            ("a student posing as teacher", students[0].text, students[1:]),
        ):
            found[name].append(len(contrast_words(item.prompt, [teacher], rest)))
    return Section(
        "Null test: contrast words a prompt",
        ("teacher", "words"),
        [(name, statistics.mean(counts)) for name, counts in found.items()],
    )


def share(part: int, whole: int) -> float:
    """Format a share."""
    return part / whole if whole else float("nan")


def measure() -> list[Section]:
    """Measure everything and return the report's sections."""
    items, rollouts = load_items(), load_rollouts()
    sections = [*reading(items), paraphrases(), agreement(items, rollouts)]
    started = time.perf_counter()
    gated = {
        item.id: rubric
        for item in items
        if (rubric := induce(item, [item.teacher], rollouts.get(item.id, [])))
    }
    induction_ms = (time.perf_counter() - started) / len(items) * 1e3
    plain = {key: summed(rubric) for key, rubric in gated.items()}
    variants = (("gate (shipped)", gated), ("guards summed", plain))
    sections.append(
        Section(
            "Reward against official verdicts",
            (
                "guards",
                "AUC students",
                "… in English",
                "Pearson students",
                "groups with spread",
                "Pearson with length",
                "AUC teachers",
                "Pearson teachers",
            ),
            [rewards(items, rollouts, rubrics, name) for name, rubrics in variants],
        )
    )
    sections.append(
        Section(
            "Cheats",
            ("guards", "response", "earns", "teacher earns", "below the teacher"),
            [row for name, rubrics in variants for row in cheats(items, rubrics, name)],
        )
    )
    sections.append(null_test(items, rollouts))
    sections.append(
        Section(
            "Size",
            ("figure", "value"),
            [
                ("prompts", len(items)),
                ("with a rubric", len(gated)),
                ("criteria a rubric", statistics.mean(len(r) for r in gated.values())),
                ("groups of rollouts", len(rollouts)),
                ("rollouts", sum(map(len, rollouts.values()))),
                ("induction, ms a prompt", induction_ms),
            ],
        )
    )
    return sections


def shown(value: Any) -> str:
    """Format a cell."""
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def write(sections: Sequence[Section], directory: Path) -> None:
    """Write a dated Markdown report and the same figures as JSON."""
    day = datetime.now(UTC).date().isoformat()
    lines = [
        f"# The builtin judge, {day}",
        "",
        f"Machine: {MACHINE}.",
        "Command: `python benchmarks/builtin_judge.py --out benchmarks/results`.",
        "“In English” leaves out students' responses that the gate's own language check refuses.",
    ]
    for section in sections:
        lines += [
            "",
            f"## {section.title}",
            "",
            f"| {' | '.join(section.columns)} |",
            f"|{'---|' * len(section.columns)}",
            *(f"| {' | '.join(map(shown, row))} |" for row in section.rows),
        ]
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"builtin_judge-{day}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    figures = {
        s.title: [dict(zip(s.columns, row, strict=True)) for row in s.rows] for s in sections
    }
    (directory / f"builtin_judge-{day}.json").write_text(
        json.dumps(
            {"date": day, "machine": MACHINE, "figures": figures}, ensure_ascii=False, indent=1
        )
        + "\n",
        encoding="utf-8",
    )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="directory for a dated Markdown and JSON report")
    arguments = parser.parse_args()
    sections = measure()
    console = Console()
    for section in sections:
        table = Table(*section.columns, title=section.title, title_justify="left")
        for row in section.rows:
            table.add_row(*map(shown, row))
        console.print(table)
    if arguments.out:
        write(sections, arguments.out)


if __name__ == "__main__":
    main()
