"""Routes of the pages, below `/pages/`. They use the same services as the API.

Links in pages are relative, so that they work behind any proxy. Forms carry their session's CSRF
token, and the browser's `Origin` header must name this service.
"""

import asyncio
import hashlib
from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any, Protocol, cast
from urllib.parse import parse_qs, quote, urlsplit

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from markscheme import schema
from markscheme.vocabulary import GroupSort, Scope, UsageKey
from markscheme_server import wire
from markscheme_server.accounts.auth import Authenticator
from markscheme_server.accounts.sessions import COOKIE, PAGES, SESSION_S, Sessions
from markscheme_server.accounts.usage import UsageService
from markscheme_server.domain.caller import Caller
from markscheme_server.errors import Forbidden, NotFound, TooLarge, Unauthorised
from markscheme_server.pages import comparison, render, words
from markscheme_server.pages.cost_page import cost_page, days_before
from markscheme_server.pages.group_page import group_page
from markscheme_server.pages.render import Frame
from markscheme_server.pages.replay_page import replay_page
from markscheme_server.pages.rubric_page import rubric_page
from markscheme_server.pages.run_page import Window, run_page, steps_csv
from markscheme_server.paths import EncodedPath, names_in_query
from markscheme_server.scoring.judge_reports import JudgeReportService
from markscheme_server.scoring.replays import ReplayService
from markscheme_server.scoring.rubric_library import RubricLibrary
from markscheme_server.scoring.run_comparison import MAX_RUNS, MIN_RUNS, RunComparisonService
from markscheme_server.scoring.run_groups import RunGroupService
from markscheme_server.scoring.runs import RunService
from markscheme_server.store.engine.ids import now
from markscheme_server.store.rubrics import Search

REFRESH_S = 15
"""Seconds after which the page of a running run reloads its figures."""
STEP_BINS, CRITERION_BINS = 200, 100
CRITERIA_SHOWN, MAX_CRITERIA = 40, 400
GROUPS_SHOWN = 50
PROMPTS_SHOWN = 30
COMPARED_BINS = 120
"""Fewer than for one run: there may be six."""
REPLAYS_SHOWN = 20
MAX_REPORT = 16 * 1024 * 1024
"""Length of a report's groups as JSON; the first is there in any case."""
EVERY_STEP = 2**31
"""So many bins that each step has one of its own."""
MAX_FORM_BYTES, MAX_FORM_FIELDS = 16 * 1024, 20
COST_DAYS = 30
ADVICE = {
    401: "Send a key with the scope read, or sign in.",
    403: "Sign in with another key, or ask an administrator for the scope.",
    404: "It may have been removed, or it is another team's.",
    429: "Wait for a moment, then load the page again.",
    503: "Load the page again in a moment; 'markscheme doctor' says what is wrong.",
}
HEADINGS = {
    400: "This address is not valid",
    401: "Not signed in",
    403: "Not allowed",
    404: "Not here",
    405: "Not possible",
    422: "This address is not valid",
    429: "Too many requests",
    503: "The service cannot answer now",
}

router = APIRouter(prefix=PAGES.rstrip("/"), include_in_schema=False, route_class=EncodedPath)


class PageServices(Protocol):
    """The services that pages use."""

    @property
    def authenticator(self) -> Authenticator: ...  # noqa: D102
    @property
    def sessions(self) -> Sessions: ...  # noqa: D102
    @property
    def library(self) -> RubricLibrary: ...  # noqa: D102
    @property
    def usage(self) -> UsageService: ...  # noqa: D102
    @property
    def runs(self) -> RunService: ...  # noqa: D102
    @property
    def groups(self) -> RunGroupService: ...  # noqa: D102
    @property
    def comparisons(self) -> RunComparisonService: ...  # noqa: D102
    @property
    def judge_reports(self) -> JudgeReportService: ...  # noqa: D102
    @property
    def replays(self) -> ReplayService: ...  # noqa: D102
    @property
    def judges(self) -> schema.JudgeList: ...  # noqa: D102


