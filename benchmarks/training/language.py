"""Training methods on language: SmolLM2-135M on IFEval prompts whose answers are short.

    python -m training.language [--only srpo …] [--seeds 2] [--workers 1] [--quick]

Runs go through the unchanged trainer; the judge is a function in this process (`training.graders`),
which runs the checks of the prompts' instructions (`training.short_prompts`). Prompts are chosen by
what the untrained model makes of them: all answers are short, some are right and some are not. A
finished run is stored and never run again. At the end, also after Ctrl-C, the report is written
from all that there is.
"""

import argparse
import fnmatch
import json
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from markscheme.schema import Rollout
from markscheme_train.demo.model import ensure_model
from markscheme_train.demo.run import load_student
from markscheme_train.demo.sample import Sample, sample_responses
from markscheme_train.distillation import token_log_probs
from markscheme_train.hidden_states import evaluating, output_head
from markscheme_train.prefix import shared_prompt_states
from markscheme_train.reprompt import reprompt
from service.machine import describe, sentence
from service.report import markdown_table, today, write
from training import runs
from training.arms import ROLLOUTS, Arm
from training.graders import Judged, Scale
from training.runs import Result, Run, as_stored, carry_out, process_pool, stored
from training.short_prompts import (
    BRIEFLY,
    MAX_PROMPT_WORDS,
    ShortPrompt,
    judge_of,
    load_short_prompts,
)
from training.summary import spread

TASK = "ifeval-short"
MAX_TOKENS = 64
"""Length limit of a rollout."""
MOST_CUT = 0.07
"""The largest share of a prompt's answers that hit it: one of 16."""
TEMPERATURE = 0.6
"""Of all sampling: at 1 twice as many answers ramble on to the limit."""
SCALE = 30
"""Factor of the published learning rates, as in the demo: few steps, a small model."""
RATES: Mapping[str, float] = {
    "grpo": 1e-6 * SCALE,
    "ropd": 1e-6 * SCALE,
    "sdpo": 1e-5 * SCALE,
    "srpo": 5e-6 * SCALE,
    "srpo-rubric": 5e-6 * SCALE,
}
"""By preset: arXiv 2604.02288, table 3 (GRPO, SDPO, SRPO) and 2605.07396, table A2 (ROPD)."""
PROMPTS = 2
"""Prompts of a step."""
SLOWER = 3
"""What the second learning rate of each arm is divided by."""
MEASURED_IN = torch.bfloat16
"""Precision of what only measures: twice as fast on this kind of CPU."""
CHOICE_SEED, AGAIN_SEED, ABILITIES_SEED, BESIDE_SEED = 1_000, 1_500, 2_000, 3_000


@dataclass(frozen=True)
class Sizes:
    """How much is done.

    Attributes:
        steps: Optimiser steps of a run.
        candidates: The most prompts that are tried.
        tried: Answers of each of them.
        again: Further ones of those of which none was cut off.
        trained: Prompts that are trained on.
        held_out: The most of the others that are held out.
        samples: Answers of each prompt by which a model is measured.
        compared: Prompts on which the self-teacher is measured beside its student.
        beside: Answers of each of them.
    """

    steps: int
    candidates: int
    tried: int
    again: int
    trained: int
    held_out: int
    samples: int
    compared: int
    beside: int


FULL = Sizes(
    steps=16,
    candidates=100,
    tried=4,
    again=12,
    trained=6,
    held_out=8,
    samples=8,
    compared=2,
    beside=64,
)
QUICK = Sizes(
    steps=2,
    candidates=12,
    tried=4,
    again=4,
    trained=2,
    held_out=1,
    samples=4,
    compared=1,
    beside=8,
)


def _arm(name: str, preset: str, scale: Scale = "verdict") -> Arm:
    rates = (RATES[preset], RATES[preset] / SLOWER)
    return Arm(TASK, name, preset, scale, {"temperature": TEMPERATURE}, rates, prompts=PROMPTS)


UNTRAINED = "untrained"
"""The arm that is measured only."""
ARMS = (
    Arm(TASK, UNTRAINED, "srpo", rates=(0.0,)),
    _arm("ropd", "ropd", "rubric"),
    _arm("grpo-rating", "grpo", "rating"),
    _arm("srpo", "srpo"),
    _arm("grpo", "grpo"),
    _arm("sdpo", "sdpo"),
    _arm("grpo-noisy-rubric", "grpo", "noisy-rubric"),
    _arm("srpo-rubric", "srpo-rubric", "rubric"),
)
COMPARISONS = (
    ("ropd", "grpo-rating"),
    ("grpo-noisy-rubric", "grpo-rating"),
    ("ropd", "grpo"),
    ("srpo", "grpo"),
    ("sdpo", "grpo"),
    ("srpo", "sdpo"),
    ("srpo-rubric", "ropd"),
)


