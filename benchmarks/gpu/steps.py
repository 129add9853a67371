"""A step of grpo, sdpo and srpo beside TRL's: seconds, tokens a second, peak memory.

    python -m gpu.steps --out FILE [--small]

The model has the shape of Qwen3-0.6B and random weights; rollouts are recorded, two of five failed
(40 % go to the self-teacher of `srpo`). A step is everything after the rollouts: self-teacher,
loss, backward pass, optimiser, moving average. Memory is the peak above weights, optimiser and
self-teacher; on a CPU it is not known.
"""

import gc
import statistics
import sys
import time
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from gpu.part import Goal, Part, run_part
from gpu.shapes import QWEN3_06B, TINY, Shape, question, recorded, save_model
from markscheme_train.distillation import CHUNK, divergences
from markscheme_train.training import silence_libraries
from training.worker import OURS, ROWS, assemble, shared

GPU = torch.cuda.is_available()
GIB = 2**30
FP32 = 4
"""Bytes of a number."""
WARM_UP = 2
"""Steps that are not counted: the first allocates the optimiser's state and compiles kernels."""
ORDER = ("grpo", "TRL GRPO", "srpo", "TRL SDPO", "sdpo")
"""Compared arms first: the part may be stopped at its limit."""
TABLE = "A step"
DISTILLED = "The divergence alone"
CHUNKS = 2


@dataclass
class Taken:
    """The counted steps of an arm. `peak` is in bytes above weights, optimiser and self-teacher."""

    seconds: list[float] = field(default_factory=list)
    peak: int | None = None


class Stopwatch(TrainerCallback):  # type: ignore[misc]
    """Times each step with the device idle at both ends.

    `foreign` is what was allocated before the trainer, in bytes.
    """

    def __init__(self, trainer: Any, foreign: int) -> None:
        self.taken = Taken()
        self._trainer, self._foreign, self._started = trainer, foreign, 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        if GPU:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        self._started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop the clock, and read the memory."""
        if self.stop(state) and GPU:
            above = torch.cuda.max_memory_allocated() - self._foreign - held(self._trainer)
            self.taken.peak = max(self.taken.peak or 0, above)

    def stop(self, state: Any) -> bool:
        """Stop the clock; return whether the step counts."""
        if GPU:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - self._started
        counts: bool = state.global_step > min(WARM_UP, state.max_steps - 1)
        if counts:
            self.taken.seconds.append(seconds)
        return counts


@dataclass(frozen=True)
class Plan:
    """The sizes of a run. `lengths` are tokens of a rollout."""

    shape: Shape
    lengths: tuple[int, int]
    steps: int

    def at_once(self, length: int) -> int:
        """Return the rollouts of a micro-batch: TRL's SDPO holds the logits of all their tokens."""
        return ROWS if length == self.lengths[0] else 1


FULL = Plan(QWEN3_06B, (2048, 8192), WARM_UP + 3)
SMALL = Plan(TINY, (32, 64), 2)


def run(part: Part, directory: Path, small: bool) -> None:
    """Measure and write the part."""
    silence_libraries()
    plan = SMALL if small else FULL
    if not small and not GPU:
        sys.exit("there is no CUDA device, and a CPU would take hours: use --small")
    expect(part, plan)
    tokenizer = save_model(plan.shape, directory / "model", device="cuda" if GPU else "cpu")
    broken = []
    for length in plan.lengths:
        taken: dict[str, Taken] = {}
        for arm in ORDER:
            at_once = plan.at_once(length)
            try:
                taken[arm] = steps(arm, directory, tokenizer, length, plan)
                tell(part, arm, length, at_once, taken[arm])
            except torch.OutOfMemoryError as error:
                tell(part, arm, length, at_once, None, f"out of memory: {first_line(error)}")
            except Exception as error:
                traceback.print_exc()
                broken.append(f"{arm}, {length} tokens: {type(error).__name__}")
                tell(
                    part, arm, length, at_once, None, f"{type(error).__name__}: {first_line(error)}"
                )
            release()
            judge(part, plan, length, taken)
    if GPU:
        alone(part, plan)
    if broken:
        sys.exit("; ".join(broken))


def tell(
    part: Part, arm: str, length: int, at_once: int, taken: Taken | None, problem: str = ""
) -> None:
    """Add a row to the table; an arm that could not run says why."""
    seconds = statistics.median(taken.seconds) if taken else None
    part.row(
        TABLE,
        arm=arm,
        response_tokens=length,
        rows_at_once=at_once,
        seconds=seconds,
        tokens_a_second=None if seconds is None else round(ROWS * length / seconds),
        GiB_above_weights_and_optimiser=taken.peak / GIB if taken and taken.peak else None,
        seconds_of_the_steps=" ".join(f"{one:.3f}" for one in taken.seconds) if taken else None,
        problem=problem,
    )


def steps(arm: str, directory: Path, tokenizer: Any, length: int, plan: Plan) -> Taken:
    """Return the counted steps of one arm."""
    settings = {
        **shared(length, plan.steps, str(directory / "run")),
        "use_cpu": not GPU,
        "bf16": True,
        "activation_checkpointing": True,
        "per_device_train_batch_size": plan.at_once(length),
        "gradient_accumulation_steps": ROWS // plan.at_once(length),
    }
    foreign = torch.cuda.memory_allocated() if GPU else 0
    rollouts = recorded(plan.shape, length)
    trainer = assemble(arm, directory / "model", tokenizer, question(), rollouts, settings)
    if arm in OURS:
        trainer.plain_device = "none"  # without a GPU, too, take the way that a GPU takes
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    watch = Stopwatch(trainer, foreign)
    # After the trainers' own callbacks: the self-teacher's move is part of the step.
    trainer.add_callback(watch)
    trainer.train()
    return watch.taken


