"""The self-teacher: the student, kept from moving fast, that reads a demonstration or feedback.

With full fine-tuning it is a second copy of the model, with adapters a second adapter on the same
base, with FSDP 2 and ZeRO 3 a second shard of each trained weight. All start as the student. There
are three kinds (SDPO, arXiv 2601.20802):

- ``ema``: an exponential moving average, `θ_T ← (1 - τ) θ_T + τ θ` once a batch, τ = 0.05.
- ``frozen``: the initial student.
- ``trust_region``: `log q ∝ (1 - c) log p_initial + c log p_student`, both on the self-teacher's
  prompt, as `TrustRegionTeacher` of github.com/lasgroup/SDPO (0e6d510) mixes logits; c = 0.05.

τ and c can fall to 0 over the run.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol

import torch
import torch.distributed as distributed
from torch import Tensor, nn
from torch.nn import functional

from markscheme_train.hidden_states import (
    completion_states,
    evaluating,
    output_head,
    transformers_model,
)
from markscheme_train.sharding import Shards, local_part

SELF_TEACHER_ADAPTER, STUDENT_ADAPTER = "teacher", "default"

SelfTeacherKind = Literal["ema", "frozen", "trust_region"]
RateSchedule = Literal["constant", "linear", "cosine"]


class SelfTeacher(Protocol):
    """What the trainer needs of a self-teacher.

    Where `sharded` is true, every method but `head` is a collective: all processes must call it.
    """

    @property
    def sharded(self) -> bool:
        """Whether each process holds only a part of the weights."""

    def start(self) -> None:
        """Start as the student. Called before each training, once a trainer has wrapped it."""

    def states(self, input_ids: Tensor, attention_mask: Tensor, keep: int) -> Tensor:
        """Return the states [B, keep, d] that predict the last `keep` tokens, without gradient."""

    def head(self, states: Tensor) -> Tensor:
        """Return the logits of hidden states."""

    def update(self, rate: float) -> None:
        """Move the weights towards the student's by `rate`.

        Raises `FloatingPointError` if the student's weights are not finite.
        """

    def weights(self) -> Mapping[str, Tensor]:
        """Return the weights that a checkpoint must hold."""

    def restore(self, weights: Mapping[str, Tensor]) -> None:
        """Load the weights of a checkpoint."""


class ModelCopy:
    """A second copy of the whole model, in fp32: small EMA steps would vanish in half precision.

    Make it before a trainer wraps the student: TRL 1.16 stores a closure over the original
    `forward` in the model, and a copy of that closure would run the student.
    """

    sharded = False

    def __init__(self, student: nn.Module) -> None:
        if "forward" in vars(student):
            raise ValueError(
                "the self-teacher must be copied before the model's forward is replaced"
            )
        self._student = student
        self.model = copy.deepcopy(student).float().eval().requires_grad_(False)

    def start(self) -> None:
        """Do nothing: it was copied when it was made."""
        return

    @torch.no_grad()
    def states(self, input_ids: Tensor, attention_mask: Tensor, keep: int) -> Tensor:
        """Return the states [B, keep, d] that predict the last `keep` tokens, without gradient."""
        return completion_states(self.model, input_ids, attention_mask, keep)

    def head(self, states: Tensor) -> Tensor:
        """Return the logits of hidden states."""
        return output_head(self.model)(states)

    @torch.no_grad()
    def update(self, rate: float) -> None:
        """Move the weights towards the student's by `rate`."""
        own, other = list(self.model.parameters()), list(self._student.parameters())
        _refuse_non_finite(_all_finite(other))
        _ema_update(own, other, rate)

    def weights(self) -> Mapping[str, Tensor]:
        """Return the whole state dict."""
        return dict(self.model.state_dict())

    def restore(self, weights: Mapping[str, Tensor]) -> None:
        """Load the weights of a checkpoint."""
        self.model.load_state_dict(weights)


