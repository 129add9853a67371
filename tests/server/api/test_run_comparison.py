"""Runs beside each other over HTTP: the figures are those of the scores."""

import asyncio
import statistics
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

import httpx
import pytest

from fakes.pages import Page, comparison_figures, missing
from markscheme import AsyncClient, Client
from markscheme.errors import InvalidRequest, NotFound
from markscheme_server.config import Settings
from markscheme_server.store.engine.ids import now
from markscheme_server.store.maintenance.prune import Pruner
from markscheme_server.store.store import Store
from server.organisation import Member, Team

RUBRIC = [
    {"text": "It names red.", "points": 2, "check": {"kind": "contains", "texts": ["red"]}},
    {"text": "At most three words.", "points": 1, "check": {"kind": "max_words", "value": 3}},
]
UNDECIDED = [{"text": "It is polite.", "points": 1}]
"""A rubric that the builtin judge cannot decide: it has no check."""
BOTH, ONE, NONE = "red", "red and blue and green", "green or blue or so"
UNKNOWN = "unknown"
"""Stands for a response whose reward is not known."""
PROMPTS = [f"Name colour {i}." for i in range(12)]


class Trainer(Client):
    """A client that creates the rubric of a prompt when it first scores it."""

    def __init__(self, member: Member) -> None:
        super().__init__(member.url, member.key)
        self.rubrics_of: dict[str, str] = {}

    def score_texts(self, run: str, step: int, texts: Mapping[str, Sequence[str]]) -> None:
        """Score these responses to prompts in a step."""
        groups = []
        for prompt, said in texts.items():
            if prompt not in self.rubrics_of:
                self.rubrics_of[prompt] = self.create_rubric(prompt, RUBRIC).id
            group: dict[str, Any] = {"id": f"{prompt} {step}", "prompt": prompt, "rollouts": said}
            if UNKNOWN in said:
                first = self.rubrics_of[prompt]
                group["rubric_id"] = self.fork_rubric(first, criteria=UNDECIDED).id
            groups.append(group)
        self.score(groups, run={"id": run, "step": step}, reuse="frozen")


def score(client: Trainer, run: str, step: int, prompt: str, *texts: str) -> None:
    client.score_texts(run, step, {prompt: texts})


def train(
    client: Trainer, run: str, texts: Sequence[Sequence[str]], *, first_step: int = 0
) -> None:
    """Score a step for each prompt, with these responses."""
    for step, (prompt, said) in enumerate(zip(PROMPTS, texts, strict=False), first_step):
        score(client, run, step, prompt, *said)


@pytest.fixture
def member(fresh_member: Team) -> Team:
    return fresh_member


@pytest.fixture
def red(member: Team) -> Member:
    return member("red")


@pytest.fixture
def client(red: Member) -> Iterator[Trainer]:
    with Trainer(red) as made:
        yield made


def test_figures_are_those_of_the_scores(client: Trainer) -> None:
    train(client, "a", [[BOTH, NONE]] * 12)
    train(client, "b", [[ONE, NONE]] * 11 + [[BOTH, BOTH]])
    found = client.compare_runs(["a", "b"])
    losses = [1 / 3 - 1 / 2] * 11 + [1.0 - 0.5]
    (difference,) = found.differences
    assert (difference.run, difference.prompts, difference.unknown) == ("b", 12, 0)
    assert difference.first == pytest.approx(0.5)
    assert difference.difference.value == pytest.approx(statistics.fmean(losses))
    margin = 2.201 * statistics.stdev(losses) / 12**0.5
    assert difference.difference.low == pytest.approx(statistics.fmean(losses) - margin, abs=1e-3)
    assert difference.same_rubric == 12
    assert found.prompts_total == len(found.prompts) == 12
    assert found.prompts[-1].prompt == PROMPTS[11]
    means = [[each.mean for each in prompt.groups if each] for prompt in found.prompts]
    assert means == [[pytest.approx(0.5), pytest.approx(1 / 3)]] * 11 + [[0.5, 1.0]]
    for prompt in found.prompts:
        for group in prompt.groups:
            assert group is not None
            assert client.group(group.id).mean == pytest.approx(group.mean, abs=1e-12)
    alone = {run: client.run(run) for run in ("a", "b")}
    assert [run.reward_now for run in found.runs] == [alone[x].reward_now for x in ("a", "b")]


