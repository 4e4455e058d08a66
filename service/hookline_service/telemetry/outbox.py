"""A bounded queue of finished spans, exported by a thread.

If a collector is down, slow or refuses spans, the queue fills up and further spans are dropped and
counted. (The SDK's own processor logs a line for each dropped span, and its shutdown waits as long
as the exporter.) One daemon thread exports; a stop waits for it for a bounded time.
"""

from __future__ import annotations

import threading
from collections import deque
from contextlib import suppress

import structlog
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

_log = structlog.get_logger(__name__)


class Outbox(SpanProcessor):
    """The queue of one exporter, and the thread that drains it."""

    def __init__(
        self, exporter: SpanExporter, *, max_spans: int, batch_spans: int, delay_s: float
    ) -> None:
        """Export a batch when it has `batch_spans`, or after `delay_s` seconds."""
        self._exporter = exporter
        self._max_spans = max_spans
        self._batch_spans = batch_spans
        self._delay_s = delay_s
        self._queue: deque[ReadableSpan] = deque()
        self._has_batch = threading.Event()
        self._is_stopping = False
        self._is_done = threading.Event()
        self._was_refused = False
        self.sent = 0
        self.refused = 0
        """Spans that the collector did not accept."""
        self.dropped = 0
        """Spans that found the queue full."""
        self._logged_dropped = 0
        threading.Thread(target=self._run, name="spans", daemon=True).start()

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Do nothing: spans are queued when they end."""

    def on_end(self, span: ReadableSpan) -> None:
        """Queue a finished span; drop it if the queue is full."""
        queue = self._queue
        if len(queue) >= self._max_spans:
            self.dropped += 1
            return
        queue.append(span)
        if len(queue) >= self._batch_spans and not self._has_batch.is_set():
            self._has_batch.set()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Do nothing: the service does not call it, and the thread exports soon."""
        del timeout_millis
        return True

    def shutdown(self) -> None:
        """Begin to export the rest and end; `wait` returns when that is done."""
        self._is_stopping = True
        self._has_batch.set()

    def wait(self, timeout_s: float) -> bool:
        """Wait for the export of the rest; return whether it was in time. Closes the exporter."""
        is_done = self._is_done.wait(timeout_s)
        self._exporter.shutdown()
        return is_done

    def _run(self) -> None:
        while not self._is_stopping:
            self._has_batch.wait(self._delay_s)
            self._has_batch.clear()
            self._send_all()
        self._send_all()
        self._is_done.set()

    def _send_all(self) -> None:
        queue = self._queue
        while queue:
            batch: list[ReadableSpan] = []
            with suppress(IndexError):
                while len(batch) < self._batch_spans:
                    batch.append(queue.popleft())
            self._send(batch)
            self._log_dropped()

    def _log_dropped(self) -> None:
        """Log all spans dropped since the last line, in one line."""
        dropped = self.dropped - self._logged_dropped
        if dropped:
            self._logged_dropped += dropped
            _log.warning("spans_dropped", count=dropped)

    def _send(self, batch: list[ReadableSpan]) -> None:
        try:
            is_sent = self._exporter.export(batch) is SpanExportResult.SUCCESS
        except Exception as error:  # noqa: BLE001 - must not stop the thread
            is_sent = False
            _log.debug("span_export_failed", error=str(error))
        if is_sent:
            self.sent += len(batch)
        else:
            self.refused += len(batch)
        if is_sent is self._was_refused:  # the state changed
            self._was_refused = not is_sent
            if is_sent:
                _log.info("spans_sent_again")
            else:
                _log.warning("spans_not_sent", count=len(batch))
