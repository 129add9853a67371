"""What training all weights of a model by FSDP 2 takes of each GPU, reckoned from its sizes.

    python -m gpu.memory [--gpus 8]

Weights, gradients, Adam's moments and the self-teacher are fp32 and in shards; what a layer
computes with is gathered in bf16. Activations, buffers of the collectives and CUDA's own memory are
left out.
"""

import argparse
from collections.abc import Mapping

import torch
from transformers import Qwen3ForCausalLM

from gpu.shapes import QWEN3_8B, Shape
from service.report import markdown_table

FP32, BF16 = 4, 2
"""Bytes of a number."""
MOMENTS = 2
GATHERED_LAYERS = 2
"""FSDP gathers the next layer while one computes."""


def main() -> None:
    """Print the table of Qwen3-8B."""
    parser = argparse.ArgumentParser(prog="python -m gpu.memory")
    parser.add_argument("--gpus", type=int, default=8)
    print("\n".join(table(QWEN3_8B, parser.parse_args().gpus)))


def table(shape: Shape, gpus: int) -> list[str]:
    """Return the parts in GB, and their sum, as a Markdown table."""
    parts = fsdp_bytes(shape, gpus)
    rows = [(what, f"{count / 1e9:.1f}") for what, count in parts.items()]
    total = ("together, before activations", f"{sum(parts.values()) / 1e9:.0f}")
    return markdown_table(("what", "GB a GPU"), [*rows, total])


def fsdp_bytes(shape: Shape, gpus: int) -> Mapping[str, float]:
    """Return the bytes of each part on one of so many GPUs, with `sdpo` or `srpo`."""
    with torch.device("meta"):
        model = Qwen3ForCausalLM(shape.config())
    weights = sum(weight.numel() for weight in model.parameters())
    layer = sum(weight.numel() for weight in model.model.layers[0].parameters())
    head = model.lm_head.weight.numel()
    embedding = 0 if shape.tied else head
    share = "whole" if gpus == 1 else f"1/{gpus}"
    return {
        f"weights, fp32, {share}": FP32 * weights / gpus,
        f"gradients, fp32, {share}; while the self-teacher runs, the student's weights that it "
        "replaces": FP32 * weights / gpus,
        f"Adam's two moments, fp32, {share}": MOMENTS * FP32 * weights / gpus,
        f"self-teacher, fp32, {share}": FP32 * weights / gpus,
        "two layers gathered in bf16, and their gradients": 2 * BF16 * GATHERED_LAYERS * layer,
        "embedding, head and the head's gradient, gathered in bf16": BF16 * (embedding + 2 * head),
        "the self-teacher's head, whole in bf16": BF16 * head,
    }


if __name__ == "__main__":
    main()
