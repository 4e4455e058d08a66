"""Optional tracing with OpenTelemetry.

If the package `opentelemetry-api` is installed (and the application has set up an SDK), publishing
creates a PRODUCER span, every call carries `traceparent`, and a receiver can continue the trace of
an event (`hookline.webhook.receiving`). Neither `baggage` nor `tracestate` is sent. Spans contain
names and counts, never the data of an event.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

try:
    from opentelemetry import trace as _otel
except ImportError:  # the application does not trace
    HAS_OPENTELEMETRY = False
else:
    HAS_OPENTELEMETRY = True

TRACEPARENT: Final = "traceparent"
_SCOPE: Final = "hookline-client"
_SYSTEM: Final = {"messaging.system": "hookline"}
_HEADER = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})", re.ASCII)


def current_traceparent() -> str | None:
    """Return the `traceparent` of the current span; None if there is none.

    For events that are sent on a stream with events of other callers.
    """
    if not HAS_OPENTELEMETRY:
        return None
    context = _otel.get_current_span().get_span_context()
    if not context.is_valid:
        return None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"


@contextmanager
def publishing(tenant: str, count: int) -> Iterator[str | None]:
    """Run the block in a PRODUCER span for `count` events; yields its `traceparent`."""
    if not HAS_OPENTELEMETRY:
        yield None
        return
    attributes: dict[str, str | int] = {
        **_SYSTEM,
        "messaging.operation.name": "publish",
        "messaging.operation.type": "send",
        "messaging.destination.name": tenant,
        "messaging.batch.message_count": count,
    }
    with _spanning("publish", _otel.SpanKind.PRODUCER, attributes):
        yield current_traceparent()


@contextmanager
def continuing(traceparent: str, message_id: str, name: str) -> Iterator[None]:
    """Run the block in a CONSUMER span that continues the trace of a request."""
    if not HAS_OPENTELEMETRY:
        yield
        return
    attributes = {
        **_SYSTEM,
        "messaging.operation.name": name,
        "messaging.operation.type": "process",
        "messaging.message.id": message_id,
    }
    with _spanning(name, _otel.SpanKind.CONSUMER, attributes, traceparent):
        yield


@contextmanager
def _spanning(
    name: str,
    kind: _otel.SpanKind,
    attributes: Mapping[str, str | int],
    traceparent: str | None = None,
) -> Iterator[None]:
    context = None if traceparent is None else _otel.set_span_in_context(_remote(traceparent))
    span = _otel.get_tracer(_SCOPE).start_span(name, context, kind, attributes)
    with _otel.use_span(
        span, end_on_exit=True, record_exception=False, set_status_on_exception=False
    ):
        try:
            yield
        except BaseException as error:
            # Only the class: the text can contain data of the event.
            span.set_attribute("error.type", type(error).__name__)
            span.set_status(_otel.StatusCode.ERROR)
            raise


def _remote(traceparent: str) -> _otel.Span:
    found = _HEADER.fullmatch(traceparent.strip())
    if found is None:
        return _otel.INVALID_SPAN
    trace_id, span_id, flags = (int(part, 16) for part in found.groups())
    return _otel.NonRecordingSpan(
        _otel.SpanContext(trace_id, span_id, is_remote=True, trace_flags=_otel.TraceFlags(flags))
    )
