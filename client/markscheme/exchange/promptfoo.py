"""promptfoo: its `llm-rubric` assertions as criteria, its templates filled in."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from markscheme.exchange.base import ConversionIssues, Malformed, excerpt
from markscheme.exchange.paths import decode
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


def rubric_text(value: Any) -> Any:
    """Return the text of an assertion's value; an object or a list becomes JSON."""
    if isinstance(value, dict | list) and value:
        return json.dumps(value, ensure_ascii=False)
    return value


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
        # Only a variable that is a list itself makes several tests; a list within one is JSON.
        if isinstance(found, list) and found is variables.get(match[1]):
            raise Malformed(
                f"vars.{match[1]}: is a list, of which promptfoo tries each value: make a test of "
                "each"
            )
        if isinstance(found, str) and found.startswith("file://"):
            raise Malformed(f"vars.{match[1]}: is in another file ({excerpt(found)})")
        return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)

    # What is left of the marks when plain variables are gone is something else.
    rest = _VARIABLE.sub("", template)
    if _OTHER_MARKS.search(rest):
        raise Malformed(f"{location}: only plain variables such as {{{{name}}}} can be filled in")
    return _VARIABLE.sub(value, template)


def is_config(content: Any) -> bool:
    """Return whether a content is a configuration: prompts with tests or scenarios."""
    return (
        isinstance(content, Mapping)
        and "prompts" in content
        and ("tests" in content or "scenarios" in content)
    )


def config_rows(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each prompt and test of a configuration. Raises `Malformed`."""
    return [row for _, row in placed_rows(config)]


def placed_rows(config: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return the rows of a configuration, each with the place of its test, such as `test 2`.

    `defaultTest` is merged into each test as promptfoo does: its assertions come after the test's
    own, its variables where the test has none of that name. A scenario makes a test of each of its
    tests with each entry of its `config`. A variable that is a list makes a test of each of its
    values.

    Raises `Malformed`.
    """
    prompts = config.get("prompts")
    if isinstance(prompts, str | dict):
        prompts = [prompts]
    if not isinstance(prompts, list) or not prompts:
        raise require(prompts, "prompts", "a list")
    default = config.get("defaultTest") or {}
    if not isinstance(default, dict):
        raise require(default, "defaultTest", "an object")
    rows = []
    for place, test in _tests(config):
        merged = _merged(default, test)
        joined = _join(test.get("assert"), default.get("assert"))
        merged["assert"] = (
            [_resolve(each, config) for each in joined] if isinstance(joined, list) else joined
        )
        for variant in _variants(merged):
            for prompt in prompts:
                text = prompt.get("raw", prompt.get("id")) if isinstance(prompt, dict) else prompt
                rows.append((place, {"prompt": text, **variant}))
    return rows


def _tests(config: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the tests of a configuration and of its scenarios with their places."""
    scenarios = config.get("scenarios")
    if config.get("tests") is not None or scenarios is None:
        for number, test in enumerate(_objects(config.get("tests"), "tests"), 1):
            yield f"test {number}", test
    for number, scenario in enumerate(_objects(scenarios or [], "scenarios"), 1):
        here = f"scenarios[{number - 1}]"
        tests = scenario.get("tests")
        for case in _objects(scenario.get("config"), f"{here}.config"):
            for position, test in enumerate(
                [{}] if tests is None else _objects(tests, f"{here}.tests"), 1
            ):
                merged = _merged(case, test)
                merged["assert"] = _join(case.get("assert"), test.get("assert"))
                yield f"scenario {number}, test {position}", merged


def _objects(value: Any, location: str) -> list[dict[str, Any]]:
    if isinstance(value, str):
        raise Malformed(f"{location}: are in another file ({excerpt(value)}); import that one")
    if not isinstance(value, list):
        raise require(value, location, "a list")
    for number, each in enumerate(value):
        if not isinstance(each, dict):
            raise require(each, f"{location}[{number}]", "an object")
    return value


def _merged(default: Mapping[str, Any], test: Mapping[str, Any]) -> dict[str, Any]:
    """Return a test with the fields of a default where it has none of its own."""
    merged = {**default, **test}
    for name in ("vars", "options", "metadata"):
        if isinstance(default.get(name), dict) and isinstance(test.get(name), dict):
            merged[name] = default[name] | test[name]
    return merged


def _join(*parts: Any) -> Any:
    """Return the assertions of all parts, of which each may be a list or one assertion.

    A part that is neither is returned by itself, so that its test alone is refused.
    """
    joined: list[Any] = []
    for part in parts:
        found = decode(part)
        if isinstance(found, dict):
            joined.append(found)
        elif isinstance(found, list):
            joined += found
        elif found is not None:
            return part
    return joined


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
