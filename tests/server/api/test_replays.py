"""Test replays over HTTP: what they compare, cost and leave alone, and how they pause and end."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from fakes.bodies import judges_file
from fakes.judge import ScriptedJudge, verdicts
from fakes.pages import Page
from fakes.processes import eventually
from markscheme import Client
from markscheme.errors import Conflict, InvalidRequest, NotFound
from markscheme.schema import ReplayDetail
from markscheme_server.judge import gateway
from markscheme_server.scoring import replay_worker, replays
from server.deployment import CALL_USD
from server.organisation import OPERATOR, Keys, call

PROMPT = "Name a colour."
V1 = [{"text": "It names red.", "points": 1}, {"text": "It is short.", "points": 1}]
V2 = [{"text": "It names red.", "points": 3}, {"text": "It gives a reason.", "points": 1}]
STEPS = {
    0: ("red", "blue, a long word", "red, since I like it a lot"),
    1: ("green", "red apples", "blue"),
    2: ("red", "grey, since it is dull", "green apples are a long word"),
}
ROLLOUTS = sum(map(len, STEPS.values()))
HOSTILE = '<img src=x onerror="alert(1)">'
_numbers = itertools.count()
PRICES = {"price_input": 1000.0, "price_cached": 500.0, "price_output": 1000.0}


def strict(criterion: str, answer: str) -> bool:
    return "red" in answer if criterion == "c1" else len(answer.split()) < 3


def lenient(criterion: str, answer: str) -> bool:
    return "re" in answer if criterion == "c1" else len(answer.split()) < 3


@pytest.fixture(scope="module", autouse=True)
def _soon() -> Iterator[None]:
    """Look for work, and try what is paused again, without delay."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replay_worker, "POLL_S", 0.05)
        patch.setattr(replay_worker, "PAUSE_S", 0.2)
        patch.setattr(gateway, "BREAKER_WAIT_S", 0.5)
        yield


class Service:
    """A team of this test's own at the module's service."""

    def __init__(self, url: str, keys: Keys) -> None:
        self.url, self._keys, self._number = url, keys, next(_numbers)
        self.key = self.other_team("red")
        self.client = Client(self.url, self.key)

    def other_team(self, name: str) -> str:
        """Make a team; return its key."""
        team = f"{name}-{self._number}"
        self._keys.team(team)
        return self._keys.key(team, "read", "score", "induce")

    def admin(self, method: str, path: str, body: Any = None) -> httpx.Response:
        return call(self.url, method, path, OPERATOR, body)

    def train(self, run: str = "run", rubric: str | None = None) -> str:
        """Score a run of three steps under a rubric; return the rubric's id."""
        rubric = rubric or self.client.create_rubric(PROMPT, V1).id
        for step, texts in STEPS.items():
            group = {
                "id": f"g{step}",
                "prompt": PROMPT,
                "rubric_id": rubric,
                "rollouts": [{"id": f"r{i}", "text": text} for i, text in enumerate(texts)],
            }
            scored = self.client.score([group], run={"id": run, "step": step}, reuse="frozen")
            assert scored.counts.unscored == 0
        return rubric

    def ended(self, replay: str, state: str = "finished") -> ReplayDetail:
        for attempt in eventually():
            with attempt:
                found = self.client.replay(replay)
                assert found.state == state, found
        return found

    def page(self, path: str) -> str:
        answer = httpx.get(
            f"{self.url}/pages/{path}",
            headers={"Authorization": f"Bearer {self.key}"},
            timeout=60,
        )
        assert answer.status_code == 200, answer.text
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        return answer.text

    def budget(self, hard_usd: float) -> None:
        path = f"/v1/teams/red-{self._number}/budget"
        answer = self.admin("PUT", path, {"hard_usd": hard_usd, "window": "day"})
        assert answer.status_code == 200, answer.text


@pytest.fixture(scope="module")
def judges() -> Iterator[list[ScriptedJudge]]:
    made = [ScriptedJudge(), ScriptedJudge()]
    yield made
    for each in made:
        each.close()


@pytest.fixture
def judge(judges: list[ScriptedJudge]) -> ScriptedJudge:
    return as_new(judges[0], strict)


@pytest.fixture
def lenient_judge(judges: list[ScriptedJudge]) -> ScriptedJudge:
    return as_new(judges[1], lenient)


def as_new(judge: ScriptedJudge, met: Callable[[str, str], bool]) -> ScriptedJudge:
    """Let a judge forget earlier tests and answer by `met`."""
    judge.script = lambda request, _: verdicts(request, met)
    judge.requests.clear()
    judge.released.clear()
    return judge


