"""Compute SRPO's loss and whole gradient on a sharded model (FSDP2, CPU mesh)."""

import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from markscheme_train.losses import (
    SrpoConfig,
    SrpoInputs,
    entropy,
    entropy_weight_sums,
    generalized_jsd,
    srpo_loss,
)
from train.tiny import tiny_model


def batch() -> dict[str, torch.Tensor]:
    """Make six rows of eight tokens; the second half is the rollout. The last three are routed."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(2, 64, (6, 8), generator=generator)
    mask = torch.ones(6, 4)
    mask[1, 2:] = mask[4, 3:] = 0
    return {
        "ids": ids,
        "mask": mask,
        "advantages": torch.randn(6, generator=generator),
        "routed": torch.tensor([False, False, False, True, True, True]),
        "teacher": torch.randn(6, 4, 64, generator=generator).log_softmax(-1),
    }


def gradient_of(
    model: Any, rows: dict[str, torch.Tensor], count: torch.Tensor, mean: torch.Tensor, share: int
) -> None:
    student = model(input_ids=rows["ids"]).logits[:, 3:-1].log_softmax(-1)
    own = student.gather(-1, rows["ids"][:, 4:].unsqueeze(-1)).squeeze(-1)
    loss, _ = srpo_loss(
        SrpoInputs(
            own,
            own.detach(),
            rows["advantages"],
            rows["mask"],
            rows["routed"],
            generalized_jsd(student, rows["teacher"], alpha=0.5),
            entropy(rows["teacher"]),
            token_count=count,
            weight_mean=mean,
        ),
        SrpoConfig(),
    )
    (loss * share).backward()  # FSDP averages over the processes


def main(out: Path) -> None:
    distributed.init_process_group("gloo")
    rank, world = distributed.get_rank(), distributed.get_world_size()
    whole = batch()
    model = tiny_model()
    mesh = init_device_mesh("cpu", (world,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    own = {
        name: value[rank * 6 // world : (rank + 1) * 6 // world] for name, value in whole.items()
    }
    sums = torch.stack(
        [
            own["mask"].sum(),
            *entropy_weight_sums(
                entropy(own["teacher"]), own["mask"] * own["routed"].unsqueeze(1), beta=1.0
            ),
        ]
    )
    distributed.all_reduce(sums)
    gradient_of(model, own, sums[0], sums[1] / sums[2], world)
    gradients = {
        name: p.grad.full_tensor() for name, p in model.named_parameters() if p.grad is not None
    }
    if rank == 0:
        parts = sum(p.to_local().numel() for p in model.parameters())
        torch.save({"gradients": gradients, "parts": parts, "world": world}, out)
    distributed.barrier()
    distributed.destroy_process_group()
    os._exit(0)  # gloo's threads may outlive their group, and an ordinary exit then aborts
