"""Test that verdicts are counted, one by one and many at once."""

import random

from markscheme_server.domain.run_columns import Counts, count_by_part, count_verdicts


def test_verdicts_are_counted_by_criterion() -> None:
    assert count_verdicts("10-" + "1?0" + "??1", 3) == [
        Counts(2, 2, 1),
        Counts(0, 1, 2),
        Counts(1, 2, 0),
    ]
    assert count_verdicts("", 2) == [Counts(), Counts()]


def test_verdicts_of_many_groups_are_counted_at_once() -> None:
    rng, criteria = random.Random(1), 3
    sizes = [0, 1, 4, 4, 4, 8, 255, 256, 1000, 8, 0]  # a byte counts to 255
    parts = ["".join(rng.choices("10-?", k=size * criteria)) for size in sizes]
    parts.append("1" * 1000 * criteria)
    columns = count_by_part(parts, criteria)
    assert len(columns) == criteria
    one_by_one = [count_verdicts(part, criteria) for part in parts]
    for number, (met, judged) in enumerate(columns):
        assert met == [counts[number].met for counts in one_by_one]
        assert judged == [counts[number].judged for counts in one_by_one]


def test_no_groups_have_no_verdicts() -> None:
    assert count_by_part([], 2) == [([], []), ([], [])]
