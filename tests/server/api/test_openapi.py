"""Test that the OpenAPI document in git is the service's, so that reviews show any change.

To renew it after an intended change: ``python tests/server/api/test_openapi.py`` (with
``PYTHONPATH=tests``).
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from markscheme import checks, schema
from markscheme_server.app import create_app
from markscheme_server.config import Settings

SNAPSHOT = Path(__file__).with_name("openapi.json")
RENEW = (
    "if this change of the contract is meant: "
    f"python {Path(__file__).relative_to(Path(__file__).parents[3])}"
)


@cache
def document() -> dict[str, Any]:
    made: dict[str, Any] = create_app(Settings(_env_file=None, judge="builtin")).openapi()
    return made


def written(found: dict[str, Any]) -> str:
    return json.dumps(found, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def test_the_document_is_the_one_in_git() -> None:
    kept = json.loads(SNAPSHOT.read_text("utf-8"))
    found = document()
    for part in ("paths", "components"):
        changed = differences(kept[part], found[part], part)
        assert changed == [], RENEW
    assert written(found) == SNAPSHOT.read_text("utf-8"), RENEW


def differences(kept: Any, found: Any, place: str) -> list[str]:
    """Where the two differ: the places alone, which can be read."""
    if isinstance(kept, dict) and isinstance(found, dict):
        return [
            line
            for name in sorted({*kept, *found})
            for line in differences(kept.get(name), found.get(name), f"{place} > {name}")
        ]
    return [] if kept == found else [place]


def models() -> list[str]:
    return [
        name
        for name, shown in document()["components"]["schemas"].items()
        if shown["type"] == "object"
    ]


@pytest.mark.parametrize("name", sorted(models()))
def test_a_model_has_the_fields_of_the_sdks(name: str) -> None:
    model = getattr(schema, name, None) or getattr(checks, name)
    shown = document()["components"]["schemas"][name]
    assert set(shown["properties"]) == set(model.model_fields)
    # A message is another program's record: fields that say nothing to us are ignored.
    assert shown.get("additionalProperties", name == "Message") is (name == "Message")


def test_a_difference_is_told_by_its_place() -> None:
    assert differences({"a": {"b": 1}}, {"a": {"b": 2}, "c": 1}, "paths") == [
        "paths > a > b",
        "paths > c",
    ]


if __name__ == "__main__":
    SNAPSHOT.write_text(written(document()), "utf-8")
