"""`GET /v1/judges`: names, models, roles and prices, and nothing of endpoints or keys."""

from collections.abc import Callable
from typing import Any

import httpx

from fakes.judge import ScriptedJudge


def test_the_judges_are_listed_with_their_prices_and_without_endpoint_or_key(
    serve: Callable[..., str], model_settings: dict[str, Any], judge: ScriptedJudge
) -> None:
    url = serve(**model_settings, judge_price_input=0.5, judge_price_output=2.0)
    answer = httpx.get(f"{url}/v1/judges", timeout=60)
    builtin = {"price_input": 0.0, "price_output": 0.0, "roles": [], "model": None}
    priced = {"price_input": 0.5, "price_output": 2.0, "roles": ["rubricator", "verifier"]}
    assert answer.json() == {
        "object": "list",
        "data": [
            {"name": "builtin", "kind": "builtin"} | builtin,
            {"name": "default", "kind": "openai", "model": "scripted"} | priced,
        ],
    }
    assert "k-secret" not in answer.text
    assert "127.0.0.1" not in answer.text


def test_a_service_without_a_model_has_the_builtin_judge_in_both_roles(service: str) -> None:
    (listed,) = httpx.get(f"{service}/v1/judges", timeout=60).json()["data"]
    assert (listed["name"], listed["roles"]) == ("builtin", ["rubricator", "verifier"])


def test_prices_that_are_not_set_are_null(
    serve: Callable[..., str], model_settings: dict[str, Any]
) -> None:
    listed = httpx.get(f"{serve(**model_settings)}/v1/judges", timeout=60).json()["data"][1]
    assert (listed["price_input"], listed["price_output"]) == (None, None)