def expect(part: Part, plan: Plan) -> None:
    """Set goals; without a GPU the figures only inform."""
    shape = plan.shape
    part.note(
        f"{shape}, bf16 autocast over fp32 weights, activation checkpointing; {ROWS} recorded "
        "rollouts a step; median of the counted steps. A step is everything after the rollouts."
    )
    for length in plan.lengths:
        part.expect(
            Goal(f"grpo / TRL GRPO, {length} tokens: seconds", at_most=1.05 if GPU else None),
            Goal(f"srpo / TRL SDPO, {length} tokens: seconds", at_most=0.9 if GPU else None),
            Goal(f"srpo / TRL SDPO, {length} tokens: memory", at_most=0.9 if GPU else None),
        )
    part.expect(
        Goal(
            beyond(plan),
            at_most=CHUNKS if GPU else None,
            note=f"a chunk: {CHUNK} positions x {shape.vocabulary:,} tokens in fp32, "
            f"{chunk_bytes(shape) / 2**20:.0f} MiB",
        )
    )


def beyond(plan: Plan) -> str:
    """Return the name of the goal on memory beyond GRPO's."""
    return f"srpo beyond grpo, {plan.lengths[-1]} tokens: peak memory in chunks of logits"


def judge(part: Part, plan: Plan, length: int, taken: Mapping[str, Taken]) -> None:
    """Fill in the goals that the arms so far allow."""
    for ours, theirs in (("grpo", "TRL GRPO"), ("srpo", "TRL SDPO")):
        if ours not in taken or theirs not in taken:
            continue
        one, two = taken[ours], taken[theirs]
        ratio = statistics.median(one.seconds) / statistics.median(two.seconds)
        part.measured(f"{ours} / {theirs}, {length} tokens: seconds", ratio)
        if one.peak and two.peak and ours == "srpo":
            part.measured(f"{ours} / {theirs}, {length} tokens: memory", one.peak / two.peak)
    if length == plan.lengths[-1] and "srpo" in taken and "grpo" in taken:
        one, two = taken["srpo"], taken["grpo"]
        if one.peak and two.peak:
            part.measured(beyond(plan), (one.peak - two.peak) / chunk_bytes(plan.shape))


def alone(part: Part, plan: Plan) -> None:
    """Measure the divergence by itself, with our chunks and with larger ones."""
    length, shape = plan.lengths[-1], plan.shape
    for chunk in (CHUNK // 4, CHUNK // 2, CHUNK, 2 * CHUNK):
        divergence(shape, length, chunk)  # the first call loads kernels
        seconds, grown = divergence(shape, length, chunk)
        logits = chunk * shape.vocabulary * FP32
        part.row(
            DISTILLED,
            positions=length,
            positions_a_chunk=chunk,
            seconds=seconds,
            GiB=grown / GIB,
            in_chunks_of_logits=grown / logits,
        )
        release()


def divergence(shape: Shape, length: int, chunk: int) -> tuple[float, int]:
    """Return seconds, and peak bytes above the states, the heads and their gradients."""
    head = torch.randn(shape.vocabulary, shape.hidden, device="cuda").mul_(0.02).requires_grad_()
    other = head.detach().clone()
    states = torch.randn(length, shape.hidden, device="cuda").requires_grad_()
    seen = torch.randn(length, shape.hidden, device="cuda")
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before, started = torch.cuda.memory_allocated(), time.perf_counter()
    with torch.autocast("cuda", torch.bfloat16):
        found = divergences(
            states,
            seen,
            lambda some: some @ head.T,
            lambda some: some @ other.T,
            alpha=0.5,
            top_k=100,
            temperature=1.0,
            chunk=chunk,
        )
    found.mean().backward()
    torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    return seconds, torch.cuda.max_memory_allocated() - before - nbytes((head, states))


def held(trainer: Any) -> int:
    """Return the bytes of weights, optimiser state and self-teacher."""
    state = [
        value
        for values in trainer.optimizer.state.values()
        for value in values.values()
        if isinstance(value, Tensor)
    ]
    distillation = getattr(trainer, "distillation", None)
    teacher = (
        getattr(trainer, "teacher_model", None)
        if distillation is None
        else distillation.self_teacher.model
    )
    models = [trainer.model, *([] if teacher is None else [teacher])]
    return nbytes(state) + sum(nbytes([*model.parameters(), *model.buffers()]) for model in models)


def nbytes(tensors: Iterable[Tensor]) -> int:
    """Return bytes on the device, each storage once: embeddings may be tied to the head."""
    return sum({one.data_ptr(): one.nbytes for one in tensors if one.is_cuda}.values())


def release() -> None:
    """Free the memory of a trainer that is gone."""
    gc.collect()
    if GPU:
        torch.cuda.empty_cache()


def chunk_bytes(shape: Shape) -> int:
    """Return the bytes of one chunk of logits."""
    return CHUNK * shape.vocabulary * FP32


def first_line(error: Exception) -> str:
    """Return the first line of an error."""
    return (str(error).splitlines() or [""])[0][:200]


if __name__ == "__main__":
    run_part("gpu.steps", run)
