"""OpenTelemetry traces, with the `otel` extra and `OTEL_EXPORTER_OTLP_ENDPOINT`.

One span for each request, with the attributes below and no others. The usual instrumentation
package records by default what must not leave the service: URLs with their query, and messages of
exceptions. Judge calls carry no trace header, because they leave the deployment.
"""

import os
from typing import TYPE_CHECKING

import structlog
from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from markscheme_server.api.middleware import GONE, METHODS, PROBES
from markscheme_server.metrics import OTHER

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
TIMEOUTS = ("OTEL_EXPORTER_OTLP_TIMEOUT", "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT")

log = structlog.get_logger()


def install(app: FastAPI, provider: "TracerProvider | None" = None) -> None:
    """Trace requests with `provider`, or with one from the environment if that configures any."""
    if provider is None and any(os.environ.get(name) for name in ENDPOINTS):
        try:
            provider = _exporting_provider()
        except ImportError:
            log.warning(
                "not_traced",
                hint="pip install 'markscheme[otel]', or unset OTEL_EXPORTER_OTLP_ENDPOINT",
            )
    if provider is not None:
        app.add_middleware(TracingMiddleware, provider=provider)


def _exporting_provider() -> "TracerProvider":
    """Return a provider that exports over OTLP/HTTP; the SDK reads its own `OTEL_*` variables."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    named = {SERVICE_NAME: os.environ.get("OTEL_SERVICE_NAME", "markscheme")}
    provider = TracerProvider(resource=Resource.create(named))
    # Without a collector the SDK's default of 10 s, spent on retries, delays every exit (measured:
    # 9 s).
    timeout_s = None if any(os.environ.get(name) for name in TIMEOUTS) else 2
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(timeout=timeout_s)))
    return provider


class TracingMiddleware:
    """Records a span for each request except probes, in the caller's trace if it sends one."""

    def __init__(self, app: ASGIApp, provider: "TracerProvider") -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self.app = app
        self.tracer = provider.get_tracer("markscheme")
        self.propagator = TraceContextTextMapPropagator()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or scope["path"] in PROBES:
            return await self.app(scope, receive, send)
        from opentelemetry.trace import SpanKind, StatusCode

        parent = self.propagator.extract(
            {"traceparent": Headers(scope=scope).get("traceparent", "")}
        )
        method = scope["method"] if scope["method"] in METHODS else OTHER
        with self.tracer.start_as_current_span(
            method, parent, SpanKind.SERVER, record_exception=False, set_status_on_exception=False
        ) as span:
            trace_id = f"{span.get_span_context().trace_id:032x}"
            with structlog.contextvars.bound_contextvars(trace_id=trace_id):
                try:
                    await self.app(scope, receive, send)
                finally:
                    route, status = (
                        scope.get("markscheme.route", OTHER),
                        scope.get("markscheme.status", GONE),
                    )
                    span.update_name(f"{method} {route}")
                    span.set_attributes(
                        {
                            "http.request.method": method,
                            "http.route": route,
                            "http.response.status_code": status,
                            "markscheme.request_id": scope.get("markscheme.request_id", ""),
                        }
                    )
                    if status >= 500:
                        span.set_status(StatusCode.ERROR)
        return None