class AdapterCopy:
    """A second adapter on the student's base model; its matrices A and B are averaged separately.

    An average of A and one of B is not the average of their products; starting from the student's
    own it stays near it (starting from zeros, as TRL does, it would hardly follow). The model's
    checkpoints hold its weights.
    """

    sharded = False

    def __init__(self, model: Any) -> None:
        self._model = model
        model.add_adapter(SELF_TEACHER_ADAPTER, model.peft_config[STUDENT_ADAPTER])
        self._pairs = list(self._named())
        with torch.no_grad():
            for own, other in self._pairs:
                own.copy_(other)
        # Only the active adapter requires gradients: `update` moves the other, no optimiser.
        model.set_adapter(STUDENT_ADAPTER)

    def start(self) -> None:
        """Do nothing: it was copied when it was made."""
        return

    @torch.no_grad()
    def states(self, input_ids: Tensor, attention_mask: Tensor, keep: int) -> Tensor:
        """Return the states [B, keep, d] that predict the last `keep` tokens, without gradient."""
        with self._adapter_active():
            return completion_states(self._model, input_ids, attention_mask, keep)

    def head(self, states: Tensor) -> Tensor:
        """Return the logits of hidden states."""
        return output_head(self._model.get_base_model())(states)

    @torch.no_grad()
    def update(self, rate: float) -> None:
        """Move the weights towards the student's by `rate`."""
        own, other = [own for own, _ in self._pairs], [other for _, other in self._pairs]
        _refuse_non_finite(_all_finite(other))
        _ema_update(own, other, rate)

    def weights(self) -> Mapping[str, Tensor]:
        """Return nothing: the model's own checkpoint holds the adapter."""
        return {}

    def restore(self, weights: Mapping[str, Tensor]) -> None:
        """Do nothing: loading the model's checkpoint restores the adapter."""
        return

    def _named(self) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        parameters = dict(self._model.named_parameters())
        for name, parameter in parameters.items():
            if f".{SELF_TEACHER_ADAPTER}." in name:
                yield (
                    parameter,
                    parameters[name.replace(f".{SELF_TEACHER_ADAPTER}.", f".{STUDENT_ADAPTER}.")],
                )

    @contextmanager
    def _adapter_active(self) -> Iterator[None]:
        """Activate the self-teacher's adapter, without dropout; restore everything at the end."""
        with evaluating(self._model):
            self._model.set_adapter(SELF_TEACHER_ADAPTER)
            try:
                yield
            finally:
                self._model.set_adapter(STUDENT_ADAPTER)


class ShardedCopy:
    """A second shard of each trained weight, in fp32, for a student under FSDP 2 or ZeRO 3.

    It has no modules of its own. For a forward pass its shards take the place of the student's,
    which are gathered layer by layer, in the precision in which the student's are gathered; then
    the student's are put back. With an adapter only the adapter is trained, so only that is copied.
    The output head alone is kept whole, gathered once after each update.

    Args:
        student: The model, which a trainer is going to shard in place.
        shards: Its shards.
        dtype: Precision of the whole head; `None`: that of the student's head.
    """

    sharded = True

    def __init__(
        self, student: nn.Module, shards: Shards, dtype: torch.dtype | None = None
    ) -> None:
        self._student, self._shards, self._dtype = student, shards, dtype
        self._trained: dict[str, nn.Parameter] = {}
        self._own: dict[str, Tensor] = {}
        self._head: tuple[Tensor, Tensor | None]

    @torch.no_grad()
    def start(self) -> None:
        """Start as the student, unless it has started: call it between sharding and training."""
        if self._own:
            return
        self._trained = {
            name: weight
            for name, weight in self._student.named_parameters()
            if weight.requires_grad
        }
        self._own = {
            name: self._shards.distributed(
                weight, self._shards.stepped(weight).to(torch.float32, copy=True)
            )
            for name, weight in self._trained.items()
        }
        self._gather_head()

    @torch.no_grad()
    def states(self, input_ids: Tensor, attention_mask: Tensor, keep: int) -> Tensor:
        """Return the states [B, keep, d] that predict the last `keep` tokens, without gradient."""
        with self._installed(), evaluating(self._student):
            return completion_states(self._student, input_ids, attention_mask, keep)

    def head(self, states: Tensor) -> Tensor:
        """Return the logits of hidden states."""
        weight, bias = self._head
        return output_head(
            transformers_model(self._student),
            lambda states: functional.linear(states.to(weight), weight, bias),
        )(states)

    @torch.no_grad()
    def update(self, rate: float) -> None:
        """Move the weights towards the student's by `rate`."""
        other = [self._shards.stepped(weight) for weight in self._trained.values()]
        finite = _all_finite(other).float()
        # All raise or none does: a process that went on alone would wait for the others for ever.
        distributed.all_reduce(finite, distributed.ReduceOp.MIN)
        _refuse_non_finite(finite)
        _ema_update(_local(self._own), other, rate)
        self._gather_head()

    def weights(self) -> Mapping[str, Tensor]:
        """Return this process's part of the weights that are trained."""
        return self._own

    @torch.no_grad()
    def restore(self, weights: Mapping[str, Tensor]) -> None:
        """Load the weights of a checkpoint, sharded as `weights` returns them."""
        torch._foreach_copy_(_local(self._own), _local(weights))
        self._gather_head()

    def _gather_head(self) -> None:
        layer = transformers_model(self._student).get_output_embeddings()
        copies: dict[Tensor, Tensor] = {
            weight: local_part(self._own[name]) for name, weight in self._trained.items()
        }

        def gathered(weight: Tensor) -> Tensor:
            # The student's own where it is not trained.
            part = copies.get(weight, self._shards.held(weight)).to(self._dtype or weight.dtype)
            return self._shards.whole(weight, self._shards.distributed(weight, part))

        self._shards.release()
        self._head = gathered(layer.weight), None if layer.bias is None else gathered(layer.bias)

    @contextmanager
    def _installed(self) -> Iterator[None]:
        """Put the shards in the place of the student's; put those back at the end."""
        student = [self._shards.held(weight) for weight in self._trained.values()]
        held = [shard.clone() for shard in student]
        self._shards.release()
        self._shards.put(student, _local(self._own))
        try:
            yield
        finally:
            self._shards.release()
            self._shards.put(student, held)