class Visit:
    """A request for a page, with its caller, its session and the services that it uses."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.services = cast(PageServices, request.state.services)
        self.cookie = request.cookies.get(COOKIE)
        self.here = here(request)

    @property
    def caller(self) -> Caller:
        """The caller, authenticated by the middleware."""
        return cast(Caller, self.request.scope["markscheme.caller"])

    def frame(self, place: str | None, refresh: int | None = None) -> Frame:
        """Return what surrounds the content of the page."""
        return Frame(
            self.here,
            place,
            self.caller,
            signed_in=self.cookie is not None,
            csrf=self.services.sessions.form_token(self.cookie),
            refresh=refresh,
        )

    async def show(
        self, template: str, place: str | None, *, refresh: int | None = None, **values: Any
    ) -> Response:
        """Return a page, or 304 if the browser has this version."""
        # In a thread: the page of a large group takes a second of the event loop.
        html = await asyncio.to_thread(render.page, template, self.frame(place, refresh), **values)
        etag = f'"{hashlib.sha256(html.encode()).hexdigest()[:32]}"'
        headers = {"ETag": etag}
        known = self.request.headers.get("if-none-match", "")
        if etag in [tag.strip().removeprefix("W/") for tag in known.split(",")]:
            return _secure(Response(status_code=304, headers=headers))
        return _secure(HTMLResponse(html, headers=headers))

    async def form(self) -> Mapping[str, str]:
        """Return the fields of a form that this service's own page sent. Raises `Forbidden`."""
        _require_own_origin(self.request)
        fields = await _fields(self.request)
        if not self.services.sessions.is_form_token(self.cookie, fields.get("csrf", "")):
            raise Forbidden("this form is out of date: load its page again", code="csrf")
        return fields


def here(request: Request) -> str:
    """Return the relative path from this address to `/pages/`, such as `../`."""
    # The path as the browser sees it: an encoded slash in an id is no separator.
    below: str = request.scope["raw_path"].decode("latin-1").partition(PAGES)[2]
    return "../" * below.count("/")


async def _any_visit(request: Request) -> Visit:  # FastAPI makes a plain class in a thread
    return Visit(request)


AnyVisit = Annotated[Visit, Depends(_any_visit)]
"""For a page whose service decides who may see it."""


async def _visit(visit: AnyVisit) -> Visit:
    _require_scope(visit.caller, "read")
    return visit


Visiting = Annotated[Visit, Depends(_visit)]
Step = Annotated[int | None, Query(ge=0, le=2**31 - 1)]
Text = Annotated[str | None, Query(max_length=1000, pattern=r"^[^\x00]*$")]


def error_page(
    request: Request, status: int, detail: schema.ErrorDetail, headers: Mapping[str, str]
) -> Response:
    """Return the page of an error: what happened, and what to do."""
    caller = request.scope.get("markscheme.caller")
    html = render.page(
        "error.html",
        Frame(here(request), caller=caller),
        heading=HEADINGS.get(status, "Something went wrong"),
        message=detail.message,
        advice=ADVICE.get(status, "If it stays so, tell the operator the request's id."),
        status=status,
        request_id=request.scope.get("markscheme.request_id", ""),
    )
    return _secure(HTMLResponse(html, status, headers=dict(headers)))


@router.get("")
async def redirect_to_runs() -> RedirectResponse:
    """Redirect to the list of runs."""
    return RedirectResponse(PAGES.strip("/") + "/")


@router.get("/static/{digest}/{name}")
async def get_asset(digest: str, name: str) -> Response:
    """Return a static file. Its address changes with its content, so it may be cached forever."""
    asset = render.assets().get(name)
    if asset is None or asset.address != f"static/{digest}/{name}":
        raise NotFound("there is no such file", code="not_found")
    return _secure(
        Response(
            asset.content,
            media_type=asset.media_type,
            headers={"Cache-Control": "public, max-age=31536000, immutable"},
        )
    )


@router.get("/signin")
async def show_sign_in(request: Request, next: Text = None) -> Response:
    """Show the form that takes a key."""
    return _sign_in_page(request, next or "")


@router.post("/signin")
async def sign_in(request: Request) -> Response:
    """Check a key and start a session."""
    _require_own_origin(request)
    fields = await _fields(request)
    services = cast(PageServices, request.state.services)
    secure = not _is_loopback(request)
    if secure and urlsplit(request.headers.get("origin", "")).scheme == "http":
        problem = "signing in takes HTTPS, or an address of this machine such as 127.0.0.1"
        return _sign_in_page(request, fields.get("next", ""), problem)
    try:
        cookie, caller = await services.sessions.sign_in(fields.get("key", "").strip())
        _require_scope(caller, "read")
    except (Unauthorised, Forbidden) as error:
        return _sign_in_page(request, fields.get("next", ""), error.message)
    answer = RedirectResponse(_own_address(fields.get("next", "")), 303)
    # Without a path the browser takes that of this page, behind a proxy's prefix too.
    answer.set_cookie(
        COOKIE,
        cookie,
        max_age=SESSION_S,
        path=None,
        secure=secure,
        httponly=True,
        samesite="strict",
    )
    return answer


