"""Test the losses against independently computed numbers, and properties for any numbers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from markscheme_train import losses
from markscheme_train.losses import SrpoConfig, SrpoInputs

ORACLE = json.loads((Path(__file__).parent / "vectors" / "srpo.json").read_text())
VALUE, GRADIENT = 1e-6, 1e-5
ALPHAS = ("0.0", "0.25", "0.5", "0.75", "1.0")


def t(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(actual: Tensor, expected: Any, tolerance: float = VALUE) -> None:
    torch.testing.assert_close(actual.detach().double(), t(expected), atol=tolerance, rtol=0)


def padded(rows: list[Any], fill: float = 0.0) -> Tensor:
    """Ragged rows of numbers or of vectors, padded on the right."""
    width = max(len(row) for row in rows)
    blank = [fill] * len(rows[0][0]) if isinstance(rows[0][0], list) else fill
    return t([row + [blank] * (width - len(row)) for row in rows])


def test_group_advantages() -> None:
    for case in ORACLE["V1_group_advantage"]["cases"]:
        rewards = t([case["rewards"]])
        close(losses.group_advantages(rewards), [case["none"]])
        close(losses.group_advantages(rewards, scale="std"), [case["std_sample_eps1e-6"]])


def test_what_has_no_reward_is_in_no_baseline() -> None:
    nan = float("nan")
    rewards = t([[1.0, nan, 0.0, 0.5], [nan, 1.0, nan, nan], [nan] * 4])
    for scale in ("none", "std"):
        advantages = losses.group_advantages(rewards, scale=scale)
        close(
            advantages[0, [0, 2, 3]],
            losses.group_advantages(t([[1.0, 0.0, 0.5]]), scale=scale)[0].tolist(),
        )
        assert advantages[0, 1] == 0
        assert not advantages[1:].any()  # one known reward is no group
    left_out = losses.group_advantages(
        t([[1.0, 9.0, 0.0]]), valid=torch.tensor([[True, False, True]])
    )
    close(left_out, [[0.5, 0.0, -0.5]])
    with pytest.raises(ValueError, match="infinite"):
        losses.group_advantages(t([[1.0, float("inf")]]))


def test_each_group_has_its_own_mean_deviation_and_number_of_rewards() -> None:
    nan = float("nan")
    rewards = t([[1.0, 0.0, nan], [0.2, 0.4, 0.9], [0.5, nan, nan]])
    alone = [losses.group_advantages(group.unsqueeze(0), scale="std")[0] for group in rewards]
    close(losses.group_advantages(rewards, scale="std"), torch.stack(alone).tolist())
    # Of two rewards the sample's deviation is 1 / sqrt(2).
    close(alone[0], [0.5 * 2**0.5, -0.5 * 2**0.5, 0.0], 1e-5)
    few = losses.group_advantages(rewards, min_group=3)
    assert not few[[0, 2]].any()
    close(few[1], [-0.3, -0.1, 0.4])
    assert not losses.group_advantages(rewards, min_group=1)[2].any()


def test_equal_rewards_teach_nothing() -> None:
    assert not losses.group_advantages(torch.full((2, 4), 0.3), scale="std").abs().gt(1e-1).any()
    assert not losses.group_advantages(t([[0.25] * 4]), scale="std").any()


def test_clipped_surrogate() -> None:
    v = ORACLE["V2_clipped_surrogate"]
    new, old, mask = t(v["log_prob"]), t(v["old_log_prob"]), t(v["mask"])
    clips = {"clip_low": v["clip_low"], "clip_high": v["clip_high"], "dual_clip": v["dual_clip_c"]}
    loss = losses.clipped_surrogate(new, old, t(v["advantages"]), **clips)
    close(loss, v["token_loss"])
    close(losses.clipped_surrogate(new, old, t(v["advantages"])[:, 0], **clips), v["token_loss"])
    weights = losses.capped_importance(old, t(v["rollout_log_prob"]), v["rollout_is_cap"])
    close(weights, v["rollout_is_weight"])
    close((loss * weights * mask).sum() / mask.sum(), v["token_mean_with_is"])


@pytest.mark.parametrize("alpha", ALPHAS)
def test_generalized_jsd(alpha: str) -> None:
    v = ORACLE["V3_generalized_jsd"]
    logits = t(v["student_probs"]).log().requires_grad_()
    value = losses.generalized_jsd(
        logits.log_softmax(-1), t(v["teacher_probs"]).log(), alpha=float(alpha)
    )
    close(value, v["alpha"][alpha]["value"])
    value.backward()
    close(logits.grad, v["alpha"][alpha]["grad_wrt_student_logits"], GRADIENT)


@pytest.mark.parametrize("alpha", [-0.1, 1.1])
def test_an_alpha_that_is_no_share_is_refused(alpha: float) -> None:
    equal = t([0.5, 0.5]).log()
    with pytest.raises(ValueError, match=f"^alpha must lie between 0 and 1, not {alpha}$"):
        losses.generalized_jsd(equal, equal, alpha=alpha)


def test_divergence_of_impossible_tokens_is_finite() -> None:
    student = t([0.5, 0.5, 0.0]).log().requires_grad_()
    for alpha in (0.25, 0.5, 0.75):
        value = losses.generalized_jsd(student, t([0.0, 0.5, 0.5]).log(), alpha=alpha)
        assert 0 < value < 0.7
        assert torch.autograd.grad(value, student)[0].isfinite().all()
    assert losses.generalized_jsd(student, student, alpha=0.5).abs() < 1e-12


def test_sampled_token_estimator() -> None:
    v, probs = ORACLE["V3b_sampled_token"], ORACLE["V3_generalized_jsd"]
    logits = t(probs["student_probs"]).log().requires_grad_()
    own = logits.log_softmax(-1)[v["token"]]
    value = losses.sampled_token_loss(own, t(probs["teacher_probs"]).log()[v["token"]])
    close(value, v["loss_value"])
    value.backward()
    close(logits.grad, v["grad_wrt_student_logits"], GRADIENT)


@pytest.mark.parametrize("k", [2, 3])
def test_topk_with_tail(k: int) -> None:
    v = ORACLE["V4_topk_tail"]
    logits = t(v["student_logits"]).requires_grad_()
    student, teacher = logits.log_softmax(-1), t(v["teacher_logits"]).log_softmax(-1)
    indices = student.topk(k).indices
    assert indices.tolist() == v[f"k{k}"]["student_topk_indices"]
    own, other = losses.topk_with_tail(student, indices), losses.topk_with_tail(teacher, indices)
    close(own.exp(), v[f"k{k}"]["student_probs_tail"])
    close(other.exp(), v[f"k{k}"]["teacher_probs_tail"])
    for alpha, value in v[f"k{k}"]["tail"].items():
        close(losses.generalized_jsd(own, other, alpha=float(alpha)), value)
    if k == 2:
        losses.generalized_jsd(own, other, alpha=0.5).backward()
        close(logits.grad, v["grad_k2_tail_alpha0.5_wrt_student_logits"], GRADIENT)


def test_all_tokens_in_the_head_leave_an_empty_tail() -> None:
    logits = torch.randn(4, dtype=torch.float64, requires_grad=True)
    every = losses.topk_with_tail(logits.log_softmax(-1), torch.arange(4))
    assert every.isfinite().all()
    assert every[-1].exp() < 1e-6
    teacher = torch.randn(4, dtype=torch.float64).log_softmax(-1)
    full = losses.generalized_jsd(logits.log_softmax(-1), teacher, alpha=0.5)
    close(
        losses.generalized_jsd(every, losses.topk_with_tail(teacher, torch.arange(4)), alpha=0.5),
        full.tolist(),
    )


@pytest.mark.parametrize("beta", ["0.0", "0.5", "1.0", "2.0"])
def test_entropy_weights(beta: str) -> None:
    v = ORACLE["V5_entropy_weights"]
    entropy = losses.entropy(t(v["teacher_probs"]).log()).unsqueeze(0)
    close(entropy[0], v["entropy_nats"])
    weights = losses.entropy_weights(entropy, t([v["valid_mask"]]), beta=float(beta))
    close(weights[0], v["beta"][beta]["normalised"])


def test_a_lone_token_weighs_1() -> None:
    weights = losses.entropy_weights(t([[0.3, 2.0]]), t([[0, 1]]), beta=1.0)
    close(weights, [[0.0, 1.0]])


def test_entropy_weights_of_parts_are_those_of_the_whole() -> None:
    entropy, mask = torch.rand(6, 5, dtype=torch.float64) * 3, torch.rand(6, 5) > 0.3
    whole = losses.entropy_weights(entropy, mask, beta=1.0)
    assert whole[mask].mean() == pytest.approx(1.0)
    total, count = sum(
        losses.entropy_weight_sums(e, m, beta=1.0)
        for e, m in zip(entropy.split(2), mask.split(2), strict=True)
    )
    parts = [
        losses.entropy_weights(e, m, beta=1.0, mean=total / count)
        for e, m in zip(entropy.split(2), mask.split(2), strict=True)
    ]
    close(torch.cat(parts), whole.tolist(), 1e-12)
    assert not losses.entropy_weights(entropy, torch.zeros_like(mask), beta=1.0).any()


class Combined:
    """The oracle's whole step: two rows for each branch, of different lengths."""

    def __init__(self, order: tuple[int, ...] = (0, 1, 2, 3), padding: int = 0) -> None:
        v = ORACLE["V7_srpo_combined"]
        self.logits = padded([v["student_logits"][i] for i in order])
        lengths = [len(v["token_ids"][i]) for i in order]
        if padding:
            self.logits = torch.cat(
                [self.logits, torch.randn(4, padding, 4, dtype=torch.float64)], dim=1
            )
        self.logits.requires_grad_()
        width = self.logits.shape[1]
        fill = [[0.0] * (width - n) for n in lengths]
        self.ids = t([v["token_ids"][i] + f for i, f in zip(order, fill, strict=True)]).long()
        self.old = t([v["old_log_probs"][i] + f for i, f in zip(order, fill, strict=True)])
        self.mask = torch.tensor([[1] * n + [0] * (width - n) for n in lengths])
        self.advantages = t([v["advantage"][i] for i in order])
        self.routed = torch.tensor([v["routes"][i] == "SDPO" for i in order])
        teachers = v["teacher_logits_for_SDPO_rows"]
        blank = [[0.0] * 4] * width
        rows = [teachers.get(str(i), []) for i in order]
        self.teacher = t([row + blank[len(row) :] for row in rows]).log_softmax(-1)
        self.order, self.lengths = order, lengths

    def inputs(self, rows: slice = slice(None), **more: Any) -> SrpoInputs:
        student = self.logits[rows].log_softmax(-1)
        return SrpoInputs(
            log_probs=student.gather(-1, self.ids[rows].unsqueeze(-1)).squeeze(-1),
            old_log_probs=self.old[rows],
            advantages=self.advantages[rows],
            mask=self.mask[rows],
            routed=self.routed[rows],
            divergence=losses.generalized_jsd(student, self.teacher[rows], alpha=0.5),
            entropy=losses.entropy(self.teacher[rows]),
            **more,
        )

    def gradient(self) -> list[list[list[float]]]:
        """By the oracle's row order, without padding."""
        assert self.logits.grad is not None
        rows = {
            i: self.logits.grad[place, :n].tolist()
            for place, (i, n) in enumerate(zip(self.order, self.lengths, strict=True))
        }
        return [rows[i] for i in range(4)]


