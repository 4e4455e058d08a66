"""Spans: parents, links, statuses, and that unsampled traces create none."""

import asyncio
import contextvars
from collections.abc import Callable

import pytest
from opentelemetry.context import Context
from opentelemetry.sdk.trace import Span, SpanProcessor, TracerProvider
from opentelemetry.trace import SpanKind

from hookline_service.domain.attempt import AttemptOutcome, AttemptRecord
from hookline_service.domain.errors import NotFoundError, Reason
from hookline_service.domain.event import NewEvent
from hookline_service.telemetry.context import (
    current_ids,
    current_trace_id,
    pack,
    parse_traceparent,
)
from hookline_service.telemetry.sampling import Sampling
from hookline_service.telemetry.tracing import Tracer
from tests.telemetry.spans import (
    CALLER_SPAN,
    CALLER_TRACE,
    DELIVERY,
    SAMPLED,
    UNSAMPLED,
    Spans,
    attempt_of,
    context_of,
    is_error,
    parent_of,
)

METHOD = "hookline.v1.EventService/PublishEvents"
URL = "https://user:secret@example.com:8443/hooks/token?key=value#part"
OTHER = f"00-{'1' * 32}-{'2' * 16}-01"


def event(traceparent: str = "") -> NewEvent:
    return NewEvent(type="a.b", data=b"{}", traceparent=traceparent)


def alone(test: Callable[[], None]) -> None:
    """Run a test that changes the context in its own context."""
    contextvars.copy_context().run(test)


def test_call_continues_the_trace_of_its_caller() -> None:
    spans = Spans()

    def call() -> None:
        spans.tracer.call_began(METHOD, SAMPLED)
        assert current_trace_id() == f"{CALLER_TRACE:032x}"
        spans.tracer.call_ended("OK")
        assert current_trace_id() == ""

    alone(call)
    span = spans.one(METHOD)
    assert span.kind is SpanKind.SERVER
    assert context_of(span).trace_id == CALLER_TRACE
    assert parent_of(span) == CALLER_SPAN
    assert span.attributes == {
        "rpc.system.name": "grpc",
        "rpc.method": METHOD,
        "rpc.response.status_code": "OK",
    }


@pytest.mark.parametrize(
    "code, failed",
    [
        ("OK", False),
        ("CANCELLED", False),
        ("INVALID_ARGUMENT", False),
        ("NOT_FOUND", False),
        ("RESOURCE_EXHAUSTED", False),
        ("UNKNOWN", True),
        ("DEADLINE_EXCEEDED", True),
        ("UNIMPLEMENTED", True),
        ("INTERNAL", True),
        ("UNAVAILABLE", True),
        ("DATA_LOSS", True),
    ],
)
def test_server_span_is_an_error_only_for_faults_of_the_service(code: str, *, failed: bool) -> None:
    spans = Spans()

    def call() -> None:
        spans.tracer.call_began(METHOD, None)
        spans.tracer.call_ended(code)

    alone(call)
    span = spans.one(METHOD)
    assert is_error(span) is failed
    assert span.attributes is not None
    assert span.attributes.get("error.type") == (code if failed else None)


@pytest.mark.parametrize(
    "sampling, traceparent",
    [
        (Sampling(), UNSAMPLED),
        (Sampling(0.0), None),
        (Sampling(0.0, follows_parent=False), SAMPLED),
    ],
    ids=["the caller does not", "none that begin here", "never"],
)
def test_unsampled_trace_creates_no_span(sampling: Sampling, traceparent: str | None) -> None:
    class Never(SpanProcessor):
        def on_start(self, span: Span, parent_context: Context | None = None) -> None:  # noqa: ARG002
            raise AssertionError(f"a span, {span.name}")

    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(Never())
    tracer = Tracer(provider, sampling)

    def call() -> None:
        tracer.call_began(METHOD, traceparent)
        assert current_ids() is None
        assert tracer.publish_began("tenants/acme", [event(), event(UNSAMPLED)]) is None
        tracer.call_ended("OK")

    alone(call)


def test_ratio_sampler_keeps_the_same_traces_everywhere() -> None:
    sampling = Sampling(0.5, follows_parent=False)
    low = parse_traceparent(f"00-{1:032x}-{1:016x}-00")
    high = parse_traceparent(f"00-{(1 << 128) - 1:032x}-{1:016x}-01")
    assert sampling.is_sampled(low, lambda: 1.0)
    assert not sampling.is_sampled(high, lambda: 0.0)
    assert Sampling(0.5).is_sampled(None, lambda: 0.49)
    assert not Sampling(0.5).is_sampled(None, lambda: 0.5)


