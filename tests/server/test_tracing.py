"""Traces: one span per request with the conventions' attributes, in the caller's trace; nothing where none is set."""

from __future__ import annotations

import gzip
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, ClassVar

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from fermi.config import Settings, load_settings
from fermi.server import app as application
from fermi.server.tracing import SpanTracer, tracer_to
from server.live import wait_for
from server.running import Running, Serve
from server.toy import toy_embedder, toy_model

CHAT = "/v1/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "a secret"}]}
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """What servers that start from now on trace."""
    exporter = InMemorySpanExporter()
    tracer = SpanTracer(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(application, "tracer_to", lambda endpoint: tracer)
    yield exporter
    tracer.close()


def traced(
    spans: InMemorySpanExporter, server: Running, path: str, body: dict[str, Any], **headers: str
) -> ReadableSpan:
    """The span of a request."""
    spans.clear()
    with server.http() as http:
        http.post(path, json=body, headers={"x-request-id": "mine", **headers})
    wait_for(spans.get_finished_spans)
    [span] = spans.get_finished_spans()
    return span


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat(serve: Serve, spans: InMemorySpanExporter, stream: bool) -> None:
    body = {**HELLO, "stream": stream, "max_tokens": 9, "temperature": 0.5, "top_p": 0.9, "seed": 7, "n": 2}
    span = traced(spans, serve(toy_model("abc")), CHAT, body)
    assert span.name == "chat toy"
    assert span.kind == SpanKind.SERVER
    assert span.parent is None
    assert span.start_time is not None
    assert span.end_time is not None
    assert 0 < span.end_time - span.start_time < 60e9
    attributes = dict(span.attributes or {})
    assert attributes.pop("gen_ai.usage.input_tokens") > 10  # type: ignore[operator]
    assert attributes.pop("gen_ai.response.time_to_first_chunk") == pytest.approx(0.003)
    assert attributes == {
        "http.request.method": "POST",
        "http.route": CHAT,
        "http.response.status_code": 200,
        "fermi.request_id": "mine",
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "fermi",
        "gen_ai.request.model": "toy",
        "gen_ai.response.model": "toy",
        "gen_ai.request.choice.count": 2,
        "gen_ai.request.max_tokens": 9,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.request.top_k": attributes["gen_ai.request.top_k"],
        "gen_ai.request.presence_penalty": 0.0,
        "gen_ai.request.frequency_penalty": 0.0,
        "gen_ai.request.seed": 7,
        "gen_ai.response.finish_reasons": ("stop", "stop"),
        "gen_ai.usage.output_tokens": 8,
        "gen_ai.usage.cache_read.input_tokens": 3,
        "gen_ai.usage.reasoning.output_tokens": 0,
    }
    assert span.resource.attributes["service.name"] == "fermi"


def test_the_callers_trace_goes_on(serve: Serve, spans: InMemorySpanExporter) -> None:
    server = serve(toy_model())
    span = traced(spans, server, CHAT, HELLO, traceparent=f"00-{TRACE}-{PARENT}-01", tracestate="vendor=x")
    assert span.context is not None
    assert span.parent is not None
    assert f"{span.context.trace_id:032x}" == TRACE
    assert f"{span.parent.span_id:016x}" == PARENT
    assert span.context.trace_state["vendor"] == "x"
    broken = traced(spans, server, CHAT, HELLO, traceparent="00-broken-01")
    assert broken.parent is None


def test_other_requests(serve: Serve, spans: InMemorySpanExporter) -> None:
    span = traced(spans, serve(toy_embedder()), "/v1/embeddings", {"input": ["abc", "de"]})
    assert span.name == "embeddings toy-embedder"
    assert dict(span.attributes or {})["gen_ai.usage.input_tokens"] == 5
    unknown = traced(spans, serve(toy_model()), "/unknown/path", {})
    assert unknown.name == "POST other"
    assert dict(unknown.attributes or {})["http.response.status_code"] == 404
    assert unknown.status.status_code == StatusCode.UNSET


def test_failures(serve: Serve, spans: InMemorySpanExporter) -> None:
    span = traced(spans, serve(toy_model(LookupError("a secret accident"))), CHAT, HELLO)
    assert span.status.status_code == StatusCode.ERROR
    assert dict(span.attributes or {})["error.type"] == "500"
    assert "secret" not in span.to_json()


def test_signs_of_life_leave_no_traces(serve: Serve, spans: InMemorySpanExporter) -> None:
    with serve(toy_model()).http() as http:
        for path in ("/health", "/ready", "/metrics"):
            http.get(path)
        http.get("/v1/models")
    wait_for(spans.get_finished_spans)
    assert [span.name for span in spans.get_finished_spans()] == ["GET /v1/models"]


def test_only_where_a_collector_is_named() -> None:
    assert Settings().log.traces_endpoint is None
    settings = load_settings(environ={"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"})
    assert settings.log.traces_endpoint == "http://c:4318"
    before = threading.active_count()
    assert tracer_to(None) is None
    assert tracer_to("") is None
    assert threading.active_count() == before


class Collector(BaseHTTPRequestHandler):
    """Takes spans, as an OpenTelemetry collector."""

    received: ClassVar[list[tuple[str, bytes]]] = []

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["content-length"]))
        zipped = self.headers.get("content-encoding") == "gzip"
        self.received.append((self.path, gzip.decompress(content) if zipped else content))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("path", ["", "/", "/v1/traces"])
def test_a_collector_gets_the_spans(serve: Serve, path: str) -> None:
    """At the latest when the server ends."""
    Collector.received.clear()
    with HTTPServer(("127.0.0.1", 0), Collector) as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        address = f"http://127.0.0.1:{collector.server_port}{path}"
        server = serve(toy_model(), settings=Settings.model_validate({"log": {"traces_endpoint": address}}))
        with server.http() as http:
            http.post(CHAT, json=HELLO)
        server.call(server.listener.stop)
        server.thread.join(30)
        collector.shutdown()
        thread.join(30)
    [(asked, content)] = Collector.received
    assert asked == "/v1/traces"
    [resource] = ExportTraceServiceRequest.FromString(content).resource_spans
    assert [span.name for scope in resource.scope_spans for span in scope.spans] == ["chat toy"]


def test_without_the_packages_there_are_no_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    assert tracer_to("http://localhost:4318") is None
