"""promptfoo: its `llm-rubric` assertions as criteria, its templates filled in."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from markscheme.exchange.base import ConversionIssues, Malformed, excerpt
from markscheme.exchange.values import require

_VARIABLE = re.compile(r"\{\{-?\s*([\w.]+)\s*-?\}\}")
_OTHER_MARKS = re.compile(r"\{%|\{\{")
RUBRIC = "llm-rubric"


def read_assertions(
    rows: Sequence[Any], location: str, issues: ConversionIssues
) -> tuple[list[int], list[int]]:
    """Return the positions of the assertions that are criteria, and of the others.

    The others, such as limits on cost, are noted: they are kept, and not judged.
    """
    chosen, others = [], []
    for number, row in enumerate(rows):
        here = f"{location}[{number}]"
        if not isinstance(row, dict):
            raise require(row, here, "an object")
        type_ = row.get("type")
        if not isinstance(type_, str):
            raise Malformed(f"{here}.type: is missing")
        if type_ == RUBRIC:
            chosen.append(number)
            if row.get("threshold") is not None:
                issues.notes.append(
                    f"{here}: its threshold is kept and not applied: a criterion is met or not"
                )
        else:
            others.append(number)
            issues.notes.append(
                f"{here}: an assertion of type {excerpt(type_)} is no criterion; it is kept and "
                "not judged"
            )
    return chosen, others


def render(template: str, variables: Mapping[str, Any], location: str) -> str:
    """Return the template with its variables filled in. Raises `Malformed`.

    Plain `{{name}}` only: tags, filters and files are refused, as is a variable that is not there.
    """
    if template.startswith("file://"):
        raise Malformed(f"{location}: is in another file ({excerpt(template)}); write it here")

    def value(match: re.Match[str]) -> str:
        found: Any = variables
        for step in match[1].split("."):
            if not isinstance(found, Mapping) or step not in found:
                raise Malformed(f"{location}: there is no variable {match[1]!r} in vars")
            found = found[step]
        if isinstance(found, list) and found is variables.get(match[1]):
            raise Malformed(
                f"vars.{match[1]}: is a list, of which promptfoo tries each value: make a test of "
                "each"
            )
        if isinstance(found, str) and found.startswith("file://"):
            raise Malformed(f"vars.{match[1]}: is in another file ({excerpt(found)})")
        return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)

    rest = _VARIABLE.sub("", template)
    if _OTHER_MARKS.search(rest):
        raise Malformed(f"{location}: only plain variables such as {{{{name}}}} can be filled in")
    return _VARIABLE.sub(value, template)


def config_rows(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each prompt and test of a configuration. Raises `Malformed`."""
    return [row for _, row in numbered_rows(config)]


def numbered_rows(config: Mapping[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    """Return the rows of a configuration, each with the number of its test, from 1.

    `defaultTest` is merged into each test as promptfoo does: its assertions come after the test's
    own, its variables where the test has none of that name. A variable that is a list makes a test
    of each of its values.

    Raises `Malformed`.
    """
    tests, prompts = config.get("tests"), config.get("prompts")
    if isinstance(tests, str):
        raise Malformed(f"tests: are in another file ({excerpt(tests)}); import that one")
    if not isinstance(tests, list):
        raise require(tests, "tests", "a list")
    if isinstance(prompts, str | dict):
        prompts = [prompts]
    if not isinstance(prompts, list) or not prompts:
        raise require(prompts, "prompts", "a list")
    default = config.get("defaultTest") or {}
    if not isinstance(default, dict):
        raise require(default, "defaultTest", "an object")
    rows = []
    for number, test in enumerate(tests, 1):
        if not isinstance(test, dict):
            raise require(test, f"tests[{number - 1}]", "an object")
        merged = default | test
        for name in ("vars", "options", "metadata"):
            if isinstance(default.get(name), dict) and isinstance(test.get(name), dict):
                merged[name] = default[name] | test[name]
        own, shared = test.get("assert") or [], default.get("assert") or []
        if isinstance(own, list) and isinstance(shared, list):
            merged["assert"] = [_resolve(each, config) for each in (*own, *shared)]
        for variant in _variants(merged):
            for prompt in prompts:
                text = prompt.get("raw", prompt.get("id")) if isinstance(prompt, dict) else prompt
                rows.append((number, {"prompt": text, **variant}))
    return rows


def _resolve(assertion: Any, config: Mapping[str, Any]) -> Any:
    """Return the assertion that a reference such as `#/assertionTemplates/kind` names."""
    reference = assertion.get("$ref") if isinstance(assertion, dict) else None
    if reference is None:
        return assertion
    found: Any = config
    for step in str(reference).removeprefix("#/").split("/"):
        found = found.get(step) if isinstance(found, dict) else None
    if not isinstance(found, dict):
        raise Malformed(f"assert: the configuration has no {excerpt(str(reference))}")
    return found | {name: value for name, value in assertion.items() if name != "$ref"}


def _variants(test: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the test with each combination of the values of its variables that are lists."""
    variables = test.get("vars")
    if not isinstance(variables, dict):
        yield test
        return
    lists = {name: value for name, value in variables.items() if value and isinstance(value, list)}
    for values in product(*lists.values()):
        yield test | {"vars": variables | dict(zip(lists, values, strict=True))}
