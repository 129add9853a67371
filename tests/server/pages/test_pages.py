"""What the pages show: well-formed HTML, the service's figures, nobody's script."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from fakes import runs as made
from fakes.pages import (
    MadeRuns,
    Page,
    criterion_figures,
    group_figures,
    made_runs,
    missing,
    replay_figures,
    run_figures,
)
from fakes.processes import PATIENCE_S
from fakes.runs import HOSTILE, REPLAYS, MadeRun, made_comparison, made_group, made_replay
from markscheme import schema
from markscheme.client import Client
from markscheme_server.domain.caller import OPERATOR, Caller
from markscheme_server.errors import NotFound
from markscheme_server.pages import addresses, comparison, render, routes
from markscheme_server.pages.cost_page import cost_page
from markscheme_server.pages.group_page import group_page
from markscheme_server.pages.labels import labels
from markscheme_server.pages.render import POLICY, Frame
from markscheme_server.pages.run_page import Window, run_page
from markscheme_server.pages.words import CATEGORIES

RUN = "/pages/runs/support-7b-ropd-4"
GROUP = "/pages/groups/asg_0000"
COMPARE = "/pages/compare?runs=support-7b-ropd-4"
PAGES = (
    "/pages/",
    "/pages/?runs=support-7b-ropd-4,another",
    "/pages/compare",
    COMPARE,
    f"{COMPARE},b",
    f"{COMPARE}&runs=b&runs=c&runs=d&runs=e&runs=f&criteria=all&after={0:064x}",
    RUN,
    f"{RUN}?last=200&sort=spread&criterion=x&first_step=4&last_step=9",
    GROUP,
    f"{GROUP}?a=r0&b=teacher&judge=r1",
    "/pages/rubrics",
    "/pages/rubrics?text=colour&retired=no",
    *(f"/pages/replays/{id}" for id in REPLAYS),
    "/pages/judges",
    "/pages/cost",
    "/pages/teams",
    "/pages/signin",
    "/pages/nowhere",
)


@pytest.fixture
def show(serve: Callable[..., str]) -> Iterator[Callable[..., Callable[..., httpx.Response]]]:
    """Start a service with made-up runs; return what asks it for a page."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        def started(*args: Any, **detail: Any) -> Callable[..., httpx.Response]:
            stack.enter_context(made_runs(*args, **detail))
            url = serve()
            html = {"Accept": "text/html,*/*;q=0.8"}
            return lambda path, **headers: httpx.get(url + path, headers=html | headers, timeout=60)

        yield started


def run_view(run: MadeRun, **detail: Any) -> dict[str, Any]:
    return run_page(
        run.detail(**detail),
        run.step_list(),
        run.criterion_list(),
        run.finding_list(),
        run.group_list(),
        Window(),
    )


def run_html(run: MadeRun, **detail: Any) -> str:
    return render.page("run.html", Frame("../", "runs", OPERATOR), **run_view(run, **detail))


def group_html(group: schema.GroupDetail) -> str:
    view = group_page(group)
    return render.page("group.html", Frame("../", "runs", OPERATOR), view=view, **view)


def test_every_page_is_well_formed_and_may_load_this_services_files_only(
    show: Callable[..., Any],
) -> None:
    get = show()
    for path in PAGES:
        answer = get(path)
        assert answer.status_code == (404 if path == "/pages/nowhere" else 200), path
        assert answer.headers["content-security-policy"] == POLICY
        assert answer.headers["x-content-type-options"] == "nosniff"
        page = Page(answer.text)
        for tag, attributes in page.tags:
            assert "style" not in attributes, f"{path}: {tag}"
            assert not [name for name in attributes if name.startswith("on")]
            assert tag != "style"
            if tag == "script":
                assert "src" in attributes or attributes.get("type") == "application/json"
            for name in ("href", "src", "action"):
                assert not re.match(r"(https?:)?//", attributes.get(name) or ""), attributes
        assert len(page.all("h1")) == 1
        assert len(page.all("main")) == 1
        ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
        assert len(ids) == len(set(ids))