@pytest.fixture(scope="module")
def start(
    shared_start: Callable[..., str],
    judges: list[ScriptedJudge],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[], str]:
    """Start services with the judges `strict`, which scores, and `lenient`."""
    config = judges_file(
        tmp_path_factory.mktemp("judges") / "markscheme.toml",
        {
            "strict": {"base_url": judges[0].url, "model": "strict"} | PRICES,
            "lenient": {"base_url": judges[1].url, "model": "lenient"} | PRICES,
        },
        role="strict",
    )
    return lambda: shared_start(config=config, api_key=OPERATOR)


@pytest.fixture(scope="module")
def url(start: Callable[[], str]) -> str:
    return start()


@pytest.fixture
def service(
    url: str, shared_keys: Keys, judge: ScriptedJudge, lenient_judge: ScriptedJudge
) -> Iterator[Service]:
    made = Service(url, shared_keys)
    with made.client:
        yield made


def test_another_judge_is_compared_rollout_by_rollout(
    service: Service, judge: ScriptedJudge, lenient_judge: ScriptedJudge
) -> None:
    service.train()
    estimate = service.client.estimate_replay("run", judge="lenient")
    # "red" and "blue" are in two groups each: both count in the estimate, and are asked for once.
    texts = {text for each in STEPS.values() for text in each}
    assert (estimate.groups, estimate.rollouts, estimate.calls) == (3, ROLLOUTS, ROLLOUTS)
    assert lenient_judge.requests == []  # an estimate asks nobody
    asked = len(judge.requests)
    begun = service.client.create_replay("run", judge="lenient")
    assert (begun.groups, begun.run_id, begun.judge) == (3, "run", "lenient")
    found = service.ended(begun.id)
    before = [sum(strict(c, t) for c in ("c1", "c2")) / 2 for ts in STEPS.values() for t in ts]
    after = [sum(lenient(c, t) for c in ("c1", "c2")) / 2 for ts in STEPS.values() for t in ts]
    compared = found.comparison
    assert (compared.rollouts, compared.unknown_before, compared.unknown_after) == (ROLLOUTS, 0, 0)
    assert compared.before == pytest.approx(sum(before) / ROLLOUTS)
    assert compared.after == pytest.approx(sum(after) / ROLLOUTS)
    assert compared.difference.value == pytest.approx((sum(after) - sum(before)) / ROLLOUTS)
    assert compared.difference.low is not None
    assert compared.difference.low < 0.2
    flips = {each.text: (each.lost, each.gained, each.pairs) for each in compared.criteria}
    gained = sum(lenient("c1", t) and not strict("c1", t) for ts in STEPS.values() for t in ts)
    assert gained > 0
    assert flips == {"It names red.": (0, gained, ROLLOUTS), "It is short.": (0, 0, ROLLOUTS)}
    assert (found.calls, len(judge.requests)) == (len(lenient_judge.requests), asked)
    assert found.calls == len(texts) < estimate.calls
    assert found.cost_usd == pytest.approx(found.calls * CALL_USD)
    assert estimate.max_usd is not None
    assert found.cost_usd <= estimate.max_usd


