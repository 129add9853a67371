"""Tell the format of a content from the fields that it has."""

import re
from typing import Any

from markscheme.exchange.base import NATIVE, Malformed, join_excerpts
from markscheme.exchange.paths import decode
from markscheme.exchange.promptfoo import is_config
from markscheme.vocabulary import ExchangeFormat

_HEALTHBENCH = {"prompt_id", "example_tags", "ideal_completions_data"}


def detect_format(content: Any) -> ExchangeFormat:
    """Return the format of a content. Raises `Malformed` where the fields do not tell it.

    Columns that are null count as absent: tables of several data sets pad their rows with them.
    """
    found = _format_of(content)
    if found is None:
        fields = (
            f"its fields are {join_excerpts(list(map(str, content)))}"
            if isinstance(content, dict)
            else "it is no object"
        )
        raise Malformed(f"none of the known formats looks like this ({fields})")
    return found


def _format_of(content: Any) -> ExchangeFormat | None:
    if isinstance(content, list):
        if not content:
            return None
        if all(_has(row, "text") for row in content):
            return "verifiers"
        # A list is one rubric only in a format whose rows belong together.
        each = {_format_of(row) if isinstance(row, dict) else None for row in content}
        return "healthbench-meta-eval" if each == {"healthbench-meta-eval"} else None
    if not isinstance(content, dict):
        return None
    row = {name: decode(value) for name, value in content.items() if value is not None}
    if "schema_version" in row:
        version = str(row["schema_version"])
        if version == NATIVE:
            return "native"
        return "ropd" if version.startswith("ropd.rubric.") else None
    if "binary_labels" in row and isinstance(row.get("rubric"), str):
        return "healthbench-meta-eval"
    if "instruction_id_list" in row or re.search(
        r"instruction_id|func_name", str(row.get("ground_truth", ""))
    ):
        return "ifeval"
    if "rubric_items" in row:
        return "healthbench-professional"
    if "assert" in row or is_config(row):
        return "promptfoo"
    if isinstance(row.get("requirements"), str | list) and "prompt" in row:
        return "wildchecklists"
    rubric = row.get("rubric")
    lines = rubric if isinstance(rubric, list) else [rubric]
    if "instruction" in row and lines and all(isinstance(line, str) for line in lines):
        return "openrubrics"
    if "question" in row and _has(_first(rubric), "description"):
        return "rar"
    if isinstance(row.get("reward_model"), dict) and "rubrics" in row["reward_model"]:
        return "rubrichub"
    if "Rubrics" in row:
        return "rubrichub"
    criterion = _first(row.get("rubrics"))
    if _has(criterion, "criterion"):
        if "weight" in criterion and "prompt" in row:
            return "researchrubrics"
        if "points" in criterion:
            # RubricHub has criteria of the same form; HealthBench's prompts are lists of messages.
            known = isinstance(row.get("prompt"), list) or content.keys() & _HEALTHBENCH
            return "healthbench" if known else "rubrichub"
    if _has(_first(row.get("criteria")), "text") and "prompt" not in row:
        return "verifiers"
    return None


def _first(rows: Any) -> Any:
    if isinstance(rows, dict) and rows and all(isinstance(each, list) for each in rows.values()):
        # A table that stands column by column.
        return {name: column[0] for name, column in rows.items() if column}
    return decode(rows[0]) if isinstance(rows, list) and rows else None


def _has(row: Any, name: str) -> bool:
    return isinstance(row, dict) and name in row
