"""The examples of docs/training.md, as printed: a second reward, in Python, and plain TRL."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from markscheme import Client
from markscheme_train.config import load_config
from markscheme_train.step_log import StepRecord
from markscheme_train.training import train
from train.tools import scripted_student, tool_tokenizer

PAGE = (Path(__file__).parents[2] / "docs/training.md").read_text("utf-8")


@pytest.fixture
def configured(
    settings: dict[str, Any], service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Start in a folder with a config.yaml for one step."""
    prompts = [f"Name {word}. Use at most 3 words." for word in ("one", "two")]
    data = Path(settings["data"])
    data.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts), "utf-8")
    logs = {"markscheme_url": service, "max_steps": 1, "logging_strategy": "steps"}
    config = settings | logs | {"logging_steps": 1, "report_to": "none"}
    (tmp_path / "config.yaml").write_text(json.dumps(config), "utf-8")  # JSON is YAML
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
def test_the_example_of_a_second_reward_trains(
    configured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (configured / "my_rewards.py").write_text(example("## A second reward"), "utf-8")
    monkeypatch.setattr("sys.path", [*sys.path])
    given = yaml.safe_load(example("## A second reward", "yaml"))
    config = load_config(configured / "config.yaml", [f"{k}={v}" for k, v in given.items()])
    records: list[StepRecord] = []
    with Client(config.markscheme_url) as client:
        train(config, client, resume=False, on_record=records.append)
    assert {"rewards/rubric/mean", "rewards/brevity/mean"} <= records[0].metrics.keys()


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
def test_the_example_in_python_trains(configured: Path) -> None:
    trainer = run(example("## In Python"))["trainer"]
    assert trainer.state.global_step == 1
    logged = trainer.state.log_history[0]
    assert {"rewards/rubric/mean", "rewards/brevity/mean"} <= logged.keys()


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
def test_the_example_with_plain_trl_trains(
    service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a tiny model, on a CPU, and for one step; nothing else of it is changed."""
    tokenizer = tool_tokenizer()

    def write(row: int, prompt: str) -> str:
        thing = prompt.partition("Describe ")[2].partition(".")[0]
        comma = "" if row % 2 else ","
        return f"I think{comma} {thing} lies calm and golden in the slow evening light of row {row}"

    student = scripted_student(tokenizer, write)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MARKSCHEME_URL", service)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda name: tokenizer)
    code = example("## With plain TRL")
    for printed, here in (
        ("    max_steps=100,\n", "    max_steps=1,\n    logging_steps=1,\n    use_cpu=True,\n"
         "    bf16=False,\n    save_strategy='no',\n    dataloader_pin_memory=False,\n"),
        ("GRPOTrainer(\n    model,", "GRPOTrainer(\n    student,"),
    ):  # fmt: skip
        assert printed in code
        code = code.replace(printed, here)
    names = run(code, student=student)
    names["reward"].client.close()
    rewards = names["reward"].last.rewards
    assert len(rewards) == 8
    assert rewards[1] > rewards[0]
    assert "rewards/brevity/mean" in names["trainer"].state.log_history[0]


def example(title: str, language: str = "python") -> str:
    """Return the first block of a language under a title."""
    section = PAGE.partition(title)[2]
    found = re.search(rf"^```{language}\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def run(code: str, **names: Any) -> dict[str, Any]:
    names["__name__"] = "example"
    exec(compile(code, "docs/training.md", "exec"), names)
    return names
