"""The documentation is tested: settings, failure reasons and commands are in the README, and examples work."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from fakes.shell import command
from markscheme.vocabulary import UnscoredReason
from markscheme_server.config import Settings

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")


@pytest.mark.parametrize("name", Settings.model_fields)
def test_each_setting_is_in_the_readme(name: str) -> None:
    assert f"| `MARKSCHEME_{name.upper()}` |" in README


@pytest.mark.parametrize("reason", UnscoredReason)
def test_each_reason_is_in_the_readme(reason: UnscoredReason) -> None:
    assert f"`{reason.value}`" in README


def test_the_curl_examples_work_as_printed(service: str) -> None:
    examples = re.findall(r"^curl .*?(?:\}'|2')$", README, re.MULTILINE | re.DOTALL)
    assert len(examples) == 5
    answers = []
    for example in examples:
        done = subprocess.run(
            ["bash", "-c", example.replace("localhost:8321", service.removeprefix("http://"))],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        answers.append(json.loads(done.stdout))
    brought, induced, listed, scored, unknown = answers
    assert brought["object"] == induced["object"] == "rubric"
    assert [r["id"] for r in listed["data"]] == [induced["id"], brought["id"]]
    rewards = [r["reward"] for r in scored["groups"][0]["rollouts"]]
    assert rewards[0] > rewards[1]
    assert unknown["groups"][0]["rollouts"][0] | {"verdicts": [], "feedback": []} == {
        "id": "r0",
        "reward": None,
        "status": "unscored",
        "reason": "no_rubric",
        "verdicts": [],
        "feedback": [],
    }


def test_help_teaches_every_command(tmp_path: Path) -> None:
    def run(*words: str) -> str:
        done = command(*words, "--help", directory=tmp_path, settings={})
        assert done.returncode == 0
        return done.stdout

    overview = run()
    for name in ("serve", "train", "score", "demo", "doctor", "migrate", "prune"):
        assert name in overview
        assert "Usage" in run(name)