def check_gradient(actual: list[Any], tolerance: float = GRADIENT) -> None:
    for row, expected in zip(
        actual, ORACLE["V7_srpo_combined"]["grad_wrt_student_logits"], strict=True
    ):
        close(t(row), expected, tolerance)


@pytest.mark.parametrize(
    ("order", "padding"), [((0, 1, 2, 3), 0), ((2, 0, 3, 1), 0), ((0, 1, 2, 3), 5)]
)
def test_the_joint_loss_whatever_the_order_and_the_padding(
    order: tuple[int, ...], padding: int
) -> None:
    step = Combined(order, padding)
    loss, metrics = losses.srpo_loss(step.inputs(), SrpoConfig())
    v = ORACLE["V7_srpo_combined"]
    close(loss, v["loss"])
    close(metrics["policy_loss"] * v["total_tokens"], v["sum_grpo"])
    close(metrics["distillation_loss"] * v["total_tokens"], v["sum_sdpo_weighted"])
    inputs, routed = step.inputs(), step.mask.bool() & step.routed.unsqueeze(1)
    assert inputs.divergence is not None
    assert inputs.entropy is not None
    assert set(metrics) == {
        "clip_share",
        "divergence",
        "teacher_entropy",
        "policy_loss",
        "distillation_loss",
    }
    close(metrics["divergence"], inputs.divergence[routed].mean().item())
    close(metrics["teacher_entropy"], inputs.entropy[routed].mean().item())
    loss.backward()
    check_gradient(step.gradient())
    assert not any(m.requires_grad for m in metrics.values())


