"""Test MarkschemeTrainer on a random one-layer model: masked updates and log contents."""

import logging
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM
from trl import GRPOTrainer

from markscheme_train.config import build_config
from markscheme_train.data import Example, as_dataset
from markscheme_train.errors import ConfigError, ModelError
from markscheme_train.prefix import shared_prompt_states
from markscheme_train.reward import RubricReward
from markscheme_train.trainer import MarkschemeTrainer
from markscheme_train.training import build_trainer, load_model
from train.tiny import Script, ScriptedClient

# TRL 1.16 still reads a name that transformers 5.23 has deprecated.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)

PROMPTS = ["w1 w2 w3", "w4"]
Maker = Callable[[Script], MarkschemeTrainer]


@pytest.fixture
def make_trainer(settings: dict[str, Any], model: Any, tokenizer: Any) -> Maker:
    def make(script: Script) -> MarkschemeTrainer:
        config = build_config(settings)
        reward = RubricReward(
            ScriptedClient(script), num_generations=4, run_id="run", eos_token_ids=[1]
        )
        return build_trainer(config, model, tokenizer, [Example(prompt=p) for p in PROMPTS], reward)

    return make


def generate(trainer: MarkschemeTrainer) -> dict[str, Any]:
    trainer.model.train()
    rows = [{"prompt": prompt, "teacher_responses": None} for prompt in PROMPTS for _ in range(4)]
    return trainer._generate_and_score_completions(rows)


def test_unscored_rows_leave_baseline_loss_and_denominator(make_trainer: Maker) -> None:
    rewards = [0.0, None, 0.5, 1.0]
    batch = generate(make_trainer(lambda place, rollout: rewards[place]))
    assert batch["advantages"].tolist() == pytest.approx([-0.5, 0.0, 0.0, 0.5] * 2)
    tokens = batch["completion_mask"].sum(1)
    assert tokens.tolist() == [n if i % 4 != 1 else 0 for i, n in enumerate(tokens.tolist())]
    assert all(tokens[i] > 0 for i in range(8) if i % 4 != 1)
    assert int(batch["num_items_in_batch"]) == int(tokens.sum())


def test_another_reward_adds_to_the_rubrics_and_never_stands_in_for_it(
    settings: dict[str, Any], model: Any, tokenizer: Any
) -> None:
    def bonus(completions: Any, **_columns: Any) -> list[float | None]:
        return [None if i % 4 == 3 else float(i % 4 == 0) for i in range(len(completions))]

    rubric = [0.0, None, 0.5, 1.0]
    reward = RubricReward(
        ScriptedClient(lambda place, rollout: rubric[place]), num_generations=4, run_id="run"
    )
    trainer = MarkschemeTrainer(
        model,
        reward,
        build_config({**settings, "reward_weights": [1.0, 0.5]}),
        other_rewards=[bonus],
        train_dataset=as_dataset([Example(prompt=p) for p in PROMPTS], chat=False),
        processing_class=tokenizer,
    )
    batch = generate(trainer)
    # 0 + 0.5, unscored, 0.5 + 0, 1 + nothing known
    mean = (0.5 + 0.5 + 1.0) / 3
    assert batch["advantages"].tolist() == pytest.approx(
        [0.5 - mean, 0.0, 0.5 - mean, 1.0 - mean] * 2
    )
    assert not batch["completion_mask"][[1, 5]].any()


def test_the_gradient_is_that_of_a_batch_without_the_unscored_rows(make_trainer: Maker) -> None:
    rewards = [0.0, None, 0.5, 1.0]
    trainer = make_trainer(lambda place, rollout: rewards[place])
    batch = generate(trainer)
    trainer.current_gradient_accumulation_steps = 1
    kept = torch.tensor([i for i in range(8) if i % 4 != 1])
    smaller = {key: value[kept] if value.dim() else value for key, value in batch.items()}
    gradients = []
    for inputs in (batch, smaller):
        trainer.model.zero_grad()
        trainer._compute_loss(trainer.model, inputs).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.model.parameters()]))
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[0], gradients[1])


def test_a_group_without_any_reward_has_no_part_in_the_update(make_trainer: Maker) -> None:
    trainer = make_trainer(lambda place, rollout: float(place % 2))
    trainer.reward.client.script = lambda place, rollout: None  # type: ignore[attr-defined]
    batch = generate(trainer)
    assert int(batch["num_items_in_batch"]) == 0
    assert batch["advantages"].abs().sum() == 0


