"""The example of docs/training.md: a second reward beside the rubric's, as printed."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

PAGE = (Path(__file__).parents[2] / "docs/training.md").read_text("utf-8")


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
def test_the_example_of_a_second_reward_trains(
    settings: dict[str, Any], service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [f"Name {word}. Use at most 3 words." for word in ("one", "two")]
    data = Path(settings["data"])
    data.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts), "utf-8")
    logs = {"markscheme_url": service, "max_steps": 1, "logging_strategy": "steps"}
    config = settings | logs | {"logging_steps": 1, "report_to": "none"}
    (tmp_path / "config.yaml").write_text(json.dumps(config), "utf-8")  # JSON is YAML
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