def test_without_entropy_weights() -> None:
    loss, _ = losses.srpo_loss(Combined().inputs(), SrpoConfig(beta=0.0))
    close(loss, ORACLE["V7_srpo_combined"]["loss_without_dynamic_weighting"])


@pytest.mark.parametrize("size", [1, 2, 3])
def test_micro_batches_add_up_to_the_step(size: int) -> None:
    whole = Combined()
    losses.srpo_loss(whole.inputs(), SrpoConfig())[0].backward()
    split = Combined()
    full = split.inputs()
    total, count = losses.entropy_weight_sums(
        full.entropy, full.mask.bool() & full.routed[:, None], beta=1.0
    )
    value = 0.0
    for start in range(0, 4, size):
        part = split.inputs(
            slice(start, start + size), token_count=split.mask.sum(), weight_mean=total / count
        )
        loss, _ = losses.srpo_loss(part, SrpoConfig())
        loss.backward()
        value += loss.item()
    assert value == pytest.approx(ORACLE["V7_srpo_combined"]["loss"], abs=VALUE)
    for one, other in zip(whole.gradient(), split.gradient(), strict=True):
        close(t(one), other, 1e-12)


def test_importance_is_capped_above_and_carries_no_gradient() -> None:
    v = ORACLE["V9_sdpo_is_clip"]
    own = t([v["student_logp"]]).requires_grad_()
    divergence, ones = t([v["token_divergence"]]).requires_grad_(), torch.ones(1, 3)
    loss, _ = losses.srpo_loss(
        SrpoInputs(
            log_probs=own,
            old_log_probs=t([v["old_logp"]]),
            advantages=t([0.7]),
            mask=ones,
            routed=torch.tensor([True]),
            divergence=divergence,
            entropy=t([[0.3, 0.3, 0.3]]),
        ),
        SrpoConfig(importance_cap=v["is_clip"]),
    )
    close(loss, v["token_mean"])
    loss.backward()
    close(divergence.grad * 3, [v["ratio_clipped"]])
    assert own.grad is None or not own.grad.any()