def test_every_address_of_a_page_is_there(show: Callable[..., Any]) -> None:
    get = show()
    seen, todo = set(), {"/pages/", RUN, GROUP, "/pages/judges", f"{COMPARE},b"}
    while todo:
        path = todo.pop()
        seen.add(path)
        answer = get(path)
        assert answer.status_code == 200, path
        if not answer.headers["content-type"].startswith("text/html") or "report" in path:
            continue
        for _, attributes in Page(answer.text).tags:
            target = attributes.get("href") or attributes.get("src")
            if target and not target.startswith("#"):
                full = httpx.URL(f"http://x{path}").join(target.split("#")[0])
                found = full.raw_path.decode()
                known = ("static", "runs/", "replays/", "judges", "cost", "compare", "?runs")
                below = found.removeprefix("/pages/")
                if below.startswith(known) and found not in seen and len(seen | todo) < 32:
                    todo.add(found)


def test_static_files_are_kept_for_good_and_have_no_other_address(
    show: Callable[..., Any],
) -> None:
    get = show()
    (sheet,) = [
        link for link in Page(get("/pages/").text).all("link") if link["rel"] == "stylesheet"
    ]
    answer = get(f"/pages/{sheet['href']}")
    assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert answer.headers["content-type"].startswith("text/css")
    assert get("/pages/static/0000000000000000/pages.css").status_code == 404


