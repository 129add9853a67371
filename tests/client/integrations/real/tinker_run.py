"""Tinker cookbook's own group rollout with the recipe; a scripted sampling client."""

import asyncio
import json
import sys
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from recipe import recipe
from tinker_cookbook.renderers.qwen3 import Qwen3Renderer
from tinker_cookbook.rl.problem_env import ProblemEnv, ProblemGroupBuilder
from tinker_cookbook.rl.rollout_strategy import RetryOnFailure, RolloutStrategy
from tinker_cookbook.rl.rollouts import do_group_rollout_and_filter_constant_reward
from tokenizer import byte_tokenizer

PROMPT = sys.argv[1]
RubricGroup = recipe("tinker.md")["RubricGroup"]
tokenizer = byte_tokenizer()
renderer = Qwen3Renderer(tokenizer)


class Question(ProblemEnv):
    """An environment without a reward of its own."""

    def get_question(self) -> str:
        return PROMPT

    def check_answer(self, sample_str: str) -> bool:
        return False

    def check_format(self, sample_str: str) -> bool:
        return True

    def get_reference_answer(self) -> str:
        return ""


@dataclass
class Sampler:
    """What the rollout needs of a `SamplingClient`: gives the texts one after another."""

    texts: list[str]

    async def sample(self, prompt: Any, **_options: Any) -> Any:
        tokens = tokenizer.encode(self.texts.pop(0) + "<|im_end|>", add_special_tokens=False)
        sequence = SimpleNamespace(
            tokens=tokens, logprobs=[0.0] * len(tokens), stop_reason="stop", sequence_id=None
        )
        return SimpleNamespace(sequences=[sequence], prompt_cache_hit_tokens=0)


async def rewards(texts: list[str], strategy: RolloutStrategy | None = None) -> Any:
    builder = ProblemGroupBuilder(lambda: Question(renderer, format_coef=0.0), len(texts))
    group = RubricGroup(builder, [{"role": "user", "content": PROMPT}], renderer)
    try:
        made = await do_group_rollout_and_filter_constant_reward(
            Sampler(list(texts)), group, 64, 1.0, False, strategy=strategy
        )
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return made and [made.get_total_rewards(), [each["missed"] for each in made.metrics_G]]


async def main() -> None:
    texts = sys.argv[2:6]
    unscored = [*texts[:3], "silent"]
    facts = {
        "group": await rewards(texts),
        "thinking": await rewards([f"<think>a, b</think>{text}" for text in texts]),
        "unscored": await rewards(unscored),
        "unscored, skipped": await rewards(unscored, RetryOnFailure()),
    }
    sys.stdout.write("\n" + json.dumps(facts))


asyncio.run(main())
