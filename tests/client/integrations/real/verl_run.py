"""verl's own `load_reward_manager` on a `DataProto`, and its reward workers on a Ray cluster."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from tokenizer import byte_tokenizer
from verl import DataProto
from verl.trainer.ppo.reward import load_reward_manager

PROMPT = [{"role": "user", "content": sys.argv[1]}]
TEXTS = sys.argv[2:]
tokenizer = byte_tokenizer()


def rows(texts: list[str], uid: str, extra: dict[str, Any]) -> DataProto:
    """Build what verl's agent loop passes for the rollouts of one prompt."""
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    width = max(map(len, ids))
    mask = torch.tensor([[1] * len(each) + [0] * (width - len(each)) for each in ids])
    prompt = torch.ones(len(texts), 3, dtype=torch.long)

    def objects(values: list[Any]) -> Any:
        made = np.empty(len(values), dtype=object)
        made[:] = values
        return made

    return DataProto.from_dict(
        tensors={
            "prompts": prompt,
            "responses": torch.tensor([each + [0] * (width - len(each)) for each in ids]),
            "attention_mask": torch.cat([torch.ones_like(prompt), mask], 1),
        },
        non_tensors={
            "data_source": objects(["x"] * len(texts)),
            "reward_model": objects([{"ground_truth": ""}] * len(texts)),
            "extra_info": objects([dict(extra) for _ in texts]),
            "uid": objects([uid] * len(texts)),
            "session_id": objects(list(range(len(texts)))),
            "raw_prompt": objects([PROMPT] * len(texts)),
        },
    )


def config(*, own: bool) -> Any:
    """Build the reward's part of verl's configuration."""
    if own:
        reward = {
            "num_workers": 2,
            "custom_reward_function": {},
            "reward_manager": {
                "source": "importlib",
                "name": "MarkschemeRewardManager",
                "module": {"path": "pkg://markscheme.integrations.verl"},
            },
        }
    else:
        reward = {
            "num_workers": 2,
            "custom_reward_function": {
                "path": "pkg://markscheme.integrations.verl",
                "name": "compute_score",
                "reward_kwargs": {"size": 4},
            },
            "reward_manager": {"source": "register", "name": "naive", "module": None},
        }
    rollout = {"n": 4, "val_kwargs": {"n": 1}}
    return OmegaConf.create({"reward": reward, "actor_rollout_ref": {"rollout": rollout}})


async def rewards(data: DataProto, *, own: bool) -> list[Any]:
    manager = load_reward_manager(config(own=own), tokenizer)
    found = await asyncio.gather(
        *(manager.run_single(data[i : i + 1]) for i in range(len(data))), return_exceptions=True
    )
    return [each if isinstance(each, dict) else f"{type(each).__name__}: {each}" for each in found]


@ray.remote
class Worker:
    """What verl's `RewardLoopWorker` does with the manager, without its reward model's router."""

    def __init__(self) -> None:
        self.manager = load_reward_manager(config(own=True), byte_tokenizer())

    async def compute_score(self, data: DataProto) -> Any:
        return await self.manager.run_single(data)


async def over_workers() -> list[Any]:
    data = rows(TEXTS[:4], "u-ray", {})
    workers = [Worker.remote() for _ in range(2)]
    asked = [workers[i % 2].compute_score.remote(data[i : i + 1]) for i in range(4)]
    return [(await each)["reward_score"] for each in asked]


def examples() -> list[Any]:
    """Compose the configurations of `examples/verl`, and load their managers."""
    folder = Path(__file__).parents[4] / "examples" / "verl"
    names = []
    for name in ("grpo", "compute_score"):
        with initialize_config_dir(str(folder), version_base=None):
            composed = compose(name)
        names.append(type(load_reward_manager(composed, tokenizer)).__name__)
    return names


async def main() -> None:
    facts = {
        "manager": await rewards(rows(TEXTS[:4], "u1", {}), own=True),
        "validation": await rewards(rows(TEXTS[:1], "u2", {"split": "test"}), own=True),
        "unscored": await rewards(rows([*TEXTS[:3], "silent"], "u3", {}), own=True),
        "compute_score": [
            await rewards(rows(TEXTS[:4], "u4", {"prompt": PROMPT}), own=False) for _ in range(2)
        ],
    }
    manager = type(load_reward_manager(config(own=True), tokenizer))
    scores = manager.assemble_rm_scores(rows(TEXTS[:4], "u5", {}), [1.0, 0.5, 0.25, 0.0])
    facts["examples"] = examples()
    facts["assembled"] = scores.sum(1).tolist()
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    facts["ray"] = await over_workers()
    ray.shutdown()
    sys.stdout.write("\n" + json.dumps(facts))


asyncio.run(main())