@router.post("/signout")
async def sign_out(request: Request) -> Response:
    """End the session in this browser."""
    await Visit(request).form()
    answer = RedirectResponse("signin", 303)
    answer.set_cookie(COOKIE, "", max_age=0, path=None, httponly=True, samesite="strict")
    return answer


@router.get("/")
async def show_runs(visit: Visiting, after: Text = None) -> Response:
    """List the runs of the caller's team."""
    found = await visit.services.runs.runs(visit.caller, limit=50, after=after)
    live = any(run.state == "running" for run in found.data)
    return await visit.show(
        "runs.html",
        "runs",
        refresh=REFRESH_S if live else None,
        runs=found.data,
        has_more=found.has_more,
        shown={run.id for run in found.data},
        chosen=_names(visit)[:MAX_RUNS],
    )


@router.get("/compare")
async def show_comparison(visit: Visiting, after: Text = None, criteria: Text = None) -> Response:
    """Show runs beside each other: rewards, the prompts that they share, and criteria."""
    names = _names(visit)
    if len(names) < MIN_RUNS:
        for name in names:
            await visit.services.runs.run(visit.caller, name)
        return await visit.show("compare.html", "runs", columns=[], ids=names)
    found = await visit.services.comparisons.compare(
        visit.caller,
        names,
        bins=COMPARED_BINS,
        criteria=MAX_CRITERIA if criteria == "all" else CRITERIA_SHOWN,
        limit=PROMPTS_SHOWN,
        after=after,
    )
    live = any(run.state == "running" for run in found.runs)
    return await visit.show(
        "compare.html",
        "runs",
        refresh=REFRESH_S if live else None,
        **comparison.compare_page(found, all_criteria=criteria == "all", after=after),
    )


def _names(visit: Visit) -> list[str]:
    """Return the runs that the address names."""
    return names_in_query(visit.request.scope["query_string"], "runs")


async def _run_view(visit: Visit, run_id: str, window: Window) -> dict[str, Any]:
    runs, caller = visit.services.runs, visit.caller
    run = await runs.run(caller, run_id)
    first = None
    if window.last and run.last_step is not None:
        first = max(0, run.last_step - window.last + 1)
    return await asyncio.to_thread(
        run_page,
        run,
        await runs.steps(caller, run_id, bins=STEP_BINS, first_step=first),
        await runs.criteria(
            caller,
            run_id,
            bins=CRITERION_BINS,
            limit=MAX_CRITERIA if window.all_criteria else CRITERIA_SHOWN,
        ),
        await runs.findings(caller, run_id),
        await visit.services.groups.groups(
            caller,
            run_id,
            schema.GroupFilter(
                first_step=window.first_step,
                last_step=window.last_step,
                criterion=window.criterion,
                sort=window.sort,
            ),
            limit=GROUPS_SHOWN,
            after=window.after,
        ),
        window,
        (await visit.services.replays.replays(caller, run_id=run_id, limit=REPLAYS_SHOWN)).data,
    )


@router.get("/runs/{run_id:encoded}/steps.csv")
async def get_steps(visit: Visiting, run_id: str) -> Response:
    """Return the rewards by step as comma-separated values."""
    steps = await visit.services.runs.steps(visit.caller, run_id, bins=EVERY_STEP)
    # In a thread: the table of a long run takes a second of the event loop.
    table = await asyncio.to_thread(steps_csv, steps)
    return _secure(
        Response(
            table,
            media_type="text/csv",
            headers={"Content-Disposition": _attachment(f"{run_id}.csv")},
        )
    )


@router.get("/runs/{run_id:encoded}/report")
async def get_report(visit: AnyVisit, run_id: str) -> Response:
    """Return the page of a run and its newest groups as one file that needs no service.

    A key with the scope `score` that created the run may ask too.
    """
    await visit.services.runs.require_reader(visit.caller, run_id)
    view = await _run_view(visit, run_id, Window())
    listed: list[schema.RunGroup] = []
    shown: list[dict[str, Any]] = []
    length = 0
    for each in view["groups"].data:
        with suppress(NotFound):  # pruned meanwhile
            group = await visit.services.groups.group(visit.caller, each.id)
            length += len(await asyncio.to_thread(group.model_dump_json))
            if shown and length > MAX_REPORT:
                break
            shown.append(await asyncio.to_thread(group_page, group))
            listed.append(each)
    view["groups"] = view["groups"].model_copy(update={"data": listed})
    html = await asyncio.to_thread(
        render.report, Frame(caller=visit.caller), **view, shown_groups=shown
    )
    headers = {"Content-Disposition": _attachment(f"{run_id}.html")}
    return _secure(HTMLResponse(html, headers=headers))