def test_a_page_that_did_not_change_is_not_sent_again(show: Callable[..., Any]) -> None:
    get = show()
    first = get(RUN)
    again = get(RUN, **{"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["content-security-policy"] == POLICY


def test_a_run_under_way_is_refreshed_and_another_is_not(show: Callable[..., Any]) -> None:
    assert "data-refresh" in Page(show()(RUN).text).all("main")[0]
    assert "data-refresh" not in Page(show(state="finished")(RUN).text).all("main")[0]


def test_the_page_of_a_long_run_is_small() -> None:
    html = run_html(MadeRun(steps=1000, criteria=12))
    Page(html)
    assert len(html.encode()) <= 150_000


def test_figures_of_a_run_are_the_services() -> None:
    run = MadeRun()
    html, steps = run_html(run), run.step_list().data
    expected = [
        *run_figures(run.detail(), run.group_list()),
        *criterion_figures(run.criterion_list()),
    ]
    assert missing(expected, Page(html).values) == []
    data = json.loads(re.search(r'id="reward-data">(.*?)</script>', html).group(1))  # type: ignore[union-attr]
    assert data["steps"] == [[s.first_step, s.last_step] for s in steps]
    for name in ("reward", "low", "high"):
        for shown, span in zip(data["series"][name], steps, strict=True):
            value = getattr(span, name)
            assert shown == value or abs(shown - value) < 1e-9


def test_figures_of_the_heat_map_are_the_services() -> None:
    run = MadeRun()
    html = run_html(run)
    data = json.loads(re.search(r'id="heat-data">(.*?)</script>', html).group(1))  # type: ignore[union-attr]
    listed = run.criterion_list()
    rows = {criterion.key: criterion.spans for criterion in listed.data}
    rows |= {f"category {CATEGORIES[each.category]}": each.spans for each in listed.categories}
    assert data["rows"].keys() == rows.keys()
    for key, spans in rows.items():
        assert [
            (*data["bins"][at], met, judged, *unknown)
            for at, met, judged, *unknown in data["rows"][key]
        ] == [
            (s.first_step, s.last_step, s.met, s.judged, *([s.unknown] if s.unknown else []))
            for s in spans
        ]


def test_figures_of_a_group_are_the_services() -> None:
    group = made_group()
    page = Page(group_html(group))
    assert missing(group_figures(group), page.values) == []
    assert "not known" in page.text
    met = sum(v.met is True for r in group.rollouts for v in r.verdicts)
    not_met = sum(v.met is False for r in group.rollouts for v in r.verdicts)
    taught = [v.met for r in group.teachers for v in r.verdicts]
    classes = [str(attributes.get("class")) for attributes in page.all("span")]
    assert sum(c.startswith("v yes") for c in classes) == met + sum(m is True for m in taught)
    assert sum(c.startswith("v no") for c in classes) == not_met + sum(m is False for m in taught)
    assert sum(c.startswith("v unknown") for c in classes) == 1


def test_figures_of_a_replay_are_the_services(show: Callable[..., Any]) -> None:
    values = Page(show()("/pages/replays/rpl_differs").text).values
    assert missing(replay_figures(made_replay()), values) == []


def test_a_replay_says_why_it_waits_or_failed(show: Callable[..., Any]) -> None:
    get = show()
    failed = Page(get("/pages/replays/rpl_failed").text)
    assert "there is no judge 'second' any more" in failed.text
    assert "not known" in failed.text
    assert "data-refresh" not in failed.all("main")[0]
    paused = Page(get("/pages/replays/rpl_paused").text)
    assert "goes on by itself: the team's budget is spent" in paused.text
    assert "data-refresh" in Page(get("/pages/replays/rpl_running").text).all("main")[0]
    assert "No group is done yet" in Page(get("/pages/replays/rpl_queued").text).text


def test_hostile_text_stays_text_wherever_it_is_shown(show: Callable[..., Any]) -> None:
    get = show(text=HOSTILE)
    run = httpx.URL("/pages/runs/").join(addresses.path(HOSTILE))
    replays = [f"/pages/replays/{id}" for id in REPLAYS]
    names = httpx.QueryParams({"runs": [HOSTILE, f"{HOSTILE} 2"]})
    chosen = (f"/pages/?{names}", f"/pages/compare?{names}")
    pages = ("/pages/", str(run), f"{run}/report", GROUP, f"{GROUP}?judge=r0", "/pages/judges")
    for path in (*pages, *replays, *chosen):
        answer = get(path)
        assert answer.status_code == 200, path
        page = Page(answer.text)  # fails where an element of the text became one of the page
        assert not page.all("img"), path
        assert "49" not in re.findall(r"\{\{.*?\}\}|49\}\}", page.text)
        assert "alert(1)" in page.text, path
        for script in re.findall(r"<script.*?</script>", answer.text, re.S):
            assert "alert(" not in script.replace("\\u003c", "<") or "json" in script


def test_hostile_text_of_an_address_stays_text(show: Callable[..., Any]) -> None:
    get = show()
    for path in (
        "signin?next=",
        "rubrics?text=",
        "nowhere/",
        "runs/",
        "groups/",
        "rubrics?tag=",
        "?runs=",
        "compare?runs=",
    ):
        page = Page(get(f"/pages/{path}{httpx.QueryParams({'': HOSTILE})}".replace("?=", "?")).text)
        assert not page.all("img")


STATES = {
    "no step": MadeRun(steps=0, criteria=0),
    "one step": MadeRun(steps=1, outage=None),
    "all unknown": MadeRun(steps=30, outage=(0, 29)),
    "one step, unknown": MadeRun(steps=1, outage=(0, 0)),
    "no teacher": MadeRun(steps=30, teacher=False, second_judge=False),
    "begins with an outage": MadeRun(steps=30, outage=(0, 3)),
    "forty criteria": MadeRun(steps=50, criteria=40),
    "first step 1": MadeRun(steps=50, first_step=1),
}


@pytest.mark.parametrize("run", STATES.values(), ids=STATES.keys())
def test_every_state_of_a_run_has_a_page(run: MadeRun) -> None:
    Page(run_html(run))


def test_one_step_is_a_table_and_no_curve() -> None:
    html = run_html(STATES["one step"])
    assert "A curve is drawn from the second step on" in html
    assert "chart wide" not in html


def test_a_run_without_any_reward_says_why() -> None:
    page = Page(run_html(STATES["all unknown"]))
    assert "No reward is known yet" in page.text
    assert "The judge could not be reached" in page.text
    assert 0.0 not in page.values[:2]


def test_without_a_teacher_it_says_how_to_ask_one() -> None:
    page = Page(run_html(STATES["no teacher"]))
    assert "not asked" in page.text
    assert "needs score_teachers" in page.text
    assert "teacher under the same rubrics" not in page.text


@pytest.mark.parametrize("first_step", [0, 1])
def test_steps_count_from_one(first_step: int) -> None:
    page = Page(run_html(MadeRun(steps=50, outage=None, first_step=first_step)))
    assert "step 50 of 100" in page.text


@pytest.mark.parametrize(
    "group",
    [
        made_group(criteria=0, rollouts=2, teachers=0),
        made_group(rollouts=1),
        made_group(rollouts=64, criteria=40),
        made_group(unknown=True),
        made_group(teachers=0),
        made_group(step=None, first_step=None, run_id=None, judge=None, previous_id=None),
    ],
    ids=["no rubric", "one rollout", "64 rollouts", "all unknown", "no teacher", "no run"],
)
def test_every_state_of_a_group_has_a_page(group: schema.GroupDetail) -> None:
    Page(group_html(group))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"text": ""}, "(empty)"),
        ({"text": None}, "removed by pruning"),
        ({"text": "word " * 40_000, "verdicts": []}, "show all 200,000 characters"),
        ({"text": "مرحبا", "verdicts": []}, "مرحبا"),
        ({"thought": "one two three"}, "thought, 3 words, not judged"),
        (
            {
                "text": None,
                "messages": [
                    {
                        "role": "assistant",
                        "tool_calls": [{"function": {"name": "look", "arguments": {"q": 1}}}],
                    },
                    {"role": "tool", "content": "found it", "name": "look"},
                ],
            },
            "calls look",
        ),
    ],
)
def test_every_kind_of_response_is_shown(changes: dict[str, Any], said: str) -> None:
    group = made_group(rollouts=2)
    if "messages" in changes:
        changes = changes | {
            "messages": [schema.Message.model_validate(m) for m in changes["messages"]]
        }
    changed = [group.rollouts[0].model_copy(update=changes), group.rollouts[1]]
    assert said in Page(group_html(group.model_copy(update={"rollouts": changed}))).text