def test_criteria_stand_side_by_side_with_the_greatest_loss_first(client: Trainer) -> None:
    train(client, "a", [[BOTH, BOTH]] * 2)
    train(client, "b", [[ONE, BOTH]] * 2)
    found = client.compare_runs(["a", "b"], criteria=1)
    assert (found.criteria_total, found.own_criteria) == (2, 0)
    (criterion,) = found.criteria
    assert criterion.text == "At most three words."
    shares = [(each.met, each.judged) for each in criterion.now if each is not None]
    expected = [
        next(c.now for c in client.run_criteria(run).data if c.key == criterion.key)
        for run in ("a", "b")
    ]
    assert shares == [(each.met, each.judged) for each in expected]
    assert shares == [(2, 2), (1, 2)]
    (category,) = found.categories
    assert category.criteria == [2, 2]


def test_the_last_group_of_a_prompt_counts_and_an_earlier_one_where_it_is_not_known(
    client: Trainer,
) -> None:
    score(client, "a", 0, PROMPTS[0], NONE)
    score(client, "a", 7, PROMPTS[0], BOTH)
    score(client, "b", 0, PROMPTS[0], ONE)
    score(client, "b", 7, PROMPTS[0], UNKNOWN)
    score(client, "a", 1, PROMPTS[1], BOTH)
    score(client, "b", 1, PROMPTS[1], UNKNOWN)
    found = client.compare_runs(["a", "b"])
    known, unknown = found.prompts
    assert [(each.step, each.mean) for each in known.groups if each] == [
        (7, 1.0),
        (0, pytest.approx(2 / 3)),
    ]
    assert [each.mean for each in unknown.groups if each] == [1.0, None]
    (difference,) = found.differences
    assert (difference.prompts, difference.unknown) == (1, 1)
    assert difference.difference.value == pytest.approx(-1 / 3)
    assert (difference.difference.low, difference.difference.high) == (None, None)


def test_runs_without_known_rewards_or_common_prompts_have_no_difference(client: Trainer) -> None:
    train(client, "a", [[UNKNOWN]])
    train(client, "b", [[UNKNOWN]])
    score(client, "c", 0, PROMPTS[5], BOTH)
    client.put_run("empty")
    found = client.compare_runs(["a", "b", "c", "empty"])
    assert [(each.prompts, each.unknown) for each in found.differences] == [(0, 1), (0, 0), (0, 0)]
    assert {each.difference.value for each in found.differences} == {None}
    assert [run.reward_now for run in found.runs] == [None, None, 1.0, None]
    (span,) = found.spans
    assert [(each.reward, each.rollouts) for each in span.runs] == [
        (None, 1),
        (None, 1),
        (1.0, 1),
        (None, 0),
    ]
    empty = client.compare_runs(["empty", "c"])
    assert (empty.prompts, empty.criteria) == ([], [])
    assert client.compare_runs(["empty", "a"]).prompts_total == 0


def test_another_rubric_is_seen(client: Trainer) -> None:
    score(client, "a", 0, PROMPTS[0], BOTH)
    client.fork_rubric(
        client.rubrics_of[PROMPTS[0]], criteria=[{"text": "Blue.", "points": 1, **_blue()}]
    )
    score(client, "b", 0, PROMPTS[0], BOTH)
    found = client.compare_runs(["a", "b"])
    (difference,) = found.differences
    assert (difference.prompts, difference.same_rubric) == (1, 0)
    assert difference.same_rubric_difference.value is None
    assert (found.criteria_total, found.own_criteria) == (0, 3)


def _blue() -> dict[str, Any]:
    return {"check": {"kind": "contains", "texts": ["blue"]}}


def test_steps_count_from_one_in_every_run(client: Trainer) -> None:
    train(client, "from 0", [[BOTH]] * 3)
    train(client, "from 1", [[NONE]] * 2, first_step=1)
    found = client.compare_runs(["from 0", "from 1"])
    assert [(span.first_step, span.last_step) for span in found.spans] == [(1, 1), (2, 2), (3, 3)]
    assert [[each.reward for each in span.runs] for span in found.spans] == [
        [1.0, 0.0],
        [1.0, 0.0],
        [1.0, None],
    ]
    (span,) = client.compare_runs(["from 0", "from 1"], bins=1).spans
    assert (span.first_step, span.last_step, span.runs[0].rollouts) == (1, 3, 3)


def test_prompts_are_read_page_by_page(client: Trainer) -> None:
    client.score_texts("a", 0, dict.fromkeys(PROMPTS, [BOTH]))
    client.score_texts("b", 0, dict.fromkeys(PROMPTS, [NONE]))
    first = client.compare_runs(["a", "b"], limit=7)
    rest = client.compare_runs(["a", "b"], limit=7, after=first.prompts[-1].prompt_key)
    assert (first.has_more, rest.has_more) == (True, False)
    both = [each.prompt for each in [*first.prompts, *rest.prompts]]
    assert sorted(both) == sorted(PROMPTS)