def test_a_step_without_any_reward_leaves_every_weight_alone(make_trainer: Maker) -> None:
    answers = iter([0.0, 0.5, 1.0, 0.25] * 2 + [None] * 8)
    trainer = make_trainer(lambda place, rollout: next(answers))
    seen = []

    class Keep(type(trainer.callback_handler.callbacks[0])):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen.append(
                torch.cat([p.detach().flatten().clone() for p in trainer.model.parameters()])
            )

    before = torch.cat([p.detach().flatten().clone() for p in trainer.model.parameters()])
    trainer.add_callback(Keep())
    trainer.train()
    assert not torch.equal(before, seen[0])
    assert torch.equal(seen[0], seen[1])


def test_prompts_and_rollouts_stay_out_of_the_log(
    make_trainer: Maker, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        generate(make_trainer(lambda place, rollout: None if place == 1 else 1.0))
    assert "2 of 8 rollouts unscored ({'timeout': 2})" in caplog.text
    assert "w1" not in caplog.text


def test_log_probabilities_are_trls_own(make_trainer: Maker) -> None:
    trainer = make_trainer(lambda place, rollout: place / 4)
    batch = generate(trainer)
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    width = batch["completion_ids"].shape[1]
    mine = trainer._get_per_token_logps_and_entropies(
        trainer.model, ids, mask, width, compute_entropy=True
    )
    theirs = GRPOTrainer._get_per_token_logps_and_entropies(
        trainer, trainer.model, ids, mask, width, compute_entropy=True
    )
    counted = batch["completion_mask"].bool()
    torch.testing.assert_close(mine[0][counted], theirs[0][counted])
    assert mine[1] is not None
    torch.testing.assert_close(mine[1][counted], theirs[1][counted])


def test_sharing_a_prompt_changes_neither_logits_nor_gradients(model: Any) -> None:
    model.train()
    torch.manual_seed(1)
    prompts = torch.tensor([[0, 0, 5, 6], [0, 0, 5, 6], [7, 8, 9, 10]])
    ids = torch.cat([prompts, torch.randint(2, 64, (3, 5))], dim=1)
    mask = (ids != 0).long()
    weights = torch.randn(3, 5, 64)
    gradients = []
    for logits in (
        lambda: model.lm_head(shared_prompt_states(model.base_model, ids, mask, 5)),
        lambda: model(input_ids=ids, attention_mask=mask, logits_to_keep=6).logits[:, :-1],
    ):
        model.zero_grad()
        value = logits()
        (value * weights).sum().backward()
        gradients.append((value.detach(), *(p.grad.clone() for p in model.parameters())))
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-4)


def test_an_epochs_order_depends_on_seed_and_epoch_alone(make_trainer: Maker) -> None:
    trainer = make_trainer(lambda place, rollout: 1.0)
    rows = [{"prompt": str(i)} for i in range(6)]
    first = list(trainer._get_train_sampler(rows))
    trainer.state.epoch = 1.0
    second = list(trainer._get_train_sampler(rows))
    assert first != second
    trainer.state.epoch = 1.5
    assert list(trainer._get_train_sampler(rows)) == second


@pytest.mark.parametrize(
    "change", [{}, {"loss_type": "grpo"}, {"preset": "srpo"}, {"preset": "srpo", "micro": 2}]
)
def test_each_optimiser_step_on_a_batch_is_the_mean_over_its_own_tokens(
    change: dict[str, Any], settings: dict[str, Any], model: Any, tokenizer: Any
) -> None:
    """On a batch of two steps, of whose 8 rollouts 3 have no reward."""
    given = {**settings, "per_device_train_batch_size": 4, "steps_per_generation": 2, **change}
    if micro := given.pop("micro", None):
        given |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
        given |= {"steps_per_generation": 4}
    answers = iter([None, 0.5, 0.9, 1.0, None, None, 0.6, 0.7])
    trainer = build_trainer(
        build_config(given),
        model,
        tokenizer,
        [Example(prompt=p) for p in PROMPTS],
        RubricReward(
            ScriptedClient(lambda place, rollout: next(answers)), num_generations=4, run_id="run"
        ),
    )
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = given["gradient_accumulation_steps"]
    rows = [{"prompt": prompt, "teacher_responses": None} for prompt in PROMPTS for _ in range(4)]
    parts = []
    for step in range(given["steps_per_generation"]):
        trainer._step = step
        part = trainer._prepare_inputs(rows)
        parts.append((part, trainer._compute_loss(trainer.model, part).item()))
    size = micro or 1
    tokens_of_steps = set()
    for start in range(0, len(parts), size):
        step_parts = parts[start : start + size]
        mask = torch.cat([part["completion_mask"] for part, _ in step_parts])
        advantages = torch.cat([part["advantages"] for part, _ in step_parts]).unsqueeze(1)
        # No update yet: the ratio is 1.
        if given.get("loss_type") == "grpo":
            kept = mask.any(1)
            wanted = -advantages[kept].mean()
        else:
            wanted = -(advantages * mask).sum() / mask.sum()
        assert sum(loss for _, loss in step_parts) == pytest.approx(wanted.item(), abs=1e-6)
        assert wanted != 0
        tokens_of_steps.add(int(mask.sum()))
    assert len(tokens_of_steps) == 2  # else the mean over the batch would pass as well


