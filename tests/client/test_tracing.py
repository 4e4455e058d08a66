"""Traces of the client: spans with OpenTelemetry, and none without it."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from hookline import HooklineClient
from hookline.errors import NotFoundError
from hookline.tracing import current_traceparent, publishing
from hookline.webhook import receiving
from tests.client.batches import NEVER_MS, numbered, start
from tests.client.service import Service, refuse

TRACEPARENT = f"00-{'a' * 32}-{'b' * 16}-01"

WITHOUT = """
import sys
sys.modules["opentelemetry"] = None
from hookline.tracing import HAS_OPENTELEMETRY, current_traceparent, publishing
from hookline.webhook import receiving
assert not HAS_OPENTELEMETRY
with publishing("tenants/acme", 1) as traceparent, receiving({"traceparent": "x"}):
    assert traceparent is None
    assert current_traceparent() is None
"""


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """What an application's SDK has got; the process's own stays as it is."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    yield exporter
    provider.shutdown()


def one(spans: InMemorySpanExporter) -> ReadableSpan:
    (span,) = spans.get_finished_spans()
    return span


def test_without_opentelemetry_no_trace_is_created() -> None:
    environ = {"PYTHONPATH": ":".join(sys.path)}
    subprocess.run([sys.executable, "-c", WITHOUT], env=environ, check=True)


def test_publishing_creates_a_span_and_sends_its_context(spans: InMemorySpanExporter) -> None:
    with publishing("tenants/acme", 3) as traceparent:
        assert traceparent == current_traceparent()
    span = one(spans)
    assert span.kind is trace.SpanKind.PRODUCER
    assert span.attributes is not None
    assert span.attributes["messaging.destination.name"] == "tenants/acme"
    assert span.attributes["messaging.batch.message_count"] == 3
    context = span.get_span_context()
    assert context is not None
    assert traceparent is not None
    assert traceparent.split("-")[1:3] == [f"{context.trace_id:032x}", f"{context.span_id:016x}"]
    assert current_traceparent() is None


def test_a_failed_span_contains_only_the_error_class(spans: InMemorySpanExporter) -> None:
    def fail() -> None:
        raise KeyError("a secret")

    with pytest.raises(KeyError), publishing("tenants/acme", 1):
        fail()
    span = one(spans)
    assert span.status.status_code is trace.StatusCode.ERROR
    assert span.attributes is not None
    assert span.attributes["error.type"] == "KeyError"
    assert "a secret" not in span.to_json()


@pytest.mark.parametrize("name", ["traceparent", "Traceparent"])
def test_a_receiver_continues_the_sender_s_trace(spans: InMemorySpanExporter, name: str) -> None:
    with receiving({name: TRACEPARENT, "webhook-id": "evt_1"}, name="orders"):
        assert current_traceparent() is not None
    span = one(spans)
    assert span.kind is trace.SpanKind.CONSUMER
    assert span.parent is not None
    assert f"{span.parent.trace_id:032x}-{span.parent.span_id:016x}" in TRACEPARENT
    assert span.attributes is not None
    assert span.attributes["messaging.message.id"] == "evt_1"


@pytest.mark.parametrize("headers", [{}, {"traceparent": "nonsense"}])
def test_a_request_without_a_trace_starts_a_new_one(
    spans: InMemorySpanExporter, headers: dict[str, str]
) -> None:
    with receiving(headers):
        pass
    assert one(spans).parent is None


async def test_each_event_of_a_batch_keeps_the_trace_of_its_caller(
    spans: InMemorySpanExporter, service: Service, client: HooklineClient
) -> None:
    async with client.batching("acme", max_events=2, max_delay_ms=NEVER_MS) as publisher:
        await asyncio.gather(*start(publisher, range(2)))
    (request,) = service.events.requests
    carried = [event.traceparent.split("-")[1:3] for event in request.events]
    contexts = [span.get_span_context() for span in spans.get_finished_spans()]
    made = [[f"{one.trace_id:032x}", f"{one.span_id:016x}"] for one in contexts if one is not None]
    assert sorted(carried) == sorted(made)
    assert len(made) == 2


async def test_a_call_carries_the_trace_and_an_error_marks_its_span(
    spans: InMemorySpanExporter, service: Service, client: HooklineClient
) -> None:
    service.events.script = [refuse(grpc.StatusCode.NOT_FOUND)]
    with pytest.raises(NotFoundError):
        await client.publish("acme", [numbered(1)])
    span = one(spans)
    context = span.get_span_context()
    assert context is not None
    (metadata,) = service.events.metadata
    assert str(metadata["traceparent"]).split("-")[2] == f"{context.span_id:016x}"
    assert (span.attributes or {})["error.type"] == "NotFoundError"
