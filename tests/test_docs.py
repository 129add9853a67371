"""The documentation is complete: lists in it hold every name, and the README's examples work.

`tests/test_guides.py` runs the guides; `make docs` checks the links of the pages.
"""

import ast
import re
import sys
from pathlib import Path
from typing import get_args

import pytest

from markscheme.checks import Check
from markscheme.cli.app import main
from markscheme.vocabulary import UnscoredReason
from markscheme_server.config import variables
from test_guides import assert_as_shown, run

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text("utf-8")
DECISIONS = sorted((DOCS / "decisions").glob("0*.md"))
PAGES = [page for page in sorted(DOCS.rglob("*.md")) if page not in DECISIONS]
GENERATED = DOCS / "reliability.md"
MOST_WORDS = 1000


def page(name: str) -> str:
    return (DOCS / name).read_text("utf-8")


def training_keys() -> list[str]:
    """Read the fields of `TrainConfig` from its source: to import it loads TRL."""
    source = (ROOT / "client/markscheme_train/config.py").read_text("utf-8")
    (config,) = (
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef) and node.name == "TrainConfig"
    )
    return [
        item.target.id
        for item in config.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    ]


def check_kinds() -> list[str]:
    return [
        get_args(member.model_fields["kind"].annotation)[0]
        for member in get_args(get_args(Check)[0])
    ]


@pytest.mark.parametrize("name", variables())
def test_each_setting_is_explained(name: str) -> None:
    if not name.startswith("MARKSCHEME_TEACHER_"):  # the fields of a judge once more
        assert f"| `{name}` |" in page("configuration.md")


def test_each_explained_setting_is_read() -> None:
    named = re.findall(r"^\| `(MARKSCHEME_[A-Z_]+)` \|", page("configuration.md"), re.MULTILINE)
    elsewhere = {"MARKSCHEME_HOST", "MARKSCHEME_PORT", "MARKSCHEME_LOG_LEVEL"}
    elsewhere |= {"MARKSCHEME_URL", "MARKSCHEME_STUDENT_API_KEY"}
    assert set(named) - elsewhere - set(variables()) == set()


@pytest.mark.parametrize("reason", UnscoredReason)
def test_each_reason_is_explained(reason: UnscoredReason) -> None:
    section = page("judges.md").partition("## Why a reward is null\n")[2].partition("\n## ")[0]
    assert f"`{reason.value}`" in section


@pytest.mark.parametrize("key", training_keys())
def test_each_training_key_is_explained(key: str) -> None:
    assert f"| `{key}` |" in page("training.md")


@pytest.mark.parametrize("kind", check_kinds())
def test_each_check_is_explained(kind: str) -> None:
    section = page("rubrics.md").partition("## Checks\n")[2].partition("\n## ")[0]
    assert f"`{kind}`" in section


def test_the_readme_is_short() -> None:
    assert len(README.split()) <= MOST_WORDS


def test_the_readme_links_to_what_exists() -> None:
    targets = re.findall(r"\]\((?!https?://)([^)#]+)", README)
    assert len(targets) > 10
    assert [target for target in targets if not (ROOT / target).is_file()] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(DOCS)))
def test_each_page_names_files_that_exist(path: Path) -> None:
    folders = "tests|examples|deploy|services|client|benchmarks"
    named = re.findall(
        rf"\b(?:{folders})/[\w./-]+\.(?:py|yaml|toml|sh|md)\b", path.read_text("utf-8")
    )
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_the_readme_examples_print_what_it_shows(service: str, tmp_path: Path) -> None:
    example = README.partition("In a second terminal")[2].partition("\n## ")[0]
    (tmp_path / "README.md").write_text(example.replace("```\n1.0", "```text\n1.0"), "utf-8")
    blocks = run(tmp_path / "README.md", service, tmp_path)
    assert len(blocks) == 2
    assert_as_shown(blocks)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(DOCS)))
def test_each_page_says_who_should_read_it(path: Path) -> None:
    if path != GENERATED:
        assert path.read_text("utf-8").split("\n\n")[1].startswith("For ")


@pytest.mark.parametrize("path", DECISIONS, ids=lambda path: path.stem)
def test_each_decision_has_status_and_date_and_is_in_the_index(path: Path) -> None:
    title, _, status, *_ = path.read_text("utf-8").split("\n")
    number, _, words = title.removeprefix("# ").partition(". ")
    said = re.fullmatch(r"Status: (.+) · (\d{4}-\d\d-\d\d)", status)
    assert said is not None, status
    assert int(number) == int(path.name[:4])
    row = f"| {number} | [{words}]({path.name}) | {said[1]} | {said[2]} |"
    assert row in page("decisions/index.md").splitlines()


@pytest.mark.parametrize(
    "command", ["", "serve", "train", "score", "demo", "doctor", "migrate", "prune", "rubrics"]
)
def test_help_teaches_every_command(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["markscheme", *command.split(), "--help"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "Usage" in printed
    if not command:
        for name in ("serve", "train", "score", "demo", "doctor", "migrate", "prune", "rubrics"):
            assert name in printed
