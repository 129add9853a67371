"""Every page in a real browser: `make test-pages`. Needs Chromium, and axe-core where AXE says."""

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest

from conftest import clean_environment
from fakes.pages import (
    comparison_figures,
    criterion_figures,
    group_figures,
    made_runs,
    missing,
    replay_figures,
    run_figures,
)
from fakes.processes import eventually
from fakes.runs import HOSTILE, MadeRun, made_group
from fakes.service import running
from markscheme import Client
from markscheme_server.config import Settings
from markscheme_server.pages.addresses import path

playwright = pytest.importorskip("playwright.sync_api")

pytestmark = pytest.mark.slow
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
AXE = Path(os.environ.get("AXE", "build/axe/package/axe.min.js"))
WIDTHS = {1280: 900, 390: 844}
MADE: dict[str, dict[str, Any]] = {
    "long": {"run": MadeRun(steps=1000, criteria=12), "group": made_group()},
    "small": {
        "run": MadeRun(steps=20, criteria=3, outage=None, teacher=False, second_judge=False),
        "group": made_group(rollouts=64, criteria=40),
    },
    "unknown": {
        "run": MadeRun(steps=30, outage=(0, 29)),
        "group": made_group(unknown=True, teachers=0),
    },
    "hostile": {"text": HOSTILE},
}
REPLAYS = ("rpl_differs", "rpl_running", "rpl_failed")


@dataclass(frozen=True)
class Site:
    """A service with the ids of two runs, of a group and replays of the first, and more."""

    url: str
    run: str
    other_run: str
    group: str
    rollout: str
    rubric: str
    replays: Sequence[str]

    @property
    def pages(self) -> dict[str, str]:
        """The addresses of the pages by name."""
        run = path("runs", self.run)
        compared = urlencode({"runs": [self.run, self.other_run]}, doseq=True)
        below = {
            "runs": "",
            "run": run,
            "last": f"{run}?last=200&sort=spread",
            "chosen": f"?{compared}",
            "compare": f"compare?{compared}",
            "compare six": f"compare?{compared}&{urlencode({'runs': list('cdef')}, doseq=True)}",
            "compare one": f"compare?{urlencode({'runs': self.run})}",
            "group": f"groups/{self.group}",
            "judge prompt": f"groups/{self.group}?judge={self.rollout}",
            **{f"replay {i}": f"replays/{each}" for i, each in enumerate(self.replays, 1)},
            "rubrics": "rubrics",
            "rubric": f"rubrics/{self.rubric}",
            "judges": "judges",
            "cost": "cost",
            "teams": "teams",
            "sign-in": "signin",
            "not there": "nowhere",
        }
        return {name: f"{self.url}/pages/{path}" for name, path in below.items()}


@contextmanager
def served(home: Path) -> Iterator[str]:
    """Serve with the builtin judge."""
    with pytest.MonkeyPatch.context() as patch:
        clean_environment(patch)
        with running(Settings(_env_file=None, home=home, judge="builtin")) as url:
            yield url


@contextmanager
def made_site(home: Path, **data: Any) -> Iterator[Site]:
    """Serve runs that are made up."""
    with made_runs(**data), served(home) as url, Client(url) as client:
        text = data.get("text")
        rubric = client.create_rubric(
            text or "Name a colour.", [{"text": "It names red.", "points": 1}]
        )
        client.fork_rubric(rubric.id, criteria=[{"text": text or "Blue.", "points": 2}])
        run = text or "support-7b-ropd-4"
        yield Site(url, run, "b", "asg_0000", "r0", next(iter(client.rubrics())).id, REPLAYS)


