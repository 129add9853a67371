"""A deployment whose judge has prices: its teams' keys, its services, and what a call costs."""

from collections.abc import Callable
from typing import Any

import httpx

from markscheme.vocabulary import Scope
from server.organisation import OPERATOR, PROMPT, Keys

PRICES = {"judge_price_input": 1000.0, "judge_price_cached": 500.0, "judge_price_output": 1000.0}
CALL_USD = (6 * 1000 + 4 * 500 + 5 * 1000) / 1e6
"""The scripted judge states 10 tokens in, 4 of them cached, and 5 out."""
CRITERIA = [{"text": "It names red.", "points": 1}]


class Deployment:
    """Teams with a key each, and services on one database whose judge has prices."""

    def __init__(self, organisation: Keys, serve: Callable[..., str]) -> None:
        self.url, self._organisation, self._serve = organisation.url, organisation, serve

    def team(self, name: str) -> str:
        """Make a team; its key."""
        return self.key(name, "read", "score", "induce")

    def key(self, name: str, *scopes: Scope) -> str:
        """Make a team; its key with these scopes."""
        self._organisation.team(name)
        return self._organisation.key(name, *scopes)

    def start(self, **settings: Any) -> str:
        return self._serve(**settings)

    def admin(self, url: str, method: str, path: str, **more: Any) -> httpx.Response:
        return httpx.request(
            method, url + path, headers={"Authorization": f"Bearer {OPERATOR}"}, timeout=30, **more
        )


def group(texts: list[str], **more: Any) -> dict[str, Any]:
    return {
        "id": "g",
        "prompt": PROMPT,
        "rollouts": [{"id": f"r{i}", "text": t} for i, t in enumerate(texts)],
    } | more


def run(name: str, step: int = 0) -> dict[str, Any]:
    return {"id": name, "step": step}


def score(url: str, key: str, texts: list[str], **more: Any) -> httpx.Response:
    return httpx.post(
        f"{url}/v1/scores",
        json={"groups": [group(texts)], "reuse": "frozen"} | more,
        timeout=30,
        headers={"Authorization": f"Bearer {key}"},
    )
