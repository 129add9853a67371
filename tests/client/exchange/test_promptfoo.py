"""Test which configurations of promptfoo are refused, and what is said of the place."""

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