def test_rollouts_stand_by_reward_and_the_unknown_one_last() -> None:
    group = made_group()
    order = [column.name for column in group_page(group)["columns"]]
    assert order[0] == "teacher"
    assert order[-1] == "r7"


def test_two_responses_stand_side_by_side(show: Callable[..., Any]) -> None:
    page = Page(show()(f"{GROUP}?a=r0&b=r4").text)
    assert len(page.all("article")) == 2


def test_what_the_judge_saw_is_shown_when_it_is_asked_for(show: Callable[..., Any]) -> None:
    get = show()
    assert "You judge answers." not in get(GROUP).text
    assert "You judge answers." in get(f"{GROUP}?judge=r1").text


def test_a_report_stands_alone(show: Callable[..., Any]) -> None:
    answer = show()(f"{RUN}/report")
    assert answer.headers["content-disposition"].startswith("attachment")
    page = Page(answer.text)
    (policy,) = [tag["content"] or "" for tag in page.all("meta") if tag.get("http-equiv")]
    for kind in ("style", "script"):
        (content,) = re.findall(rf"<{kind}>(.*?)</{kind}>", answer.text, re.S)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    links = [a.get("href") or "" for a in page.all("a")] + [
        a.get("src") or "" for a in page.all("img")
    ]
    assert all(link.startswith("#") for link in links if link)
    ids = {attributes.get("id") for _, attributes in page.tags}
    assert {link[1:] for link in links if link.startswith("#")} <= ids
    assert not page.all("link")
    assert not page.all("form")
    assert len(page.all("article")) == 50 * 9


