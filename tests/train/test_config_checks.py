"""Wrong settings: each is refused with what to do, before anything is asked or generated."""

from pathlib import Path
from typing import Any

import pytest

from markscheme_train.config import build_config
from markscheme_train.errors import ConfigError, DataError, TrainError
from markscheme_train.training import load_model, train
from train.tiny import ScriptedClient

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)
EVALUATED = {"eval_data": "d.jsonl", "eval_steps": 5}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"eval_strategy": "steps"}, "name held-out prompts with eval_data, and eval_steps"),
        ({"eval_steps": 5}, "eval_steps needs an evaluation: name .* with eval_data"),
        ({"early_stopping_patience": 3}, "early_stopping_patience needs an evaluation"),
        ({"load_best_model_at_end": True}, "load_best_model_at_end needs an evaluation"),
        ({"eval_on_start": True}, "eval_on_start needs an evaluation"),
        ({"eval_data": "d.jsonl"}, "eval_data needs eval_steps: .* such as eval_steps: 20"),
        (EVALUATED | {"eval_steps": 0.5}, "eval_steps must be a whole number .* not 0.5"),
        (EVALUATED | {"eval_steps": 0}, "eval_steps must be a whole number .* not 0"),
        (EVALUATED | {"eval_strategy": "epoch"}, "eval_strategy must be steps, not epoch"),
        (EVALUATED | {"metric_for_best_model": "loss"}, "metric_for_best_model must be reward"),
        (EVALUATED | {"greater_is_better": False}, "greater_is_better must be true"),
        (EVALUATED | {"save_total_limit": 1}, "save_total_limit must be at least 2"),
        (
            EVALUATED | {"early_stopping_patience": 0},
            "`early_stopping_patience` must be at least 1, not 0",
        ),
        (
            EVALUATED | {"load_best_model_at_end": True, "save_strategy": "no"},
            "load_best_model_at_end needs checkpoints: set save_strategy",
        ),
        (EVALUATED | {"lr_scheduler_type": "greedy"}, "lr_scheduler_type greedy is not supported"),
        (EVALUATED | {"num_generations_eval": 3}, "must be divisible by the number of generations"),
        ({"lora_alpha": 8}, "lora_alpha needs an adapter: set lora_rank, such as lora_rank: 16"),
        ({"use_rslora": True}, "use_rslora needs an adapter"),
        ({"lora_rank": 0}, "`lora_rank` must be at least 1, not 0"),
        ({"lora_rank": 4, "lora_alpha": 0}, "`lora_alpha` must be at least 1, not 0"),
        (
            {"lora_rank": 4, "lora_dropout": 1.5, "disable_dropout": False},
            "lora_dropout must be from 0 to below 1, not 1.5",
        ),
        ({"lora_rank": 4, "lora_dropout": 0.1}, "no effect .* set disable_dropout: false"),
        ({"lora_rank": 4, "lora_target_modules": []}, "lora_target_modules must not be empty"),
        ({"rewards": "mine:brevity"}, r"rewards must be a list, such as rewards: \[my_rewards:br"),
        ({"rewards": [3]}, "rewards must be a list"),
        ({"max_prompt_length": 0}, "`max_prompt_length` must be at least 1, not 0"),
        ({"max_resampling_rounds": -1}, "`max_resampling_rounds` must be at least 0, not -1"),
        ({"lr_scheduler_type": "wavy"}, "wavy"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size is not supported"),
        ({"optim": "adamw_magic"}, "adamw_magic"),
        ({"accelerator_config": "nowhere.json"}, "nowhere.json"),
        ({"per_device_train_batch_size": 0}, "`per_device_train_batch_size` must be at least 1"),
        ({"gradient_accumulation_steps": 0}, "`gradient_accumulation_steps` must be at least 1"),
        ({"learning_rate": -1.0}, "`learning_rate` must be at least 0, not -1"),
        ({"adam_beta1": 2.0}, "`adam_beta1` must be from 0 to 1, not 2"),
        ({"top_p": 2.0}, "`top_p` must be above 0 and at most 1, not 2"),
        ({"top_k": -3}, "`top_k` must be at least 0, not -3"),
        ({"loss_type": "nosuch"}, "loss_type must be one of dapo, .* not nosuch"),
        ({"scale_rewards": "x"}, "scale_rewards must be one of none, group, batch, not x"),
        (
            {"importance_sampling_level": "x"},
            "importance_sampling_level must be one of token, sequence, not x",
        ),
        (
            {"vllm_importance_sampling_mode": "x"},
            "vllm_importance_sampling_mode must be one of token_truncate, token_mask, .* not x",
        ),
        (
            {"vllm_importance_sampling_clip_max": 0},
            "`vllm_importance_sampling_clip_max` must be above 0, not 0",
        ),
        ({"model_init_kwargs": 3}, "model_init_kwargs must be keys and values"),
        (
            {"lr_scheduler_type": "cosine_with_min_lr"},
            "cosine_with_min_lr cannot be used with these lr_scheduler_kwargs: .*min_lr",
        ),
        ({"reward_weights": 1}, "reward_weights must be a list of numbers, the rubric's first"),
        (
            {"lora_rank": 2, "lora_target_modules": "("},
            "lora_target_modules is no regular expression",
        ),
    ],
)
def test_a_wrong_setting_is_refused_with_what_to_do(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_config({"model": "m", "data": "d.jsonl"} | given)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"use_vllm": True},
            ConfigError,
            r"vllm is not installed; run `pip install 'markscheme\[vllm\]'`",
        ),
        ({"report_to": "wandb"}, ConfigError, "pip install wandb.* Or set report_to: none"),
        ({"report_to": ["trackio"]}, ConfigError, "trackio to be installed.* report_to: none"),
        ({"report_to": "nosuch"}, ConfigError, "report_to: nosuch is not supported, only .*wandb"),
        (
            {"reward_weights": [1.0, 0.5]},
            ConfigError,
            "reward_weights has 2 numbers, but there are 1 rewards",
        ),
        ({"rewards": ["brevity"]}, ConfigError, "`brevity` is not of the form package.module:func"),
        (
            {"rewards": ["no.such:brevity"]},
            ConfigError,
            "cannot import `no.such:brevity` .*No module named 'no'.* must be installed, or lie in",
        ),
        ({"rewards": ["json:brevity"]}, ConfigError, "cannot import `json:brevity` .*brevity"),
        ({"rewards": ["string:digits"]}, ConfigError, "`string:digits` is no function: str"),
        ({"lora_rank": 2, "lora_target_modules": ["nosuch"]}, ConfigError, "nosuch.* not found"),
        ({"optim": "adamw_bnb_8bit"}, ConfigError, "cannot be used: .*bitsandbytes"),
        ({"optim": "galore_adamw"}, ConfigError, "cannot be used: .*optim_target_modules|galore"),
        ({"use_liger_kernel": True}, ConfigError, "liger_kernel is not installed; run"),
        (
            {"model_init_kwargs": {"attn_implementation": "flash_attention_2"}},
            TrainError,
            "cannot load the model .*[Ff]lash",
        ),
        ({"model_init_kwargs": {"dtype": "float99"}}, TrainError, "cannot load .*float99"),
        ({"model_init_kwargs": {"nosuch": 1}}, TrainError, "cannot load the model .*nosuch"),
        ({"output_dir": "/proc/nowhere"}, ConfigError, "output_dir: cannot write /proc/nowhere"),
        ({"max_prompt_length": 1}, None, ""),
        (
            {"max_prompt_length": 1, "data": "long"},
            DataError,
            r"all 2 prompts of .* are longer than max_prompt_length \(1 tokens\): raise it",
        ),
    ],
)
def test_what_cannot_be_trained_with_is_found_before_anything_is_asked(
    change: dict[str, Any],
    error: type[Exception] | None,
    message: str,
    settings: dict[str, Any],
    tmp_path: Path,
) -> None:
    if change.get("data") == "long":
        (tmp_path / "long.jsonl").write_text('{"prompt": "w1 w2"}\n{"prompt": "w3 w4"}\n')
        change = change | {"data": str(tmp_path / "long.jsonl")}
    client = ScriptedClient(lambda place, rollout: 0.5)
    if error is None:
        change, error, message = (
            change | {"per_device_train_batch_size": 16},
            ConfigError,
            "has 1 p",
        )
    with pytest.raises(error, match=message):
        train(
            build_config(settings | change),
            client,
            resume=False,
            on_record=lambda record: None,
        )
    assert client.calls == []


