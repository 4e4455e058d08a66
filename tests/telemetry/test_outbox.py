"""The queue of finished spans: its bound, its thread, and the timeout of its shutdown."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from structlog.testing import capture_logs

from hookline_service.telemetry.outbox import Outbox
from tests.waiting import until


@dataclass
class Exporter(SpanExporter):
    """Accepts batches while its gate is open; returns the configured result."""

    result: SpanExportResult = SpanExportResult.SUCCESS
    raises: bool = False
    gate: threading.Event = field(default_factory=threading.Event)
    batches: list[int] = field(default_factory=list)
    is_closed: bool = False

    def __post_init__(self) -> None:
        self.gate.set()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.gate.wait()
        self.batches.append(len(spans))
        if self.raises:
            raise ConnectionError
        return self.result

    def shutdown(self) -> None:
        self.is_closed = True
        self.gate.set()


@contextmanager
def outbox(exporter: Exporter, max_spans: int = 100, batch_spans: int = 4) -> Iterator[Outbox]:
    box = Outbox(exporter, max_spans=max_spans, batch_spans=batch_spans, delay_s=0.01)
    yield box
    box.shutdown()
    box.wait(5)


def make(box: Outbox, count: int) -> None:
    """Begin and end a number of spans."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(box)
    for _ in range(count):
        provider.get_tracer("test").start_span("x").end()


async def test_spans_are_exported_in_batches() -> None:
    exporter = Exporter()
    with outbox(exporter) as box:
        make(box, 10)
        await until(lambda: box.sent == 10, "all are sent")
    assert max(exporter.batches) <= 4
    assert (box.dropped, box.refused) == (0, 0)


async def test_spans_beyond_the_queue_are_dropped_and_counted() -> None:
    exporter = Exporter()
    exporter.gate.clear()
    with capture_logs() as logs, outbox(exporter, max_spans=5, batch_spans=5) as box:
        make(box, 20)
        assert box.dropped >= 10, "one batch may be on its way"
        exporter.gate.set()
        await until(lambda: box.sent + box.dropped == 20, "the others are sent")
    counts = [line["count"] for line in logs if line["event"] == "spans_dropped"]
    assert sum(counts) == box.dropped
    assert len(counts) <= 2, "at most one line per batch"


@pytest.mark.parametrize("exporter", [Exporter(SpanExportResult.FAILURE), Exporter(raises=True)])
async def test_refused_spans_are_counted_and_the_thread_continues(exporter: Exporter) -> None:
    with outbox(exporter) as box:
        make(box, 3)
        await until(lambda: box.refused == 3, "they are refused")
        exporter.raises, exporter.result = False, SpanExportResult.SUCCESS
        make(box, 3)
        await until(lambda: box.sent == 3, "the next ones are sent")


def test_shutdown_exports_the_rest_within_its_timeout() -> None:
    exporter = Exporter()
    box = Outbox(exporter, max_spans=10, batch_spans=10, delay_s=60)
    make(box, 3)
    box.shutdown()
    assert box.wait(5)
    assert box.sent == 3
    assert exporter.is_closed

    stuck = Exporter()
    stuck.gate.clear()
    box = Outbox(stuck, max_spans=10, batch_spans=10, delay_s=0.01)
    make(box, 3)
    box.shutdown()
    assert not box.wait(0.05)
    assert stuck.is_closed
