"""Test for leaks: callers' words in logs, keys in Redis, other teams' rubrics by timing."""

import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis

from fakes.judge import ScriptedJudge, offered, verdicts
from fakes.processes import PATIENCE_S, ServiceProcess
from fakes.stores import RedisServer
from server.organisation import OPERATOR, PEPPER, Keys, call

SERVICES = Path(__file__).parents[3] / "services" / "markscheme_server"
CANARY = "canary7f3a"


def spoken(http: httpx.Client, key: str) -> None:
    """Put the canary into every text field of requests that succeed and of requests that fail."""
    prompt = f"Say {CANARY}."
    rollouts = [{"id": f"{CANARY}-r", "text": f"{CANARY} a"}, {"id": "r2", "text": f"{CANARY} b"}]
    made = http.post(
        "/v1/rubrics",
        headers={"Idempotency-Key": CANARY},
        json={
            "prompt": prompt,
            "tags": [CANARY],
            "criteria": [{"text": f"It says {CANARY}.", "points": 1}],
        },
    )
    assert made.status_code == 201
    taught = http.post(
        "/v1/teacher-responses", json={"entries": [{"prompt": prompt, "responses": [CANARY]}]}
    )
    assert taught.status_code == 200
    scored = http.post(
        "/v1/scores",
        json={
            "run": {"id": CANARY, "step": 0},
            "reuse": "frozen",
            "groups": [{"id": CANARY, "prompt": prompt, "rollouts": rollouts}],
        },
    )
    assert scored.json()["counts"]["scored"] == 2
    induced = http.post(
        "/v1/rubrics:induce", json={"prompt": f"{CANARY}?", "student_responses": [CANARY]}
    )
    assert induced.status_code == 502  # the judge replies with a canary and no rubric
    for method, path, more in (
        ("GET", f"/v1/rubrics/{CANARY}", {}),
        ("GET", f"/{CANARY}", {}),
        ("POST", "/v1/scores", {"content": CANARY}),
        ("GET", "/v1/rubrics", {"params": {"prompt": CANARY}}),
        ("PATCH", f"/v1/rubrics/{made.json()['id']}", {"json": {CANARY: CANARY}}),
        ("GET", "/v1/rubrics", {"headers": {"X-Request-ID": f"{CANARY} {CANARY}"}}),
        ("GET", "/v1/rubrics", {"headers": {"Authorization": f"Bearer {key[:-1]}?"}}),
        ("DELETE", f"/v1/keys/{CANARY}", {}),
        ("PUT", f"/v1/teams/{CANARY}/budget", {"json": {"hard_usd": 1}}),
        ("GET", "/v1/usage", {"params": {"team": CANARY}}),
        ("GET", "/v1/audit", {"params": {"subject": CANARY}}),
    ):
        assert http.request(method, path, **more).status_code != 500


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_logs_figures_and_redis_hold_no_key_and_no_callers_word(
    organisation: Keys,
    judge: ScriptedJudge,
    redis: RedisServer,
    tmp_path: Path,
    model_settings: dict[str, Any],
) -> None:
    key = organisation.key("red", "read", "score", "induce", "admin")
    in_path = organisation.key("red", "score")
    judge.script = lambda request, _number: (
        verdicts(request) if offered(request) else f"{CANARY} is no rubric"
    )
    service = ServiceProcess(
        tmp_path / "service",
        model_settings
        | {
            "database_url": organisation.url,
            "key_pepper": PEPPER,
            "api_key": OPERATOR,
            "redis_url": redis.url,
            "log_level": "debug",
            "judge_rpm": 1000,
            "team_rpm": 100_000,
        },
    ).wait_ready()
    try:
        for presented in (key, OPERATOR):
            with httpx.Client(
                base_url=service.url, headers={"Authorization": f"Bearer {presented}"}, timeout=30
            ) as http:
                spoken(http, presented)
                for in_use in (in_path, presented, in_path[:-1] + "?", f"{in_path}/{CANARY}"):
                    for path in ("openrlhf/{}/get_reward", "slime/{}", "{}"):
                        place = f"/compat/{path.format(in_use)}?size=1&run={CANARY}"
                        for body in ({"prompt": "p", "response": CANARY}, {CANARY: CANARY}):
                            answer = http.post(place, json=body)
                            assert in_use not in answer.text
        figures = httpx.get(f"{service.url}/metrics", timeout=60).text
    finally:
        service.terminate()
        service.wait(PATIENCE_S)
    said = service.output.read_text()
    assert said.count('"event"') > 20 or said.count("request") > 20
    with Redis.from_url(redis.url) as held:
        dumped = b"\n".join(name + (held.dump(name) or b"") for name in held.scan_iter()).decode(
            "latin-1"
        )
    assert dumped, "Redis was not used"
    secrets = (
        CANARY,
        key,
        key[11:],
        in_path,
        in_path[11:],
        OPERATOR,
        PEPPER,
        "k-secret",
        "of the tests",
    )
    for place, text in (("the log", said), ("the figures", figures), ("Redis", dumped)):
        for secret in secrets:
            assert secret not in text, (place, secret)


def test_anothers_rubric_and_none_take_the_same_time(
    organisation: Keys,
    start: Callable[..., str],
) -> None:
    red, blue = (organisation.key(team, "read", "induce") for team in ("red", "blue"))
    url = start()
    body = {
        "prompt": "A long one. " * 2000,
        "criteria": [{"text": f"It meets {i}. " * 50, "points": 1} for i in range(64)],
    }
    others = call(url, "POST", "/v1/rubrics", red, body).json()["id"]
    missing = others[:-4] + "0000"
    took: dict[str, list[float]] = {others: [], missing: []}
    for _ in range(200):
        for name, times in took.items():
            begun = time.perf_counter()
            assert call(url, "GET", f"/v1/rubrics/{name}", blue).status_code == 404
            times.append(time.perf_counter() - begun)
    medians = [statistics.median(times) for times in took.values()]
    assert abs(medians[0] - medians[1]) < 0.005


def test_no_transaction_can_be_had_without_saying_whose_rows_it_sees() -> None:
    """One module opens connections and requires a team scope; few places see all teams' rows."""
    opening, seeing = set(), set()
    for path in SERVICES.rglob("*.py"):
        if "migrations" in path.parts:
            continue
        place, text = path.relative_to(SERVICES).as_posix(), path.read_text()
        if re.search(r"engine\.(connect|begin)\(|create_async_engine|create_engine\(", text):
            opening.add(place)
        if re.search(r"\bALL_TEAMS\b", text):
            seeing.add(place)
    # Most of these only make a Database of an engine; pruning and erasing also shrink SQLite files.
    assert opening == {
        "cli/prune.py",
        "cli/serve.py",
        "store/engine/database.py",
        "store/maintenance/migrate.py",
        "store/maintenance/prune.py",
        "store/maintenance/team_deletion.py",
        "store/store.py",
    }
    assert seeing == {
        "store/audit.py",
        "store/engine/database.py",
        "store/lineage.py",
        "store/maintenance/batch_delete.py",
        "store/maintenance/migrate.py",
        "store/replays.py",
        "store/rubrics.py",
        "store/usage.py",
    }
