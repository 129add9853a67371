"""What notebooks show: complete, bounded, and harmless whatever the texts hold."""

import json
from html.parser import HTMLParser
from typing import Any

import pytest

from client.schema.test_scores import BATCH, batch_of
from client.scripted import RUBRIC
from markscheme import Client, Rubric, ScoreBatch
from markscheme.schema import RubricList

HOSTILE = (
    "</td></table><script>alert(1)</script><img src=x onerror=alert(1)>\"'`&lt; onclick=alert(1) "
    "$\\href{javascript:alert(1)}{x}$ \u202egnp.exe\x00\x1b[2J"
)
TAGS = {"div", "b", "bdi", "br", "span", "table", "thead", "tbody", "tr", "th", "td"}


class Shown(HTMLParser):
    """The text of a page, and its elements that a display does not need."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.open, self.foreign = "", [], []
        self.feed(html)
        self.close()
        assert not self.open, "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in TAGS or any(name not in ("class", "style") for name, _ in attrs):
            self.foreign.append((tag, attrs))
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def hostile_rubric() -> Rubric:
    values: dict[str, Any] = RUBRIC | {
        "id": HOSTILE,
        "team": HOSTILE,
        "tags": [HOSTILE],
        "prompt": [{"role": "user", "content": HOSTILE.replace("\x00", "")}],
        "criteria": [
            {
                "id": "c1",
                "text": HOSTILE.replace("\x00", ""),
                "points": -2,
                "check": {"kind": "contains", "texts": [HOSTILE[:-5].replace("\x00", "")]},
            }
        ],
    }
    return Rubric.model_validate_json(json.dumps(values))


def hostile_batch() -> ScoreBatch:
    (group,) = batch_of({HOSTILE: 0.5, "b": None}).groups
    rollouts = [each.model_copy(update={"feedback": [HOSTILE] * 5}) for each in group.rollouts]
    update = {"id": HOSTILE, "rollouts": rollouts}
    return BATCH.model_copy(update={"groups": [group.model_copy(update=update)]})


@pytest.mark.parametrize(
    "shown",
    [
        hostile_rubric(),
        RubricList(data=[hostile_rubric()], has_more=True),
        hostile_batch(),
        hostile_batch().groups[0],
    ],
    ids=["rubric", "rubrics", "batch", "group"],
)
def test_no_text_becomes_an_element_or_an_attribute(shown: Any) -> None:
    html = shown._repr_html_()
    page = Shown(html)
    assert page.foreign == []
    assert "</td></table><script>alert(1)" in page.text
    assert "\x00" not in html
    assert "\x1b" not in html
    assert html.startswith('<div class="markscheme tex2jax_ignore mathjax_ignore"')
    assert html.count("<bdi") == html.count("</bdi>") > 0


def test_a_rubric_shows_its_prompt_points_and_checks(client: Client) -> None:
    rubric = client.create_rubric(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Name a colour.\nOne only."},
        ],
        [
            {"text": "It names red.", "points": 5, "check": {"kind": "max_words", "value": 8}},
            {"text": "It is rude.", "points": -2},
        ],
        tags=["colours"],
    )
    text = Shown(rubric._repr_html_()).text
    for part in (rubric.id, "Be brief.", "Name a colour.\nOne only.", "+5", "-2", "max_words 8"):
        assert part in text
    assert "5 points" in text
    assert "colours" in text


def test_a_check_that_is_made_of_checks_shows_them_all(client: Client) -> None:
    members = [
        {"kind": "contains", "texts": ["red", "blue"]},
        {"kind": "count", "of": "commas", "max": 3},
    ]
    check = {"kind": "all_of", "checks": members}
    rubric = client.create_rubric("p", [{"text": "t", "points": 1, "check": check}])
    assert "all_of (contains red, blue all; count 3 commas)" in Shown(rubric._repr_html_()).text


def test_scores_show_rewards_reasons_and_what_was_missed() -> None:
    text = Shown(BATCH._repr_html_()).text
    assert "2 groups · 3 rollouts · 2 scored · 1 timeout" in text
    assert text.count("1.00") == 1
    assert text.count("0.33") == 1
    assert text.count("None timeout") == 1
    assert text.count("It names red.") == 2


def test_a_large_batch_is_cut_and_says_so() -> None:
    large = batch_of({str(number): 0.5 for number in range(1000)})
    html = large._repr_html_()
    assert "and 940 more rows" in html
    assert len(html) < 100_000
