"""Test where a path leads, and what is put back or taken out at its end."""

import json
from typing import Any

import pytest

from markscheme.exchange.paths import MISSING, find, parse_path, put, take


@pytest.mark.parametrize(
    ("text", "path"),
    [(".", ()), ("a", ("a",)), ("a.b[0].c", ("a", "b", 0, "c")), ("[2]", (2,))],
)
def test_a_path_is_read_step_by_step(text: str, path: tuple[str | int, ...]) -> None:
    assert parse_path(text) == path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must not be empty"),
        ("a.", "ends with a dot"),
        ("a..b", "is no path"),
        ("]", "no path"),
    ],
)
def test_what_is_no_path_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_path(text)


def test_a_step_leads_into_lists_and_into_json_in_a_text() -> None:
    row = {"a": json.dumps([{"b": 1}, {"b": 2}])}
    assert find(row, ("a", 1, "b")) == 2
    assert find(row, ("a", 2, "b")) is MISSING
    assert find(row, ("a", "b")) is MISSING


@pytest.mark.parametrize(
    ("row", "path", "left"),
    [
        ({"a": {"b": 1}}, ("a", "b"), {}),
        ({"a": {"b": 1, "c": 2}}, ("a", "b"), {"a": {"c": 2}}),
        ({"a": {"b": {"c": 1}}, "d": 0}, ("a", "b", "c"), {"d": 0}),
        ({"a": [1]}, ("a", 0), {"a": [1]}),
        ({"a": [{"b": 1}]}, ("a", 0, "b"), {"a": [{"b": 1}]}),
        ({"a": 1}, ("b",), {"a": 1}),
        ({"a": 1}, (), {"a": 1}),
    ],
)
def test_what_is_taken_out_takes_empty_objects_along_and_nothing_else(
    row: dict[str, Any], path: tuple[str | int, ...], left: Any
) -> None:
    take(row, path)
    assert row == left


@pytest.mark.parametrize(
    ("row", "path", "whole"),
    [
        ({}, (), 7),
        ({}, ("a", "b"), {"a": {"b": 7}}),
        ({"a": [1, 2]}, ("a", 1), {"a": [1, 7]}),
        ({"a": [1, {"b": 0}]}, ("a", 1, "b"), {"a": [1, {"b": 7}]}),
        ({"a": 3}, ("a", "b"), {"a": {"b": 7}}),
        ({"a": '{"b": 0}'}, ("a", "b"), {"a": '{"b": 7}'}),
    ],
)
def test_what_is_put_back_stands_at_its_place(
    row: Any, path: tuple[str | int, ...], whole: Any
) -> None:
    assert put(row, path, 7) == whole


def test_a_text_of_json_that_holds_the_value_already_stays_as_it_was_written() -> None:
    assert put({"a": '{ "b":7}'}, ("a", "b"), 7) == {"a": '{ "b":7}'}