class TrustRegion:
    """A mixture in log space of the initial student and the current one.

    Its hidden states are those of both, side by side [B, keep, 2d]. They are kept as they were
    before the batch's first update; only the student's head is the current one.

    Args:
        reference: The initial student; it is never updated.
        student: The model that is trained.
        coefficient: Returns the current student's share of the mixture, 0 to 1. Read when a batch
            is prepared.
    """

    def __init__(
        self, reference: SelfTeacher, student: Any, coefficient: Callable[[], float]
    ) -> None:
        self._reference, self._student, self._coefficient = reference, student, coefficient
        self._share: float

    @property
    def sharded(self) -> bool:
        """Whether each process holds only a part of the weights."""
        return self._reference.sharded

    def start(self) -> None:
        """Take the initial student as the reference."""
        self._reference.start()

    @torch.no_grad()
    def states(self, input_ids: Tensor, attention_mask: Tensor, keep: int) -> Tensor:
        """Return the states [B, keep, 2d] that predict the last `keep` tokens, without gradient."""
        self._share = self._coefficient()
        initial = self._reference.states(input_ids, attention_mask, keep)
        # Last: a sharded student's head, gathered now by all, stays whole after its forward pass.
        with evaluating(self._student):
            own = completion_states(self._student, input_ids, attention_mask, keep)
        output_head(transformers_model(self._student))
        return torch.cat([initial, own], -1)

    def head(self, states: Tensor) -> Tensor:
        """Return the mixed logits of hidden states, in the higher precision of the two."""
        initial, own = states.chunk(2, -1)
        student = transformers_model(self._student)
        reference_logits = self._reference.head(initial)
        # `cat` may have raised the student's states to the reference's precision.
        student_logits = output_head(student)(own.to(student.get_output_embeddings().weight))
        dtype = torch.promote_types(reference_logits.dtype, student_logits.dtype)
        # Logits are log-probabilities up to a constant, which softmax takes out again.
        return torch.lerp(reference_logits.to(dtype), student_logits.to(dtype), self._share)

    def update(self, rate: float) -> None:
        """Do nothing: the reference stays where it is."""
        return

    def weights(self) -> Mapping[str, Tensor]:
        """Return the reference's weights."""
        return self._reference.weights()

    def restore(self, weights: Mapping[str, Tensor]) -> None:
        """Load the reference's weights."""
        self._reference.restore(weights)


def scheduled(rate: float, schedule: RateSchedule, step: int, steps: int) -> float:
    """Return the rate after `step` of `steps` steps; all but `constant` end at 0."""
    if schedule == "constant":
        return rate
    left = 1.0 - min(1.0, step / max(1, steps))
    return rate * (left if schedule == "linear" else 0.5 - 0.5 * math.cos(math.pi * left))


def _local(weights: Mapping[str, Tensor]) -> list[Tensor]:
    """Return this process's parts, which share their memory with the weights."""
    return [local_part(weight) for weight in weights.values()]


def _all_finite(tensors: Sequence[Tensor]) -> Tensor:
    """Return a flag on the tensors' device, which the host need not wait for."""
    return torch.stack([tensor.isfinite().all() for tensor in tensors]).all()


def _refuse_non_finite(finite: Tensor) -> None:
    if not bool(finite):
        raise FloatingPointError("the student's weights are no numbers any more")


def _ema_update(own: Sequence[Tensor], other: Sequence[Tensor], rate: float) -> None:
    if all(
        (mine.dtype, mine.device) == (its.dtype, its.device)
        for mine, its in zip(own, other, strict=True)
    ):
        # One fused kernel for all weights instead of one launch a tensor.
        torch._foreach_lerp_(list(own), list(other), rate)
        return
    # A student in half precision: one tensor at a time, so that only one is held twice.
    for mine, its in zip(own, other, strict=True):
        mine.lerp_(its.to(mine), rate)