@router.get("/runs/{run_id:encoded}")
async def show_run(
    visit: Visiting,
    run_id: str,
    last: Annotated[int | None, Query(ge=1, le=1_000_000)] = None,
    first_step: Step = None,
    last_step: Step = None,
    criterion: Text = None,
    sort: GroupSort = "newest",
    after: Text = None,
    criteria: Text = None,
) -> Response:
    """Show a run: findings, rewards, criteria and groups."""
    window = Window(
        last, first_step, last_step, criterion, sort, after, all_criteria=criteria == "all"
    )
    view = await _run_view(visit, run_id, window)
    running = view["run"].state == "running"
    return await visit.show("run.html", "runs", refresh=REFRESH_S if running else None, **view)


@router.get("/groups/{group_id}")
async def show_group(
    visit: Visiting,
    group_id: str,
    a: Text = None,
    b: Text = None,
    judge: Text = None,
) -> Response:
    """Show a group: verdicts of each response, and the responses."""
    groups = visit.services.groups
    group = await groups.group(visit.caller, group_id)
    prompt = None
    if judge is not None:
        prompt = await groups.judge_prompt(visit.caller, group_id, judge)
    names = [name for name in (a, b) if name is not None]
    view = await asyncio.to_thread(group_page, group, names, prompt)
    return await visit.show("group.html", "runs", view=view, **view)


@router.get("/replays/{replay_id}")
async def show_replay(visit: Visiting, replay_id: str) -> Response:
    """Show how far a replay is, and how its rewards differ from the run's."""
    replay = await visit.services.replays.replay(visit.caller, replay_id)
    live = replay.state in words.LIVE_REPLAYS
    return await visit.show(
        "replay.html",
        "runs",
        refresh=REFRESH_S if live else None,
        **replay_page(replay),
    )


@router.get("/rubrics")
async def list_rubrics(
    visit: Visiting,
    text: Text = None,
    tag: Text = None,
    retired: Text = None,
    after: Text = None,
) -> Response:
    """List rubrics, with the search of the API."""
    found = await visit.services.library.list_rubrics(
        visit.caller,
        Search(
            text=text or None,
            tags=(tag,) if tag else (),
            retired={"yes": True, "no": False}.get(retired or ""),
            after=after,
            limit=50,
        ),
    )
    return await visit.show(
        "rubrics.html",
        "rubrics",
        rubrics=found.data,
        quality=found.quality,
        has_more=found.has_more,
        text=text or "",
        tag=tag or "",
        retired=retired or "",
    )


@router.get("/rubrics/{rubric_id}")
async def show_rubric(visit: Visiting, rubric_id: str) -> Response:
    """Show a rubric: criteria with their health, what changed, lineage and use."""
    library, caller = visit.services.library, visit.caller
    rubric = await library.get(caller, rubric_id)
    parent = None
    if rubric.parent_id is not None:
        try:
            parent = await library.get(caller, rubric.parent_id)
        except NotFound:
            parent = None  # the team may not see it
    view = rubric_page(
        rubric,
        parent,
        await library.lineage(caller, rubric_id),
        await visit.services.judge_reports.health(caller, rubric_id),
    )
    own = rubric.team == caller.team and "induce" in caller.scopes
    return await visit.show("rubric.html", "rubrics", may_change=own, **view)


@router.post("/rubrics/{rubric_id}")
async def change_rubric(visit: Visiting, rubric_id: str) -> Response:
    """Retire or share a rubric of the caller's own team, or take that back."""
    fields = await visit.form()
    _require_scope(visit.caller, "induce")
    changes = {
        "retire": schema.RubricPatch(retired=True),
        "restore": schema.RubricPatch(retired=False),
        "share": schema.RubricPatch(visibility="organisation"),
        "hide": schema.RubricPatch(visibility="private"),
    }
    change = changes.get(fields.get("change", ""))
    if change is None:
        raise NotFound("there is no such change", code="not_found")
    await visit.services.library.change(visit.caller, rubric_id, change)
    return RedirectResponse(quote(rubric_id, safe=""), 303)


