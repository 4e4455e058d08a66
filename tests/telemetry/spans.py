"""A tracer whose spans a test can read."""

from __future__ import annotations

from uuid import UUID

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanContext, StatusCode

from hookline_service.telemetry.attempts import AttemptTrace
from hookline_service.telemetry.sampling import Sampling
from hookline_service.telemetry.tracing import Tracer

DELIVERY = UUID(int=7)
CALLER_TRACE = 0x0AF7651916CD43DD8448EB211C80319C
CALLER_SPAN = 0xB7AD6B7169203331
SAMPLED = f"00-{CALLER_TRACE:032x}-{CALLER_SPAN:016x}-01"
UNSAMPLED = f"00-{CALLER_TRACE:032x}-{CALLER_SPAN:016x}-00"


class Spans:
    """The finished spans of a tracer."""

    def __init__(self, sampling: Sampling | None = None) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = Tracer(provider, sampling)

    def ended(self) -> list[ReadableSpan]:
        """Return all finished spans, in the order of their end."""
        return list(self._exporter.get_finished_spans())

    def one(self, name: str) -> ReadableSpan:
        """Return the only span of a name."""
        (span,) = [span for span in self.ended() if span.name == name]
        return span


def attempt_of(spans: Spans, context: bytes, number: int = 1) -> AttemptTrace:
    """Begin an attempt; `number` counts from 1."""
    trace = spans.tracer.attempt_began(
        context, number=number, event="evt_1", delivery_id=DELIVERY, subscription="s"
    )
    assert trace is not None
    return trace


def context_of(span: ReadableSpan) -> SpanContext:
    """Return the context of a span."""
    context = span.get_span_context()
    assert context is not None
    return context


def parent_of(span: ReadableSpan) -> int | None:
    """Return the id of the parent span."""
    return None if span.parent is None else span.parent.span_id


def is_error(span: ReadableSpan) -> bool:
    """Return whether the status of a span is an error."""
    return span.status.status_code is StatusCode.ERROR
