"""The pages of `docs/integrations`: their code parses, and what it imports of ours is there."""

import ast
import importlib
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGES = sorted((ROOT / "docs" / "integrations").glob("*.md"))
RECORDED = json.loads(Path(__file__).with_name("signatures.json").read_text("utf-8"))
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HOOKS = {
    "skyrl.md": ("skyrl", "generate"),
    "tinker.md": ("tinker", "compute_group_rewards"),
    "nemo_gym.md": ("nemo_gym", "verify"),
    "areal.md": ("areal", "_compute_rewards"),
}
"""Pages that override a method of a trainer."""


def blocks(page: Path) -> list[ast.Module]:
    return [ast.parse(text) for text in BLOCK.findall(page.read_text("utf-8"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_imports_of_ours_is_there(page: Path) -> None:
    for block in blocks(page):
        for node in ast.walk(block):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("markscheme"):
                # The trainers' classes are made when they are asked for.
                module = importlib.import_module(str(node.module))
                for name in node.names:
                    assert name.name in getattr(module, "__all__", dir(module))


@pytest.mark.parametrize("name", HOOKS)
def test_a_page_overrides_a_method_as_recorded(name: str) -> None:
    trainer, method = HOOKS[name]
    [recorded] = [
        signature
        for key, signature in RECORDED[trainer]["signatures"].items()
        if key.endswith(f".{method}")
    ]
    [theirs] = ast.parse(f"def f{recorded.removeprefix('async ')}: ...").body
    assert isinstance(theirs, ast.FunctionDef)
    [ours] = [
        node
        for block in blocks(ROOT / "docs" / "integrations" / name)
        for node in ast.walk(block)
        if isinstance(node, ast.AsyncFunctionDef) and node.name == method
    ]
    assert [each.arg for each in ours.args.args] == [each.arg for each in theirs.args.args]


def test_the_index_names_every_page() -> None:
    index = (ROOT / "docs" / "integrations" / "README.md").read_text("utf-8")
    assert all(f"({page.name})" in index for page in PAGES if page.name != "README.md")
