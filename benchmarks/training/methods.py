"""SmolLM2-135M under five training methods: the same prompts, seeds, rubrics and rollouts.

    python -m training.methods [--steps 15] [--seeds 3]

`grpo`, `sdpo` and `srpo` learn from one verdict on the whole answer: 1 when it meets every
criterion of its prompt's rubric, else 0. That is the sparse reward of SRPO's authors, and the
"T-Judge" that ROPD's authors compare with. `ropd` and `srpo-rubric` learn from the rubric's
weighted pass rate; `ropd` differs from `grpo` in nothing else. The judge is the builtin one; the
official IFEval verdict is no arm's reward. Each finished arm is stored under `--workdir`, so that
an interrupted benchmark goes on.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from markscheme import Client
from markscheme.schema import Group, ScoreBatch
from markscheme_train.config import TrainConfig, build_config
from markscheme_train.data import Example
from markscheme_train.demo.data import DemoPrompt, load_prompts
from markscheme_train.demo.evaluate import MAX_NEW_TOKENS, Evaluation, evaluate, induce_rubrics
from markscheme_train.demo.model import ensure_model
from markscheme_train.demo.run import load_student, prepare_torch
from markscheme_train.demo.service import running_service
from markscheme_train.demo.words import known_words
from markscheme_train.reward import RubricReward, Scorer
from markscheme_train.step_log import StepRecord, StepRecorder
from markscheme_train.training import build_trainer, eos_token_ids
from service.machine import describe, sentence
from service.report import markdown_table, today, write
from training.plot import Curve, draw

METHODS = ("grpo", "sdpo", "srpo", "ropd", "srpo-rubric")
ONE_VERDICT = ("grpo", "sdpo", "srpo")
LEARNING_RATE = 3e-5
SAMPLES, HELD_OUT_SAMPLES = 8, 4
INDUCTION_SEED, EVALUATION_SEED = 1_000, 2_000
PHASES = ("rollout", "scoring", "teacher", "update")
LAST = 5
"""Steps at the end of a run that late rewards and seconds are averaged over."""


class Watched:
    """A service whose scores are recorded; with `one_verdict` its rewards are 0 or 1.

    An unknown reward stays unknown.
    """

    def __init__(self, service: Scorer, *, one_verdict: bool) -> None:
        self._service, self._one_verdict = service, one_verdict
        self.batches: list[dict[str, float]] = []

    def score(self, groups: Sequence[Group], **options: Any) -> ScoreBatch:
        """Score a batch and record it."""
        batch = self._service.score(groups, **options)
        row_scores = [
            [rollout.reward for rollout in group.rollouts if rollout.reward is not None]
            for group in batch.groups
        ]
        known = [reward for group in row_scores for reward in group]
        if not known:
            raise RuntimeError(
                "the builtin judge has left a whole batch unscored: there is nothing to compare"
            )
        met = [[whole(reward) for reward in group] for group in row_scores if group]
        self.batches.append(
            {
                "rubric_reward": statistics.fmean(known),
                "whole": statistics.fmean(whole(reward) for reward in known),
                "groups_all_wrong": sum(not any(group) for group in met) / len(met),
                "groups_mixed": sum(any(group) and not all(group) for group in met) / len(met),
            }
        )
        if not self._one_verdict:
            return batch
        return batch.model_copy(
            update={
                "groups": [
                    group.model_copy(
                        update={
                            "rollouts": [
                                rollout.model_copy(
                                    update={
                                        "reward": None
                                        if rollout.reward is None
                                        else float(whole(rollout.reward))
                                    }
                                )
                                for rollout in group.rollouts
                            ]
                        }
                    )
                    for group in batch.groups
                ]
            }
        )


def whole(reward: float) -> bool:
    """Return whether a weighted pass rate means that every criterion is met."""
    return reward > 1 - 1e-9


@dataclass(frozen=True)
class Measure:
    """A model's results on one set of prompts."""

    reward: float
    reward_error: float
    whole: float
    ifeval: float
    ifeval_error: float
    tokens: float
    non_words: float
    unscored: int


