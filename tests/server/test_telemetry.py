"""Traces: one span a request, with what is named in the module and nothing else."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from markscheme_server import telemetry
from markscheme_server.api.drain import Drain
from markscheme_server.api.middleware import ObservabilityMiddleware, RequestIdMiddleware
from markscheme_server.telemetry import TracingMiddleware

SECRET = "planted-secret"
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def exporter() -> Iterator[InMemorySpanExporter]:
    made = InMemorySpanExporter()
    yield made
    made.shutdown()


@pytest.fixture
def app(exporter: InMemorySpanExporter) -> FastAPI:
    """Wrap the service's layers around routes that answer and fail."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    made = FastAPI()

    @made.get("/things/{name}")
    async def thing(name: str) -> str:
        return name

    @made.get("/broken")
    async def broken() -> None:
        raise RuntimeError(SECRET)

    @made.get("/healthz")
    async def healthz() -> str:
        return "ok"

    made.add_middleware(ObservabilityMiddleware, drain=Drain())
    telemetry.install(made, provider)
    made.add_middleware(RequestIdMiddleware)
    return made


async def spans(
    app: FastAPI, exporter: InMemorySpanExporter, path: str, **headers: str
) -> tuple[ReadableSpan, ...]:
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        await client.get(path, headers=headers)
    return exporter.get_finished_spans()


async def test_a_request_is_one_span_in_the_callers_trace(
    app: FastAPI, exporter: InMemorySpanExporter
) -> None:
    [span] = await spans(
        app,
        exporter,
        f"/things/{SECRET}?key={SECRET}",
        traceparent=PARENT,
        authorization=SECRET,
        **{"X-Request-ID": "req-1"},
    )
    assert span.name == "GET /things/{name}"
    assert span.kind == SpanKind.SERVER
    assert dict(span.attributes or {}) == {
        "http.request.method": "GET",
        "http.route": "/things/{name}",
        "http.response.status_code": 200,
        "markscheme.request_id": "req-1",
    }
    assert span.parent is not None
    assert f"{span.parent.trace_id:032x}-{span.parent.span_id:016x}" == PARENT[3:52]
    assert SECRET not in span.to_json()


async def test_a_failure_is_an_error_without_its_words(
    app: FastAPI, exporter: InMemorySpanExporter
) -> None:
    [span] = await spans(app, exporter, "/broken")
    assert span.status.status_code == StatusCode.ERROR
    assert (span.attributes or {})["http.response.status_code"] == 500
    assert span.events == ()
    assert SECRET not in span.to_json()


async def test_probes_are_not_traced(app: FastAPI, exporter: InMemorySpanExporter) -> None:
    assert await spans(app, exporter, "/healthz") == ()


@pytest.mark.parametrize(
    ("endpoint", "traced"), [(None, False), ("", False), ("http://127.0.0.1:9", True)]
)
def test_the_environment_decides(
    endpoint: str | None, traced: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    if endpoint is not None:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    app = FastAPI()
    telemetry.install(app)
    assert [layer.cls for layer in app.user_middleware] == ([TracingMiddleware] if traced else [])


def test_without_the_extra_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> TracerProvider:
        raise ImportError("opentelemetry")

    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(telemetry, "_exporting_provider", missing)
    app = FastAPI()
    telemetry.install(app)
    assert app.user_middleware == []
    assert "markscheme[otel]" in capsys.readouterr().out