@contextmanager
def trained_site(home: Path) -> Iterator[Site]:
    """Serve a run that the demo's model was trained in, and a replay of one of its prompts."""
    with served(home) as url, Client(url) as client:
        program = str(Path(__file__).with_name("demo_run.py"))
        done = subprocess.run(
            [sys.executable, program, url, str(home)], check=True, stdout=subprocess.PIPE, text=True
        )
        run = done.stdout.split()[-1]
        group = client.group(client.run_groups(run, sort="spread", limit=1).data[0].id)
        assert group.rubric is not None
        criteria = client.rubric(group.rubric.id).criteria
        first = criteria[0].model_copy(update={"points": criteria[0].points + 4})
        fork = client.fork_rubric(group.rubric.id, criteria=[first, *criteria[1:]])
        replay = client.create_replay(run, rubric_id=fork.id)
        for attempt in eventually():
            with attempt:
                assert client.replay(replay.id).state == "finished"
        for name in (*"bcdef",):
            client.put_run(name)
        client.score(
            [{"id": "g", "prompt": group.prompt, "rollouts": ["Another answer.", "One more."]}],
            run={"id": "b", "step": 0},
            reuse="frozen",
        )
        yield Site(url, run, "b", group.id, group.rollouts[0].id, fork.id, [replay.id])


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not shutil.which(CHROMIUM):
        pytest.fail(f"there is no {CHROMIUM}: install Debian's package chromium")
    with playwright.sync_playwright() as started:
        made = started.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--headless=new", "--disable-gpu"]
        )
        yield made
        made.close()
    asyncio.set_event_loop(None)


@pytest.fixture(scope="module", params=[*MADE, "trained"])
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    home = tmp_path_factory.mktemp("home")
    made = MADE.get(request.param)
    with trained_site(home) if made is None else made_site(home, **made) as opened_site:
        yield opened_site


@contextmanager
def opened(browser: Any, address: str, **options: Any) -> Iterator[tuple[Any, list[str]]]:
    """Open a page; yield it with what it said on its console, dialogs and refused loads."""
    context = browser.new_context(locale="en-GB", **options)
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: said.append(f"error: {error}"))
    page.on("dialog", lambda dialog: (said.append("dialog"), dialog.dismiss()))
    page.on("requestfailed", lambda request: said.append(f"refused: {request.url}"))
    page.goto(address)
    yield page, said
    context.close()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_is_quiet_fits_and_is_accessible(
    browser: Any, site: Site, scheme: str, width: int
) -> None:
    options = {"viewport": {"width": width, "height": WIDTHS[width]}, "color_scheme": scheme}
    for name, address in site.pages.items():
        with opened(browser, address, **options) as (page, said):
            page.wait_for_timeout(100)
            expected = [s for s in said if not (name == "not there" and "404" in s)]
            assert expected == [], f"{name}: {said}"
            box = page.evaluate(
                "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
            )
            assert box[0] == box[1], f"{name} scrolls sideways: {box}"
            cut = "(menu => menu && menu.scrollWidth > menu.clientWidth)"
            assert not page.evaluate(f"{cut}(document.querySelector('nav'))"), f"{name}: menu"
            shots = os.environ.get("SCREENSHOTS")
            if shots:
                test = os.environ["PYTEST_CURRENT_TEST"].split("[")[1].split("]")[0]
                page.screenshot(path=f"{shots}/{name}-{test}.png", full_page=True)
        with opened(browser, address, bypass_csp=True, **options) as (page, _):
            page.evaluate(AXE.read_text(encoding="utf-8") + "; 0")
            found = page.evaluate(
                "axe.run().then(r => r.violations.map(v => [v.id, v.nodes[0].html.slice(0, 200)]))"
            )
            assert found == [], f"{name}: {found}"


def test_a_page_works_without_javascript(browser: Any, site: Site) -> None:
    for name, address in site.pages.items():
        with opened(browser, address, java_script_enabled=False) as (page, _):
            assert page.locator("h1").count() == 1, name
            text = page.locator("main").inner_text()
            assert len(text) > 40, name
            assert "undefined" not in text


def test_nothing_is_loaded_from_elsewhere(browser: Any, site: Site) -> None:
    for address in site.pages.values():
        asked: list[str] = []
        with opened(browser, "about:blank") as (page, _):
            page.on("request", lambda request, asked=asked: asked.append(request.url))
            page.goto(address)
            page.wait_for_timeout(50)
        assert all(each.startswith(site.url) for each in asked), asked


