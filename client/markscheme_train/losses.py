"""The losses of GRPO, SDPO and SRPO as pure functions of tensors.

Shapes: P prompts of G rollouts; B rows of T response tokens; V tokens of the vocabulary, or a part
of it. Masks are 1 on response tokens up to and including the end-of-sequence token.
Log-probabilities are natural logarithms, already divided by the sampling temperature.

Sources: the clipped surrogate with asymmetric and dual clip (DAPO, arXiv 2503.14476; arXiv
1912.09729); the group mean without the deviation (Dr. GRPO, arXiv 2503.20783); the divergence and
its top-k form (SDPO, arXiv 2601.20802); entropy weights and the joint objective (SRPO, arXiv
2604.02288).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Scale = Literal["none", "std"]

STD_EPS = 1e-6
MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped to ± this before they are exponentiated."""
MIN_TAIL_LOG_MASS = 1e-7
"""The log of the head's mass stays this far below 0, so that the tail is never empty."""


def group_advantages(
    rewards: Tensor, *, scale: Scale = "none", valid: Tensor | None = None, min_group: int = 2
) -> Tensor:
    """Return advantages [P, G] within each group: `r - mean`, divided by `std + 1e-6` for `"std"`.

    The deviation is the sample's (n - 1). Rows that are not valid enter neither mean nor deviation
    and get 0, as do groups with fewer than `min_group` valid rows.

    Args:
        rewards: Rewards [P, G]; NaN where a reward is unknown.
        scale: Whether to divide by the deviation.
        valid: Mask [P, G] of the rows to use; default: those with a reward.
        min_group: Minimum valid rows of a group.

    Raises:
        ValueError: A reward is infinite.
    """
    if rewards.isinf().any():
        raise ValueError("a reward is infinite")
    known = ~rewards.isnan() if valid is None else valid.bool() & ~rewards.isnan()
    known = known & (known.sum(dim=1, keepdim=True) >= min_group)
    count = known.sum(dim=1, keepdim=True).clamp(min=1)
    # NaN times 0 is NaN: unknown rewards are replaced, not multiplied away.
    zeroed = torch.where(known, rewards, 0.0)
    centred = torch.where(known, rewards - zeroed.sum(dim=1, keepdim=True) / count, 0.0)
    if scale == "none":
        return centred
    deviation = (centred.square().sum(dim=1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    return centred / (deviation + STD_EPS)


def log_ratio(log_probs: Tensor, old_log_probs: Tensor) -> Tensor:
    """Return `log_probs - old_log_probs`, clamped to ±20."""
    return (log_probs - old_log_probs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def clipped_surrogate(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
) -> Tensor:
    """Return the policy-gradient loss of each token [B, T], to be minimised.

    With ρ = exp(log_probs - old_log_probs) it is `max(-A ρ, -A clamp(ρ, 1 - clip_low, 1 +
    clip_high))`, and for A < 0 at most `-A dual_clip`.

    Args:
        log_probs: Of the current policy [B, T].
        old_log_probs: Of the policy that sampled [B, T].
        advantages: A, as [B] or [B, T].
        clip_low: Lower clip.
        clip_high: Upper clip.
        dual_clip: Bound for negative advantages; `None`: no bound.
    """
    advantages = advantages.unsqueeze(-1) if advantages.dim() == 1 else advantages
    ratio = log_ratio(log_probs, old_log_probs).exp()
    loss = torch.maximum(
        -advantages * ratio, -advantages * ratio.clamp(1 - clip_low, 1 + clip_high)
    )
    if dual_clip is None:
        return loss
    # For a negative advantage the loss grows with the ratio, without bound.
    return torch.where(advantages < 0, torch.minimum(loss, -advantages * dual_clip), loss)


def capped_importance(log_probs: Tensor, old_log_probs: Tensor, cap: float) -> Tensor:
    """Return `min(exp(log_probs - old_log_probs), cap)` [B, T], without a gradient.

    Between the current and the old policy it is SDPO's importance weight; between the old policy
    and the sampler it corrects their mismatch.
    """
    return log_ratio(log_probs.detach(), old_log_probs.detach()).exp().clamp(max=cap)


def generalized_jsd(
    student_log_probs: Tensor, teacher_log_probs: Tensor, *, alpha: float
) -> Tensor:
    """Return the divergence [...] between distributions [..., V].

    With m = (1 - α) student + α teacher it is `(1 - α) KL(student‖m) + α KL(teacher‖m)`. For α =
    0.5 that is the Jensen-Shannon divergence, at most ln 2. At the ends, where it would be 0, it is
    `KL(teacher‖student)` (α = 0) and `KL(student‖teacher)` (α = 1). Only the student gets a
    gradient.

    Raises `ValueError` unless 0 <= alpha <= 1.
    """
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha must lie between 0 and 1, not {alpha}")
    student, teacher = _finite(student_log_probs), _finite(teacher_log_probs.detach())
    if alpha == 0.0:
        return _kl(teacher, student)
    if alpha == 1.0:
        return _kl(student, teacher)
    # Mix in log space: probabilities of unlikely tokens would underflow.
    share = torch.tensor([1.0 - alpha, alpha], dtype=student.dtype, device=student.device).log()
    mixture = torch.logaddexp(student + share[0], teacher + share[1])
    return (1.0 - alpha) * _kl(student, mixture) + alpha * _kl(teacher, mixture)


def topk_with_tail(log_probs: Tensor, indices: Tensor) -> Tensor:
    """Return log-probabilities [..., K + 1] of the tokens at `indices` [..., K] and of the rest.

    SDPO takes the K tokens that are likeliest for the student, for student and teacher alike.
    Joining the rest in one bucket can only lower the divergence; leaving it out could raise it.
    """
    return with_tail(log_probs.gather(-1, indices))


def with_tail(head: Tensor) -> Tensor:
    """Append to log-probabilities [..., K] that of everything else: `log(1 - Σ exp)`."""
    # `expm1`: where the head has nearly all mass, `1 - exp` would lose every digit.
    mass = torch.logsumexp(head, dim=-1, keepdim=True).clamp(max=-MIN_TAIL_LOG_MASS)
    return torch.cat([head, torch.log(-torch.expm1(mass))], dim=-1)


def sampled_token_loss(student_log_probs: Tensor, teacher_log_probs: Tensor) -> Tensor:
    """Return SDPO's estimator from sampled tokens [B, T]: `stopgrad(log s - log q) · log s`.

    Its gradient is in expectation, over the student's tokens, that of `KL(student‖teacher)`.
    """
    return (student_log_probs - teacher_log_probs).detach() * student_log_probs


def entropy(log_probs: Tensor) -> Tensor:
    """Return the entropy in nats [...] of distributions [..., V]."""
    return -(log_probs.exp() * _finite(log_probs)).sum(dim=-1)


def entropy_weight_sums(entropy: Tensor, mask: Tensor, *, beta: float) -> Tensor:
    """Return `[Σ exp(-β H), count]` over the masked tokens.

    Sums, unlike means, add up over micro-batches and processes.
    """
    kept = mask.bool()
    return torch.stack(
        [torch.where(kept, (-beta * entropy).exp(), 0.0).sum(), kept.sum().to(entropy.dtype)]
    )


def entropy_weights(
    entropy: Tensor, mask: Tensor, *, beta: float, mean: Tensor | None = None
) -> Tensor:
    """Return SRPO's weights [B, T]: `exp(-β H)` divided by its mean on the masked tokens.

    Their mean is 1, which keeps the size of the loss; off the mask they are 0. No gradient.

    Args:
        entropy: The self-teacher's entropies [B, T] in nats.
        mask: Tokens that count [B, T].
        beta: β; 0 weighs all tokens alike.
        mean: The mean of the whole optimiser step, where these rows are a part of it.
    """
    entropy = entropy.detach()
    if mean is None:
        total, count = entropy_weight_sums(entropy, mask, beta=beta)
        mean = total / count.clamp(min=1)
    # If all weights underflow the mean is 0, and 0 / 0 would be NaN.
    weights = (-beta * entropy).exp() / mean.clamp(min=torch.finfo(entropy.dtype).tiny)
    return torch.where(mask.bool(), weights, 0.0)


@dataclass(frozen=True, slots=True)
class SrpoInputs:
    """Tensors of `srpo_loss`; rows without a reward are masked throughout.

    Attributes:
        log_probs: Of the current policy [B, T].
        old_log_probs: Of the policy that sampled [B, T].
        advantages: As [B] or [B, T].
        mask: Response tokens [B, T].
        routed: Rows [B] of the self-distillation branch.
        divergence: Of student and self-teacher [B, T]; read on routed rows only.
        entropy: Of the self-teacher [B, T]; read on routed rows only.
        sampler_weights: Capped correction [B, T] of the mismatch of trainer and sampler.
        token_count: Tokens of the whole optimiser step over all processes; default: of these
            rows.
        weight_mean: Mean entropy weight of that step; default: of these rows.
    """

    log_probs: Tensor
    old_log_probs: Tensor
    advantages: Tensor
    mask: Tensor
    routed: Tensor
    divergence: Tensor | None = None
    entropy: Tensor | None = None
    sampler_weights: Tensor | None = None
    token_count: Tensor | None = None
    weight_mean: Tensor | None = None


@dataclass(frozen=True, slots=True)
class SrpoConfig:
    """SRPO's settings. `beta` 0 weighs all tokens alike."""

    clip_low: float = 0.2
    clip_high: float = 0.28
    dual_clip: float | None = 3.0
    beta: float = 1.0
    importance_cap: float = 2.0


def srpo_loss(inputs: SrpoInputs, config: SrpoConfig) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Return SRPO's joint objective, a scalar, and metrics without gradients.

    A metric that is a mean is NaN where there is no token to average.

    It is `(Σ_{GRPO rows} surrogate + Σ_{SDPO rows} w · min(ρ, cap) · divergence) / N` over tokens.
    w are the entropy weights, and N counts the tokens of both branches: each branch weighs by its
    tokens, without a coefficient between them (arXiv 2604.02288, section 3.3). Without routed rows
    it is GRPO's token mean. A step without tokens has a loss of 0.

    Raises `ValueError` for routed rows without divergence or entropy.
    """
    mask = inputs.mask.bool()
    distilled = mask & inputs.routed.bool().unsqueeze(1)
    reinforced = mask & ~distilled
    # Micro-batches share one denominator, or the token mean would depend on their split.
    tokens = inputs.token_count if inputs.token_count is not None else mask.sum()
    surrogate = clipped_surrogate(
        inputs.log_probs,
        inputs.old_log_probs,
        inputs.advantages,
        clip_low=config.clip_low,
        clip_high=config.clip_high,
        dual_clip=config.dual_clip,
    )
    corrected = surrogate if inputs.sampler_weights is None else surrogate * inputs.sampler_weights
    # `where` instead of a product with the mask: NaN or infinity off the mask times 0 is NaN.
    policy = torch.where(reinforced, corrected, 0.0).sum()
    metrics: dict[str, Tensor] = {"clip_share": _clip_share(inputs, config, reinforced)}
    if inputs.divergence is None or inputs.entropy is None:
        if distilled.any():
            raise ValueError(
                "rows are routed to self-distillation but there is no divergence or entropy"
            )
        distillation = torch.zeros_like(policy)
    else:
        weights = entropy_weights(
            inputs.entropy, distilled, beta=config.beta, mean=inputs.weight_mean
        )
        token = weights * capped_importance(
            inputs.log_probs, inputs.old_log_probs, config.importance_cap
        )
        if inputs.sampler_weights is not None:
            token = token * inputs.sampler_weights
        distillation = torch.where(distilled, token * inputs.divergence, 0.0).sum()
        metrics |= {
            "teacher_entropy": _mean(inputs.entropy, distilled),
            "divergence": _mean(inputs.divergence, distilled),
        }
    tokens = torch.as_tensor(tokens, device=policy.device).clamp(min=1)
    metrics |= {
        "policy_loss": policy.detach() / tokens,
        "distillation_loss": distillation.detach() / tokens,
    }
    return (policy + distillation) / tokens, metrics


def _kl(of: Tensor, to: Tensor) -> Tensor:
    return (of.exp() * (of - to)).sum(dim=-1)


def _finite(log_probs: Tensor) -> Tensor:
    """Clamp -inf, so that an impossible token adds 0 instead of 0 · inf."""
    # Divided by 8, so that differences and sums of two such values stay finite.
    return log_probs.clamp(min=torch.finfo(log_probs.dtype).min / 8)


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of the masked values; NaN of none."""
    return torch.where(mask, values.detach(), 0.0).sum() / mask.sum()


def _clip_share(inputs: SrpoInputs, config: SrpoConfig, mask: Tensor) -> Tensor:
    """Return the share of policy-gradient tokens whose gradient a clip removed."""
    advantages = (
        inputs.advantages if inputs.advantages.dim() == 2 else inputs.advantages.unsqueeze(1)
    )
    ratio = log_ratio(inputs.log_probs.detach(), inputs.old_log_probs.detach()).exp()
    clipped = ((advantages > 0) & (ratio > 1 + config.clip_high)) | (
        (advantages < 0) & (ratio < 1 - config.clip_low)
    )
    if config.dual_clip is not None:
        clipped = clipped | ((advantages < 0) & (ratio > config.dual_clip))
    return _mean(clipped.to(ratio.dtype), mask)