@pytest.mark.parametrize(
    ("advantage", "ratio", "clipped"),
    [
        (0.5, 1.5, True),
        (0.5, 5.0, True),
        (0.5, 1.2, False),
        (0.5, 0.5, False),  # for a good token the lower clip is no bound
        (-0.5, 0.5, True),
        (-0.5, 0.9, False),
        (-0.5, 1.5, False),  # nor the upper one for a bad one, until the dual clip
        (-0.5, 5.0, True),
        (0.0, 0.5, False),
        (0.0, 1.5, False),
        (0.0, 5.0, False),
    ],
)
def test_a_token_is_clipped_where_a_clip_takes_its_gradient(
    advantage: float, ratio: float, clipped: bool
) -> None:
    own = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    advantages = t([[advantage, 0.0], [0.0, 0.0]])
    loss, metrics = losses.srpo_loss(
        SrpoInputs(
            log_probs=own,
            old_log_probs=torch.full((2, 2), -torch.tensor(ratio).log().item()).double(),
            advantages=advantages,
            mask=torch.ones(2, 2),
            routed=torch.zeros(2),
        ),
        SrpoConfig(),
    )
    close(metrics["clip_share"], 0.25 if clipped else 0.0)
    loss.backward()
    assert own.grad is not None
    assert (own.grad[0, 0] == 0) == (clipped or advantage == 0)


@pytest.mark.parametrize(("advantage", "ratio"), [(1.0, 2.0), (-1.0, 0.5), (-1.0, 4.0)])
def test_a_token_at_a_clip_keeps_its_gradient(advantage: float, ratio: float) -> None:
    own = t([[0.0]]).requires_grad_()
    inputs = SrpoInputs(own, -t([[ratio]]).log(), t([advantage]), t([[1.0]]), torch.tensor([False]))
    clips = {"clip_low": 0.5, "clip_high": 1.0, "dual_clip": 4.0}
    loss, metrics = losses.srpo_loss(inputs, SrpoConfig(**clips))
    loss.backward()
    assert own.grad is not None
    assert own.grad.item() != 0
    assert metrics["clip_share"].item() == 0


def test_log_ratios_are_bounded_on_both_sides() -> None:
    close(losses.log_ratio(t([30.0, -30.0, 1.0]), t([0.0, 0.0, 0.5])), [20.0, -20.0, 0.5])


def test_a_lone_token_is_a_whole_step() -> None:
    inputs = SrpoInputs(t([[0.0]]), t([[0.0]]), t([0.7]), t([[1.0]]), torch.tensor([False]))
    close(losses.srpo_loss(inputs, SrpoConfig())[0], -0.7)


