"""Traces for OpenTelemetry: one span per request, with the attributes of its conventions for generative models.

https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeAlias

from starlette.types import Scope

from fermi.server.exchange import Exchange
from fermi.server.log import logger

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

#: What the conventions call the work of an endpoint.
OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}

Attribute: TypeAlias = "str | int | float | bool | list[str]"


class Tracer(Protocol):
    """Where spans go."""

    def record(
        self, scope: Scope, exchange: Exchange, endpoint: str, status: int, began_ns: int, ended_ns: int
    ) -> None:
        """A request has been answered. Times in nanoseconds since 1970."""

    def close(self) -> None:
        """Send what has not been sent."""


def tracer_to(endpoint: str | None) -> Tracer | None:
    """A tracer that sends to a collector's address (OTLP over HTTP), in a thread of its own; None where none is set.

    Without OpenTelemetry's packages there is none, and the log says so.
    """
    if not endpoint:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        logger().warning("no traces", reason=str(error), hint="pip install 'fermi-infer[otel]'")
        return None
    path = "/v1/traces"
    address = endpoint if endpoint.endswith(path) else endpoint.rstrip("/") + path
    return SpanTracer(BatchSpanProcessor(OTLPSpanExporter(address)))


class SpanTracer:
    """Makes a span of each request when it has ended: until then nothing is done for it."""

    def __init__(self, processor: SpanProcessor) -> None:
        from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider

        # What OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say wins.
        resource = Resource.create({SERVICE_NAME: "fermi"}).merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("fermi.server")

    def record(
        self, scope: Scope, exchange: Exchange, endpoint: str, status: int, began_ns: int, ended_ns: int
    ) -> None:
        """A request has been answered. It belongs to the trace that its ``traceparent`` names."""
        from opentelemetry.trace import SpanKind, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        names = ("traceparent", "tracestate")
        carried = {str(name, "latin-1"): str(value, "latin-1") for name, value in scope["headers"]}
        parent = TraceContextTextMapPropagator().extract({name: carried[name] for name in names if name in carried})
        operation = OPERATIONS.get(endpoint)
        name = f"{operation} {exchange.model}" if operation and exchange.model else f"{scope['method']} {endpoint}"
        attributes = {
            "http.request.method": scope["method"],
            "http.route": endpoint,
            "http.response.status_code": status,
            "fermi.request_id": exchange.request_id,
            **_of_model(exchange, operation),
        }
        span = self._tracer.start_span(
            name, context=parent, kind=SpanKind.SERVER, attributes=attributes, start_time=began_ns
        )
        if status >= 500:
            span.set_attribute("error.type", str(status))
            span.set_status(StatusCode.ERROR)
        span.end(ended_ns)

    def close(self) -> None:
        """Send what has not been sent."""
        self._provider.shutdown()


def _of_model(exchange: Exchange, operation: str | None) -> dict[str, Attribute]:
    """What a model was asked for and gave; never what it was told or said."""
    usage, sampling = exchange.usage, exchange.sampling
    if usage is None:
        return {}
    attributes: dict[str, Attribute] = {
        "gen_ai.provider.name": "fermi",
        "gen_ai.request.model": exchange.model,
        "gen_ai.response.model": exchange.model,
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
    }
    if operation:
        attributes["gen_ai.operation.name"] = operation
    if sampling is not None:
        attributes |= {
            "gen_ai.usage.output_tokens": usage.completion_tokens,
            "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
            "gen_ai.usage.reasoning.output_tokens": usage.reasoning_tokens,
            "gen_ai.response.finish_reasons": list(usage.finish_reasons),
            "gen_ai.request.choice.count": sampling.n,
            "gen_ai.request.temperature": sampling.temperature,
            "gen_ai.request.top_p": sampling.top_p,
            "gen_ai.request.top_k": sampling.top_k,
            "gen_ai.request.presence_penalty": sampling.presence_penalty,
            "gen_ai.request.frequency_penalty": sampling.frequency_penalty,
        }
        if sampling.max_tokens is not None:
            attributes["gen_ai.request.max_tokens"] = sampling.max_tokens
        if sampling.seed is not None:
            attributes["gen_ai.request.seed"] = sampling.seed
    if usage.timings:
        attributes["gen_ai.response.time_to_first_chunk"] = min(each.first_token_s for each in usage.timings)
    return attributes
