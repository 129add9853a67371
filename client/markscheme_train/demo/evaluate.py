"""Evaluate before and after training, on fresh samples under one fixed rubric a prompt."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from markscheme.schema import Group, GroupScore, Rollout, Rubric, StudentResponse
from markscheme_train.demo.data import DemoPrompt
from markscheme_train.demo.ifeval import follows
from markscheme_train.demo.sample import Sample, sample_responses
from markscheme_train.demo.words import non_word_share
from markscheme_train.reward import Scorer

MAX_NEW_TOKENS = 40
INDUCTION_SAMPLES = 4


class Inducer(Scorer, Protocol):
    """The part of `markscheme.Client` that the demo needs."""

    def induce(
        self, prompt: Any, *, student_responses: Any, teacher_responses: Any = ..., reuse: Any = ...
    ) -> Rubric:
        """Make a rubric, or reuse one."""


@dataclass(frozen=True, slots=True)
class PromptResult:
    """One prompt's samples with their rewards (`None`: unscored) and official verdicts.

    `met` is the share of samples that met each criterion, by the criterion's id.
    """

    prompt: DemoPrompt
    rubric: Rubric
    samples: list[Sample]
    rewards: list[float | None]
    met: dict[str, float]
    follows: list[bool]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A model's results on a set of prompts. Every prompt has the same weight."""

    results: list[PromptResult]
    non_words: float

    @property
    def reward(self) -> float:
        """Mean of the known rewards."""
        return statistics.fmean(statistics.fmean(known) for known in self._known())

    @property
    def reward_error(self) -> float:
        """Standard error of `reward` over samples, for these prompts."""
        return _error(self._known())

    @property
    def ifeval(self) -> float:
        """Mean official pass rate."""
        return statistics.fmean(statistics.fmean(result.follows) for result in self.results)

    @property
    def ifeval_error(self) -> float:
        """Standard error of `ifeval` over samples."""
        return _error([[float(value) for value in result.follows] for result in self.results])

    @property
    def tokens(self) -> float:
        """Mean length in tokens."""
        return statistics.fmean(
            sample.tokens for result in self.results for sample in result.samples
        )

    @property
    def unscored(self) -> int:
        """Samples without a reward."""
        return sum(reward is None for result in self.results for reward in result.rewards)

    def _known(self) -> list[list[float]]:
        every = [
            [reward for reward in result.rewards if reward is not None] for result in self.results
        ]
        return [known for known in every if known]


def _error(groups: Sequence[Sequence[float]]) -> float:
    parts = [statistics.variance(values) / len(values) for values in groups if len(values) > 1]
    return math.sqrt(sum(parts)) / len(groups) if groups else 0.0


def induce_rubrics(
    client: Inducer, model: Any, tokenizer: Any, prompts: Sequence[DemoPrompt], *, seed: int
) -> list[Rubric]:
    """Return one rubric a prompt, induced from samples that are used for nothing else.

    Criteria picked because the evaluation's own samples missed them would make the model look worse
    before training than it is.
    """
    samples = sample_responses(
        model,
        tokenizer,
        [prompt.prompt for prompt in prompts],
        per_prompt=INDUCTION_SAMPLES,
        max_new_tokens=MAX_NEW_TOKENS,
        seed=seed,
    )
    return [
        client.induce(
            prompt.prompt,
            teacher_responses=prompt.teacher_responses,
            student_responses=[StudentResponse(text=s.text, truncated=s.truncated) for s in drawn],
        )
        for prompt, drawn in zip(prompts, samples, strict=True)
    ]


def evaluate(
    client: Scorer,
    model: Any,
    tokenizer: Any,
    prompts: Sequence[DemoPrompt],
    rubrics: Sequence[Rubric],
    *,
    per_prompt: int,
    seed: int,
    known: frozenset[str],
) -> Evaluation:
    """Sample, score under the given rubrics, and run the official verifier."""
    drawn = sample_responses(
        model,
        tokenizer,
        [prompt.prompt for prompt in prompts],
        per_prompt=per_prompt,
        max_new_tokens=MAX_NEW_TOKENS,
        seed=seed,
    )
    groups = [
        Group(
            id=prompt.id,
            prompt=prompt.prompt,
            rubric_id=rubric.id,
            rollouts=[
                Rollout(id=f"r{i}", text=s.text, truncated=s.truncated)
                for i, s in enumerate(samples)
            ],
        )
        for prompt, rubric, samples in zip(prompts, rubrics, drawn, strict=True)
    ]
    scores = {group.id: group for group in client.score(groups, reuse="frozen").groups}
    results = [
        _result(prompt, rubric, samples, scores[prompt.id])
        for prompt, rubric, samples in zip(prompts, rubrics, drawn, strict=True)
    ]
    return Evaluation(
        results, non_word_share((s.text for samples in drawn for s in samples), known)
    )


def _result(
    prompt: DemoPrompt, rubric: Rubric, samples: list[Sample], score: GroupScore
) -> PromptResult:
    rewards = {rollout.id: rollout.reward for rollout in score.rollouts}
    verdicts: dict[str, list[bool]] = {}
    for verdict in (verdict for rollout in score.rollouts for verdict in rollout.verdicts):
        if verdict.met is not None:
            verdicts.setdefault(verdict.criterion_id, []).append(verdict.met)
    return PromptResult(
        prompt,
        rubric,
        samples,
        [rewards[f"r{i}"] for i in range(len(samples))],
        {name: statistics.fmean(met) for name, met in verdicts.items()},
        [follows(prompt, sample.text) for sample in samples],
    )
