"""The encoding of spans equals that of OpenTelemetry's exporter."""

import asyncio
import contextvars

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan

from hookline_service.domain.attempt import AttemptOutcome, AttemptRecord
from hookline_service.domain.event import NewEvent
from hookline_service.telemetry.context import pack
from hookline_service.telemetry.otlp import encode
from tests.telemetry.spans import CALLER_SPAN, CALLER_TRACE, SAMPLED, Spans, attempt_of

URL = "https://example.com/hooks"


def all_kinds() -> list[ReadableSpan]:
    """Return spans of every kind, with links, errors, and values of each type."""
    spans = Spans()

    def call() -> None:
        spans.tracer.call_began("hookline.v1.EventService/PublishEvents", SAMPLED)
        linked = NewEvent(type="a.b", data=b"{}", traceparent=SAMPLED)
        trace = spans.tracer.publish_began("tenants/acme", [linked])
        assert trace is not None
        done: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        done.cancel()
        trace.settled(done)
        spans.tracer.call_ended("UNAVAILABLE")

    contextvars.copy_context().run(call)
    context = pack(CALLER_TRACE, CALLER_SPAN)
    for number in (1, 2, 1):
        trace = attempt_of(spans, context, number)
        trace.answered(
            AttemptRecord(AttemptOutcome.ACCEPTED, 1, URL, http_status=200, remote_address="::1")
        )
        trace.recorded(is_recorded=number == 1)
    attempt_of(spans, context).abandoned()
    return spans.ended()


async def test_encoding_equals_the_one_of_the_exporter() -> None:
    spans = all_kinds()
    assert len(spans) == 10
    assert encode(spans) == encode_spans(spans)
    assert encode(spans[::-1]) == encode_spans(spans[::-1])


async def test_no_spans_are_an_empty_request() -> None:
    assert encode([]) == encode_spans([])