def test_the_joint_loss_has_the_clips_of_its_settings() -> None:
    own = torch.tensor([[0.0, 0.0, 0.0]], dtype=torch.float64)
    inputs = SrpoInputs(
        log_probs=own,
        old_log_probs=-t([[5.0, 0.5, 0.9]]).log(),
        advantages=t([[-1.0, -1.0, 1.0]]),
        mask=torch.ones(1, 3),
        routed=torch.tensor([False]),
    )
    settings = {"clip_low": 0.3, "clip_high": 0.4, "dual_clip": 2.0}
    loss, metrics = losses.srpo_loss(inputs, SrpoConfig(**settings))
    # Ratios 5, 0.5 and 0.9: bounded by the dual clip, clipped below, and left alone.
    close(loss, (2.0 + 0.7 - 0.9) / 3)
    close(metrics["clip_share"], 2 / 3)


def test_the_samplers_mismatch_weighs_both_branches() -> None:
    weights = torch.full((4, 3), 0.5, dtype=torch.float64)
    plain, _ = losses.srpo_loss(Combined().inputs(), SrpoConfig())
    halved, _ = losses.srpo_loss(Combined().inputs(sampler_weights=weights), SrpoConfig())
    close(halved * 2, plain.item(), 1e-12)


def test_no_routed_rows_leave_grpo() -> None:
    step = Combined()
    step.routed = torch.zeros(4, dtype=torch.bool)
    whole, _ = losses.srpo_loss(step.inputs(), SrpoConfig())
    plain = step.inputs()
    surrogate = losses.clipped_surrogate(
        plain.log_probs,
        plain.old_log_probs,
        plain.advantages,
        clip_low=0.2,
        clip_high=0.28,
        dual_clip=3.0,
    )
    close(whole, ((surrogate * step.mask).sum() / step.mask.sum()).item(), 1e-12)
    step.routed[1] = True
    for given in (None, plain.divergence):
        with pytest.raises(ValueError, match="^rows are routed .* there is no divergence"):
            losses.srpo_loss(
                SrpoInputs(
                    plain.log_probs,
                    plain.old_log_probs,
                    plain.advantages,
                    step.mask,
                    step.routed,
                    given,
                ),
                SrpoConfig(),
            )


def test_masked_rows_and_an_empty_step_are_harmless() -> None:
    step = Combined()
    step.mask[1] = 0
    loss, _ = losses.srpo_loss(step.inputs(), SrpoConfig())
    loss.backward()
    assert step.logits.grad is not None
    assert not step.logits.grad[1].any()
    empty = Combined()
    empty.mask[:] = 0
    loss, _ = losses.srpo_loss(empty.inputs(), SrpoConfig())
    loss.backward()
    assert loss.item() == 0
    assert empty.logits.grad is not None
    assert not empty.logits.grad.any()


def test_gradients_numerically() -> None:
    torch.manual_seed(3)
    logits = torch.randn(3, 4, 6, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(3, 4, 6, dtype=torch.float64).log_softmax(-1)
    ids, old = torch.randint(6, (3, 4, 1)), -2 * torch.rand(3, 4, dtype=torch.float64)
    mask, routed = torch.tensor([[1, 1, 1, 0]] * 3), torch.tensor([True, False, True])
    advantages = t([0.3, -0.4, 0.2])

    def loss(values: Tensor, alpha: float, k: int | None) -> Tensor:
        student, other = values.log_softmax(-1), teacher
        own = student.gather(-1, ids).squeeze(-1)
        if k is not None:
            top = student.detach().topk(k).indices
            student, other = (
                losses.topk_with_tail(student, top),
                losses.topk_with_tail(teacher, top),
            )
            # Autograd treats the importance weight as a constant. With the old policy equal to
            # the current one, it is constant numerically too.
        inputs = SrpoInputs(
            own,
            torch.where(routed[:, None], own.detach(), old),
            advantages,
            mask,
            routed,
            losses.generalized_jsd(student, other, alpha=alpha),
            losses.entropy(teacher),
        )
        return losses.srpo_loss(inputs, SrpoConfig())[0]

    for alpha in (0.0, 0.3, 0.5, 1.0):
        for k in (None, 2):
            assert torch.autograd.gradcheck(lambda v, a=alpha, top=k: loss(v, a, top), (logits,))
