"""What verl's agent loop, TransferQueue and replay buffers make of rewards that are not known.

Real: the worker's `_run_prompt` and what follows a generation (the reward by our manager in a Ray
actor, the store), and the buffers' `sample`. Scripted: the generation. No weights are updated.
"""

import asyncio
import json
import sys
import threading
from typing import Any

import numpy as np
import ray
import transfer_queue as tq
from omegaconf import OmegaConf
from tokenizer import byte_tokenizer
from verl import DataProto
from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput
from verl.trainer.ppo.reward import load_reward_manager
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopWorkerTQ
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer, ReplayBufferAsync

PROMPT, TEXTS = sys.argv[1], sys.argv[2:]
SILENT = ["silent", "silent too", "silent as well", "silent again"]
CONFIG = OmegaConf.create(
    {
        "actor_rollout_ref": {"rollout": {"n": 4, "val_kwargs": {"n": 1}}},
        "reward": {
            "custom_reward_function": {},
            "reward_manager": {
                "source": "importlib",
                "name": "MarkschemeRewardManager",
                "module": {"path": "pkg://markscheme.integrations.verl"},
            },
        },
    }
)
tokenizer = byte_tokenizer()


@ray.remote
class RewardWorker:
    """What verl's `RewardLoopWorker` does with the manager, without its reward model's router."""

    def __init__(self) -> None:
        self.manager = load_reward_manager(CONFIG, byte_tokenizer())

    async def compute_score(self, data: DataProto) -> Any:
        return await self.manager.run_single(data)


class ScriptedWorker(AgentLoopWorkerTQ.__ray_metadata__.modified_class):  # type: ignore[misc]
    """verl's worker, whose model says what the prompt lists."""

    def __init__(self, reward_workers: list[Any]) -> None:
        self.config, self.tokenizer, self.processor = CONFIG, tokenizer, None
        self.reward_loop_worker_handles = reward_workers
        self.distillation_enabled = False

    def _get_mm_processor_kwargs(self, *_: Any) -> dict[str, Any]:
        return {}

    async def _run_agent_loop(
        self,
        sampling_params: dict[str, Any],
        trajectory: dict[str, Any],
        *,
        session_id: int,
        texts: list[str],
        trace: bool = False,
        **prompt: Any,
    ) -> None:
        ids = tokenizer(texts[session_id], add_special_tokens=False)["input_ids"]
        output = AgentLoopOutput(
            prompt_ids=[1, 2, 3],
            response_ids=ids,
            response_mask=[1] * len(ids),
            num_turns=2,
            metrics=AgentLoopMetrics(),
            extra_fields={},
        )
        await self._agent_loop_postprocess(
            output, trajectory["validate"], session_id=session_id, **prompt
        )


class Prompts:
    """What the trainer's `_add_prompts_to_generate` does: the next prompts, each a group."""

    def __init__(self, worker: ScriptedWorker, groups: list[list[str]], name: str) -> None:
        self._worker, self._left, self._name = worker, list(enumerate(groups)), name
        self.refilled: list[int] = []
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def begin(self, count: int) -> None:
        """Begin the next `count` prompts."""
        for _ in range(count):
            number, texts = self._left.pop(0)
            uid = f"{self._name}-{number}"
            tag = {"is_prompt": True, "status": "pending", "global_steps": 1}
            tq.kv_put(key=uid, partition_id="train", tag=tag)
            raw_prompt = np.empty(1, dtype=object)
            raw_prompt[0] = {"role": "user", "content": PROMPT}
            asked = {"uid": uid, "raw_prompt": list(raw_prompt), "texts": texts, "global_steps": 1}
            run = self._worker._run_prompt(asked, {}, {"validate": False})
            asyncio.run_coroutine_threadsafe(run, self._loop)

    def refill(self, count: int) -> None:
        self.refilled.append(count)
        self.begin(count)


def sampled(worker: ScriptedWorker, groups: list[list[str]], name: str, **options: Any) -> Any:
    """Let a buffer sample two prompts of these; return the rewards by prompt, and its refills."""
    kind = options.pop("kind")
    prompts = Prompts(worker, groups, name)
    buffer = kind(
        kind.__name__,
        OmegaConf.create({}),
        None,
        "drop",
        OmegaConf.create({}),
        poll_interval=0.2,
        refill_fn=prompts.refill,
        **options,
    )
    prompts.begin(2)
    try:
        batch, metrics = buffer.sample(global_steps=1, partition_id="train", batch_size=2)
    except RuntimeError as error:
        return {"error": str(error), "refilled": prompts.refilled}
    finally:
        left = (tq.kv_list() or {}).get("train", {})
    scores: dict[str, list[float]] = {}
    data = tq.kv_batch_get(keys=batch.keys, partition_id="train", select_fields=["rm_scores"])
    for key, score in zip(batch.keys, data["rm_scores"], strict=True):
        scores.setdefault(key.split("_")[0], []).append(float(score.sum()))
    tq.kv_clear(partition_id="train", keys=list({*left, *batch.keys}))
    return {
        "rewards": {uid: sorted(rewards) for uid, rewards in sorted(scores.items())},
        "refilled": prompts.refilled,
        "metrics": {name: float(value) for name, value in metrics.items()},
    }


def main() -> None:
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    tq.init(OmegaConf.create({"backend": {"SimpleStorage": {"num_data_storage_units": 1}}}))
    worker = ScriptedWorker([RewardWorker.remote() for _ in range(2)])
    one_lost = [*TEXTS[:3], "silent"]
    exact = {"train_batch_size": 2, "gen_batch_size": 1}
    facts = {
        "sync, one unknown": sampled(
            worker, [TEXTS[:4], one_lost], "a", kind=ReplayBuffer, **exact
        ),
        "sync, none known, refill": sampled(
            worker,
            [TEXTS[:4], SILENT, TEXTS[:4]],
            "b",
            kind=ReplayBuffer,
            sync_refill_failed_groups=True,
            **exact,
        ),
        "sync, none known": sampled(worker, [TEXTS[:4], SILENT], "c", kind=ReplayBuffer, **exact),
        "async, one unknown": sampled(
            worker, [TEXTS[:4], one_lost, TEXTS[:4]], "d", kind=ReplayBufferAsync
        ),
    }
    tq.close()
    ray.shutdown()
    sys.stdout.write("\n" + json.dumps(facts))


main()