@pytest.mark.parametrize("runs", [[], ["a"], ["a", "a"], list("abcdefg")])
def test_two_to_six_runs_can_be_compared(client: Trainer, red: Member, runs: list[str]) -> None:
    if runs:
        with pytest.raises(InvalidRequest) as caught:
            client.compare_runs(runs)
        assert "2 to 6" in str(caught.value)
    page = httpx.get(f"{red.url}/pages/compare", params={"runs": list("abcdefg")}, **_as(red))
    assert (page.status_code, "2 to 6 different runs" in Page(page.text).text) == (400, True)


def test_an_unknown_run_and_another_teams_are_not_there(client: Trainer, member: Team) -> None:
    train(client, "a", [[BOTH]])
    blue, red = member("blue"), member("red")
    theirs = Client(blue.url, blue.key)
    theirs.put_run("theirs")
    for other in ("theirs", "nowhere", "a,a", "\x01"):
        with pytest.raises(NotFound):
            client.compare_runs(["a", other])
        for runs in (["a", other], [other]):
            page = httpx.get(f"{red.url}/pages/compare", params={"runs": runs}, **_as(red))
            assert page.status_code == 404
    for path in ("/v1/runs:compare", "/pages/compare"):
        answer = httpx.get(f"{red.url}{path}?runs=a,%00", **_as(red))
        assert answer.status_code in (404, 422), path


@pytest.mark.parametrize("run", ["x,y", "a/b", "a+b&c=d", "läuft/日本", "<img src=x>", "x" * 200])
def test_a_run_of_any_name_can_be_compared(client: Trainer, red: Member, run: str) -> None:
    train(client, run, [[BOTH]])
    train(client, "b", [[NONE]])
    assert [each.id for each in client.compare_runs([run, "b"]).runs] == [run, "b"]
    page = httpx.get(f"{red.url}/pages/compare", params={"runs": [run, "b"]}, **_as(red))
    assert (page.status_code, run in Page(page.text).text) == (200, True)


def test_commas_divide_runs_too(client: Trainer, red: Member) -> None:
    train(client, "x,y", [[BOTH]])
    train(client, "b", [[NONE]])
    answer = httpx.get(f"{red.url}/v1/runs:compare?runs=x%2Cy,b", **_as(red))
    assert [run["id"] for run in answer.json()["runs"]] == ["x,y", "b"]


def test_the_page_shows_what_the_api_answers(client: Trainer, red: Member) -> None:
    train(client, "a", [[BOTH, NONE]] * 12)
    train(client, "b", [[ONE, NONE]] * 11 + [[UNKNOWN, UNKNOWN]])
    train(client, "c", [[BOTH, BOTH, BOTH]] * 3, first_step=1)
    answer = httpx.get(f"{red.url}/pages/compare?runs=a,b,c", **_as(red))
    page = Page(answer.text)
    expected = comparison_figures(client.compare_runs(["a", "b", "c"]))
    assert len(expected) > 60
    assert missing(expected, page.values) == []
    links = [a["href"] or "" for a in page.all("a") if "groups/" in (a.get("href") or "")]
    assert httpx.get(answer.url.join(links[0]), **_as(red)).status_code == 200


def test_pruned_groups_are_in_the_curves_and_in_no_pair(
    client: Trainer, shared_database_url: str
) -> None:
    train(client, "a", [[BOTH]] * 3)
    train(client, "b", [[NONE]] * 3)

    async def prune() -> None:
        store = Store(Settings(_env_file=None, database_url=shared_database_url).sqlalchemy_url)
        async for _ in Pruner(store.database, now() + timedelta(minutes=1), dry=False).run():
            pass
        await store.close()

    asyncio.run(prune())
    found = client.compare_runs(["a", "b"])
    assert (found.pruned_groups, found.prompts) == ([3, 3], [])
    assert [[each.reward for each in span.runs] for span in found.spans] == [[1.0, 0.0]] * 3
    assert found.criteria_total == 2


def test_the_asynchronous_client_compares_too(client: Trainer, red: Member) -> None:
    train(client, "a", [[BOTH]])
    train(client, "b", [[NONE]])

    async def ask() -> Any:
        async with AsyncClient(red.url, red.key) as asynchronous:
            return await asynchronous.compare_runs(["a", "b"])

    assert asyncio.run(ask()) == client.compare_runs(["a", "b"])


def _as(member: Member) -> dict[str, Any]:
    return {
        "headers": {"Authorization": f"Bearer {member.key}", "Accept": "text/html"},
        "timeout": 60,
    }