async def test_publish_span_is_a_child_of_the_call_and_stored_with_events() -> None:
    spans = Spans()
    spans.tracer.call_began(METHOD, SAMPLED)
    trace = spans.tracer.publish_began("tenants/acme", [event(), event()])
    assert trace is not None
    done = asyncio.get_running_loop().create_future()
    done.add_done_callback(trace.settled)
    done.set_result([])
    await done
    await asyncio.sleep(0)
    spans.tracer.call_ended("OK")

    publish, call = spans.one("publish"), spans.one(METHOD)
    assert publish.kind is SpanKind.PRODUCER
    assert parent_of(publish) == context_of(call).span_id
    context = context_of(publish)
    assert trace.contexts == [pack(context.trace_id, context.span_id, context.trace_flags)] * 2
    assert publish.attributes is not None
    assert publish.attributes["messaging.batch.message_count"] == 2
    assert publish.attributes["messaging.destination.name"] == "tenants/acme"
    assert not is_error(publish)


@pytest.mark.parametrize("how", ["refused", "cancelled"])
async def test_failed_publish_span_is_an_error(how: str) -> None:
    spans = Spans()
    spans.tracer.call_began(METHOD, SAMPLED)
    trace = spans.tracer.publish_began("tenants/acme", [event()])
    assert trace is not None
    done: asyncio.Future[object] = asyncio.get_running_loop().create_future()
    if how == "refused":
        done.set_exception(NotFoundError("there is no such tenant", Reason.TENANT_NOT_FOUND))
    else:
        done.cancel()
    trace.settled(done)
    span = spans.one("publish")
    assert is_error(span)
    assert span.attributes is not None
    assert span.attributes["error.type"] == (
        "TENANT_NOT_FOUND" if how == "refused" else "cancelled"
    )


async def test_event_with_a_traceparent_belongs_to_that_trace() -> None:
    spans = Spans()
    spans.tracer.call_began(METHOD, SAMPLED)
    unsampled = OTHER.removesuffix("01") + "00"
    trace = spans.tracer.publish_began(
        "tenants/acme", [event(OTHER), event(), event(unsampled), event("nonsense")]
    )
    assert trace is not None
    other = parse_traceparent(OTHER)
    assert other is not None
    own, of_the_call, third, fourth = trace.contexts
    assert own == pack(*other)
    assert of_the_call is not None
    assert of_the_call[:16] == CALLER_TRACE.to_bytes(16, "big")
    assert third is None
    assert fourth is None
    trace.settled(_done())
    (link,) = spans.one("publish").links
    assert link.context.trace_id == other.trace_id


def _done() -> asyncio.Future[object]:
    done: asyncio.Future[object] = asyncio.get_running_loop().create_future()
    done.set_result(None)
    return done


async def test_traceparent_of_an_event_is_used_in_an_unsampled_call() -> None:
    spans = Spans(Sampling(0.0))
    spans.tracer.call_began(METHOD, None)
    trace = spans.tracer.publish_began("tenants/acme", [event(OTHER), event()])
    assert trace is not None
    assert [context is not None for context in trace.contexts] == [True, False]
    trace.settled(_done())
    assert spans.ended() == []


def test_first_attempt_is_in_the_trace_of_the_event_and_retries_link_to_it() -> None:
    spans = Spans()
    context = pack(CALLER_TRACE, CALLER_SPAN)
    for number in (1, 3):
        trace = attempt_of(spans, context, number)
        trace.answered(AttemptRecord(AttemptOutcome.ACCEPTED, 1, URL, http_status=204))
        trace.recorded(is_recorded=True)

    first, later = [span for span in spans.ended() if span.name == "deliver"]
    assert parent_of(first) == CALLER_SPAN
    assert context_of(first).trace_id == CALLER_TRACE
    assert first.links == ()
    assert later.parent is None
    assert context_of(later).trace_id != CALLER_TRACE
    (link,) = later.links
    assert (link.context.trace_id, link.context.span_id) == (CALLER_TRACE, CALLER_SPAN)
    posts = [span for span in spans.ended() if span.name == "POST"]
    assert [parent_of(span) for span in posts] == [
        context_of(first).span_id,
        context_of(later).span_id,
    ]
    assert [(span.attributes or {}).get("http.request.resend_count") for span in posts] == [None, 2]
    assert first.kind is SpanKind.CONSUMER
    assert posts[0].kind is SpanKind.CLIENT


