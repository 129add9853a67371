"""What a tiny run of the trainer needs."""

import functools
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import accelerate.utils.imports
import datasets.arrow_dataset
import jinja2
import pytest
import torch
from datasets.fingerprint import generate_random_fingerprint
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from markscheme_train.config import build_config
from markscheme_train.data import Example
from markscheme_train.reward import RubricReward
from markscheme_train.trainer import MarkschemeTrainer
from markscheme_train.training import build_trainer
from train import forked
from train.routed_batch import PROMPTS, Maker, mixed
from train.tiny import Script, ScriptedClient, tiny_model, tiny_tokenizer

# What the libraries do at each seed, batch and checkpoint takes a fifth of a tiny run's CPU. Each
# seed notes the stack, for devices that are not there.
for device in (torch.cuda, torch.xpu, torch.mtia):
    device.traceback = SimpleNamespace(format_stack=list)
# Whether DeepSpeed is installed is asked by searching the path.
accelerate.utils.imports._is_package_available = functools.cache(
    accelerate.utils.imports._is_package_available
)
# Each checkpoint has a card, of a template that is compiled anew.
jinja2.Environment.compile = functools.lru_cache(64)(jinja2.Environment.compile)
# A data set is named by a sum of all that it holds.
datasets.arrow_dataset.generate_fingerprint = lambda _: generate_random_fingerprint()


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Fork the server of `train.forked`, with all that the tests have imported."""
    forked.start_server()


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()


@pytest.fixture
def model() -> LlamaForCausalLM:
    return tiny_model()


@pytest.fixture(scope="session")
def saved_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("saved")
    tiny_model().save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture
def model_directory(tmp_path: Path, saved_model: Path) -> Path:
    torch.manual_seed(0)  # as `tiny_model` does: every test begins with the same generators
    return shutil.copytree(saved_model, tmp_path / "model")


@pytest.fixture
def data_file(tmp_path: Path) -> Path:
    file = tmp_path / "data.jsonl"
    file.write_text(
        '{"prompt": "w1 w2 w3"}\n{"prompt": "w4", "teacher_responses": ["w5 w6"]}\n'
        '{"prompt": "w7 w8"}\n{"prompt": "w9 w10"}\n'
    )
    return file


@pytest.fixture
def settings(tmp_path: Path, model_directory: Path, data_file: Path) -> dict[str, Any]:
    """Return settings for a tiny run: 2 prompts x 4 rollouts of 6 tokens a step."""
    return {
        "model": str(model_directory),
        "data": str(data_file),
        "output_dir": str(tmp_path / "out"),
        "num_generations": 4,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "max_completion_length": 6,
        "max_steps": 2,
        "learning_rate": 1e-2,
        "use_cpu": True,
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


@pytest.fixture
def given(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings of three batches, after which student and self-teacher differ."""
    return settings | {
        "preset": "srpo",
        "distillation_top_k": 5,
        "teacher_update_rate": 0.3,
        "trust_region_coefficient": 0.3,
        "warmup_steps": 0,
        "max_steps": 3,
        "logging_strategy": "steps",
        "logging_steps": 1,
    }


@pytest.fixture
def make_srpo_trainer(
    settings: dict[str, Any], model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> Maker:
    """Return a function that makes an SRPO trainer for the prompts of `routed_batch`."""

    def make(script: Script = mixed, **more: Any) -> MarkschemeTrainer:
        config = build_config({**settings, "preset": "srpo", "distillation_top_k": 5, **more})
        reward = RubricReward(ScriptedClient(script), num_generations=4, run_id="run")
        return build_trainer(config, model, tokenizer, [Example(prompt=p) for p in PROMPTS], reward)

    return make
