"""Test what the trainer relies on in TRL: a failure says what to check before an upgrade."""

import inspect

import pytest
import trl
from accelerate import Accelerator
from accelerate.utils.deepspeed import DeepSpeedEngineWrapper
from transformers import Trainer
from trl import GRPOTrainer

from markscheme_train.trainer import MarkschemeTrainer

OVERRIDDEN = {
    "_calculate_rewards": ["self", "inputs", "prompts", "completions", "completion_ids_list"],
    "_generate_and_score_completions": ["self", "inputs"],
    "_prepare_inputs": ["self", "generation_batch"],
    "training_step": ["self", "model", "inputs", "num_items_in_batch"],
    "_compute_loss": ["self", "model", "inputs"],
    "_get_train_sampler": ["self", "dataset"],
    "_get_per_token_logps_and_entropies": [
        "self",
        "model",
        "input_ids",
        "attention_mask",
        "logits_to_keep",
        "batch_size",
        "compute_entropy",
        "compute_aux_loss",
        "pixel_values",
        "image_grid_thw",
        "num_images",
        "pixel_attention_mask",
        "spatial_shapes",
        "num_tiles",
        "image_sizes",
        "token_type_ids",
        "mm_token_type_ids",
        "image_position_ids",
    ],
    "_generate": ["self", "prompts"],
    "log": ["self", "logs", "start_time"],
    "_save_checkpoint": ["self", "model", "trial"],
    "_load_optimizer_and_scheduler": ["self", "checkpoint"],
}
"""TRL's methods that ours replace, and their parameters."""
RELIED_ON = {
    "_compute_loss": [
        # What a batch's optimiser steps store is divided so.
        'inputs["num_items_in_batch"].clamp(min=1.0) / self.accelerator.num_processes',
        "self.current_gradient_accumulation_steps / self.args.steps_per_generation",
        "loss = ((per_token_loss * mask).sum(-1) / mask.sum(-1).clamp(min=1.0)).mean()",
        # Without old log-probabilities the ratio is 1 in value.
        'old_per_token_logps = inputs.get("old_per_token_logps")',
    ],
    "_prepare_inputs": [
        "shuffle_sequence_dict(",
        "split_tensor_dict(",
        "self._buffered_inputs[self._step % self.args.steps_per_generation]",
    ],
    # TRL looks up a checkpoint's folder when it writes it, and writes the trainer's state last.
    "super()._save_checkpoint": [
        "output_dir = os.path.join(run_dir, checkpoint_folder)",
        "run_dir = self._get_output_dir(trial=trial)",
        "self.state.save_to_json(os.path.join(output_dir, TRAINER_STATE_NAME))",
    ],
    # Without a checkpoint nothing is loaded; with one, DeepSpeed's part comes first.
    "super()._prepare_for_training": [
        "if resume_from_checkpoint is not None:\n            if self.is_deepspeed_enabled:\n"
        "                deepspeed_load_checkpoint(",
        "self._load_optimizer_and_scheduler(resume_from_checkpoint)",
    ],
    "super()._load_best_model": ["self.state.best_model_checkpoint"],
    # Files by which a checkpoint says how many processes wrote it, read when rows were passed over.
    "super()._save_rng_state": ['f"rng_state_{self.args.process_index}.pth"', '"rng_state.pth"'],
    "super()._run_epoch": ["self._load_rng_state(resume_from_checkpoint)"],
    # After an evaluation the best one is noted, and only then a checkpoint may be written.
    "super()._maybe_log_save_evaluate": [
        "is_new_best_metric = self._determine_best_metric(metrics=metrics, trial=trial)\n\n"
        "            if self.args.save_strategy == SaveStrategy.BEST:\n"
        "                self.control.should_save = is_new_best_metric\n\n"
        "        if self.control.should_save:",
    ],
    # An evaluation generates by this, without the log-probabilities and the loss.
    "_generate": [
        'mode = "train" if self.model.training else "eval"',
        "return prompt_ids, completion_ids, tool_mask, completions, logprobs, extra_fields",
        # A group that a `rollout_func` starts is decoded so.
        "self.processing_class.batch_decode(completion_ids, skip_special_tokens=True)",
        '[[{"role": "assistant", "content": content}] for content in contents]',
        'getattr(self._tokenizer, "response_template", None) is not None',
        'getattr(self._tokenizer, "response_schema", None) is not None',
    ],
    "_generate_and_score_completions": [
        "num_items_in_batch = self.accelerator.gather(loss_mask.sum()).sum()",
        # What was generated is what rewards are asked for.
        ") = self._generate(prompts)",
        "self._calculate_rewards(inputs, prompts, completions, completion_ids_list)",
        "for key, values in extra_fields.items():",
    ],
    # The order in which reward functions are called.
    "_calculate_rewards": [
        "zip(self.reward_funcs, self.reward_processing_classes, self.reward_func_names, strict=Tru",
        "rewards_per_func[:, i] = torch.tensor(output_reward_func",
        "rewards_per_func = gather(rewards_per_func)\n        return rewards_per_func",
    ],
}
"""Lines of TRL's on which ours build."""


def test_trl_is_the_version_that_was_read() -> None:
    assert trl.__version__.startswith("1.16."), (
        f"TRL is {trl.__version__}: compare its grpo_trainer.py with what "
        "docs/decisions/0011-self-distillation.md and this file say of 1.16"
    )


def test_every_override_is_listed() -> None:
    ours = {
        name
        for name, value in vars(MarkschemeTrainer).items()
        if callable(value) and name in vars(GRPOTrainer) and not name.startswith("__")
    }
    assert ours == set(OVERRIDDEN)


@pytest.mark.parametrize("name", list(OVERRIDDEN))
def test_an_overridden_method_takes_what_it_took(name: str) -> None:
    taken = list(inspect.signature(getattr(GRPOTrainer, name)).parameters)
    assert taken == OVERRIDDEN[name], (
        f"GRPOTrainer.{name} takes other parameters: MarkschemeTrainer.{name} must follow"
    )


@pytest.mark.parametrize(
    ("name", "line"), [(name, line) for name, lines in RELIED_ON.items() for line in lines]
)
def test_a_line_relied_on_stands(name: str, line: str) -> None:
    owner = Trainer if name.startswith("super().") else GRPOTrainer
    assert line in inspect.getsource(getattr(owner, name.removeprefix("super()."))), (
        f"GRPOTrainer.{name} has no more `{line}`: see what MarkschemeTrainer makes of it"
    )


def test_deepspeed_steps_where_its_guards_stand() -> None:
    """`GuardedEngine` has these lines too, with questions between them."""
    assert "self.deepspeed_engine_wrapped.backward(loss, sync_gradients=" in inspect.getsource(
        Accelerator.backward
    )
    calls = [
        line.strip()
        for line in inspect.getsource(DeepSpeedEngineWrapper.backward).splitlines()
        if "self.engine." in line
    ]
    assert calls == [
        "self.engine.set_gradient_accumulation_boundary(is_boundary=sync_gradients)",
        "self.engine.backward(loss, **kwargs)",
        "self.engine.step()",
    ]
