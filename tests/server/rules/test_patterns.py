"""Compiled patterns: bounded memory each, and all together."""

import random

import psutil
import pytest
import re2

from markscheme_server.rules.checks import run_check, validate_check
from markscheme_server.rules.patterns import LARGE_PATTERN_BYTES, PATTERN_BYTES, PatternCache

LARGE = r"(?:[\pL\pN]{1,9}[^\pZ]?){20}c"
"""Its program alone takes more than a megabyte."""


def test_the_patterns_used_last_are_kept_as_far_as_there_is_room() -> None:
    patterns = PatternCache(max_bytes=3 * PATTERN_BYTES)
    first, *others = (patterns.find(text, False) for text in "abc")
    assert patterns.find("a", False) is first
    patterns.find("d", False)  # b makes room
    assert patterns.find("a", False) is first
    assert patterns.find("c", False) is others[1]
    assert patterns.find("b", False) is not others[0]


def test_case_is_part_of_what_is_kept() -> None:
    patterns = PatternCache()
    assert patterns.find("a", True).search("A")
    assert not patterns.find("a", False).search("A")


def test_a_large_pattern_is_refused_and_one_of_an_old_rubric_is_still_decided() -> None:
    with pytest.raises(ValueError, match="too large"):
        validate_check({"kind": "regex", "pattern": LARGE})
    assert run_check({"kind": "regex", "pattern": LARGE}, "x" * 30 + "c").met
    patterns = PatternCache(max_bytes=LARGE_PATTERN_BYTES)
    patterns.find("a", False)
    patterns.find(LARGE, False)
    with pytest.raises(re2.error):
        patterns.find(LARGE, False, allow_large=False)


def test_a_thousand_hostile_patterns_cost_less_than_100_mb() -> None:
    chance = random.Random(1)
    text = "".join(chance.choice("ab") for _ in range(5000))
    process = psutil.Process()
    before = process.memory_info().rss
    for i in range(1024):
        run_check({"kind": "regex", "pattern": f"[ab]*a[ab]{{14}}c{i}"}, text)
    assert process.memory_info().rss - before < 100 * 2**20
