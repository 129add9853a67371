"""What a run on many GPUs does, on one: FSDP 2 and ZeRO 3 with one process, a lag, and vLLM.

    python -m gpu.shards --out FILE [--small]

`srpo` learns from recorded rollouts, the same in each step, so that arms can be compared: shards
must give the losses and gradient norms of whole weights, and with `reward_lag: 1` the second step
those of the first one without. Each arm is a process of its own. On a CPU, where accelerate leaves
FSDP out, it is switched on by hand. With vLLM the rollouts are sampled. ZeRO 3 and vLLM are run
where DeepSpeed and vLLM are installed.
"""

import multiprocessing
import os
import socket
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from transformers import AutoTokenizer, PrinterCallback, ProgressCallback

from gpu.memory import fsdp_bytes
from gpu.part import Goal, Part, run_part
from gpu.shapes import QWEN3_06B, TINY, Shape, question, recorded, save_model
from gpu.steps import GPU, Stopwatch
from markscheme_train.trainer import MarkschemeTrainer
from markscheme_train.training import silence_libraries
from training.worker import assemble, shared

TABLE = "Three steps of srpo"
STEPS = 3
FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
}
ZERO = {
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3",
    "ACCELERATE_DEEPSPEED_ZERO3_INIT": "true",
    "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "true",
}
ARMS: Mapping[str, Mapping[str, Any]] = {
    "whole weights": {},
    "FSDP 2": {},
    "ZeRO 3": {},
    "reward_lag 1": {"reward_lag": 1},
    "vLLM": {"use_vllm": True, "vllm_mode": "colocate", "vllm_gpu_memory_utilization": 0.3},
}
SHARDS = "FSDP 2 beside whole weights, largest relative difference"
ZERO_SHARDS = "ZeRO 3 beside whole weights, largest relative difference"
LAG = "second step of reward_lag 1 beside the first of 0, largest relative difference"


@dataclass(frozen=True)
class Found:
    """What an arm logged a step: losses and gradient norms; seconds; peak bytes, `None` on a CPU.

    The seconds leave out the steps that warm up.
    """

    losses: Sequence[float]
    norms: Sequence[float]
    seconds: Sequence[float]
    peak: int | None


def run(part: Part, directory: Path, small: bool) -> None:
    """Run the arms and write the part."""
    shape, length = (TINY, 32) if small else (QWEN3_06B, 2048)
    # Where computing is bf16, kernels that add up in another order differ by its rounding.
    bound = 0.05 if GPU else 1e-4
    part.expect(Goal(SHARDS, at_most=bound), Goal(LAG, at_most=bound))
    save_model(shape, directory / "model")
    found: dict[str, Found] = {}
    for name in ARMS:
        if name == "vLLM" and (not GPU or find_spec("vllm") is None):
            part.note("vLLM is not installed or there is no GPU: not run.")
            continue
        if name == "ZeRO 3":
            if find_spec("deepspeed") is None:
                part.note("DeepSpeed is not installed: ZeRO 3 is not run.")
                continue
            part.expect(Goal(ZERO_SHARDS, at_most=bound))
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            found[name] = pool.submit(arm, name, shape, directory / "model", length).result()
        one = found[name]
        part.row(
            TABLE,
            arm=name,
            losses=" ".join(f"{loss:.4g}" for loss in one.losses),
            gradient_norms=" ".join(f"{norm:.4g}" for norm in one.norms),
            seconds_a_step=min(one.seconds),
            peak_GB=None if one.peak is None else one.peak / 1e9,
        )
        if name == "FSDP 2":
            part.measured(SHARDS, difference(one, found["whole weights"]))
        if name == "ZeRO 3":
            part.measured(ZERO_SHARDS, difference(one, found["whole weights"]))
        if name == "reward_lag 1":
            whole = found["whole weights"]
            part.measured(LAG, difference(step(one, 2), step(whole, 1)))
    reckoned = sum(fsdp_bytes(shape, 1).values()) / 1e9
    part.note(f"Reckoned for FSDP 2 on one GPU, before activations: {reckoned:.3g} GB.")


def arm(name: str, shape: Shape, model: Path, length: int) -> Found:
    """Train as an arm does."""
    silence_libraries()
    if name == "FSDP 2":
        os.environ |= FSDP | launched()
        if not GPU:
            shard_on_a_cpu()
    if name == "ZeRO 3":
        os.environ |= ZERO | launched()
    with tempfile.TemporaryDirectory() as out:
        settings = {
            **shared(length, STEPS, out),
            "per_device_train_batch_size": 5,
            "bf16": GPU,
            "use_cpu": not GPU,
            **ARMS[name],
        }
        tokenizer = AutoTokenizer.from_pretrained(model)
        rollouts = recorded(shape, length)
        trainer = assemble("srpo", model, tokenizer, question(), rollouts, settings)
        if name == "vLLM":
            del type(trainer)._generate_single_turn  # sampled, not recorded
        for printer in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(printer)
        clock = Clock(trainer, 0)
        trainer.add_callback(clock)
        trainer.train()
        logs = [log for log in trainer.state.log_history if "grad_norm" in log]
        return Found(
            [log["loss"] for log in logs],
            [log["grad_norm"] for log in logs],
            clock.taken.seconds,
            torch.cuda.max_memory_allocated() if GPU else None,
        )


class Clock(Stopwatch):
    """Times steps alone: a sharded trainer's own memory is not what `Stopwatch` subtracts."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop the clock."""
        self.stop(state)


def launched() -> dict[str, str]:
    """Return what torchrun tells the only process of a run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    return ranks | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def shard_on_a_cpu() -> None:
    """Switch on FSDP, which accelerate leaves out on a CPU."""
    plain = MarkschemeTrainer.create_accelerator_and_postprocess

    def create(trainer: MarkschemeTrainer) -> None:
        plain(trainer)
        state = trainer.accelerator.state
        state.fsdp_plugin = FullyShardedDataParallelPlugin()  # from the environment
        state.distributed_type = DistributedType.FSDP
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        trainer.is_fsdp_enabled = True

    MarkschemeTrainer.create_accelerator_and_postprocess = create  # type: ignore[method-assign]


def step(found: Found, number: int) -> Found:
    """Return one step, counted from 1."""
    return Found(found.losses[number - 1 : number], found.norms[number - 1 : number], (), None)


def difference(one: Found, other: Found) -> float:
    """Return the largest difference of losses and gradient norms, relative to the other's."""
    pairs = [
        *zip(one.losses, other.losses, strict=True),
        *zip(one.norms, other.norms, strict=True),
    ]
    return max(abs(a - b) / max(abs(b), 1e-6) for a, b in pairs)


if __name__ == "__main__":
    run_part("gpu.shards", run)
