"""Test criteria that do not apply and signed rewards over HTTP, on both databases."""

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from fakes.judge import ScriptedJudge, offered, text_of, verdicts
from markscheme import Client
from markscheme.schema import Rubric
from markscheme.vocabulary import UnscoredReason

PROMPT = "Name a colour, and cite a source if you state a fact."
CITES = "Every stated fact has a source."
NAMES = "It names a colour."
BOASTS = "It boasts."


def by_words(request: dict[str, Any], criterion: str, answer: str) -> bool | None:
    """Decide by what the answer says of the criterion's first word: yes, no or n/a."""
    line = next(x for x in text_of(request).splitlines() if x.startswith(f"{criterion}: "))
    word = line.split(": ")[1].split()[-1].strip(".").lower()
    said = dict(part.split("=") for part in answer.split() if "=" in part)
    return {"yes": True, "no": False, "n/a": None}[said.get(word, "no")]


@pytest.fixture
def client(
    start: Callable[..., str], model_settings: dict[str, Any], judge: ScriptedJudge
) -> Iterator[Client]:
    judge.script = lambda request, number: verdicts(
        request, lambda criterion, answer: by_words(request, criterion, answer)
    )
    with Client(start(**model_settings)) as made:
        yield made


def make(client: Client, *criteria: tuple[str, int, bool]) -> Rubric:
    return client.create_rubric(
        PROMPT,
        [{"text": text, "points": points, "may_not_apply": may} for text, points, may in criteria],
    )


def group(of: Rubric, *texts: str, **more: Any) -> dict[str, Any]:
    return {
        "id": "g",
        "prompt": PROMPT,
        "rubric_id": of.id,
        "rollouts": [{"id": f"r{i}", "text": text} for i, text in enumerate(texts)],
    } | more


@pytest.mark.parametrize("verify", ["rollout", "group"])
def test_a_criterion_that_does_not_apply_leaves_both_sums(
    client: Client, judge: ScriptedJudge, verify: Any
) -> None:
    rubric = make(client, (NAMES, 1, False), (CITES, 3, True))
    asked = group(rubric, "colour=yes source=n/a", "colour=yes source=no", "colour=no source=n/a")
    first = client.score([asked], verify=verify)
    assert [r.reward for r in first.groups[0].rollouts] == [1.0, 0.25, 0.0]
    verdict = first.groups[0].rollouts[0].verdicts[1]
    assert (verdict.met, verdict.applicable, verdict.reason, verdict.cached) == (
        None,
        False,
        None,
        False,
    )
    assert first.groups[0].rollouts[2].feedback == [NAMES]
    paid = len(judge.verifications)
    # Stored like any other: asked again it costs nothing, and counts as a cached verdict.
    again = client.score([asked], verify=verify)
    assert len(judge.verifications) == paid
    assert again.usage.cached_verdicts == 6
    assert again.groups[0].rollouts[0].verdicts[1].applicable is False
    assert [r.reward for r in again.groups[0].rollouts] == [1.0, 0.25, 0.0]


def test_a_second_process_reads_it_from_the_database(
    client: Client, start: Callable[..., str], model_settings: dict[str, Any], judge: ScriptedJudge
) -> None:
    rubric = make(client, (NAMES, 1, False), (CITES, 3, True))
    asked = group(rubric, "colour=yes source=n/a")
    client.score([asked])
    paid = len(judge.verifications)
    with Client(start(**model_settings)) as other:
        [rollout] = other.score([asked]).groups[0].rollouts
    assert (rollout.reward, rollout.verdicts[1].applicable, rollout.verdicts[1].cached) == (
        1.0,
        False,
        True,
    )
    assert len(judge.verifications) == paid


