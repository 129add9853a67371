"""The example of docs/training.md: a second reward beside the rubric's, as printed."""

import json
import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs/training.md").read_text("utf-8")


def test_the_example_of_a_second_reward_trains(
    model_directory: Path, service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "prompts.jsonl"
    prompts = [f"{word}. Use at most 3 words." for word in ("one", "two")]
    data.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    config = {
        "model": str(model_directory),
        "data": str(data),
        "output_dir": str(tmp_path / "run"),
        "markscheme_url": service,
        "num_generations": 2,
        "per_device_train_batch_size": 2,
        "max_completion_length": 4,
        "max_steps": 1,
        "save_strategy": "no",
    }
    (tmp_path / "config.yaml").write_text(json.dumps(config), "utf-8")
    monkeypatch.chdir(tmp_path)
    section = PAGE.partition("## A second reward")[2]
    example = re.search(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert example is not None
    names: dict[str, object] = {"__name__": "example"}
    exec(compile(example[1], "docs/training.md", "exec"), names)
    trainer = names["trainer"]
    assert trainer.state.global_step == 1  # type: ignore[attr-defined]
    logged = trainer.state.log_history[0]  # type: ignore[attr-defined]
    assert {"rewards/rubric/mean", "rewards/brevity/mean"} <= logged.keys()