def test_traceparent_sent_names_the_request_span() -> None:
    spans = Spans()
    trace = attempt_of(spans, pack(CALLER_TRACE, CALLER_SPAN))
    trace.answered(AttemptRecord(AttemptOutcome.ACCEPTED, 1, URL, http_status=200))
    trace.recorded(is_recorded=True)
    post = context_of(spans.one("POST"))
    parent = parse_traceparent(trace.traceparent)
    assert parent is not None
    assert (parent.trace_id, parent.span_id) == (CALLER_TRACE, post.span_id)
    assert parent.is_sampled


@pytest.mark.parametrize(
    "outcome, error_type",
    [
        (AttemptRecord(AttemptOutcome.ACCEPTED, 1, URL, http_status=200), None),
        (AttemptRecord(AttemptOutcome.HTTP_ERROR, 1, URL, http_status=302), None),
        (AttemptRecord(AttemptOutcome.HTTP_ERROR, 1, URL, http_status=503), "503"),
        (AttemptRecord(AttemptOutcome.TIMEOUT, 1, URL), "TIMEOUT"),
        (AttemptRecord(AttemptOutcome.INTERNAL_ERROR, 0), "INTERNAL_ERROR"),
    ],
)
def test_request_span_has_the_status_or_the_kind_of_failure(
    outcome: AttemptRecord, error_type: str | None
) -> None:
    spans = Spans()
    trace = attempt_of(spans, pack(CALLER_TRACE, CALLER_SPAN))
    trace.answered(outcome)
    trace.recorded(is_recorded=True)
    post, deliver = spans.one("POST"), spans.one("deliver")
    assert post.attributes is not None
    assert deliver.attributes is not None
    assert post.attributes.get("error.type") == error_type
    assert is_error(post) is (error_type is not None)
    assert is_error(deliver) is (outcome.kind is not AttemptOutcome.ACCEPTED)
    assert deliver.attributes["hookline.attempt.outcome"] == outcome.kind.value
    assert post.attributes.get("server.port") == (8443 if outcome.url else None)


def test_spans_contain_only_scheme_host_and_port_of_a_url() -> None:
    spans = Spans()
    trace = attempt_of(spans, pack(CALLER_TRACE, CALLER_SPAN))
    trace.answered(
        AttemptRecord(
            AttemptOutcome.HTTP_ERROR, 1, URL, 500, "no", b"body", remote_address="192.0.2.1"
        )
    )
    trace.recorded(is_recorded=True)
    post = spans.one("POST")
    assert post.attributes == {
        "http.request.method": "POST",
        "url.scheme": "https",
        "server.address": "example.com",
        "server.port": 8443,
        "network.peer.address": "192.0.2.1",
        "http.response.status_code": 500,
        "error.type": "500",
    }
    exported = "".join(span.to_json() for span in spans.ended())
    for hidden in ("token", "key=value", "secret", "part", "body"):
        assert hidden not in exported


def test_cancelled_attempt_ends_both_spans() -> None:
    spans = Spans()
    attempt_of(spans, pack(CALLER_TRACE, CALLER_SPAN)).abandoned()
    assert [is_error(span) for span in spans.ended()] == [True, True]


def test_span_shows_a_record_that_matched_no_row() -> None:
    spans = Spans()
    trace = attempt_of(spans, pack(CALLER_TRACE, CALLER_SPAN))
    trace.answered(AttemptRecord(AttemptOutcome.ACCEPTED, 1, URL, http_status=200))
    trace.recorded(is_recorded=False)
    assert (spans.one("deliver").attributes or {})["hookline.attempt.recorded"] is False


def test_tracer_that_is_off_creates_nothing() -> None:
    tracer = Tracer()
    tracer.call_began(METHOD, SAMPLED)
    assert current_trace_id() == ""
    assert tracer.publish_began("tenants/acme", [event(OTHER)]) is None
    assert tracer.current_context() is None
    context = pack(CALLER_TRACE, CALLER_SPAN)
    assert (
        tracer.attempt_began(context, number=1, event="e", delivery_id=DELIVERY, subscription="s")
        is None
    )
