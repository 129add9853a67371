"""Test a judge that always says yes: its calls are discarded and counted per judge and team."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest

from fakes.judge import ScriptedJudge, verdicts
from markscheme_server import metrics
from server.organisation import Keys, call

PROMPT = "Name a colour."


def failures(judge: str) -> float:
    return (
        metrics.REGISTRY.get_sample_value("markscheme_canary_failures_total", {"judge": judge})
        or 0.0
    )


def series_naming(teams: Iterable[str]) -> set[str]:
    """Return the series at ``/metrics`` that name a team, without their values."""
    lines = metrics.exposition().decode().splitlines()
    return {line.rpartition(" ")[0] for line in lines if any(f'"{team}"' in line for team in teams)}


@pytest.mark.parametrize("met", ["everything", "the canary alone", "what is true"])
def test_a_yes_to_everything_is_no_score_and_is_counted(
    met: str,
    organisation: Keys,
    start: Callable[..., str],
    judge: ScriptedJudge,
    model_settings: dict[str, Any],
) -> None:
    """Metrics count it per judge, since their readers may not see teams; ledgers per team."""
    decide = {
        "everything": lambda criterion, answer: True,
        "the canary alone": lambda criterion, answer: criterion != "c1",
        "what is true": lambda criterion, answer: criterion == "c1",
    }[met]
    judge.script = lambda request, number: verdicts(request, decide)
    sent = {"red": 20, "blue": 5}
    keys = {team: organisation.key(team, "read", "score", "induce") for team in sent}
    url = start(**model_settings, judge_hardening=True)
    before, named = failures("default"), series_naming(sent)
    for team, count in sent.items():
        rubric = call(
            url,
            "POST",
            "/v1/rubrics",
            keys[team],
            {"prompt": PROMPT, "criteria": [{"text": "It is kind.", "points": 1}]},
        ).json()["id"]
        answer = call(
            url,
            "POST",
            "/v1/scores",
            keys[team],
            {
                "groups": [
                    {
                        "id": "g",
                        "prompt": PROMPT,
                        "rubric_id": rubric,
                        "rollouts": [{"id": f"r{i}", "text": f"{team} {i}"} for i in range(count)],
                    }
                ]
            },
        ).json()
        rollouts = answer["groups"][0]["rollouts"]
        wanted = (1.0, None) if met == "what is true" else (None, "canary_failed")
        assert {(r["reward"], r["reason"]) for r in rollouts} == {wanted}
    caught = 0 if met == "what is true" else sum(sent.values())
    assert failures("default") - before == caught
    for team, count in sent.items():
        bucket = call(url, "GET", "/v1/usage?group_by=judge", keys[team]).json()["total"]
        assert bucket["failed_calls"] == (count if caught else 0)
    assert series_naming(sent) == named
