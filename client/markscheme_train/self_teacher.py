"""The self-teacher: the student, kept from moving fast, that reads a demonstration or feedback.

With full fine-tuning it is a second copy of the model, with adapters a second adapter on the same
base. Both start as the student. There are three kinds (SDPO, arXiv 2601.20802):

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
from torch import Tensor, nn

SELF_TEACHER_ADAPTER, STUDENT_ADAPTER = "teacher", "default"

SelfTeacherKind = Literal["ema", "frozen", "trust_region"]
RateSchedule = Literal["constant", "linear", "cosine"]


class SelfTeacher(Protocol):
    """What the trainer needs of a self-teacher."""

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

    def __init__(self, student: nn.Module) -> None:
        if "forward" in vars(student):
            raise ValueError(
                "the self-teacher must be copied before the model's forward is replaced"
            )
        self._student = student
        self.model = copy.deepcopy(student).float().eval().requires_grad_(False)

    @torch.no_grad()
    def states(self, input_ids: Tensor, attention_mask: Tensor, keep: int) -> Tensor:
        """Return the states [B, keep, d] that predict the last `keep` tokens, without gradient."""
        return _states(self.model, input_ids, attention_mask, keep)

    def head(self, states: Tensor) -> Tensor:
        """Return the logits of hidden states."""
        return output_head(self.model)(states)

    @torch.no_grad()
    def update(self, rate: float) -> None:
        """Move the weights towards the student's by `rate`."""
        # The student may be in half precision or on another device.
        pairs = [
            (own, other.to(own))
            for own, other in zip(self.model.parameters(), self._student.parameters(), strict=True)
        ]
        _ema_update(pairs, rate)

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

    def __init__(self, model: Any) -> None:
        self._model = model
        model.add_adapter(SELF_TEACHER_ADAPTER, model.peft_config[STUDENT_ADAPTER])
        self._pairs = list(self._named())
        with torch.no_grad():
            for own, other in self._pairs:
                own.copy_(other)
                # The optimiser must not train it; `update` moves it.
                own.requires_grad_(False)
        model.set_adapter(STUDENT_ADAPTER)

    @torch.no_grad()
    def states(self, input_ids: Tensor, attention_mask: Tensor, keep: int) -> Tensor:
        """Return the states [B, keep, d] that predict the last `keep` tokens, without gradient."""
        with self._adapter_active():
            return _states(self._model.get_base_model(), input_ids, attention_mask, keep)

    def head(self, states: Tensor) -> Tensor:
        """Return the logits of hidden states."""
        return output_head(self._model.get_base_model())(states)

    @torch.no_grad()
    def update(self, rate: float) -> None:
        """Move the weights towards the student's by `rate`."""
        _ema_update(self._pairs, rate)

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
        with _evaluating(self._model):
            self._model.set_adapter(SELF_TEACHER_ADAPTER)
            try:
                yield
            finally:
                self._model.set_adapter(STUDENT_ADAPTER)


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
        self, reference: ModelCopy | AdapterCopy, student: Any, coefficient: Callable[[], float]
    ) -> None:
        self._reference, self._student, self._coefficient = reference, student, coefficient
        self._share = 0.0

    @torch.no_grad()
    def states(self, input_ids: Tensor, attention_mask: Tensor, keep: int) -> Tensor:
        """Return the states [B, keep, 2d] that predict the last `keep` tokens, without gradient."""
        self._share = self._coefficient()
        with _evaluating(self._student):
            own = _states(_inner(self._student), input_ids, attention_mask, keep)
        return torch.cat([self._reference.states(input_ids, attention_mask, keep), own], -1)

    def head(self, states: Tensor) -> Tensor:
        """Return the mixed logits of hidden states, in the higher precision of the two."""
        initial, own = states.chunk(2, -1)
        student = _inner(self._student)
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


def _inner(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Turn dropout off; restore the mode at the end."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _states(model: Any, input_ids: Tensor, attention_mask: Tensor, keep: int) -> Tensor:
    out = model.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
    states: Tensor = out.last_hidden_state[:, -keep - 1 : -1]
    return states


def output_head(model: Any) -> Callable[[Tensor], Tensor]:
    """Return the map from hidden states to logits, scaled and capped as the model family does."""
    project, config = model.get_output_embeddings(), model.config.get_text_config()
    # transformers does this in each model's forward, not in the head: Cohere, Falcon-H1, Muse and
    # HyperCLOVA X multiply, Granite and MiniCPM3 divide, Gemma 2 caps.
    factors = (
        getattr(config, name, None)
        for name in ("logit_scale", "output_multiplier", "lm_head_multiplier")
    )
    scale = next((factor for factor in factors if factor is not None), 1.0)
    if (scaling := getattr(config, "logits_scaling", None)) is not None:
        scale *= scaling if config.model_type == "hyperclovax" else 1.0 / scaling
    cap = getattr(config, "final_logit_softcapping", None)

    def head(states: Tensor) -> Tensor:
        logits: Tensor = project(states)
        logits = logits if scale == 1.0 else logits * scale
        return logits if cap is None else cap * torch.tanh(logits / cap)

    return head


def _ema_update(pairs: Sequence[tuple[Tensor, Tensor]], rate: float) -> None:
    if not all(bool(other.isfinite().all()) for _, other in pairs):
        raise FloatingPointError("the student's weights are no numbers any more")
    # One fused kernel for all weights instead of one launch a tensor.
    torch._foreach_lerp_([own for own, _ in pairs], [other for _, other in pairs], rate)