def test_figures_are_those_of_the_api(browser: Any, site: Site) -> None:
    def shown(name: str) -> list[float]:
        with opened(browser, site.pages[name]) as (page, _):
            figures = page.locator("main data").evaluate_all("all => all.map(one => one.value)")
        return [float(each) for each in figures]

    with Client(site.url) as client:
        run = run_figures(client.run(site.run), client.run_groups(site.run, limit=50))
        criteria = criterion_figures(client.run_criteria(site.run))
        group = group_figures(client.group(site.group))
        compared = comparison_figures(client.compare_runs([site.run, site.other_run], limit=30))
        replays = [replay_figures(client.replay(each)) for each in site.replays]
    assert missing([*run, *criteria], shown("run")) == []
    assert missing(group, shown("group")) == []
    assert missing(compared, shown("compare")) == []
    for i, figures in enumerate(replays, 1):
        assert missing(figures, shown(f"replay {i}")) == []
    assert run
    assert replays[0]


@pytest.fixture(scope="module")
def long_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with made_site(tmp_path_factory.mktemp("home"), **MADE["long"]) as made:
        yield f"{made.url}/pages/"


def test_the_pointer_gets_the_figures(browser: Any, long_run: str) -> None:
    with opened(browser, f"{long_run}runs/support-7b-ropd-4") as (page, _):
        page.locator("svg.chart.wide").hover(position={"x": 300, "y": 100})
        tip = page.locator(".tip")
        assert "reward 0." in tip.inner_text()
        assert tip.inner_text().startswith("steps ")
        page.locator(".heat-row").first.scroll_into_view_if_needed()
        page.locator(".heat-row").first.hover(position={"x": 10, "y": 8})
        assert "% met" in tip.inner_text()


def test_runs_are_ticked_and_compared(browser: Any, long_run: str) -> None:
    with opened(browser, f"{long_run}?runs=b", java_script_enabled=False) as (page, _):
        page.get_by_label("compare support-7b-ropd-4").check()
        page.get_by_role("button", name="Compare").click()
        assert page.url.endswith("/compare?runs=b&runs=support-7b-ropd-4")
        page.get_by_role("link", name="make it A").click()
        assert page.url.endswith("/compare?runs=support-7b-ropd-4&runs=b")


def test_the_pointer_gets_the_figures_of_each_run(browser: Any, long_run: str) -> None:
    with opened(browser, f"{long_run}compare?runs=support-7b-ropd-4,b") as (page, _):
        chart = page.locator("svg.chart.wide")
        chart.hover(position={"x": 300, "y": 100})
        assert "A 0." in page.locator(".tip").inner_text()
        assert "B 0." in page.locator(".tip").inner_text()
        box = chart.bounding_box()
        chart.hover(position={"x": box["width"] - 24, "y": 100})
        assert "B no step" in page.locator(".tip").inner_text()


def test_a_criterion_is_chosen_by_key_and_by_click(browser: Any, long_run: str) -> None:
    with opened(browser, f"{long_run}groups/asg_0000") as (page, _):
        page.keyboard.press("j")
        assert page.locator("tr.on").get_attribute("data-criterion") == "c1"
        assert page.locator("mark.on").count() > 0
        page.keyboard.press("j")
        assert page.locator("tr.on").get_attribute("data-criterion") == "c2"
        page.locator("tr.on button").click()
        assert page.locator("tr.on").count() == 0


def test_a_report_works_from_the_disk(browser: Any, long_run: str, tmp_path: Path) -> None:
    path = tmp_path / "run.html"
    path.write_bytes(httpx.get(f"{long_run}runs/support-7b-ropd-4/report", timeout=60).content)
    with opened(browser, path.as_uri()) as (page, said):
        page.locator("svg.chart.wide").hover(position={"x": 300, "y": 100})
        assert "reward 0." in page.locator(".tip").inner_text()
        assert said == []
    with opened(browser, path.as_uri(), java_script_enabled=False) as (page, said):
        assert page.locator("article").count() == 450
        assert said == []


def test_a_long_run_is_seen_within_a_second(browser: Any, long_run: str) -> None:
    painted = []
    for _ in range(3):
        with opened(browser, f"{long_run}runs/support-7b-ropd-4") as (page, _):
            page.wait_for_timeout(500)
            painted.append(
                page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
            )
    assert min(painted) <= 1000, painted
