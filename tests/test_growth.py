"""The measure of growth tells a quadratic reader from a linear one."""

import pytest

from growth import assert_linear


def repeat(times: int) -> None:
    for _ in range(times):
        pass


def test_a_linear_reader_passes() -> None:
    assert_linear(lambda text: repeat(1000 * len(text)), "x".__mul__, size=300)


def test_a_quadratic_reader_fails() -> None:
    with pytest.raises(AssertionError):
        assert_linear(lambda text: repeat(10 * len(text) ** 2), "x".__mul__, size=300)
