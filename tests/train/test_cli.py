"""The commands of the trainer, as a shell sees them: exit codes, and going on after an end."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner, Result

from client.scripted import ScriptedService, refusal
from markscheme import Client
from markscheme_train.cli import TRY_AGAIN
from markscheme_train.cli import train as command
from markscheme_train.errors import TrainError

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)


@pytest.fixture
def train(settings: dict[str, Any], service: str, tmp_path: Path) -> Callable[..., Result]:
    """``markscheme train`` on a configuration of two steps that asks a real service."""
    file = tmp_path / "train.yaml"
    file.write_text(
        yaml.safe_dump(
            settings
            | {
                "markscheme_url": service,
                "save_strategy": "steps",
                "save_steps": 1,
                "max_unscored": 1.0,
            }
        )
    )  # these words give no rubric
    app = typer.Typer()
    app.command()(command)
    return lambda *words: CliRunner().invoke(app, [str(file), *words])


def steps(settings: dict[str, Any]) -> list[int]:
    lines = (Path(settings["output_dir"]) / "steps.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def test_with_auto_resume_a_run_begins_goes_on_and_stays_finished(
    train: Callable[..., Result], settings: dict[str, Any]
) -> None:
    first = train("--auto-resume")
    assert (first.exit_code, steps(settings)) == (0, [1, 2]), first.output
    refused = train()
    assert refused.exit_code == 1
    assert "--resume" in refused.output
    longer = train("--auto-resume", "max_steps=3")
    assert (longer.exit_code, steps(settings)) == (0, [1, 2, 3]), longer.output
    assert "step 1/3" not in longer.output
    finished = train("--auto-resume", "max_steps=3")
    assert finished.exit_code == 0
    assert "step " not in finished.output.replace("steps.jsonl", "")


def test_the_service_knows_the_run_from_start_to_end(
    train: Callable[..., Result], settings: dict[str, Any], service: str
) -> None:
    with Client(service) as client:
        for line in Path(settings["data"]).read_text().splitlines():
            check = {"kind": "max_words", "value": 3}
            client.create_rubric(
                json.loads(line)["prompt"], [{"text": "It is short.", "points": 1, "check": check}]
            )
    done = train("run_id=night-1", "reuse=frozen")
    assert done.exit_code == 0, done.output
    address = f"run: {service}/pages/runs/night-1"
    assert done.output.count(address) == 2
    with Client(service) as client:
        run, steps = client.run("night-1"), client.run_steps("night-1")
    assert (run.state, run.steps, run.first_step, run.last_step) == ("finished", 2, 0, 1)
    assert run.facts["student"] == Path(settings["model"]).name
    assert [(span.first_step, span.unscored) for span in steps.data] == [(0, 0), (1, 0)]
    assert all(span.metrics["completions/mean_length"] == 6 for span in steps.data)


def test_a_service_that_is_away_is_worth_another_try(train: Callable[..., Result]) -> None:
    gone = train("--auto-resume", "markscheme_url=http://127.0.0.1:1", "max_outage_s=0")
    assert gone.exit_code == TRY_AGAIN, gone.output
    there = train("--auto-resume")
    assert there.exit_code == 0, there.output


def test_what_stays_unscored_ends_it_saying_why_on_its_last_line(
    train: Callable[..., Result],
) -> None:
    ended = train("--auto-resume", "max_unscored=0.5")
    assert ended.exit_code == 1
    last = ended.output.strip().rpartition("\n")[2]
    assert last.startswith("8 no_rubric: There is no rubric for the prompt")
    assert "--resume alone does not help" in last


def test_held_out_prompts_without_rubrics_end_it_before_the_first_step(
    train: Callable[..., Result], settings: dict[str, Any], tmp_path: Path
) -> None:
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text('{"prompt": "w20"}\n')
    ended = train(f"eval_data={held_out}", "eval_steps=1", "max_unscored=0.5")
    assert ended.exit_code == 1
    assert "evaluation after step 0  reward –  unscored 4/4" in ended.output
    assert "run `markscheme induce` on eval_data" in ended.output
    assert "step 1/2" not in ended.output
    assert not list(Path(settings["output_dir"]).glob("checkpoint-*"))


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("wrong", "refuses the key in MARKSCHEME_API_KEY"),
        ("", "needs an API key, and MARKSCHEME_API_KEY is not set"),
    ],
)
def test_a_wrong_or_missing_key_is_refused_before_the_model_is_loaded(
    key: str,
    said: str,
    serve: Callable[..., str],
    settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load_model(config: Any) -> Any:
        raise AssertionError("the model is loaded")

    monkeypatch.setattr("markscheme_train.training.load_model", load_model)
    file = tmp_path / "train.yaml"
    file.write_text(yaml.safe_dump(settings | {"markscheme_url": serve(api_key="right")}))
    app = typer.Typer()
    app.command()(command)
    refused = CliRunner().invoke(app, [str(file)], env={"MARKSCHEME_API_KEY": key or None})
    assert refused.exit_code == 1
    assert said in refused.output
    assert "the scopes score and induce" in refused.output
    assert "--resume" not in refused.output


@pytest.mark.parametrize(
    ("answers", "reuse", "said"),
    [
        ((403,), "frozen", "refuses the key in MARKSCHEME_API_KEY: scripted"),
        ((422, 403), "always_new", "refuses the key in MARKSCHEME_API_KEY: scripted"),
        ((422, 422), "always_new", "the model is loaded"),
        ((422,), "frozen", "the model is loaded"),
    ],
)
def test_a_key_that_lacks_a_scope_is_refused_before_the_model_is_loaded(
    answers: tuple[int, ...],
    reuse: str,
    said: str,
    settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load_model(config: Any) -> Any:
        raise TrainError("the model is loaded")

    monkeypatch.setattr("markscheme_train.training.load_model", load_model)
    service = ScriptedService()
    service.replies = [refusal(status, "scripted") for status in answers]
    file = tmp_path / "train.yaml"
    file.write_text(yaml.safe_dump(settings | {"markscheme_url": service.url, "reuse": reuse}))
    app = typer.Typer()
    app.command()(command)
    ended = CliRunner().invoke(app, [str(file)], env={"MARKSCHEME_API_KEY": "k"})
    service.close()
    assert ended.exit_code == 1
    assert said in ended.output
    assert len(service.asked) == len(answers)


def test_a_mistake_is_not(train: Callable[..., Result]) -> None:
    wrong = train("lerning_rate=1")
    assert wrong.exit_code == 1
    assert "did you mean `learning_rate`" in wrong.output
    address = train("markscheme_url=127.0.0.1:1")
    assert address.exit_code == 1
    assert "markscheme_url: '127.0.0.1:1' has no scheme" in address.output
