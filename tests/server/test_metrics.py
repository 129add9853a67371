"""The figures at ``/metrics``, and that their labels come from small fixed sets."""

import httpx
import pytest

from fakes.service import running
from markscheme.vocabulary import UnscoredReason
from markscheme_server import metrics
from markscheme_server.config import Settings

REQUESTS = "markscheme_request_seconds_count"


def count(route: str, method: str, status: int) -> float:
    labels = {"route": route, "method": method, "status": str(status)}
    return metrics.REGISTRY.get_sample_value(REQUESTS, labels) or 0.0


def names() -> set[str]:
    return {metric.name for metric in metrics.REGISTRY.collect()}


def test_everything_is_named_after_the_service_and_explained() -> None:
    for metric in metrics.REGISTRY.collect():
        assert metric.name.startswith("markscheme_")
        assert metric.documentation
    assert names() == {
        f"markscheme_{name}"
        for name in (
            "request_seconds",
            "judge_call_seconds",
            "judge_retries",
            "verdicts",
            "unscored",
            "queue_depth",
            "calls_in_flight",
            "breaker_state",
            "tokens",
            "cost",
            "rubrics",
            "rate_limited",
            "endpoint_adaptations",
            "canned_questions",
            "canary_failures",
            "shadow_rollouts",
            "run_findings",
        )
    }


@pytest.mark.parametrize("reason", UnscoredReason)
def test_what_has_not_happened_shows_as_zero(reason: UnscoredReason) -> None:
    assert (
        metrics.REGISTRY.get_sample_value("markscheme_unscored_total", {"reason": reason.value})
        is not None
    )


@pytest.mark.parametrize(
    ("method", "path", "route", "as_method", "status"),
    [
        ("GET", "/healthz?key=planted", "/healthz", "GET", 200),
        ("GET", "/v1/rubrics/rub_planted", "/v1/rubrics/{rubric_id}", "GET", 404),
        ("DELETE", "/v1/rubrics/rub_planted", "/v1/rubrics/{rubric_id}", "DELETE", 405),
        ("GET", "/planted/path", "other", "GET", 404),
        ("PROPFIND", "/planted", "other", "other", 404),
        ("POST", "/v1/scores", "/v1/scores", "POST", 422),
    ],
)
def test_a_request_counts_under_its_template(
    shared_service: str, method: str, path: str, route: str, as_method: str, status: int
) -> None:
    before = count(route, as_method, status)
    answer = httpx.request(method, f"{shared_service}{path}", verify=False, timeout=60)
    assert answer.status_code == status, answer.text
    assert count(route, as_method, status) == before + 1
    text = httpx.get(f"{shared_service}/metrics", verify=False, timeout=60).text
    assert "planted" not in text.lower()


def test_the_exposition_needs_no_key_and_is_plain_text(settings_with_key: Settings) -> None:
    with running(settings_with_key) as url:
        answer = httpx.get(f"{url}/metrics", verify=False, timeout=60)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "# TYPE markscheme_verdicts_total counter" in answer.text


def test_what_is_refused_before_the_router_counts_under_its_template(
    settings_with_key: Settings,
) -> None:
    refused, too_large = count("/v1/scores", "POST", 401), count("/v1/scores", "POST", 413)
    with running(settings_with_key) as url:
        assert (
            httpx.post(f"{url}/v1/scores", content=b"{}", verify=False, timeout=60).status_code
            == 401
        )
        assert (
            httpx.post(
                f"{url}/v1/scores", content=b"x" * 2000, verify=False, timeout=60
            ).status_code
            == 413
        )
        assert httpx.get(f"{url}/v1/planted", verify=False, timeout=60).status_code == 401
    assert count("/v1/scores", "POST", 401) == refused + 1
    assert count("/v1/scores", "POST", 413) == too_large + 1
    assert count("other", "GET", 401) >= 1


@pytest.fixture
def settings_with_key(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr("markscheme_server.app.MAX_BODY_BYTES", 1024)
    return Settings(_env_file=None, home=tmp_path, judge="builtin", api_key="mk_k")