def test_an_adapter_is_as_configured(settings: dict[str, Any]) -> None:
    model = load_model(build_config(settings | {"lora_rank": 4}))[0]
    usual = model.peft_config["default"]
    assert (usual.lora_alpha, usual.lora_dropout, usual.use_rslora) == (8, 0.0, False)
    assert adapted(model) >= {"q_proj", "o_proj", "down_proj"}
    given = {
        "lora_rank": 4,
        "lora_alpha": 4,
        "lora_target_modules": ["q_proj", "v_proj"],
        "lora_dropout": 0.1,
        "use_rslora": True,
        "disable_dropout": False,
    }
    model = load_model(build_config(settings | given))[0]
    config = model.peft_config["default"]
    assert (config.lora_alpha, config.lora_dropout, config.use_rslora) == (4, 0.1, True)
    layer = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    assert layer.scaling["default"] == 4 / 4**0.5
    assert adapted(model) == {"q_proj", "v_proj"}


def adapted(model: Any) -> set[str]:
    """Return the last names of the layers that have an adapter."""
    names = (name.split(".lora_A")[0] for name in model.state_dict() if ".lora_A" in name)
    return {name.rpartition(".")[2] for name in names}


def test_prompts_that_are_too_long_are_left_out_and_counted(settings: dict[str, Any]) -> None:
    said: list[str] = []
    client = ScriptedClient(lambda place, rollout: place / 4)
    train(
        build_config(settings | {"max_prompt_length": 2, "max_steps": 1}),
        client,
        resume=False,
        on_record=lambda record: None,
        on_warning=said.append,
    )
    line = said[-1]
    assert line.endswith("1 of 4 prompts are longer than 2 tokens (max_prompt_length) and left out")
    assert all(group.prompt != "w1 w2 w3" for group in client.calls[0]["groups"])
