"""Test which configurations of promptfoo are refused, and what is said of the place."""

import json
from typing import Any

import pytest

from markscheme.exchange import Malformed, load
from markscheme.exchange.promptfoo import config_rows, render

TEST = {"assert": [{"type": "llm-rubric", "value": "Is short"}]}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"prompts": [], "tests": [TEST]}, "prompts: must be a list"),
        ({"prompts": "p", "tests": [TEST], "defaultTest": "file://d"}, "defaultTest: must be an"),
        ({"prompts": "p", "tests": 3}, "tests: must be a list"),
        ({"prompts": "p", "tests": [3]}, r"tests\[0\]: must be an object"),
        ({"prompts": "p", "tests": "file://t.csv"}, "tests: are in another file"),
        ({"prompts": "p", "scenarios": [{"config": 3}]}, r"scenarios\[0\].config: must be a list"),
    ],
)
def test_what_is_no_configuration_is_refused_by_place(config: Any, message: str) -> None:
    with pytest.raises(Malformed, match=message):
        config_rows(config)


@pytest.mark.parametrize(
    ("assertions", "message"),
    [
        ([3], r"assert\[0\]: must be an object"),
        ([{"value": "Is short"}], r"assert\[0\].type: is missing"),
        (3, "assert: must be a list"),
    ],
)
def test_what_is_no_assertion_is_refused_by_place(assertions: Any, message: str) -> None:
    with pytest.raises(Malformed, match=message):
        load({"prompt": "p", "assert": assertions}, "promptfoo")


def test_a_variable_that_is_in_a_file_is_refused() -> None:
    with pytest.raises(Malformed, match=r"vars.topic: is in another file \('file://topic.txt'\)"):
        render("About {{topic}}", {"topic": "file://topic.txt"}, "prompt")


def test_a_scenario_without_tests_is_one_test_of_each_of_its_data() -> None:
    config = {
        "prompts": "About {{topic}}",
        "scenarios": [{"config": [{"vars": {"topic": t}} | TEST for t in ("tea", "ink")]}],
    }
    assert [row["vars"] for row in config_rows(config)] == [{"topic": "tea"}, {"topic": "ink"}]


def test_a_configuration_of_one_rubric_is_read_as_its_test() -> None:
    config = {"prompts": ["About {{topic}}"], "tests": [TEST | {"vars": {"topic": "tea"}}]}
    found = load(config, "promptfoo")
    assert [message.content for message in found.prompt] == ["About tea"]
    assert [criterion.text for criterion in found.criteria] == ["Is short"]


ONE, TWO = ({"type": "llm-rubric", "value": value} for value in ("Is short", "Is kind"))


@pytest.mark.parametrize(
    "config",
    [
        {"tests": [{"assert": ONE}], "defaultTest": {"assert": TWO}},
        {"tests": [{"assert": [ONE]}], "defaultTest": {"assert": TWO}},
        {"tests": [{"assert": json.dumps([ONE])}], "defaultTest": {"assert": [TWO]}},
        {"scenarios": [{"config": [{"assert": ONE}], "tests": [{"assert": [TWO]}]}]},
        {"tests": [{"assert": {"$ref": "#/kinds/one"}}, {}], "kinds": {"one": ONE}}
        | {"defaultTest": {"assert": TWO}},
    ],
)
def test_a_lone_assertion_is_joined_with_those_of_its_defaults(config: dict[str, Any]) -> None:
    first = config_rows({"prompts": "p"} | config)[0]
    found = load(first, "promptfoo")
    assert [criterion.text for criterion in found.criteria] == ["Is short", "Is kind"]


@pytest.mark.parametrize(
    "config",
    [
        {"tests": [{"assert": 3}, TEST], "defaultTest": TEST},
        {"scenarios": [{"config": [{"assert": "x"}, {}], "tests": [TEST]}]},
    ],
)
def test_assertions_that_are_no_list_are_refused_with_their_test_alone(
    config: dict[str, Any],
) -> None:
    first, second = config_rows({"prompts": "p"} | config)
    with pytest.raises(Malformed, match="assert: must be a list"):
        load(first, "promptfoo")
    assert load(second, "promptfoo").criteria[0].text == "Is short"


def test_defaults_that_are_no_list_are_refused_and_not_left_out() -> None:
    (row,) = config_rows({"prompts": "p", "tests": [TEST], "defaultTest": {"assert": 3}})
    with pytest.raises(Malformed, match="assert: must be a list"):
        load(row, "promptfoo")