@router.get("/judges")
async def show_judges(visit: Visiting) -> Response:
    """Show calls, failures and agreement of each judge, and where two judges disagree."""
    reports = await visit.services.judge_reports.judges(visit.caller)
    return await visit.show(
        "judges.html",
        "judges",
        reports=reports.data,
        disagreements=reports.disagreements,
        configured={judge.name: judge for judge in visit.services.judges.data},
    )


@router.get("/cost")
async def show_cost(visit: Visiting) -> Response:
    """Show what judging cost by day, run and judge, what reuse saved, and the budgets."""
    usage, caller = visit.services.usage, visit.caller
    since = days_before(now().date(), COST_DAYS)

    async def report(*keys: UsageKey) -> schema.UsageReport:
        return await usage.report(caller, keys, team=caller.team, since=since, until=None)

    budgets = []
    for budget in await usage.budgets(caller):
        projected = None
        if budget.run is not None:
            try:
                run = await visit.services.runs.run(caller, budget.run)
                projected = run.projected_usd
            except NotFound:
                projected = None  # the run has not begun
        budgets.append((budget, projected))
    by_day = await report("day", "run")
    if by_day.truncated:  # it ends before the last day
        by_day, divided = await report("day"), False
    else:
        divided = True
    return await visit.show(
        "cost.html",
        "cost",
        **cost_page(
            by_day,
            await report("run", "role", "judge"),
            await report("role"),
            budgets,
            divided=divided,
        ),
    )


@router.get("/teams")
async def show_teams(visit: Visiting) -> Response:
    """Show teams and keys to an administrator."""
    _require_scope(visit.caller, "admin")
    authenticator = visit.services.authenticator
    return await visit.show(
        "teams.html",
        "teams",
        teams=[wire.from_team(team) for team in await authenticator.teams()],
        keys=[wire.from_key(key) for key in await authenticator.keys()],
        now=now(),
    )


@router.get("/{rest:path}")
async def refuse_unknown_page(rest: str) -> Response:
    """Answer every other address below `/pages/`."""
    raise NotFound("there is no page at this address", code="not_found")


def _sign_in_page(request: Request, next_address: str, problem: str | None = None) -> Response:
    html = render.page(
        "signin.html",
        Frame(here(request)),
        next=next_address,
        problem=problem,
        hours=SESSION_S // 3600,
    )
    return _secure(HTMLResponse(html, 401 if problem else 200))


def _require_scope(caller: Caller, scope: Scope) -> None:
    if scope not in caller.scopes:
        raise Forbidden(
            f"this page needs a key with the scope {scope!r}; this one has "
            f"{', '.join(sorted(caller.scopes))}",
            code="missing_scope",
        )


def _require_own_origin(request: Request) -> None:
    """Refuse a form that another site posted, by the `Origin` header that browsers send."""
    try:
        host = urlsplit(request.headers.get("origin", "")).netloc
    except ValueError:
        host = ""  # no browser sends an origin that is not an address
    if not host or host != request.headers.get("host", ""):
        raise Forbidden("this form was not sent from a page of this service", code="origin")


async def _fields(request: Request) -> dict[str, str]:
    body = b""
    # The sender is not authenticated yet: read little.
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_FORM_BYTES:
            raise TooLarge("this is no form of this service", code="body_too_large")
    try:
        sent = parse_qs(body.decode(), max_num_fields=MAX_FORM_FIELDS)
    except ValueError as error:
        raise Forbidden("this is not a form of this service", code="bad_form") from error
    return {name: values[-1] for name, values in sent.items()}


def _own_address(text: str) -> str:
    """Return a redirect target below `/pages/`; its leading dot rules out another host."""
    return "./" + text if text.isprintable() and not text.startswith("signin") else "./"


def _is_loopback(request: Request) -> bool:
    host = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


def _attachment(name: str) -> str:
    return f"attachment; filename*=UTF-8''{quote(name, safe='')}"


def _secure(response: Response) -> Response:
    """Add the headers that limit what a page may load, and who may cache or frame it."""
    response.headers["Content-Security-Policy"] = render.POLICY
    response.headers["X-Content-Type-Options"] = "nosniff"
    # With `no-referrer`, browsers would send forms without their origin.
    response.headers["Referrer-Policy"] = "same-origin"
    response.headers.setdefault("Cache-Control", "private, no-cache")
    return response
