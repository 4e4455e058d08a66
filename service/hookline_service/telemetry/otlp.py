"""OTLP encoding of spans, optimized for spans with similar attributes.

The exporter's own encoding creates two messages for each attribute, 23 µs per span. Here the
encoded bytes of an attribute are cached, joined and merged into the span; the resource and the
scope, which all spans share, are encoded once. Supports only what the spans of `tracing.py`
contain: no span events, no list attributes, one resource and one scope.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, SpanFlags, Status
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, SpanKind, StatusCode
from opentelemetry.util.types import AttributeValue

_KINDS: Final = {kind: Span.SpanKind.Value(f"SPAN_KIND_{kind.name}") for kind in SpanKind}
_LOCAL: Final = SpanFlags.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK
_REMOTE: Final = _LOCAL | SpanFlags.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK
_STATUSES: Final = {
    code: Status(code=Status.StatusCode.Value(f"STATUS_CODE_{code.name}")) for code in StatusCode
}
_CACHED_ATTRIBUTES: Final = 4_096


class CollectorExporter(OTLPSpanExporter):
    """Sends spans over gRPC; OpenTelemetry's exporter with another encoding."""

    def _translate_data(self, data: Sequence[ReadableSpan]) -> ExportTraceServiceRequest:
        return encode(data)


def encode(spans: Sequence[ReadableSpan]) -> ExportTraceServiceRequest:
    """Return the request for spans of one resource and one scope."""
    request = encode_spans(spans[:1])
    if not spans:
        return request
    scope = request.resource_spans[0].scope_spans[0]
    for span in spans[1:]:
        context, parent = span.context, span.parent
        encoded = scope.spans.add(
            trace_id=context.trace_id.to_bytes(16, "big"),
            span_id=context.span_id.to_bytes(8, "big"),
            parent_span_id=None if parent is None else parent.span_id.to_bytes(8, "big"),
            flags=_LOCAL if parent is None else _flags_of(parent),
            name=span.name,
            kind=_KINDS[span.kind],
            start_time_unix_nano=span.start_time,
            end_time_unix_nano=span.end_time,
            status=_STATUSES[span.status.status_code],
        )
        for link in span.links:
            encoded.links.add(
                trace_id=link.context.trace_id.to_bytes(16, "big"),
                span_id=link.context.span_id.to_bytes(8, "big"),
                flags=_flags_of(link.context),
            )
        attributes = span.attributes or {}
        # Concatenated encodings of a message are its merge (protobuf).
        encoded.MergeFromString(b"".join([_attribute(*pair) for pair in attributes.items()]))
    return request


def _flags_of(context: SpanContext) -> int:
    return _REMOTE if context.is_remote else _LOCAL


# Typed, because a cache treats 1 and True as equal.
@lru_cache(_CACHED_ATTRIBUTES, typed=True)
def _attribute(key: str, value: AttributeValue) -> bytes:
    """Return a span that has only this attribute, encoded."""
    match value:
        case bool():
            encoded = AnyValue(bool_value=value)
        case int():
            encoded = AnyValue(int_value=value)
        case _:
            encoded = AnyValue(string_value=str(value))
    return Span(attributes=[KeyValue(key=key, value=encoded)]).SerializeToString()