def test_a_step_of_which_nothing_was_scored_clears_its_gradients_alone(
    settings: dict[str, Any], model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a batch of two steps the rollouts of one have a reward; the other moves nothing."""
    monkeypatch.setattr("trl.trainer.grpo_trainer.shuffle_sequence_dict", lambda batch: batch)
    answers = iter([0.0, 0.5, 1.0, 0.25] + [None] * 4)
    trainer = build_trainer(
        build_config({**settings, "per_device_train_batch_size": 4, "steps_per_generation": 2}),
        model,
        tokenizer,
        [Example(prompt=p) for p in PROMPTS],
        RubricReward(
            ScriptedClient(lambda place, rollout: next(answers)), num_generations=4, run_id="run"
        ),
    )
    seen = [torch.cat([p.detach().flatten().clone() for p in trainer.model.parameters()])]

    class Keep(type(trainer.callback_handler.callbacks[0])):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen.append(
                torch.cat([p.detach().flatten().clone() for p in trainer.model.parameters()])
            )

    trainer.add_callback(Keep())
    trainer.train()
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(seen[1], seen[2])


def test_the_entropy_bonus_counts_on_a_cpu_too(
    settings: dict[str, Any], model: Any, tokenizer: Any
) -> None:
    trainer = build_trainer(
        build_config({**settings, "entropy_coef": 0.5}),
        model,
        tokenizer,
        [Example(prompt=p) for p in PROMPTS],
        RubricReward(
            ScriptedClient(lambda place, rollout: place / 4), num_generations=4, run_id="run"
        ),
    )
    batch = generate(trainer)
    trainer.current_gradient_accumulation_steps = 1

    def gradient(loss: torch.Tensor) -> torch.Tensor:
        trainer.model.zero_grad()
        loss.backward()
        return torch.cat([p.grad.flatten().clone() for p in trainer.model.parameters()])

    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    width = batch["completion_ids"].shape[1]
    log_probs = trainer.model(input_ids=ids, attention_mask=mask).logits[:, -width - 1 : -1]
    entropy = torch.distributions.Categorical(logits=log_probs).entropy()
    bonus = gradient(entropy[batch["completion_mask"].bool()].mean())
    with_bonus = gradient(trainer._compute_loss(trainer.model, batch))
    trainer._entropy_bonus_enabled = False
    without = gradient(trainer._compute_loss(trainer.model, batch))
    assert bonus.abs().max() > 1e-3
    torch.testing.assert_close(with_bonus - without, -0.5 * bonus, atol=1e-6, rtol=1e-3)


class DoubledLogits(LlamaForCausalLM):  # type: ignore[misc]
    """A family that does to its logits what nobody has told us of."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = super().forward(*args, **kwargs)
        out.logits = 2 * out.logits
        return out


def test_a_model_whose_logits_are_not_its_heads_is_refused_at_the_start(
    settings: dict[str, Any], model: Any, tokenizer: Any
) -> None:
    odd = DoubledLogits(model.config)
    odd.load_state_dict(model.state_dict())
    with pytest.raises(ModelError, match="DoubledLogits does more to its logits than its output"):
        build_trainer(
            build_config(settings),
            odd,
            tokenizer,
            [Example(prompt=p) for p in PROMPTS],
            RubricReward(
                ScriptedClient(lambda place, rollout: 1.0), num_generations=4, run_id="run"
            ),
        )


@pytest.mark.parametrize(
    ("dtype", "rate", "lora_rank", "refused"),
    [
        ("bfloat16", 1e-6, None, True),
        ("bfloat16", 1e-2, None, False),
        ("bfloat16", 1e-6, 2, False),
        ("float32", 1e-6, None, False),
    ],
)
def test_half_precision_weights_that_a_step_would_not_move_are_refused(
    dtype: str, rate: float, lora_rank: int | None, refused: bool, settings: dict[str, Any]
) -> None:
    config = build_config(
        {
            **settings,
            "learning_rate": rate,
            "lora_rank": lora_rank,
            "model_init_kwargs": {"dtype": dtype},
        }
    )
    model, tokenizer = load_model(config)
    reward = RubricReward(
        ScriptedClient(lambda place, rollout: 1.0), num_generations=4, run_id="run"
    )
    expected = (
        pytest.raises(ConfigError, match=r"`learning_rate` 1e-06 a step moves \d+% of the weights")
        if refused
        else nullcontext()
    )
    with expected:
        build_trainer(config, model, tokenizer, [Example(prompt=p) for p in PROMPTS], reward)
