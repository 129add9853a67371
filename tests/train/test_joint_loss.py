"""Test the loss that trains against the pure functions, which the published numbers check.

Here student and self-teacher run row by row, without padding, chunks or a shared prompt, over the
whole vocabulary.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from trl import GRPOTrainer

from markscheme.schema import Group, GroupScore
from markscheme_train import losses
from markscheme_train.config import build_config
from markscheme_train.data import Example
from markscheme_train.losses import SrpoConfig, SrpoInputs
from markscheme_train.optimiser_step import count_by_step
from markscheme_train.reprompt import reprompt
from markscheme_train.reward import RubricReward
from markscheme_train.self_teacher import ModelCopy
from markscheme_train.trainer import MarkschemeTrainer
from markscheme_train.training import build_trainer
from train.tiny import ScriptedClient

# TRL 1.16 still uses names that transformers 5.23 has deprecated.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`.*gradient_checkpointing.*` is deprecated:FutureWarning"
)

PROMPTS = ["w1 w2 w3", "w4", "w5 w6"]
SIZE = 4
REWARDS = [1.0, 0.0, 0.2, 0.55, 0.9, None, 0.0, 0.6, 0.4, 0.1, 0.2, 0.0]
"""Two groups with successes, and one without, whose rollouts learn from their rewards."""
FEEDBACK = {1: ["w11 w12", "w15"], 2: ["w13"], 6: ["w14"]}
DEMONSTRATIONS = {
    "srpo": {1: 0, 2: 0, 6: 4},
    "sdpo": {0: 3, 1: 0, 2: 0, 3: 0, 4: 7, 6: 4, 7: 4},
}
"""Which rollout a row is shown, for the rows that learn from the self-teacher."""


class Client(ScriptedClient):
    """Scores by the tables above."""

    def __init__(self) -> None:
        super().__init__(lambda place, rollout: None)

    def _group(self, group: Group) -> GroupScore:
        first = SIZE * int(group.id.rpartition("p")[2])
        self.script = lambda place, rollout: REWARDS[first + place]
        scored = super()._group(group)
        rollouts = [
            rollout.model_copy(update={"feedback": FEEDBACK.get(first + place, [])})
            for place, rollout in enumerate(scored.rollouts)
        ]
        return scored.model_copy(update={"rollouts": rollouts})


@pytest.fixture
def make(
    settings: dict[str, Any], model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[MarkschemeTrainer, dict[str, Any]]]:
    def build(
        *,
        sampler: bool = False,
        mismatch: Tensor | None = None,
        tools: bool = False,
        device: str = "cpu",
        **more: Any,
    ) -> tuple[MarkschemeTrainer, dict[str, Any]]:
        """Return a trainer and a generated batch, after which the student has moved.

        With `mismatch` [rows, tokens] a sampler as far from the trainer has made the rollouts.
        """
        monkeypatch.setattr(MarkschemeTrainer, "plain_device", device)
        plain = GRPOTrainer._generate_and_score_completions

        def generated(self: Any, inputs: Any) -> dict[str, Any]:
            batch: dict[str, Any] = plain(self, inputs)
            shape = batch["completion_ids"].shape
            if sampler:
                batch["importance_sampling_ratio"] = 2 * torch.rand(shape)
            if tools:
                batch["tool_mask"] = torch.rand(shape).gt(0.3).long()
            return batch

        monkeypatch.setattr(GRPOTrainer, "_generate_and_score_completions", generated)
        with torch.no_grad():
            for weight in model.parameters():  # as initialised, all distributions are nearly flat
                weight.mul_(6)
        config = build_config(
            {
                **settings,
                "preset": "srpo",
                "per_device_train_batch_size": len(REWARDS),
                "distillation_top_k": 5,
                **more,
            }
        )
        reward = RubricReward(Client(), num_generations=SIZE, run_id="run")
        trainer = build_trainer(
            config, model, tokenizer, [Example(prompt=p) for p in PROMPTS], reward
        )
        if config.activation_checkpointing:
            trainer.model.enable_input_require_grads()
            trainer.model.gradient_checkpointing_enable()
        if mismatch is not None:
            sample_elsewhere(trainer, mismatch)
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 1
        rows = [
            {"prompt": prompt, "teacher_responses": None} for prompt in PROMPTS for _ in range(SIZE)
        ]
        batch = trainer._generate_and_score_completions(rows)
        count_by_step(trainer, [batch])
        with torch.no_grad():
            for weight in trainer.model.parameters():
                weight.add_(0.2 * weight.std() * torch.randn_like(weight))
        return trainer, batch

    return build


def sample_elsewhere(trainer: MarkschemeTrainer, mismatch: Tensor) -> None:
    """Let a `rollout_func` beside vLLM say rollouts and their log-probabilities, as recorded.

    They are the trainer's own minus `mismatch` [rows, tokens]; vLLM may leave one out.
    """

    @torch.no_grad()
    def rollouts(prompts: list[str], _trainer: Any) -> dict[str, Any]:
        made: dict[str, Any] = {"prompt_ids": [], "completion_ids": [], "logprobs": []}
        for row, prompt in enumerate(prompts):
            ids = trainer._tokenizer(prompt)["input_ids"]
            rollout = torch.randint(2, 64, (2 + row % 5,)).tolist()
            logits = trainer.model(input_ids=torch.tensor([ids + rollout])).logits[0]
            own = (logits[len(ids) - 1 : -1] / trainer.temperature).log_softmax(-1)
            sampled = own[range(len(rollout)), rollout] - mismatch[row, : len(rollout)]
            made["prompt_ids"].append(ids)
            made["completion_ids"].append(rollout)
            made["logprobs"].append([None if x.isnan() else x.item() for x in sampled])
        return made

    trainer.rollout_func, trainer.use_vllm, trainer._last_loaded_step = rollouts, True, -1
    trainer.vllm_generation = SimpleNamespace(sync_weights=lambda: None)


def expected(
    trainer: MarkschemeTrainer, batch: dict[str, Any], sampler_weights: Tensor | None = None
) -> tuple[Tensor, SrpoInputs]:
    config, width = trainer.args, batch["completion_ids"].shape[1]
    teacher = trainer.distillation and trainer.distillation.self_teacher.model  # type: ignore[attr-defined]
    shown = DEMONSTRATIONS.get(config.method, {})

    def padded(values: Tensor) -> Tensor:
        return torch.nn.functional.pad(values, (0, width - len(values)))

    def completion(row: int) -> Tensor:
        ids: Tensor = batch["completion_ids"][row, : lengths[row]]
        return ids

    def distribution(model: Any, prompt: Tensor, row: int) -> Tensor:
        ids = torch.cat([prompt, completion(row)]).unsqueeze(0)
        logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1] / config.temperature
        log_probs: Tensor = logits.log_softmax(-1)
        return log_probs

    lengths = batch["completion_mask"].sum(1).tolist()
    own, divergence, entropy = [], [], []
    for row in range(len(REWARDS)):
        if lengths[row] == 0:
            student = torch.zeros(0, 64)
        else:
            mask = batch["prompt_mask"][row].bool()
            student = distribution(trainer.model, batch["prompt_ids"][row][mask], row)
        own.append(padded(student.gather(-1, completion(row).unsqueeze(-1)).squeeze(-1)))
        if row not in shown:
            divergence.append(torch.zeros(width))
            entropy.append(torch.zeros(width))
            continue
        text = reprompt(
            PROMPTS[row // SIZE],
            trainer._tokenizer.decode(completion(shown[row]), skip_special_tokens=True),
            FEEDBACK.get(row, []) if config.rubric_feedback else [],
        )
        prompt = torch.tensor(trainer._tokenizer(text)["input_ids"])
        with torch.no_grad():
            other = distribution(teacher, prompt, row)
        entropy.append(padded(losses.entropy(other)))
        if config.distillation_top_k is not None:
            top = student.detach().topk(config.distillation_top_k).indices
            student, other = (losses.topk_with_tail(each, top) for each in (student, other))
        divergence.append(
            padded(losses.generalized_jsd(student, other, alpha=config.distillation_alpha))
        )
    log_probs = torch.stack(own)
    old = batch.get("old_per_token_logps")
    inputs = SrpoInputs(
        log_probs=log_probs,
        old_log_probs=log_probs.detach() if old is None else old,
        advantages=losses.group_advantages(
            torch.tensor([torch.nan if r is None else r for r in REWARDS]).view(-1, SIZE)
        ).flatten(),
        mask=batch["completion_mask"] * batch.get("tool_mask", 1),
        routed=torch.tensor([row in shown for row in range(len(REWARDS))]),
        divergence=torch.stack(divergence),
        entropy=torch.stack(entropy),
        sampler_weights=sampler_weights,
    )
    settings = SrpoConfig(
        clip_low=config.epsilon,
        clip_high=config.epsilon_high,
        dual_clip=config.delta,
        beta=config.entropy_beta,
        importance_cap=config.importance_cap,
    )
    return losses.srpo_loss(inputs, settings)[0], inputs


def gradient(trainer: MarkschemeTrainer, loss: Tensor) -> Tensor:
    trainer.model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten().clone() for p in trainer.model.parameters()])


EVERYTHING = {
    "num_iterations": 2,
    "temperature": 0.7,
    "sampler": True,
    "tools": True,
    "rubric_feedback": True,
}


@pytest.mark.parametrize(
    "case",
    [
        {},
        {"num_iterations": 2},
        {
            "num_iterations": 2,
            "epsilon": 0.1,
            "epsilon_high": 0.15,
            "delta": 1.3,
            "entropy_beta": 0.3,
            "importance_cap": 1.1,
        },
        {"temperature": 0.7},
        {"sampler": True},
        {"tools": True},
        {"rubric_feedback": True},
        {"distillation_alpha": 0.0},
        {"distillation_alpha": 1.0},
        {"distillation_top_k": None},
        {"preset": "sdpo"},
        EVERYTHING,
        EVERYTHING | {"device": "none"},
        EVERYTHING | {"preset": "sdpo", "distillation_top_k": None},
        EVERYTHING | {"distillation_alpha": 1.0, "device": "none"},
        # As on a GPU with its defaults: layers run twice, the last hidden states are seen once.
        EVERYTHING | {"activation_checkpointing": True, "device": "none"},
    ],
    ids=lambda case: " ".join(f"{k}={v}" for k, v in case.items()) or "as published",
)
def test_what_trains_is_the_joint_loss(
    case: dict[str, Any], make: Callable[..., tuple[MarkschemeTrainer, dict[str, Any]]]
) -> None:
    """By a plain forward pass, as on a CPU, and through TRL's fused head, as on a GPU."""
    trainer, batch = make(**case)
    loss, inputs = expected(trainer, batch, batch.get("importance_sampling_ratio"))
    assert batch["routed"].tolist() == inputs.routed.tolist()
    wanted = gradient(trainer, loss)
    found = trainer._compute_loss(trainer.model, batch)
    assert found.item() == pytest.approx(loss.item(), abs=1e-5)
    torch.testing.assert_close(gradient(trainer, found), wanted, atol=1e-5, rtol=1e-3)
    metrics = trainer._metrics["train"]
    routed = inputs.mask.bool() & inputs.routed.unsqueeze(1)
    assert inputs.divergence is not None
    assert metrics["distillation/divergence"][-1] == pytest.approx(
        inputs.divergence[routed].mean().item(), rel=1e-3
    )
    if "num_iterations" in case:
        # Else a loss without cap or clip would be the same one.
        ratio = (inputs.log_probs - inputs.old_log_probs).exp()
        assert (ratio[routed] > 2).any()
        assert metrics["clip_ratio/region_mean"][-1] > 0 or case.get("preset") == "sdpo"