def test_steps_are_a_table_of_comma_separated_values(show: Callable[..., Any]) -> None:
    lines = show()(f"{RUN}/steps.csv").text.splitlines()
    spans = MadeRun().step_list().data
    assert len(lines) == 1 + len(spans)
    names = lines[0].split(",")
    first = dict(zip(names, lines[1].split(","), strict=True))
    assert float(first["reward"]) == spans[0].reward
    outage = dict(zip(names, lines[1 + 410 // 5].split(","), strict=True))
    assert (outage["reward"], outage["unscored_unavailable"]) == ("", outage["rollouts"])


@pytest.mark.parametrize(
    ("module", "maker", "path"),
    [
        (routes, "steps_csv", f"{RUN}/steps.csv"),
        (routes, "run_page", RUN),
        (routes, "group_page", GROUP),
        (render, "page", GROUP),
        (render, "report", f"{RUN}/report"),
    ],
)
def test_what_takes_long_to_make_holds_no_other_request_up(
    module: Any, maker: str, path: str, show: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    get, begun, go_on = show(), threading.Event(), threading.Event()
    make = getattr(module, maker)

    def make_slowly(*args: Any, **values: Any) -> Any:
        begun.set()
        assert go_on.wait(PATIENCE_S)
        return make(*args, **values)

    monkeypatch.setattr(module, maker, make_slowly)
    with ThreadPoolExecutor() as threads:
        slow = threads.submit(get, path)
        assert begun.wait(PATIENCE_S)
        other = threads.submit(get, "/healthz")
        try:
            assert other.result(PATIENCE_S / 3).status_code == 200
        finally:
            go_on.set()
        assert slow.result().status_code == 200


def test_a_report_leaves_out_groups_that_are_pruned_while_it_is_made(
    show: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = MadeRuns.group

    async def find_some(self: MadeRuns, caller: Caller, group_id: str) -> schema.GroupDetail:
        if group_id == "asg_0000":
            raise NotFound("there is no group", code="group_not_found")
        return await find(self, caller, group_id)

    monkeypatch.setattr(MadeRuns, "group", find_some)
    assert len(Page(show()(f"{RUN}/report").text).all("article")) == 49 * 9


def test_a_report_has_as_many_groups_as_fit_and_lists_no_other(
    show: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    get = show()
    for groups, length in ((1, 0), (3, 3 * len(made_group().model_dump_json()) + 9)):
        monkeypatch.setattr(routes, "MAX_REPORT", length)
        page = Page(get(f"{RUN}/report").text)
        assert len(page.all("article")) == groups * 9
        links = {a["href"] for a in page.all("a") if (a.get("href") or "").startswith("#g-")}
        sections = {f"#{section['id']}" for section in page.all("section") if "id" in section}
        assert links <= sections
        assert len(links) == groups


def test_without_runs_it_says_how_to_make_one(show: Callable[..., Any]) -> None:
    assert "No run has been scored yet" in Page(show(team="another")("/pages/").text).text


def test_criteria_that_differ_by_their_condition_are_told_apart() -> None:
    run = MadeRun(steps=30, criteria=4)
    texts = [
        "It is short. Counts only for a response that is in English.",
        "It is short. Counts only for a response that has at least 5 words.",
        "It is polite. Counts only for a reply of five words or more.",
        "It is polite. Counts only for a reply of five words or more.",
    ]
    listed = run.criterion_list()
    data = [c.model_copy(update={"text": t}) for c, t in zip(listed.data, texts, strict=True)]
    view = run_page(
        run.detail(),
        run.step_list(),
        listed.model_copy(update={"data": data}),
        run.finding_list(),
        run.group_list(),
        Window(),
    )
    page = Page(render.page("run.html", Frame("../", "runs", OPERATOR), **view))
    assert "It is short. only if it is in English" in page.text
    assert "It is short. only if it has at least 5 words" in page.text
    assert "It is polite. only for a reply of five words or more, c3 of rub_1" in page.text
    assert "only if it is in English" in {th.get("title") for th in page.all("th")}


def test_a_criterion_alone_shows_its_statement_only() -> None:
    (label,) = labels([("It is short. Counts only if it is in English.", "c1")])
    assert (label.statement, label.note) == ("It is short.", "")
    assert label.condition == "only if it is in English"


def test_a_browser_with_a_session_is_offered_no_address_that_takes_a_key() -> None:
    run, found = run_view(MadeRun()), made_comparison([MadeRun(), MadeRun(id="b")])
    compared = comparison.compare_page(found, all_criteria=False, after=None)
    scorer = Caller("default", frozenset({"score"}))
    for template, view in (("run.html", run), ("compare.html", compared)):
        for frame, offered in (
            (Frame("", "runs", OPERATOR), True),
            (Frame("", "runs", OPERATOR, signed_in=True), False),
            (Frame("", "runs", scorer), False),
        ):
            page = Page(render.page(template, frame, **view))
            links = [a["href"] or "" for a in page.all("a")]
            assert any("/v1/" in link for link in links) == offered


def test_rubrics_show_what_changed_and_where_they_come_from(show: Callable[..., Any]) -> None:
    get = show()
    url = str(get("/healthz").url).removesuffix("/healthz")
    with Client(url) as client:
        first = client.create_rubric(
            HOSTILE, [{"text": "It names red.", "points": 1}, {"text": HOSTILE, "points": 2}]
        )
        second = client.fork_rubric(
            first.id,
            criteria=[{"text": "It names red.", "points": 3}, {"text": "New.", "points": 1}],
        )
    listed = Page(get("/pages/rubrics").text)
    assert f"rubrics/{second.id}" in {a.get("href") for a in listed.all("a")}
    page = Page(get(f"/pages/rubrics/{second.id}").text)
    assert "1 to 3 points" in page.text
    assert "reworded" in page.text
    assert f"../rubrics/{first.id}" in {a.get("href") for a in page.all("a")}
    assert not page.all("img")


def test_cost_shows_what_the_ledger_has(
    show: Callable[..., Any], model_settings: dict[str, Any]
) -> None:
    page = Page(show()("/pages/cost").text)
    assert "No judge was called" in page.text
    assert "None is set" in page.text


def test_calls_without_a_price_are_not_zero_dollars() -> None:
    def bucket(**changes: Any) -> schema.UsageBucket:
        zero = dict.fromkeys(
            (
                "calls",
                "failed_calls",
                "unpriced_calls",
                "prompt_tokens",
                "cached_tokens",
                "completion_tokens",
                "cached_verdicts",
            ),
            0,
        )
        return schema.UsageBucket(**(zero | {"cost_usd": 0.0, "saved_usd": 0.0} | changes))

    free = bucket(calls=7, unpriced_calls=7, run="a", role="verifier", judge="m")
    second = bucket(calls=3, cost_usd=0.25, role="shadow")
    report = schema.UsageReport(since=None, until=None, data=[free], total=free, truncated=False)
    view = cost_page(
        report.model_copy(update={"since": made.START.date(), "data": []}),
        report,
        report.model_copy(update={"data": [free, second]}),
        [],
    )
    page = Page(render.page("cost.html", Frame("", "cost", OPERATOR), **view))
    row = page.text.split("By run, role and judge")[1]
    assert "7 calls without a price" in row
    assert "second judge and re-asks $0.25 of what was spent, in 3 calls" in page.text


def test_judges_say_what_was_not_measured(show: Callable[..., Any]) -> None:
    page = Page(show()("/pages/judges").text)
    assert "not measured" in page.text
    assert "None was asked" in page.text
    assert any(abs(value - 0.7712345678) < 1e-9 for value in page.values)


def test_a_database_that_is_away_is_a_page_with_the_requests_id(
    show: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fakes.pages import MadeRuns
    from markscheme_server.store.engine.database import DatabaseUnreachable

    async def away(*_: Any, **__: Any) -> None:
        raise DatabaseUnreachable("away")

    monkeypatch.setattr(MadeRuns, "runs", away)
    answer = show()("/pages/", **{"X-Request-ID": "req-7"})
    assert answer.status_code == 503
    assert answer.headers["content-security-policy"] == POLICY
    assert "req-7" in Page(answer.text).text
