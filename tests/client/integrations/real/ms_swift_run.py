"""ms-swift's own scoring and advantages of GRPO with the recipe."""

import json
import sys
from types import SimpleNamespace
from typing import Any

import torch
from recipe import recipe
from swift.rewards import orms
from swift.rl_core.advantage import compute_advantages
from swift.rl_core.data import GRPOSample
from swift.rl_core.grpo_algorithm import score_completions

recipe("ms_swift.md")
# As its trainer makes them; `run_name` is the folder of the run.
args = SimpleNamespace(num_generations=4, run_name="run-1")
reward = orms["rubric"](args=args)
state = SimpleNamespace(global_step=0)


def scored(texts: list[str]) -> Any:
    samples = [
        GRPOSample.from_row(
            {
                "messages": [
                    {"role": "user", "content": sys.argv[1]},
                    {"role": "assistant", "content": text},
                ],
                "prompt_id": "p0",
                "request_id": f"q{i}",
            }
        )
        for i, text in enumerate(texts)
    ]
    state.global_step += 1
    try:
        rewards = score_completions(
            samples, [reward], [None], False, torch.device("cpu"), trainer_state=state
        )
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    advantages, _ = compute_advantages(rewards, torch.ones(1), 4, scale_rewards="none")
    return [rewards[:, 0].tolist(), advantages.tolist()]


texts = sys.argv[2:6]
facts = {"epochs": [scored(texts) for _ in range(2)], "unscored": scored([*texts[:3], "silent"])}
sys.stdout.write("\n" + json.dumps(facts))