def sampler_correction(mismatch: Tensor, mask: Tensor, mode: str) -> Tensor:
    """Return the weights [rows, tokens] that undo a sampler's mismatch, between 0.7 and 1.4."""
    differences = torch.where(mask.bool(), mismatch.nan_to_num(0.0), 0.0)
    if mode.startswith("sequence"):
        differences = differences.sum(1, keepdim=True).expand_as(mask)
    ratio = differences.exp()
    if mode.endswith("truncate"):
        return ratio.clamp(0.7, 1.4)
    return torch.where((ratio >= 0.7) & (ratio <= 1.4), ratio, 0.0)


@pytest.mark.parametrize("preset", ["grpo", "sdpo", "srpo"])
@pytest.mark.parametrize(
    "mode", ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]
)
def test_the_sampler_s_mismatch_is_corrected_in_what_trains(
    mode: str, preset: str, make: Callable[..., tuple[MarkschemeTrainer, dict[str, Any]]]
) -> None:
    torch.manual_seed(3)
    mismatch = 0.8 * torch.randn(len(REWARDS), 6)
    mismatch[0, 1] = torch.nan
    trainer, batch = make(
        mismatch=mismatch,
        preset=preset,
        num_iterations=2,
        temperature=0.7,
        max_steps=2,
        vllm_importance_sampling_mode=mode,
        vllm_importance_sampling_clip_min=0.7,
        vllm_importance_sampling_clip_max=1.4,
    )
    width = batch["completion_ids"].shape[1]
    written = torch.tensor([[place < 2 + row % 5 for place in range(width)] for row in range(12)])
    weights = sampler_correction(mismatch[:, :width], written, mode)
    taught = weights[batch["completion_mask"].bool()]
    # Else another mode, or none, would have the same loss.
    assert taught.min() == (0.7 if mode.endswith("truncate") else 0.0)
    assert taught.max() <= 1.4
    loss, _ = expected(trainer, batch, weights)
    wanted = gradient(trainer, loss)
    found = trainer._compute_loss(trainer.model, batch)
    assert found.item() == pytest.approx(loss.item(), abs=1e-5)
    torch.testing.assert_close(gradient(trainer, found), wanted, atol=1e-5, rtol=1e-3)


def test_the_self_teacher_reads_no_further_than_the_longest_rollout_beside(
    make: Callable[..., tuple[MarkschemeTrainer, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of five rows the one with the longest rollout is run apart from the other four."""
    kept: list[int] = []
    plain = ModelCopy.states

    def states(self: ModelCopy, ids: Tensor, mask: Tensor, keep: int) -> Tensor:
        kept.append(keep)
        return plain(self, ids, mask, keep)

    monkeypatch.setattr(ModelCopy, "states", states)
    make(mismatch=torch.zeros(len(REWARDS), 6), per_device_train_batch_size=4)
    assert kept == [4, 6]


def test_a_mismatch_is_left_alone_where_no_correction_is_asked_for(
    make: Callable[..., tuple[MarkschemeTrainer, dict[str, Any]]],
) -> None:
    trainer, batch = make(
        mismatch=0.4 * torch.ones(len(REWARDS), 6), vllm_importance_sampling_correction=False
    )
    loss, _ = expected(trainer, batch)
    assert trainer._compute_loss(trainer.model, batch).item() == pytest.approx(
        loss.item(), abs=1e-5
    )
