"""What a key looks like and what is kept of it."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from markscheme_server.domain import keys


def test_a_new_key_is_well_formed_and_like_no_other() -> None:
    made = {keys.new_key() for _ in range(500)}
    assert len(made) == 500
    for key in made:
        assert keys.is_well_formed(key)
        assert re.fullmatch(r"mk_[0-9A-Za-z]{43}", key)
        assert keys.prefix(key) == key[:11]


@given(st.integers(min_value=3, max_value=45), st.sampled_from("0123456789abcXYZ"))
def test_one_wrong_character_is_noticed(place: int, other: str) -> None:
    key = keys.new_key()
    wrong = key[:place] + other + key[place + 1 :]
    assert keys.is_well_formed(wrong) == (wrong == key)


@pytest.mark.parametrize(
    "text", ["", "mk_", "sk-1234", "mk_" + "a" * 43, "mk_" + "a" * 44, "mk_ü" + "a" * 42]
)
def test_other_texts_are_no_keys(text: str) -> None:
    assert not keys.is_well_formed(text)


def test_what_is_kept_depends_on_the_whole_key_and_on_the_pepper() -> None:
    key, other = keys.new_key(), keys.new_key()
    kept = keys.key_hash(key, "pepper")
    assert re.fullmatch(r"[0-9a-f]{64}", kept)
    assert kept == keys.key_hash(key, "pepper")
    assert len({kept, keys.key_hash(key, "salt"), keys.key_hash(other, "pepper")}) == 3
    assert key[3:] not in kept