def test_a_rollout_that_nothing_applies_to_is_unscored_and_its_neighbour_is_not(
    client: Client,
) -> None:
    rubric = make(client, (CITES, 3, True), (BOASTS, -2, False))
    batch = client.score([group(rubric, "source=n/a", "source=yes", "source=n/a boasts=yes")])
    assert [(r.reward, r.reason) for r in batch.groups[0].rollouts] == [
        (None, UnscoredReason.NOT_APPLICABLE),
        (1.0, None),
        (None, UnscoredReason.NOT_APPLICABLE),
    ]
    assert batch.groups[0].status == "partial"
    assert (batch.counts.scored, batch.counts.unscored) == (1, 2)
    # The verdicts are known and say why; none of them has the reason.
    assert {v.reason for r in batch.groups[0].rollouts for v in r.verdicts} == {None}


def test_the_same_words_without_the_permission_are_asked_anew(
    client: Client, judge: ScriptedJudge
) -> None:
    answer = "colour=yes source=n/a"
    client.score([group(make(client, (NAMES, 1, False), (CITES, 3, True)), answer)])
    judge.requests.clear()
    judge.script = lambda request, number: verdicts(request, lambda criterion, answer: False)
    batch = client.score([group(make(client, (NAMES, 1, False), (CITES, 3, False)), answer)])
    [request] = judge.verifications
    assert CITES in text_of(request)
    assert NAMES not in text_of(request)
    assert "applicable" not in text_of(request)
    assert batch.groups[0].rollouts[0].reward == 0.25


def test_a_judge_that_says_it_of_a_criterion_that_always_applies_gives_no_verdict(
    client: Client, judge: ScriptedJudge
) -> None:
    judge.script = lambda request, number: verdicts(request, lambda criterion, answer: None)
    batch = client.score([group(make(client, (NAMES, 1, False), (CITES, 3, True)), "Red.")])
    [rollout] = batch.groups[0].rollouts
    assert (rollout.reward, rollout.reason) == (None, UnscoredReason.PARSE_FAILURE)
    assert len(judge.verifications) == 3  # asked again, with the error, then reworded
    # Nothing of it was stored.
    judge.script = lambda request, number: verdicts(request)
    again = client.score([group(make(client, (NAMES, 1, False), (CITES, 3, True)), "Red.")])
    assert again.groups[0].rollouts[0].reward == 1.0


def test_a_call_per_criterion_names_only_its_own(
    start: Callable[..., str], model_settings: dict[str, Any], judge: ScriptedJudge
) -> None:
    with Client(start(**(model_settings | {"judge_max_criteria": 1}))) as client:
        client.score([group(make(client, (NAMES, 1, False), (CITES, 3, True)), "Red.")])
    told = {text_of(r) for r in judge.verifications}
    assert len(told) == 2
    assert all(("May not apply" in text) == (CITES in text) for text in told)
    assert all(offered(r) == ["c1"] for r in judge.verifications)


@pytest.mark.parametrize("verify", ["rollout", "group"])
def test_the_canary_always_applies(
    start: Callable[..., str], model_settings: dict[str, Any], judge: ScriptedJudge, verify: Any
) -> None:
    judge.script = lambda request, number: verdicts(
        request, lambda criterion, answer: {"c1": True, "c2": None, "c3": False}[criterion]
    )
    with Client(start(**(model_settings | {"judge_hardening": True}))) as client:
        rubric = make(client, (NAMES, 1, True), (CITES, 3, True))
        batch = client.score([group(rubric, "Red.", "Blue.")], verify=verify)
        assert {r.reward for r in batch.groups[0].rollouts} == {1.0}
        # Calling it not applicable is no way around it.
        judge.script = lambda request, number: verdicts(request, lambda criterion, answer: None)
        evaded = client.score([group(rubric, "Green.", "Grey.")], verify=verify)
    assert {r.reason for r in evaded.groups[0].rollouts} == {UnscoredReason.PARSE_FAILURE}


def test_a_check_always_applies(client: Client) -> None:
    check = {"kind": "max_words", "value": 9}
    criterion = {"text": "Short.", "points": 1, "check": check, "may_not_apply": True}
    answer = httpx.post(
        f"{client.base_url}/v1/rubrics",
        json={"prompt": PROMPT, "criteria": [criterion]},
        timeout=60,
    )
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == "criteria.0"
    assert "a check applies to every response" in answer.json()["error"]["message"]