def test_an_estimate_of_a_long_run_is_scaled_up_from_some_of_its_groups(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.train()
    exact = service.client.estimate_replay("run", judge="lenient")
    monkeypatch.setattr(replays, "MAX_SAMPLE", 2)
    scaled = service.client.estimate_replay("run", judge="lenient")
    assert (exact.sampled_groups, scaled.sampled_groups) == (3, 2)
    assert (scaled.groups, scaled.rollouts, scaled.calls) == (3, ROLLOUTS, ROLLOUTS)
    assert scaled.max_usd == pytest.approx(exact.max_usd, rel=0.2)


def test_the_run_stays_as_it_is(service: Service) -> None:
    rubric = service.train()
    client = service.client

    def seen() -> list[Any]:
        return [
            client.run("run").model_dump(),
            client.run_steps("run").model_dump(),
            client.run_criteria("run").model_dump(),
            client.run_findings("run").model_dump(),
            client.run_groups("run").model_dump(),
            client.rubric_health(rubric).model_dump(),
            client.rubrics().quality,
        ]

    before = seen()
    replay = service.ended(client.create_replay("run", judge="lenient", verify="group").id)
    assert replay.calls > 0
    after = seen()
    assert after == before
    by_role = {row.role: row for row in client.usage(["role"]).data}
    assert by_role["replay"].cost_usd == pytest.approx(replay.cost_usd)
    assert by_role["replay"].calls == replay.calls
    by_run = {row.run: row for row in client.usage(["run"]).data}
    assert by_run["run"].cost_usd == pytest.approx(client.run("run").cost_usd)


def test_another_version_takes_the_groups_of_its_versions(service: Service) -> None:
    first = service.train()
    other = service.client.create_rubric("Another prompt.", V1).id
    second = service.client.fork_rubric(first, V2).id
    found = service.ended(service.client.create_replay("run", rubric_id=second).id)
    compared = {each.text: each for each in found.comparison.criteria}
    assert set(compared) == {"It names red.", "It is short.", "It gives a reason."}
    # The words of the first criterion are those of before: its verdicts are known.
    assert found.cached_verdicts > 0
    assert (compared["It names red."].pairs, compared["It names red."].p) == (ROLLOUTS, 1.0)
    assert compared["It is short."].judged_after == 0
    assert compared["It gives a reason."].p is None
    with pytest.raises(InvalidRequest, match="no stored group"):
        service.client.create_replay("run", rubric_id=other)


def test_what_is_stored_costs_nothing_again(service: Service, lenient_judge: ScriptedJudge) -> None:
    service.train()
    service.ended(service.client.create_replay("run", judge="lenient").id)
    paid = len(lenient_judge.requests)
    estimate = service.client.estimate_replay("run", judge="lenient")
    assert (estimate.calls, estimate.max_usd) == (0, 0.0)
    again = service.ended(service.client.create_replay("run", judge="lenient").id)
    assert (again.calls, again.cost_usd, len(lenient_judge.requests)) == (0, 0.0, paid)
    assert again.cached_verdicts == 2 * ROLLOUTS
    assert again.saved_usd > 0


def test_a_spent_budget_pauses_and_a_raised_one_goes_on(
    service: Service, lenient_judge: ScriptedJudge
) -> None:
    service.budget(1000.0)  # a process may take half a second to hear of the first one
    service.train()
    service.budget(1e-6)
    begun = service.client.create_replay("run", judge="lenient")
    paused = service.ended(begun.id, "paused")
    assert paused.reason is not None
    assert "budget" in paused.reason
    assert (paused.calls, paused.cost_usd, paused.done) == (0, 0.0, 0)
    assert paused.comparison.difference.value is None
    assert lenient_judge.requests == []
    service.budget(1000.0)
    found = service.ended(begun.id)
    assert (found.reason, found.done, found.comparison.unknown_after) == (None, 3, 0)


def test_a_judge_that_is_down_pauses_and_loses_no_reward(
    service: Service, lenient_judge: ScriptedJudge
) -> None:
    service.train()
    answers = lenient_judge.script
    lenient_judge.script = lambda _request, _number: 401
    begun = service.client.create_replay("run", judge="lenient")
    paused = service.ended(begun.id, "paused")
    assert paused.reason is not None
    assert "refuses requests" in paused.reason
    lenient_judge.script = answers
    assert service.ended(begun.id).comparison.unknown_after == 0


def test_a_reply_that_cannot_be_used_leaves_its_rollout_not_known(
    service: Service, lenient_judge: ScriptedJudge
) -> None:
    service.train()
    answers = lenient_judge.script
    lenient_judge.script = lambda request, number: (
        "no JSON" if "since I like it" in str(request) else answers(request, number)
    )
    found = service.ended(service.client.create_replay("run", judge="lenient").id).comparison
    assert (found.rollouts, found.unknown_after) == (ROLLOUTS - 1, 1)


def test_a_cancelled_replay_begins_nothing_more(
    service: Service, lenient_judge: ScriptedJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay_worker, "AT_A_TIME", 1)
    service.train()
    lenient_judge.script = lambda _request, _number: None  # it never answers
    begun = service.client.create_replay("run", judge="lenient")
    for attempt in eventually():
        with attempt:
            assert lenient_judge.requests
    cancelled = service.client.cancel_replay(begun.id)
    assert (cancelled.state, cancelled.done) == ("cancelled", 0)
    asked = len(lenient_judge.requests)
    lenient_judge.script = lambda request, _: verdicts(request, lenient)
    lenient_judge.released.set()
    # The next one of the team waits until the first one has ended.
    service.ended(service.client.create_replay("run", verify="group").id)
    assert service.client.replay(begun.id).state == "cancelled"
    assert service.client.cancel_replay(begun.id).state == "cancelled"
    assert asked <= len(STEPS[0])


def test_a_finished_replay_is_not_cancelled(service: Service) -> None:
    service.train()
    found = service.ended(service.client.create_replay("run", judge="lenient").id)
    with pytest.raises(Conflict, match="finished"):
        service.client.cancel_replay(found.id)


def test_replays_are_the_own_teams_only(service: Service) -> None:
    service.train()
    begun = service.client.create_replay("run", judge="lenient")
    with Client(service.url, service.other_team("blue")) as blue:
        for ask in (blue.replay, blue.cancel_replay):
            with pytest.raises(NotFound):
                ask(begun.id)
        assert blue.replays().data == []
        for begin in (blue.create_replay, blue.estimate_replay):
            with pytest.raises(NotFound):
                begin("run", judge="lenient")
    service.ended(begun.id)


def test_replays_are_listed_the_newest_first_by_page(service: Service) -> None:
    service.train()
    service.train("other", service.client.create_rubric(PROMPT, V1).id)
    client = service.client
    made = [client.create_replay(run, verify="group").id for run in ("run", "other", "run")]
    page = client.replays("run", limit=1)
    assert ([each.id for each in page.data], page.has_more) == ([made[2]], True)
    rest = client.replays("run", after=made[2])
    assert ([each.id for each in rest.data], rest.has_more) == ([made[0]], False)
    assert [each.id for each in client.replays().data] == made[::-1]
    for each in made:
        service.ended(each)


def test_a_replay_says_what_cannot_be_done(service: Service) -> None:
    service.train()
    client = service.client
    with pytest.raises(NotFound, match="no run"):
        client.create_replay("nowhere", judge="lenient")
    with pytest.raises(NotFound, match="no rubric"):
        client.create_replay("run", rubric_id="rub_none")
    with pytest.raises(InvalidRequest, match="no judge"):
        client.create_replay("run", judge="nobody")
    with pytest.raises(InvalidRequest, match="check only"):
        client.create_replay("run", judge="builtin")
    begin = service.admin("POST", "/v1/replays", {"run_id": "run"})
    estimate = service.admin("GET", "/v1/replays/estimate?run_id=run")
    for answer in (begin, estimate):
        assert answer.status_code == 422
        assert "say what to change" in answer.text


def test_hostile_text_stays_text(service: Service) -> None:
    client = service.client
    rubric = client.create_rubric(HOSTILE, [{"text": HOSTILE, "points": 1}]).id
    group = {
        "id": HOSTILE,
        "prompt": HOSTILE,
        "rubric_id": rubric,
        "rollouts": [{"id": "a", "text": HOSTILE}, {"id": "b", "text": "red"}],
    }
    client.score([group], run={"id": HOSTILE, "step": 0}, reuse="frozen")
    found = service.ended(client.create_replay(HOSTILE, judge="lenient").id)
    assert found.run_id == HOSTILE
    assert [each.text for each in found.comparison.criteria] == [HOSTILE]
    html = service.page(f"replays/{found.id}")
    assert HOSTILE not in html
    assert Page(html).all("img") == []
    assert HOSTILE in Page(html).text


def test_the_page_has_the_figures_of_the_api(service: Service) -> None:
    service.train()
    found = service.ended(service.client.create_replay("run", judge="lenient").id)
    shown = Page(service.page(f"replays/{found.id}")).values
    compared = found.comparison
    intervals = (compared.difference, compared.rank_agreement, compared.sign_changes)
    for interval in intervals:
        for value in (interval.value, interval.low, interval.high):
            assert value is None or value in shown
    for figure in (compared.before, compared.after, found.cost_usd):
        assert figure in shown
    for each in compared.criteria:
        assert {each.lost, each.gained, each.pairs, each.p} <= set(shown)
    links = [each.get("href") for each in Page(service.page("runs/run")).all("a")]
    assert f"../replays/{found.id}" in links


def test_the_page_shows_no_figure_where_nothing_is_known(service: Service) -> None:
    service.budget(1000.0)  # a process may take half a second to hear of the first one
    service.train()
    service.budget(1e-6)
    begun = service.client.create_replay("run", judge="lenient")
    service.ended(begun.id, "paused")
    page = Page(service.page(f"replays/{begun.id}"))
    assert "difference not known" in page.text
    assert "advantage changes sign not known" in page.text
    assert "Waits, and goes on by itself: the budget is spent" in page.text
    assert set(page.values) == {0.0}  # what it has cost so far
    service.client.cancel_replay(begun.id)


def test_the_page_of_another_teams_replay_is_not_there(service: Service) -> None:
    service.train()
    found = service.ended(service.client.create_replay("run", judge="lenient").id)
    blue = {"Authorization": f"Bearer {service.other_team('blue')}"}
    assert (
        httpx.get(f"{service.url}/pages/replays/{found.id}", headers=blue, timeout=60).status_code
        == 404
    )


def test_two_processes_do_not_work_on_one_replay(
    service: Service, lenient_judge: ScriptedJudge, start: Callable[[], str]
) -> None:
    """Both say the same of it, and nothing is paid twice."""
    service.train()
    second = start()
    found = service.ended(service.client.create_replay("run", judge="lenient").id)
    with Client(second, service.key) as other:
        assert other.replay(found.id) == found
    texts = {text for each in STEPS.values() for text in each}
    assert len(lenient_judge.requests) == found.calls == len(texts)
