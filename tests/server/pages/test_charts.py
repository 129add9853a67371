"""Charts: what is not known is a gap, and never stands at 0."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.runs import MadeRun
from markscheme.schema import CriterionSpan, RolloutPoint
from markscheme_server.pages import charts

FRAME = charts.Frame(100, 50, (0.0, 10.0), left=0, right=0, top=0, bottom=0)


def paths(svg: str, kind: str) -> list[str]:
    return re.findall(rf'<path class="{kind}" d="([^"]*)"', svg)


def test_a_line_breaks_where_a_value_is_not_known() -> None:
    drawn = str(charts.line(FRAME, [(0, 0.5), (1, 0.5), (2, None), (3, 0.5), (4, 0.5)], "line"))
    assert paths(drawn, "line") == ["M0 25L10 25M30 25L40 25"]


def test_a_line_breaks_where_steps_are_missing() -> None:
    points: charts.Points = [(0, 0.5), (1, 0.5), (2, 0.5), (9, 0.5), (10, 0.5)]
    assert len(charts.segments(points)) == 2


def test_a_line_of_unknown_values_is_not_drawn() -> None:
    assert charts.line(FRAME, [(0, None), (1, None)], "line") == ""


def test_a_value_between_two_unknown_ones_is_seen() -> None:
    drawn = str(charts.line(FRAME, [(0, None), (5, 0.5), (9, None)], "line"))
    assert paths(drawn, "line") == ["M48 25h4"]


def test_means_are_weighted_by_known_rewards_and_do_not_cross_a_gap() -> None:
    points: charts.Points = [(0, 0.0), (1, 1.0), (2, None), (3, 0.2)]
    assert charts.smooth(points, [3, 1, 0, 5], 9) == [(0, 0.25), (1, 0.25), (2, None), (3, 0.2)]


@pytest.mark.parametrize(("spans", "over"), [(1, 1), (8, 1), (20, 3), (30, 5), (45, 9), (200, 9)])
def test_a_short_run_is_smoothed_less(spans: int, over: int) -> None:
    assert charts.smoothed_spans(spans) == over


@given(
    st.lists(st.none() | st.floats(0, 1), min_size=1, max_size=60),
    st.data(),
)
def test_smoothing_keeps_what_is_known_and_unknown(
    values: list[float | None], data: st.DataObject
) -> None:
    weights = data.draw(st.lists(st.integers(1, 50), min_size=len(values), max_size=len(values)))
    smoothed = charts.smooth([(float(i), v) for i, v in enumerate(values)], weights, 9)
    known = [v for v in values if v is not None]
    for value, (_, mean) in zip(values, smoothed, strict=True):
        assert (value is None) == (mean is None)
        if mean is not None:
            assert min(known) - 1e-9 <= mean <= max(known) + 1e-9


def test_an_outage_is_one_hole_with_its_reason_and_steps() -> None:
    spans = MadeRun(steps=1000, outage=(410, 429)).step_list().data
    assert charts.unknown_stretches(spans) == [(410, 429, "unavailable")]
    svg = str(charts.reward_chart(spans, 0, label="reward"))
    assert svg.count('class="hole"') == 1
    assert "unavailable, steps 411–430" in svg
    (line,) = paths(svg, "line")
    assert line.count("M") == 2
    (band,) = paths(svg, "band")
    assert band.count("M") == 2


def test_a_reward_below_zero_has_room() -> None:
    spans = [
        span.model_copy(update={"low": -0.4})
        for span in MadeRun(steps=10, outage=None).step_list().data
    ]
    assert "−1.00" in str(charts.reward_chart(spans, 0, label="reward"))


def test_equal_colours_of_the_heat_map_are_one_stretch() -> None:
    spans = [
        CriterionSpan(first_step=i, last_step=i, met=met, judged=8)
        for i, met in enumerate([8, 8, 8, 0, 0, 8])
    ]
    svg = str(charts.heat_row(spans, 0, 5, "c1"))
    assert paths(svg, "k9") == ["M0 0h3v1H0zM5 0h1v1H5z"]
    assert paths(svg, "k0") == ["M3 0h2v1H3z"]


def test_what_no_verdict_is_known_of_is_not_painted() -> None:
    spans = [CriterionSpan(first_step=0, last_step=9, met=0, judged=0, unknown=8)]
    assert "<path" not in charts.heat_row(spans, 0, 9, "c1")


def test_a_reward_that_is_not_known_is_no_dot_on_the_line() -> None:
    def point(reward: float | None) -> RolloutPoint:
        return RolloutPoint(id="r", reward=reward, reason=None, truncated=False, words=1)

    svg = str(charts.dots([point(0.0), point(1.0), point(None)], None))
    assert paths(svg, "d") == ["M5 7h0M105 7h0"]
    assert svg.count("<circle") == 1
    assert "rewards 0.00, 1.00; 1 not known" in svg


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [(1, 1000, [1, 250, 500, 750, 1000]), (1, 1, [1]), (1, 3, [1, 2, 3]), (411, 430, None)],
)
def test_ticks_are_round_and_hold_the_ends(
    first: int, last: int, expected: list[int] | None
) -> None:
    ticks = charts.ticks(first, last)
    assert (ticks[0], ticks[-1]) == (first, last)
    assert len(ticks) <= 7
    if expected is not None:
        assert ticks == expected


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_ticks_rise(first: int, length: int) -> None:
    ticks = charts.ticks(first, first + length)
    assert ticks == sorted(set(ticks))