def main() -> None:
    """Run what is missing and write the report."""
    parser = argparse.ArgumentParser(prog="python -m training.language")
    parser.add_argument(
        "--only", nargs="+", default=["*"], metavar="ARM", help="with * for any letters"
    )
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument(
        "--rates",
        nargs="+",
        type=int,
        default=[1],
        choices=(1, 2),
        help="which of each arm's rates: 1 is the papers', 2 a third of it",
    )
    parser.add_argument("--workers", type=int, default=1, choices=(1, 2))
    parser.add_argument("--quick", action="store_true", help="two steps, to see that it works")
    parser.add_argument("--model", type=Path, default=Path("build/smollm2"))
    parser.add_argument("--workdir", type=Path, default=Path("build/language"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    workdir, out, sizes = arguments.workdir, arguments.out, FULL
    if arguments.quick:
        workdir, sizes = workdir / "quick", QUICK
        out = workdir
    workdir.mkdir(parents=True, exist_ok=True)
    chosen = [
        arm for arm in ARMS if any(fnmatch.fnmatch(arm.name, pattern) for pattern in arguments.only)
    ]
    if not chosen:
        parser.error("no arm is named so; there is " + ", ".join(arm.name for arm in ARMS))
    seeds = range(1 if arguments.quick else arguments.seeds)
    wanted = planned(chosen, seeds, [1] if arguments.quick else arguments.rates, sizes)
    console = Console()
    directory = ensure_model(arguments.model)
    try:
        with process_pool(arguments.workers) as pool:
            carry_out(
                wanted,
                workdir,
                pool,
                arguments.workers,
                console,
                prepare=lambda missing: pool.submit(choose, workdir, directory, sizes).result(),
                do=partial(carried_out, directory=directory, sizes=sizes),
            )
    except KeyboardInterrupt:
        console.print("Stopped. Run it again to go on.")
    if finished := stored(workdir):
        report(finished, choice(workdir), out, console)


def planned(
    arms: Sequence[Arm], seeds: Iterable[int], rates: Sequence[int], sizes: Sizes
) -> list[Run]:
    """Return all runs, rate by rate and seed by seed: what is finished first can be compared.

    Rates count from 1.
    """
    return [
        Run(arm, arm.rates[rate - 1], seed, 0 if arm.name == UNTRAINED else sizes.steps)
        for rate in rates
        for seed in seeds
        for arm in arms
        if arm.name != UNTRAINED or (rate, seed) == (1, 0)
    ]


ANSWERS, CHOICE = "answers.json", "prompts.json"


def choice(workdir: Path) -> dict[str, Any]:
    """Return which prompts were chosen."""
    chosen: dict[str, Any] = json.loads((workdir / CHOICE).read_text())
    return chosen


def by_id() -> dict[str, ShortPrompt]:
    """Return all short prompts by id."""
    return {prompt.id: prompt for prompt in load_short_prompts()}


def choose(workdir: Path, directory: Path, sizes: Sizes) -> None:
    """Choose the prompts by the untrained model's answers, unless that is done."""
    if (workdir / CHOICE).is_file():
        return
    path = workdir / ANSWERS
    if not path.is_file():
        model, tokenizer = load_student(directory)
        model.to(MEASURED_IN)
        every = load_short_prompts()[: sizes.candidates]
        tried = answered(model, tokenizer, every, sizes.tried, CHOICE_SEED)
        left = [prompt for prompt, own in tried.items() if not cut_share([own])]
        again = answered(model, tokenizer, left, sizes.again, AGAIN_SEED)
        drawn = {p.id: [asdict(s) for s in (*own, *again.get(p, ()))] for p, own in tried.items()}
        path.write_text(json.dumps(drawn, indent=1, ensure_ascii=False))
    drawn = json.loads(path.read_text())
    chosen = chosen_of({name: [Sample(**s) for s in own] for name, own in drawn.items()}, sizes)
    (workdir / CHOICE).write_text(json.dumps(chosen, indent=1, ensure_ascii=False))


def chosen_of(drawn: Mapping[str, Sequence[Sample]], sizes: Sizes) -> dict[str, Any]:
    """Return which prompts are chosen, given the untrained model's answers to each candidate.

    Of the first answers of each none is cut off, of all at most `MOST_CUT`; some are right and some
    are not.
    """
    every = by_id()
    first = {name: own[: sizes.tried] for name, own in drawn.items()}
    kept = {}
    for name, own in drawn.items():
        right = rightness(every[name], [sample.text for sample in own])
        if not cut_share([first[name]]) and cut_share([own]) <= MOST_CUT and len(set(right)) == 2:
            kept[name] = own[right.index(True)].text
    if len(kept) <= sizes.trained:
        raise SystemExit(f"only {len(kept)} of {len(drawn)} prompts suit")
    names = list(kept)[: sizes.trained + sizes.held_out]
    return {
        "candidates": len(drawn),
        "cut_of_candidates": cut_share(first.values()),
        "answers": sizes.tried + sizes.again,
        "kept": {name: cut_share([drawn[name]]) for name in kept},
        "trained": names[: sizes.trained],
        "held_out": names[sizes.trained :],
        "demonstrations": {name: kept[name] for name in names[: sizes.compared]},
    }


def answered(
    model: Any, tokenizer: Any, prompts: Sequence[ShortPrompt], samples: int, seed: int
) -> dict[ShortPrompt, list[Sample]]:
    """Return sampled answers by prompt."""
    texts = [prompt.text for prompt in prompts]
    return dict(zip(prompts, answers(model, tokenizer, texts, samples, seed), strict=True))


def answers(
    model: Any, tokenizer: Any, prompts: Sequence[str], samples: int, seed: int
) -> list[list[Sample]]:
    """Return sampled answers to each prompt."""
    return sample_responses(
        model,
        tokenizer,
        prompts,
        per_prompt=samples,
        max_new_tokens=MAX_TOKENS,
        seed=seed,
        temperature=TEMPERATURE,
    )


def judged(prompt: ShortPrompt, texts: Iterable[str]) -> list[Judged]:
    """Return what the criteria and the official verifier say of answers."""
    judge = judge_of([prompt])
    return [judge(prompt.text, Rollout(id="r", text=text)) for text in texts]


def rightness(prompt: ShortPrompt, texts: Iterable[str]) -> list[bool]:
    """Return which answers are right."""
    return [each.right for each in judged(prompt, texts)]


def cut_share(drawn: Iterable[Iterable[Sample]]) -> float:
    """Return the share of answers that hit the length limit."""
    return round(statistics.fmean(s.truncated for samples in drawn for s in samples), 4)


def abilities(
    model: Any,
    tokenizer: Any,
    prompts: Mapping[str, Sequence[ShortPrompt]],
    samples: int,
) -> dict[str, dict[str, float]]:
    """Return what a model's fresh answers to each set of prompts are; every prompt weighs alike.

    `right` is the official pass rate, `met` the weighted share of criteria, `cut` the share that
    hit the length limit, `tokens` the mean length.
    """
    measured = {}
    for name, some in prompts.items():
        by_prompt = answered(model, tokenizer, some, samples, ABILITIES_SEED)
        drawn = list(by_prompt.values())
        verdicts = [
            each for p, own in by_prompt.items() for each in judged(p, [s.text for s in own])
        ]
        measured[name] = {
            "right": round(statistics.fmean(each.right for each in verdicts), 4),
            "met": round(statistics.fmean(each.share for each in verdicts), 4),
            "cut": cut_share(drawn),
            "tokens": round(statistics.fmean(s.tokens for own in drawn for s in own), 2),
        }
    return measured


def beside(
    student: Any,
    teacher: Any,
    tokenizer: Any,
    demonstrations: Mapping[ShortPrompt, str],
    samples: int,
) -> dict[str, float | None]:
    """Return how good the self-teacher is beside its student.

    `alone` is the student's official pass rate, `shown` the self-teacher's after a demonstration
    that was right. The gains are the log-probability of the student's answers by the self-teacher
    minus that by the student, in nats a token: of right answers and of others.

    Args:
        student: The student.
        teacher: The self-teacher.
        tokenizer: Their tokenizer.
        demonstrations: What it reads, by prompt.
        samples: Answers of each prompt.
    """
    texts = [prompt.text for prompt in demonstrations]
    read = [with_demonstration(prompt.text, said) for prompt, said in demonstrations.items()]
    alone = answers(student, tokenizer, texts, samples, BESIDE_SEED)
    shown = answers(teacher, tokenizer, read, samples, BESIDE_SEED)
    rates = {
        name: statistics.fmean(
            right
            for prompt, own in zip(demonstrations, drawn, strict=True)
            for right in rightness(prompt, [s.text for s in own])
        )
        for name, drawn in (("alone", alone), ("shown", shown))
    }
    gains: dict[bool, list[float]] = {True: [], False: []}
    for prompt, before, own in zip(demonstrations, read, alone, strict=True):
        said = [s for s in own if s.tokens]
        difference = log_probs(teacher, tokenizer, before, said) - log_probs(
            student, tokenizer, prompt.text, said
        )
        for right, gain in zip(rightness(prompt, [s.text for s in said]), difference, strict=True):
            gains[right].append(gain[~gain.isnan()])
    return {name: round(rate, 4) for name, rate in rates.items()} | {
        f"gain_{name}": round(float(torch.cat(some).mean()), 4) if some else None
        for name, some in (("right", gains[True]), ("wrong", gains[False]))
    }


def with_demonstration(prompt: str, demonstration: str) -> str:
    """Return the message that the self-teacher reads."""
    [message] = reprompt([{"role": "user", "content": prompt}], demonstration)
    return str(message["content"])


@torch.no_grad()
def log_probs(model: Any, tokenizer: Any, prompt: str, samples: Sequence[Sample]) -> Tensor:
    """Return the log-probabilities [B, C] of answers and their ends; NaN beside them."""
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=True
    )["input_ids"]
    said = [
        tokenizer(s.text, add_special_tokens=False)["input_ids"]
        + [tokenizer.eos_token_id] * (not s.truncated)
        for s in samples
    ]
    width = max(map(len, said))
    ids = torch.tensor(
        [[*chat, *own, *[tokenizer.eos_token_id] * (width - len(own))] for own in said]
    )
    kept = torch.arange(width) < torch.tensor([len(own) for own in said]).unsqueeze(1)
    mask = torch.cat([torch.ones(len(said), len(chat), dtype=torch.long), kept.long()], 1)
    with evaluating(model):
        states = shared_prompt_states(model.base_model, ids, mask, width)
    found, _ = token_log_probs(
        states[kept], ids[:, -width:][kept], output_head(model), temperature=TEMPERATURE
    )
    return torch.full(kept.shape, torch.nan).masked_scatter(kept, found)


def carried_out(run: Run, workdir: Path, *, directory: Path, sizes: Sizes) -> Result:
    """Train as planned; return the result as it is stored."""
    chosen, every = choice(workdir), by_id()
    prompts = {part: [every[name] for name in chosen[part]] for part in ("trained", "held_out")}
    model, tokenizer = load_student(directory)
    teacher, done = None, None
    if run.steps:
        done = runs.train(
            run,
            model,
            tokenizer,
            [prompt.text for prompt in prompts["trained"]],
            judge_of(prompts["trained"]),
            max_tokens=MAX_TOKENS,
        )
        if done.trainer.distillation is not None:
            teacher = done.trainer.distillation.self_teacher.model.to(MEASURED_IN)
    else:
        # Every self-teacher starts as the student.
        teacher = model
    started = time.perf_counter()
    model.to(MEASURED_IN)
    result = as_stored(run, done)
    result["after"] = abilities(model, tokenizer, prompts, sizes.samples)
    if teacher is not None:
        demonstrations = {every[name]: said for name, said in chosen["demonstrations"].items()}
        result["teacher"] = beside(model, teacher, tokenizer, demonstrations, sizes.beside)
    result["measuring_s"] = round(time.perf_counter() - started, 1)
    return result


def report(
    finished: Sequence[Result], chosen: Mapping[str, Any], out: Path, console: Console
) -> None:
    """Print the tables; write them with all recorded figures.

    Args:
        finished: Finished runs.
        chosen: What `choose` has stored.
        out: Folder of the files.
        console: Where to print.
    """
    machine = describe(("markscheme", "torch", "transformers", "trl"))
    steps = ", ".join(map(str, sorted({run["steps"] for run in finished} - {0})))
    differences = list(_differences(finished))
    lines = [
        f"# Training methods on SmolLM2-135M, {today()}",
        "",
        f"Machine: {sentence(machine)}.",
        "Command: `make bench-methods-language`.",
        "",
        f"IFEval prompts of at most {MAX_PROMPT_WORDS} words, each with IFEval's own "
        f'"{BRIEFLY}" added. The untrained model answered {chosen["candidates"]} of them '
        f"({chosen['cut_of_candidates']:.0%} of the answers hit the limit of {MAX_TOKENS} tokens). "
        f"{len(chosen['kept'])} are kept: at most one of {chosen['answers']} answers hit it, some "
        f"were right and some were not. {len(chosen['trained'])} are trained on and "
        f"{len(chosen['held_out'])} held out. "
        f"{f'A run has {steps}' if steps else 'No run is finished: it would have'} steps of "
        f"{PROMPTS} prompts and {ROLLOUTS} rollouts each, at temperature "
        f"{TEMPERATURE:g}. *Success*: the official verifier's pass rate of the rollouts, in the "
        "first and the second half of the steps; *right*: that of fresh answers afterwards; "
        "*met*: their weighted share of criteria; *cut*: those that hit the limit. "
        "*Self-teacher*: its pass rate after it has read a right answer, beside its student's "
        "without; *gain*: by how much it finds the student's right answers likelier, in nats a "
        "token. Means ± standard errors over seeds.",
        "",
        *markdown_table(COLUMNS, list(_arms(finished))),
    ]
    if differences:
        lines += [
            "",
            "## Differences, paired by seed",
            "",
            "Each arm at its first learning rate: that of the papers.",
            "",
            *markdown_table(("arm", "against", *COMPARED_BY, "seeds"), differences),
        ]
    paths = write(
        out / f"methods-language-{today()}",
        "\n".join(lines) + "\n",
        {"date": today(), "machine": machine, "prompts": chosen, "runs": list(finished)},
    )
    console.print("\n".join(lines[4:]), highlight=False, markup=False, soft_wrap=True)
    console.print(f"{len(finished)} runs; written to {paths[0]}", highlight=False)


Measure = Callable[[Mapping[str, Any]], float | None]


def _halves(run: Mapping[str, Any], part: int) -> float | None:
    middle = len(run["curve"]) // 2
    half = run["curve"][middle:] if part else run["curve"][:middle]
    return statistics.fmean(half) if half else None


MEASURES: Mapping[str, Measure] = {
    "first half": lambda run: _halves(run, 0),
    "second half": lambda run: _halves(run, 1),
    "right, trained": lambda run: run["after"]["trained"]["right"],
    "right, held out": lambda run: run["after"]["held_out"]["right"],
    "met, held out": lambda run: run["after"]["held_out"]["met"],
    "cut": lambda run: run["after"]["trained"]["cut"],
    "tokens": lambda run: run["after"]["trained"]["tokens"],
    "student": lambda run: run.get("teacher", {}).get("alone"),
    "self-teacher": lambda run: run.get("teacher", {}).get("shown"),
    "gain": lambda run: run.get("teacher", {}).get("gain_right"),
}
COLUMNS = ("arm", "rate", "seeds", *MEASURES)
COMPARED_BY = ("second half", "right, trained", "right, held out")


def _of(finished: Iterable[Result], arm: Arm, rate: float) -> dict[int, Result]:
    """Return an arm's runs by seed."""
    some = [r for r in finished if r["arm"] == arm.name and r["learning_rate"] == rate]
    return {run["seed"]: run for run in sorted(some, key=lambda run: run["seed"])}


def _arms(finished: Sequence[Result]) -> Iterable[tuple[object, ...]]:
    for arm in ARMS:
        for rate in arm.rates:
            if some := _of(finished, arm, rate).values():
                yield (
                    arm.name,
                    f"{rate:g}",
                    len(some),
                    *(
                        spread([value for run in some if (value := measure(run)) is not None])
                        for measure in MEASURES.values()
                    ),
                )


def _differences(finished: Sequence[Result]) -> Iterable[tuple[object, ...]]:
    by_name = {arm.name: arm for arm in ARMS}
    for names in COMPARISONS:
        one, other = (_of(finished, by_name[name], by_name[name].rates[0]) for name in names)
        if seeds := sorted(one.keys() & other.keys()):
            paired = [
                [measure(one[seed]) - measure(other[seed]) for seed in seeds]
                for measure in (MEASURES[name] for name in COMPARED_BY)
            ]
            yield (
                *names,
                *("+" * (statistics.fmean(values) >= 0) + spread(values) for values in paired),
                len(seeds),
            )


if __name__ == "__main__":
    main()