@dataclass(frozen=True)
class Arm:
    """One training: results before and after, and each step's record."""

    method: str
    seed: int
    before: dict[str, Measure]
    after: dict[str, Measure]
    steps: list[dict[str, Any]]

    def seconds(self, steps: slice = slice(None)) -> list[float]:
        """Seconds of its steps."""
        return [sum(step[f"{phase}_s"] for phase in PHASES) for step in self.steps[steps]]

    def series(self, name: str) -> list[float]:
        """Return one figure by step."""
        return [step[name] for step in self.steps]


def main() -> None:
    """Run all arms and write the report."""
    parser = argparse.ArgumentParser(prog="python -m training.methods")
    parser.add_argument(
        "--steps", type=int, default=15, help="of 2 prompts x 8 rollouts; 5 see every prompt once"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--workdir", type=Path, default=Path("build/methods"))
    parser.add_argument("--model", type=Path, default=Path("build/smollm2"))
    arguments = parser.parse_args()
    console = Console(width=160)
    prepare_torch()
    directory = ensure_model(arguments.model)
    arms = []
    for seed in range(arguments.seeds):
        arms += run_seed(
            directory,
            arguments.workdir / f"steps-{arguments.steps}" / f"seed-{seed}",
            arguments.methods,
            seed=seed,
            steps=arguments.steps,
            console=console,
        )
    report(arms, arguments.steps, console)


def run_seed(
    directory: Path,
    workdir: Path,
    methods: Sequence[str],
    *,
    seed: int,
    steps: int,
    console: Console,
) -> list[Arm]:
    """Run all methods from the same model under the same rubrics; finished ones are read."""
    trained, held_out = load_prompts()
    arms = []
    with running_service(workdir / "service") as url:
        client = Client(url)
        model, tokenizer = load_student(directory)
        measure = (
            Measuring(client, model, tokenizer, trained, held_out, seed)
            if not all((workdir / f"{method}.json").is_file() for method in methods)
            else None
        )
        for method in methods:
            file = workdir / f"{method}.json"
            if measure is not None and not file.is_file():
                model, tokenizer = load_student(directory)
                records = train(
                    model,
                    tokenizer,
                    client,
                    trained,
                    method,
                    workdir / method,
                    seed=seed,
                    steps=steps,
                )
                arm = Arm(method, seed, measure.before, measure.of(model), records)
                file.write_text(json.dumps(asdict(arm)))
            arms.append(read(file))
            console.print(line(arms[-1]), highlight=False)
        client.close()
    return arms


class Measuring:
    """Fresh samples under one rubric a prompt, shared by all arms of a seed.

    `before` is the untrained model's result.
    """

    def __init__(
        self,
        client: Client,
        model: Any,
        tokenizer: Any,
        trained: list[DemoPrompt],
        held_out: list[DemoPrompt],
        seed: int,
    ) -> None:
        self._client, self._tokenizer, self._seed = client, tokenizer, seed
        self._known = known_words(
            tokenizer,
            [text for p in trained + held_out for text in (p.prompt, *p.teacher_responses)],
        )
        rubrics = induce_rubrics(
            client, model, tokenizer, trained + held_out, seed=seed + INDUCTION_SEED
        )
        self._sets = {
            "trained": (trained, rubrics[: len(trained)], SAMPLES),
            "held out": (held_out, rubrics[len(trained) :], HELD_OUT_SAMPLES),
        }
        self.before = self.of(model)

    def of(self, model: Any) -> dict[str, Measure]:
        """Measure a model."""
        return {
            name: measured(
                evaluate(
                    self._client,
                    model,
                    self._tokenizer,
                    prompts,
                    rubrics,
                    per_prompt=samples,
                    seed=self._seed + EVALUATION_SEED,
                    known=self._known,
                )
            )
            for name, (prompts, rubrics, samples) in self._sets.items()
        }


def train(
    model: Any,
    tokenizer: Any,
    client: Client,
    prompts: list[DemoPrompt],
    method: str,
    out: Path,
    *,
    seed: int,
    steps: int,
) -> list[dict[str, Any]]:
    """Train `model` in place; return each step's record with its rollouts' scores."""
    config = configured(method, out, seed=seed, steps=steps)
    watched = Watched(client, one_verdict=method in ONE_VERDICT)
    reward = RubricReward(
        watched,
        num_generations=config.num_generations,
        run_id=f"{method}-{seed}",
        reuse="frozen",
        eos_token_ids=eos_token_ids(model, tokenizer),
    )
    examples = [Example(prompt=p.prompt, teacher_responses=p.teacher_responses) for p in prompts]
    trainer = build_trainer(config, model, tokenizer, examples, reward)
    records: list[StepRecord] = []
    routed: list[float] = []

    def keep(record: StepRecord) -> None:
        records.append(record)
        shares = trainer._metrics["train"].get("distillation/routed_share")
        routed.append(shares[-1] if shares else 0.0)

    trainer.add_callback(StepRecorder(trainer, out / "steps.jsonl", keep))
    trainer.train()
    return [
        asdict(record) | {"criteria": None} | batch | {"routed": share}
        for record, batch, share in zip(records, watched.batches, routed, strict=True)
    ]


def configured(method: str, out: Path, *, seed: int, steps: int) -> TrainConfig:
    """Return the preset at the scale of two cores.

    One learning rate for all, and no warm-up, which is meant for hundreds of steps: the presets'
    rates differ by ten, and would otherwise be what is compared.
    """
    return build_config(
        {
            "model": "given",
            "data": "given",
            "output_dir": str(out),
            "preset": method,
            "seed": seed,
            "max_steps": steps,
            "learning_rate": LEARNING_RATE,
            "warmup_steps": 0,
            "lr_scheduler_type": "constant",
            "per_device_train_batch_size": 16,
            "gradient_accumulation_steps": 1,
            "num_generations": 8,
            "max_completion_length": MAX_NEW_TOKENS,
            "use_cpu": True,
            "bf16": False,
            "activation_checkpointing": False,
            "dataloader_pin_memory": False,
            "logging_strategy": "no",
            "save_strategy": "no",
            "disable_tqdm": True,
        }
    )


def measured(evaluation: Evaluation) -> Measure:
    """Return the measurement of one set of prompts."""
    return Measure(
        reward=evaluation.reward,
        reward_error=evaluation.reward_error,
        whole=statistics.fmean(
            whole(reward)
            for result in evaluation.results
            for reward in result.rewards
            if reward is not None
        ),
        ifeval=evaluation.ifeval,
        ifeval_error=evaluation.ifeval_error,
        tokens=evaluation.tokens,
        non_words=evaluation.non_words,
        unscored=evaluation.unscored,
    )


def read(file: Path) -> Arm:
    """Read a finished arm."""
    data = json.loads(file.read_text())
    sets = {
        when: {name: Measure(**values) for name, values in data[when].items()}
        for when in ("before", "after")
    }
    return Arm(data["method"], data["seed"], sets["before"], sets["after"], data["steps"])


def line(arm: Arm) -> str:
    """Return one line of the table."""

    def change(name: str, of: str) -> str:
        return f"{getattr(arm.before[name], of):.2f} → {getattr(arm.after[name], of):.2f}"

    return (
        f"seed {arm.seed}  {arm.method:11}  reward {change('trained', 'reward')}, held out "
        f"{change('held out', 'reward')}  IFEval {change('trained', 'ifeval')}, held out "
        f"{change('held out', 'ifeval')}  {statistics.median(arm.seconds()):.1f} s a step"
    )


def report(arms: Sequence[Arm], steps: int, console: Console) -> None:
    """Return the dated tables and the plot, beside the papers' claims."""
    methods = list(dict.fromkeys(arm.method for arm in arms))
    seeds = len({arm.seed for arm in arms})
    machine = describe(("markscheme", "torch", "transformers", "trl"))
    by = {method: [arm for arm in arms if arm.method == method] for method in methods}
    start = next(iter(by.values()))
    results = [("before", *_quality([arm.before for arm in start]))]
    results += [(method, *_quality([arm.after for arm in by[method]])) for method in methods]
    first, late = slice(0, LAST), slice(steps - LAST, steps)
    course = [
        (
            method,
            *(
                _spread([statistics.fmean(arm.series(name)[part]) for arm in by[method]])
                for part in (first, late)
                for name in ("rubric_reward", "whole", "routed")
            ),
        )
        for method in methods
    ]
    seconds = [
        (
            method,
            *(_typical([arm.series(f"{phase}_s") for arm in by[method]]) for phase in PHASES),
            *(_typical([arm.seconds(part) for arm in by[method]]) for part in (first, late)),
            f"{statistics.fmean(sum(arm.seconds()) for arm in by[method]):.0f}",
        )
        for method in methods
    ]
    mixed = [
        arm.series(name)[:LAST] for name in ("groups_all_wrong", "groups_mixed") for arm in arms
    ]
    half = len(mixed) // 2
    picture = Path(f"benchmarks/results/methods-{today()}.svg")
    picture.parent.mkdir(parents=True, exist_ok=True)
    draw(
        picture,
        [
            Curve(
                method,
                [arm.series("rubric_reward") for arm in by[method]],
                [arm.seconds() for arm in by[method]],
            )
            for method in methods
        ],
        rollouts=16,
    )
    lines = [
        f"# Five training methods on SmolLM2-135M, {today()}",
        "",
        f"Machine: {sentence(machine)}; {torch.get_num_threads()} torch threads.",
        f"Command: `make bench-methods`. {seeds} seeds, {steps} steps of 2 prompts x 8 rollouts of "
        f"at most {MAX_NEW_TOKENS} tokens, learning rate {LEARNING_RATE:g} and no warm-up for "
        "every method, everything else by preset. Within a seed all methods start from one model, "
        "see the same prompts in the same order, and are judged by the same rubric for each "
        "prompt (builtin judge). Demonstrations come from siblings alone.",
        "`grpo`, `sdpo` and `srpo` learn from one verdict on the whole answer (1 when it meets "
        "the whole rubric), `ropd` and `srpo-rubric` from the weighted pass rate. `ropd` against "
        "`grpo` is therefore the rubric against one holistic number from the same judge; nothing "
        "else differs.",
        f"In the first {LAST} steps {statistics.fmean(v for s in mixed[:half] for v in s):.0%} of "
        "all groups were all wrong by the one verdict and "
        f"{statistics.fmean(v for s in mixed[half:] for v in s):.0%} mixed.",
        "",
        "Fresh samples after training; mean ± one standard error over seeds. IFEval: the official "
        "strict verdict, which no method saw.",
        "",
        *markdown_table(
            (
                "",
                "rubric reward",
                "whole rubric met",
                "IFEval",
                "held out: reward",
                "held out: IFEval",
                "tokens",
                "non-words",
                "unscored",
            ),
            results,
        ),
        "",
        f"Rollouts while training, first {LAST} steps and last {LAST}:",
        "",
        *markdown_table(
            (
                "",
                "rubric reward",
                "whole met",
                "to self-teacher",
                "late: rubric reward",
                "late: whole met",
                "late: to self-teacher",
            ),
            course,
        ),
        "",
        f"Seconds a step (median of a run, mean over seeds; early and late are {LAST} steps). Arms "
        "run one after another, not in turns: what `grpo` and `ropd`, which do the same work, "
        "differ by is the noise.",
        "",
        *markdown_table(("", *PHASES, "early step", "late step", "whole run"), seconds),
        "",
        "Beside what the papers say of models thirty to sixty times as large; differences are "
        "paired by seed, ± one standard error:",
        "",
        *markdown_table(("claim", "theirs", "here"), claims(by, first, late)),
        "",
        f"![reward by rollouts and by seconds]({picture.name})",
    ]
    console.print("\n".join(lines))
    data = {
        "date": today(),
        "machine": machine,
        "steps": steps,
        "arms": [asdict(arm) for arm in arms],
    }
    for path in write(picture.with_suffix(""), "\n".join(lines) + "\n", data):
        console.print(f"written: {path}")


def claims(by: dict[str, list[Arm]], early: slice, late: slice) -> list[tuple[str, str, str]]:
    """Return what the papers report, and the same comparison here, for the arms that ran.

    SRPO: arXiv 2604.02288, table 1 and its seconds a step, Qwen3-8B. ROPD: arXiv 2605.07396, table
    1, Qwen3-4B.
    """

    def difference(one: str, other: str, of: Callable[[Arm], float]) -> str | None:
        if not (by.get(one) and by.get(other)):
            return None
        return _spread(
            [of(a) - of(b) for a, b in zip(by[one], by[other], strict=True)], signed=True
        )

    def rollouts(steps: slice) -> Callable[[Arm], float]:
        return lambda arm: statistics.fmean(arm.series("rubric_reward")[steps])

    def seconds(steps: slice, method: str = "srpo") -> str | None:
        if not (by.get(method) and by.get("grpo")):
            return None
        ratios = [
            statistics.median(a.seconds(steps)) / statistics.median(b.seconds(steps)) - 1
            for a, b in zip(by[method], by["grpo"], strict=True)
        ]
        return _spread(ratios, percent=True, signed=True)

    rows = (
        (
            "SRPO above SDPO early",
            "66.9 against 64.8 % after an hour",
            difference("srpo", "sdpo", rollouts(early)),
            "in the rubric reward of the first steps",
        ),
        (
            "SRPO above GRPO late",
            "77.4 against 74.0 % after ten hours",
            difference("srpo", "grpo", rollouts(late)),
            "in that of the last steps",
        ),
        (
            "… and on held-out prompts",
            "as above",
            difference("srpo", "grpo", lambda a: a.after["held out"].ifeval),
            "in the IFEval pass rate after training",
        ),
        (
            "SRPO's step dearer than GRPO's at first",
            "+17.4 % in the first hour",
            seconds(early),
            "in the first steps",
        ),
        (
            "… and cheaper once failures thin out",
            "-17.2 % at ten hours",
            seconds(late),
            "in the last steps",
        ),
        (
            "(noise: ropd's step against grpo's, the same work)",
            "",
            seconds(early, "ropd"),
            "in the first steps",
        ),
        ("(noise, late)", "", seconds(late, "ropd"), "in the last steps"),
        (
            "SDPO falls behind GRPO late",
            "71.1 against 74.0 %",
            difference("sdpo", "grpo", rollouts(late)),
            "in the rubric reward of the last steps",
        ),
        (
            "rubric above one scalar of the same judge",
            "65.0 against 62.5 % (AIME24), first in all 14 settings",
            difference("ropd", "grpo", lambda a: a.after["trained"].ifeval),
            "in IFEval on the trained prompts",
        ),
        (
            "… and on held-out prompts",
            "as above",
            difference("ropd", "grpo", lambda a: a.after["held out"].ifeval),
            "in IFEval",
        ),
    )
    return [
        (claim, theirs, f"{found} {where}")
        for claim, theirs, found, where in rows
        if found is not None
    ]


def _quality(sets: Sequence[dict[str, Measure]]) -> tuple[str, ...]:
    def over(name: str, of: str, percent: bool = False) -> str:
        return _spread([getattr(measures[name], of) for measures in sets], percent=percent)

    return (
        over("trained", "reward"),
        over("trained", "whole"),
        over("trained", "ifeval"),
        over("held out", "reward"),
        over("held out", "ifeval"),
        f"{statistics.fmean(m['trained'].tokens for m in sets):.1f}",
        over("trained", "non_words", percent=True),
        str(sum(m.unscored for s in sets for m in s.values())),
    )


def _typical(runs: Sequence[Sequence[float]]) -> str:
    """Return the mean over runs of each one's median."""
    return f"{statistics.fmean(map(statistics.median, runs)):.1f}"


def _spread(values: Sequence[float], *, percent: bool = False, signed: bool = False) -> str:
    """Return mean ± standard error."""
    mean = statistics.fmean(values)
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    if percent:
        return f"{mean:+.1%} ± {error:.1%}" if signed else f"{mean:.1%} ± {error:.1%}"
    return f"{mean:+.3f} ± {error:.3f}" if signed else f"{mean:.3f} ± {error:.3f}"


if __name__ == "__main__":
    main()
