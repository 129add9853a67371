"""Test random actions of three teams against a small model.

The model says what each team may see and which rubric it gets.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from server.organisation import Keys

TEAMS = ("red", "blue", "green")
PROMPTS = itertools.count()
teams = st.sampled_from(TEAMS)


@dataclass
class Known:
    """A rubric as the model has it; ``number`` is its place in time."""

    team: str
    number: int
    word: str
    parent: str | None = None
    open_to_all: bool = False
    shared: set[str] = field(default_factory=set)
    retired: bool = False

    def seen_by(self, team: str) -> bool:
        return self.open_to_all or team == self.team or team in self.shared

    def rank(self, team: str) -> tuple[int, int]:
        near = 0 if team == self.team else 1 if team in self.shared else 2
        return near, -self.number


def machine(url: str, keys: dict[str, str]) -> type[RuleBasedStateMachine]:
    clients = {
        team: httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=30)
        for team, key in keys.items()
    }

    class Organisation(RuleBasedStateMachine):
        rubrics = Bundle("rubrics")

        def __init__(self) -> None:
            super().__init__()
            self.prompt = f"Name a colour, for the {next(PROMPTS)}th time."
            self.known: dict[str, Known] = {}

        def keep(self, answer: httpx.Response, team: str, word: str) -> Any:
            """Note a rubric that was made; marks that the team's newest has already make none."""
            assert answer.status_code == 201, answer.text
            name = answer.json()["id"]
            if name in self.known:
                newest = max(
                    (k for k in self.known.values() if k.team == team), key=lambda k: k.number
                )
                assert self.known[name] is newest
                assert (newest.word, newest.retired) == (word, False)
                return multiple()
            self.known[name] = Known(team, len(self.known), word, answer.json()["parent_id"])
            return name

        @rule(target=rubrics, team=teams, word=st.sampled_from(("red", "blue")))
        def make(self, team: str, word: str) -> Any:
            body = {"prompt": self.prompt, "criteria": [{"text": f"It says {word}.", "points": 1}]}
            return self.keep(clients[team].post("/v1/rubrics", json=body), team, word)

        @rule(target=rubrics, name=rubrics, team=teams)
        def fork(self, name: str, team: str) -> Any:
            source, answer = (
                self.known[name],
                clients[team].post(f"/v1/rubrics/{name}:fork", json={}),
            )
            if not source.seen_by(team):
                assert answer.status_code == 404
                return multiple()
            return self.keep(answer, team, source.word)

        @rule(
            name=rubrics,
            team=teams,
            change=st.one_of(
                st.fixed_dictionaries({"visibility": st.sampled_from(("private", "organisation"))}),
                st.fixed_dictionaries({"shared_with": st.lists(teams, max_size=2)}),
                st.fixed_dictionaries({"retired": st.booleans()}),
            ),
        )
        def change(self, name: str, team: str, change: dict[str, Any]) -> None:
            known, answer = (
                self.known[name],
                clients[team].patch(f"/v1/rubrics/{name}", json=change),
            )
            if team != known.team:
                assert answer.status_code == (403 if known.seen_by(team) else 404)
                return
            assert answer.status_code == 200
            known.open_to_all = (
                change.get("visibility", "organisation" if known.open_to_all else "")
                == "organisation"
            )
            known.shared = (
                set(change["shared_with"]) - {team} if "shared_with" in change else known.shared
            )
            known.retired = change.get("retired", known.retired)
            assert set(answer.json()["shared_with"]) == known.shared

        def relatives(self, name: str, team: str) -> set[str]:
            """Return the rubrics reachable from one through rubrics that the team sees."""
            seen = {other: known for other, known in self.known.items() if known.seen_by(team)}
            found, above = {name}, seen[name].parent
            while above in seen:
                found.add(above)
                above = seen[above].parent
            below = {name}
            while below:
                found |= below
                below = {other for other, known in seen.items() if known.parent in below}
            return found

        @rule(name=rubrics, team=teams)
        def history(self, name: str, team: str) -> None:
            answer = clients[team].get(f"/v1/rubrics/{name}/lineage")
            if not self.known[name].seen_by(team):
                assert answer.status_code == 404
                return
            told = {node["id"] for node in answer.json()["nodes"] if node["kind"] == "rubric"}
            assert told == self.relatives(name, team)
            assert not any(other in answer.text for other in set(self.known) - told)

        @invariant()
        def each_team_sees_what_it_may_and_gets_the_nearest(self) -> None:
            for team in TEAMS:
                listed = (
                    clients[team]
                    .get("/v1/rubrics", params={"prompt": self.prompt, "limit": 100})
                    .json()["data"]
                )
                assert {r["id"] for r in listed} == {
                    name for name, k in self.known.items() if k.seen_by(team)
                }
                assert all(r["team"] == team or r["shared_with"] == [] for r in listed)
                open_to = {
                    name: k for name, k in self.known.items() if k.seen_by(team) and not k.retired
                }
                expected = min(open_to, key=lambda name: open_to[name].rank(team), default=None)
                scored = (
                    clients[team]
                    .post(
                        "/v1/scores",
                        json={
                            "reuse": "frozen",
                            "groups": [
                                {
                                    "id": "g",
                                    "prompt": self.prompt,
                                    "rollouts": [{"id": "r", "text": "red"}],
                                }
                            ],
                        },
                    )
                    .json()["groups"][0]
                )
                assert (scored["rubric"] or {}).get("id") == expected

    return Organisation


@pytest.mark.parametrize(
    "database_url", ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)], indirect=True
)
def test_no_team_sees_or_gets_what_it_may_not(
    organisation: Keys, start: Callable[..., str]
) -> None:
    organisation.team("green")
    keys = {team: organisation.key(team, "read", "score", "induce") for team in TEAMS}
    run_state_machine_as_test(
        machine(start(), keys),
        settings=settings(
            max_examples=6,
            stateful_step_count=15,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
