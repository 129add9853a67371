"""The page that compares runs: every state has one, and unknown is never 0."""

from dataclasses import replace
from typing import Any

import pytest

from fakes.pages import Page, comparison_figures, missing
from fakes.runs import MadeRun, made_comparison
from markscheme import schema
from markscheme_server.domain.caller import OPERATOR
from markscheme_server.pages import charts, comparison, render
from markscheme_server.pages.render import Frame

RUN = MadeRun(id="support-7b-ropd-4")


def named(count: int, run: MadeRun = RUN) -> list[MadeRun]:
    return [replace(run, id=f"a run with a name of some length {i}") for i in range(count)]


def html(found: schema.RunComparison, **options: Any) -> str:
    view = comparison.compare_page(
        found, all_criteria=options.get("all_criteria", False), after=options.get("after")
    )
    return render.page("compare.html", Frame("", "runs", OPERATOR), **view)


def page(found: schema.RunComparison, **options: Any) -> Page:
    return Page(html(found, **options))


@pytest.mark.parametrize("count", range(2, 7))
def test_figures_are_the_services(count: int) -> None:
    found = made_comparison(named(count))
    assert missing(comparison_figures(found), page(found).values) == []


def test_the_page_of_six_long_runs_is_small() -> None:
    found = made_comparison(named(6, MadeRun(steps=1000, criteria=40)))
    assert len(html(found).encode()) <= 150_000


STATES = {
    "no step": [MadeRun(steps=0, criteria=0), MadeRun(steps=0, criteria=0, id="b")],
    "one step": [MadeRun(steps=1, outage=None), MadeRun(steps=1, outage=None, id="b")],
    "all unknown": [MadeRun(steps=30, outage=(0, 29)), MadeRun(steps=30, outage=(0, 29), id="b")],
    "one of them unknown": [MadeRun(steps=30, outage=None), MadeRun(steps=30, outage=(0, 29))],
    "of different lengths": [MadeRun(steps=30, outage=None), MadeRun(steps=7, outage=None)],
    "no teacher": [MadeRun(steps=30, teacher=False), MadeRun(steps=30, teacher=False)],
}


@pytest.mark.parametrize("runs", STATES.values(), ids=STATES.keys())
def test_every_state_of_two_runs_has_a_page(runs: list[MadeRun]) -> None:
    shown = page(made_comparison(runs, prompts=0))
    assert "No prompt of A was scored in another of these runs" in shown.text
    assert "undefined" not in shown.text


def test_a_run_without_any_known_reward_has_no_line_and_no_number() -> None:
    shown = page(made_comparison(STATES["one of them unknown"]))
    assert "B not known: steps 1–30" in shown.text
    assert not [path for path in shown.all("path") if path.get("class") == "c1" and path["d"] == ""]
    lines = [path for path in shown.all("path") if path.get("class") == "c1"]
    assert {path["d"] for path in lines} == {"M0 4h30"}  # the legend's
    rewards = shown.text.split("cost A")[1].split("Reward by step")[0]
    assert "not known" in rewards


def test_what_is_not_known_or_not_there_is_said() -> None:
    shown = page(made_comparison(named(3)))
    prompts = shown.text.split("The same prompts")[1].split("Criteria")[0]
    assert "not known" in prompts
    assert "not in it" in prompts
    assert "another rubric or judge than A’s" in prompts
    criteria = shown.text.split("greatest loss first")[-1]
    assert "not known" in criteria
    assert "7 of C" in criteria


def test_too_few_prompts_have_no_interval() -> None:
    found = made_comparison(named(2))
    none = schema.MeanInterval(value=-0.04, low=None, high=None)
    few = found.differences[0].model_copy(update={"difference": none})
    assert "too few prompts" in page(found.model_copy(update={"differences": [few]})).text


def test_a_run_that_is_scored_every_tenth_step_has_a_whole_line() -> None:
    every = schema.ComparedReward(reward=0.5, rollouts=8, unscored=0)
    none = schema.ComparedReward(reward=None, rollouts=0, unscored=0)
    spans = [
        schema.ComparedSpan(first_step=i, last_step=i, runs=[every, none if i % 10 else every])
        for i in range(1, 101)
    ]
    found = made_comparison(named(2)).model_copy(update={"spans": spans})
    lines = [path["d"] or "" for path in page(found).all("path") if path.get("class") == "c1"]
    assert lines[0].count("M") == 1


def test_names_at_the_ends_of_equal_lines_stand_apart() -> None:
    curves = [
        charts.Curve(name, [(float(x), 0.5) for x in range(1, 9)], [8] * 8) for name in "ABCDEF"
    ]
    shown = Page(str(charts.comparison_chart(curves, (1, 8), label="six")))
    names = [text for text in shown.all("text") if "text-anchor" not in text]
    heights = sorted(float(text["y"] or "") for text in names)
    assert len(heights) == 6
    assert all(b - a >= 12 for a, b in zip(heights, heights[1:], strict=False))


def test_more_prompts_and_criteria_are_a_link_away() -> None:
    found = made_comparison(named(2)).model_copy(update={"criteria_total": 90})
    first = {a["href"] or "" for a in page(found).all("a")}
    assert any("after=" in link for link in first)
    assert any("criteria=all" in link for link in first)
    later = {a["href"] or "" for a in page(found, all_criteria=True, after="x").all("a")}
    assert not any("criteria=all" in link for link in later)
    assert any(link.startswith("compare?") and link.endswith("#prompts") for link in later)


def test_each_run_can_be_the_one_that_the_others_are_compared_with() -> None:
    shown = page(made_comparison([replace(RUN, id=name) for name in ("x", "y", "z")]))
    links = {a["href"] for a in shown.all("a")}
    assert {"compare?runs=y&runs=x&runs=z", "compare?runs=z&runs=x&runs=y"} <= links