def test_a_rubric_keeps_the_permission_through_fork_export_and_import(client: Client) -> None:
    rubric = make(client, (NAMES, 1, False), (CITES, 3, True))
    assert [c.may_not_apply for c in client.rubric(rubric.id).criteria] == [False, True]
    assert [c.may_not_apply for c in client.fork_rubric(rubric.id, tags=["x"]).criteria] == [
        False,
        True,
    ]
    content = client.export_rubric(rubric.id).content
    [imported] = [client.import_rubric(content, "native").rubric]
    assert imported.content_hash == rubric.content_hash


def test_lineage_counts_what_does_not_apply(client: Client) -> None:
    rubric = make(client, (NAMES, 1, False), (CITES, 3, True))
    client.score([group(rubric, "colour=yes source=n/a", "colour=no source=yes")])
    counted = {c.criterion_id: c for c in client.lineage(rubric.id).verdicts.criteria}
    assert (counted["c2"].met, counted["c2"].not_met, counted["c2"].not_applicable) == (1, 0, 1)
    assert (counted["c1"].met, counted["c1"].not_met, counted["c1"].not_applicable) == (1, 1, 0)


def test_signed_rewards_keep_negative_ones_apart_and_tell_their_range(client: Client) -> None:
    rubric = make(client, (NAMES, 10, False), ("It rambles.", -3, False), (BOASTS, -6, False))
    asked = group(
        rubric,
        "colour=no rambles=yes",
        "colour=no rambles=yes boasts=yes",
        "colour=yes",
        teacher_responses=["colour=no boasts=yes"],
    )
    signed = client.score([asked], clamp="signed", score_teachers=True).groups[0]
    assert [r.reward for r in signed.rollouts] == [-0.3, -0.9, 1.0]
    assert signed.teacher is not None
    assert signed.teacher.rewards == [-0.6]
    assert signed.reward_range is not None
    assert (signed.reward_range.min, signed.reward_range.max) == (-0.9, 1.0)
    zero = client.score([asked], score_teachers=True).groups[0]
    assert [r.reward for r in zero.rollouts] == [0.0, 0.0, 1.0]
    assert zero.teacher is not None
    assert zero.teacher.rewards == [0.0]
    assert zero.reward_range is not None
    assert (zero.reward_range.min, zero.reward_range.max) == (0.0, 1.0)


def test_the_clamp_is_no_part_of_a_verdict(client: Client, judge: ScriptedJudge) -> None:
    rubric = make(client, (NAMES, 10, False), (BOASTS, -6, False))
    client.score([group(rubric, "boasts=yes")])
    paid = len(judge.verifications)
    [rollout] = client.score([group(rubric, "boasts=yes")], clamp="signed").groups[0].rollouts
    assert rollout.reward == -0.6
    assert len(judge.verifications) == paid


def test_negative_rewards_give_a_group_spread_and_a_mean(client: Client) -> None:
    rubric = make(client, (NAMES, 10, False), ("It rambles.", -3, False), (BOASTS, -6, False))
    texts = ("rambles=yes", "rambles=yes boasts=yes")
    run = {"id": "signed", "step": 0}
    client.score([group(rubric, *texts)], clamp="signed", run=run)  # type: ignore[arg-type]
    client.score(
        [group(rubric, *texts)],
        run={"id": "zero", "step": 0},  # type: ignore[arg-type]
    )
    runs = {node.run: node for node in client.lineage(rubric.id).nodes if node.kind == "run"}
    assert runs["signed"].first_reward == pytest.approx(-0.6)
    assert (runs["signed"].groups_with_spread, runs["zero"].groups_with_spread) == (1, 0)
    assert runs["zero"].first_reward == 0.0


def test_another_clamp_is_a_422(client: Client) -> None:
    rubric = make(client, (NAMES, 1, False))
    answer = httpx.post(
        f"{client.base_url}/v1/scores",
        json={"groups": [group(rubric, "x")], "clamp": "none"},
        timeout=60,
    )
    assert answer.status_code == 422
    assert "clamp" in answer.json()["error"]["param"]
