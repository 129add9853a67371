"""The table of completions: what was written and missed, and no word of a prompt."""

from pathlib import Path
from typing import Any

import pandas
import pytest
import torch
from safetensors.torch import load_file

from markscheme_train.completions import MAX_SHOWN, prompt_label, shortened
from markscheme_train.config import build_config
from markscheme_train.training import train
from train.tiny import ScriptedClient

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)


class Missing(ScriptedClient):
    """Says of every rollout what it missed."""

    def _group(self, group: Any) -> Any:
        scored = super()._group(group)
        rollouts = [
            rollout.model_copy(update={"feedback": ["It is short.", "It is kind."]})
            for rollout in scored.rollouts
        ]
        return scored.model_copy(update={"rollouts": rollouts})


def run(settings: dict[str, Any]) -> Path:
    return train(
        build_config(settings | {"logging_strategy": "steps", "logging_steps": 1}),
        Missing(lambda place, rollout: place / 4),
        resume=False,
        on_record=lambda record: None,
    )


@pytest.mark.parametrize("rounds", [0, 1])
def test_the_table_has_rollouts_rewards_and_missed_criteria_but_no_prompts(
    rounds: int, settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    output = run(
        settings
        | {"log_completions": True, "num_completions_to_print": 1, "max_resampling_rounds": rounds}
    )
    shown = capsys.readouterr().out
    assert "It is short." in " ".join(shown.split())
    tables = [pandas.read_parquet(file) for file in sorted((output / "completions").iterdir())]
    assert [set(table["step"]) for table in tables] == [{1}, {2}]
    table = tables[0]
    assert len(table) == 8
    assert sorted(table["rubric"]) == [0.0, 0.0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75]
    assert set(table["missed"]) == {"It is short.; It is kind."}
    assert table["completion"].str.len().max() > 0
    assert set(table["prompt"].str.match(r"prompt [0-9a-f]{8}$")) == {True}
    assert table["prompt"].nunique() == 2
    for prompt in ("w1 w2 w3", "w7 w8", "w9 w10"):
        assert prompt not in shown


def test_showing_completions_changes_nothing_in_the_training(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    """TRL chooses what it prints with Python's generator, whose state a checkpoint holds."""
    settings = settings | {"save_strategy": "steps", "save_steps": 2}
    shown = run(
        settings
        | {
            "log_completions": True,
            "num_completions_to_print": 1,
            "output_dir": str(tmp_path / "shown"),
        }
    )
    silent = run(settings)
    one, two = (load_file(output / "model.safetensors") for output in (shown, silent))
    assert all(torch.equal(one[name], two[name]) for name in one)
    states = [
        torch.load(output / "checkpoint-2" / "rng_state.pth", weights_only=False)["python"]
        for output in (shown, silent)
    ]
    assert states[0] == states[1]
    assert not (silent / "completions").exists()


def test_a_prompts_label_is_its_own_and_stays() -> None:
    assert prompt_label("w1") == prompt_label("w1") != prompt_label("w2")


def test_long_texts_are_cut() -> None:
    long = "x" * (MAX_SHOWN + 1)
    cut = "x" * MAX_SHOWN + f"… ({MAX_SHOWN + 1} characters)"
    assert shortened("short") == "short"
    assert shortened(long) == cut
    assert shortened([{"role": "assistant", "content": long}, {"role": "tool"}]) == [
        {"role": "assistant", "content": cut},
        {"role": "tool", "content": None},
    ]
