"""Who may see the pages: the sign-in, its cookie, and forms."""

from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import httpx
import pytest

from fakes.clock import Clock
from fakes.pages import Page, made_runs
from markscheme_server.accounts.auth import Authenticator
from markscheme_server.accounts.sessions import SESSION_S, Sessions
from markscheme_server.errors import Unauthorised
from markscheme_server.pages.render import POLICY
from server.organisation import OPERATOR, RUBRIC, Keys, call

HTML = {"Accept": "text/html,*/*;q=0.8"}


class Browser:
    """A browser: keeps cookies, says where its forms come from, follows no redirect by itself."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.http = httpx.Client(base_url=url, headers=HTML, timeout=60)

    def get(self, path: str, **headers: str) -> httpx.Response:
        return self.http.get(path, headers=headers)

    def post(self, path: str, fields: dict[str, str], origin: str | None = None) -> httpx.Response:
        return self.http.post(path, data=fields, headers={"Origin": origin or self.url})

    def sign_in(self, key: str, next: str = "") -> httpx.Response:
        return self.post("/pages/signin", {"key": key, "next": next})


@pytest.fixture
def runs() -> Iterator[None]:
    with made_runs(team="red"):
        yield


@pytest.fixture
def browser(runs: None, organisation: Keys, start: Callable[..., str]) -> Iterator[Browser]:
    organisation.key("red", "read")  # from the first key on, keys are required
    made = Browser(start(api_key=OPERATOR))
    yield made
    made.http.close()


@pytest.fixture
def session(browser: Browser, organisation: Keys) -> str:
    """Sign in as the team red, and return the key."""
    key = organisation.key("red", "read", "induce")
    assert browser.sign_in(key).status_code == 303
    return key


def test_without_a_key_there_is_no_sign_in(runs: None, serve: Callable[..., str]) -> None:
    service = serve()
    page = httpx.get(f"{service}/pages/", timeout=60)
    assert page.status_code == 200
    assert "Sign out" not in page.text
    assert httpx.get(service, follow_redirects=True, timeout=60).url.path == "/pages/"


@pytest.mark.parametrize("path", ["", "runs/x", "groups/g?a=r0", "teams", "nowhere"])
def test_a_stranger_is_led_to_the_sign_in_and_back(browser: Browser, path: str) -> None:
    answer = browser.get(f"/pages/{path}")
    assert answer.status_code == 303
    target = answer.next_request
    assert target is not None
    assert target.url.path == "/pages/signin"
    page = browser.http.send(target)
    assert page.headers["content-security-policy"] == POLICY
    fields = {field.get("name"): field.get("value") for field in Page(page.text).all("input")}
    assert fields["next"] == (path or None if path else "")


def test_the_cookie_is_not_the_key_and_scripts_cannot_read_it(
    browser: Browser, organisation: Keys
) -> None:
    key = organisation.key("red", "read")
    answer = browser.sign_in(key, "runs/support-7b-ropd-4")
    cookie = answer.headers["set-cookie"]
    assert key not in cookie
    assert {"HttpOnly", "SameSite=strict"} <= {part.strip() for part in cookie.split(";")}
    assert "Secure" not in cookie  # over HTTP on a loopback address it would not be kept
    assert answer.next_request is not None
    assert answer.next_request.url.path == "/pages/runs/support-7b-ropd-4"
    assert browser.http.send(answer.next_request).status_code == 200


def test_the_operator_signs_in_with_the_operators_key(browser: Browser) -> None:
    assert browser.sign_in(OPERATOR).status_code == 303
    assert browser.get("/pages/teams").status_code == 200


@pytest.mark.parametrize("key", ["", "nonsense", "mk_" + "0" * 43])
def test_a_wrong_key_is_said_and_starts_nothing(browser: Browser, key: str) -> None:
    answer = browser.sign_in(key)
    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers
    assert "not a key" in Page(answer.text).text


def test_a_stranger_cannot_send_much(browser: Browser) -> None:
    assert browser.sign_in("k" * 20_000).status_code == 413


def test_a_key_that_may_not_read_cannot_sign_in(browser: Browser, organisation: Keys) -> None:
    answer = browser.sign_in(organisation.key("red", "score"))
    assert answer.status_code == 401
    assert "scope 'read'" in Page(answer.text).text


def test_a_revoked_key_ends_its_sessions(
    browser: Browser, session: str, organisation: Keys, clock: Clock
) -> None:
    assert browser.get("/pages/").status_code == 200
    organisation.revoke(session)
    clock.advance(1)
    assert browser.get("/pages/").status_code == 303


def test_a_cookie_that_was_changed_is_refused(browser: Browser, session: str) -> None:
    cookie = browser.http.cookies["markscheme"]
    reference, expiry, signature = cookie.split(".")
    for forged in (
        f"operator.{expiry}.{signature}",
        f"{reference}.{int(expiry) + 1}.{signature}",
        f"{reference}.{expiry}.{'0' * 64}",
        reference,
        "",
        "...",
    ):
        answer = httpx.get(
            f"{browser.url}/pages/", headers=HTML | {"Cookie": f"markscheme={forged}"}, timeout=60
        )
        assert answer.status_code == 303, forged


async def test_a_session_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoTeams:
        async def read_defaults(self) -> tuple[bool, None, None]:
            return True, None, None

    now = [1000.0]
    authenticator = Authenticator(NoTeams(), operator_key="k", pepper=None)  # type: ignore[arg-type]
    sessions = Sessions(authenticator, "secret", None, "k", clock=lambda: now[0])
    cookie, _ = await sessions.sign_in("k")
    now[0] += SESSION_S - 1
    await sessions.resume(cookie)
    now[0] += 1
    with pytest.raises(Unauthorised, match="has ended"):
        await sessions.resume(cookie)
    other = Sessions(authenticator, "secret", None, "another key", clock=lambda: 1000.0)
    with pytest.raises(Unauthorised, match="not known"):
        await other.resume(cookie)


@pytest.mark.parametrize(
    "next_address",
    ["https://evil.example", "//evil.example", "\\\\evil.example", "javascript:alert(1)", "/x"],
)
def test_the_sign_in_leads_to_no_other_site(
    browser: Browser, organisation: Keys, next_address: str
) -> None:
    answer = browser.sign_in(organisation.key("red", "read"), next_address)
    assert answer.next_request is not None
    assert str(answer.next_request.url).startswith(f"{browser.url}/pages/")
    assert not urlsplit(answer.headers["location"]).netloc


def test_another_sites_form_is_refused(browser: Browser, organisation: Keys) -> None:
    key = organisation.key("red", "read")
    for origin in ("https://evil.example", "null"):
        answer = browser.post("/pages/signin", {"key": key}, origin)
        assert answer.status_code == 403
        assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("origin", ["null", "http://[", "//"])
def test_a_form_whose_origin_is_no_address_is_refused(browser: Browser, origin: str) -> None:
    answer = browser.post("/pages/signin", {"key": OPERATOR}, origin)
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers


def test_signing_out_takes_the_token_of_the_session(browser: Browser, session: str) -> None:
    assert browser.post("/pages/signout", {"csrf": "0" * 64}).status_code == 403
    page = Page(browser.get("/pages/").text)
    token = next(f["value"] for f in page.all("input") if f.get("name") == "csrf")
    answer = browser.post("/pages/signout", {"csrf": token or ""})
    assert answer.status_code == 303
    assert browser.get("/pages/").status_code == 303


def test_a_rubric_is_retired_with_the_token_and_not_without(browser: Browser, session: str) -> None:
    rubric = call(browser.url, "POST", "/v1/rubrics", session, RUBRIC).json()["id"]
    path = f"/pages/rubrics/{rubric}"
    page = Page(browser.get(path).text)
    token = next(f["value"] for f in page.all("input") if f.get("name") == "csrf") or ""
    assert browser.post(path, {"change": "retire"}).status_code == 403
    evil = browser.post(path, {"change": "retire", "csrf": token}, "https://evil.example")
    assert evil.status_code == 403
    assert call(browser.url, "GET", f"/v1/rubrics/{rubric}", session).json()["retired_at"] is None
    answer = browser.post(path, {"change": "retire", "csrf": token})
    assert answer.next_request is not None
    assert answer.next_request.url.path == path
    assert "retired" in Page(browser.get(path).text).text
    assert call(browser.url, "GET", f"/v1/rubrics/{rubric}", session).json()["retired_at"]
    assert browser.post(path, {"change": "erase", "csrf": token}).status_code == 404


def test_another_teams_things_are_not_there(
    browser: Browser, session: str, organisation: Keys
) -> None:
    rubric = call(browser.url, "POST", "/v1/rubrics", session, RUBRIC).json()["id"]
    paths = ["runs/support-7b-ropd-4", "groups/asg_0000", f"rubrics/{rubric}"]
    assert [browser.get(f"/pages/{path}").status_code for path in paths] == [200] * 3
    with httpx.Client(base_url=browser.url, headers=HTML, timeout=60) as http:
        blue = Browser(browser.url)
        blue.http = http
        blue.sign_in(organisation.key("blue", "read"))
        for path in [*paths, "runs/support-7b-ropd-4/report", "runs/support-7b-ropd-4/steps.csv"]:
            answer = blue.get(f"/pages/{path}")
            assert answer.status_code == 404, path
            assert "Not here" in Page(answer.text).text
        assert "support-7b-ropd-4" not in blue.get("/pages/").text
        assert blue.get("/pages/teams").status_code == 403


def test_pages_count_to_the_teams_requests(
    browser: Browser, session: str, organisation: Keys, clock: Clock
) -> None:
    organisation.limit("red", 2)
    clock.advance(1)
    answers = [browser.get("/pages/cost").status_code for _ in range(4)]
    assert 429 in answers
    refused = browser.get("/pages/cost")
    assert refused.headers["retry-after"]
    assert "Too many requests" in Page(refused.text).text


def test_a_program_reads_a_page_with_its_key(browser: Browser, organisation: Keys) -> None:
    path = f"{browser.url}/pages/runs/support-7b-ropd-4/report"
    key = organisation.key("red", "read")
    assert (
        httpx.get(path, headers={"Authorization": f"Bearer {key}"}, timeout=60).status_code == 200
    )
    for headers in ({}, {"Authorization": "Bearer nonsense"}):
        answer = httpx.get(path, headers=headers, timeout=60)
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] in ("no_key", "malformed_key")
    page = httpx.get(path, headers=HTML | {"Authorization": "Bearer nonsense"}, timeout=60)
    assert "Not signed in" in Page(page.text).text
