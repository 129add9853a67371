"""Pages of runs that were scored: they show what the API answers."""

from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from typer.testing import CliRunner

from fakes.pages import Page, criterion_figures, group_figures, missing, run_figures
from markscheme import Client
from markscheme.cli.app import app

RUN = "a run/of 7%"
PROMPT = "Name a colour. Use at most three words."
RUBRIC = [
    {"text": "It names red.", "points": 2, "check": {"kind": "contains", "texts": ["red"]}},
    {"text": "At most three words.", "points": 1, "check": {"kind": "max_words", "value": 3}},
]
HTML = {"Accept": "text/html"}


@pytest.fixture
def scored(service: str, client: Client) -> str:
    """Score six steps of two groups; return the service's address."""
    client.create_rubric(PROMPT, RUBRIC)
    texts = ["red", "red and blue and green", "<b>blue</b>", "green or blue or so"]
    for step in range(6):
        client.score(
            [
                {
                    "id": f"g{step}-{group}",
                    "prompt": PROMPT,
                    "rollouts": [texts[(step + i) % 4] for i in range(2 + group)],
                    "teacher_responses": ["red"],
                }
                for group in range(2)
            ],
            run={"id": RUN, "step": step},
            reuse="frozen",
            score_teachers=True,
        )
    return service


def test_a_run_is_listed_and_its_figures_are_the_apis(scored: str, client: Client) -> None:
    listed = Page(httpx.get(f"{scored}/pages/", headers=HTML, timeout=60).text)
    (link,) = [a["href"] for a in listed.all("a") if "runs/" in (a.get("href") or "")]
    answer = httpx.get(httpx.URL(f"{scored}/pages/").join(link or ""), headers=HTML, timeout=60)
    page = Page(answer.text)
    assert f"{RUN}" in page.text
    run, groups, criteria = client.run(RUN), client.run_groups(RUN), client.run_criteria(RUN)
    assert None not in (run.reward_now, run.reward_first, run.teacher)
    assert None not in [group.mean for group in groups.data]
    assert missing(run_figures(run, groups), page.values) == []
    assert missing(criterion_figures(criteria), page.values) == []
    assert all(criterion.text in page.text for criterion in criteria.data)
    shown = [a["href"] or "" for a in page.all("a") if "groups/" in (a.get("href") or "")]
    assert len(shown) == len(groups.data)
    group = Page(httpx.get(answer.url.join(shown[0]), headers=HTML, timeout=60).text)
    scored = client.group(groups.data[0].id)
    assert len(group_figures(scored)) == len(scored.rollouts) + len(scored.teachers)
    assert missing(group_figures(scored), group.values) == []


def test_the_rubric_and_the_judge_of_a_run_have_pages(scored: str, client: Client) -> None:
    (rubric,) = client.rubrics()
    page = Page(httpx.get(f"{scored}/pages/rubrics/{rubric.id}", headers=HTML, timeout=60).text)
    assert RUN in page.text
    words = page.text.replace("\N{NO-BREAK SPACE}", " ")
    assert "decided by code: The response has “red”." in words
    assert "decided by code: The response has at most 3 words." in words
    assert (
        "builtin" in Page(httpx.get(f"{scored}/pages/judges", headers=HTML, timeout=60).text).text
    )
    assert httpx.get(f"{scored}/pages/cost", headers=HTML, timeout=60).status_code == 200


def test_the_command_writes_a_report(scored: str, tmp_path: Path) -> None:
    out = tmp_path / "run.html"
    done = CliRunner().invoke(app, ["report", RUN, "-o", str(out), "--url", scored])
    assert done.exit_code == 0
    assert done.output.endswith(f"{out}\n")  # after the log of the service
    page = Page(out.read_text(encoding="utf-8"))
    assert RUN in page.text
    assert not page.all("b") or "blue" in page.text
    missing = CliRunner().invoke(app, ["report", "nobody", "-o", str(out), "--url", scored])
    assert missing.exit_code == 1
    assert "there is no run" in missing.output


@pytest.mark.parametrize("run", ["a/report", "a/steps.csv", "a%2Fb", "a/../b", "?x#y"])
def test_a_run_of_any_name_has_a_page_and_a_table(scored: str, client: Client, run: str) -> None:
    client.put_run(run, facts={"student": "blue"})
    page = httpx.get(f"{scored}/pages/runs/{quote(run, safe='')}", headers=HTML, timeout=60)
    assert (page.status_code, run in Page(page.text).text) == (200, True)
    table = httpx.get(f"{scored}/pages/runs/{quote(run, safe='')}/steps.csv", timeout=60)
    assert (table.status_code, table.headers["content-type"][:8]) == (200, "text/csv")
