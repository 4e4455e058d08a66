"""Where finished spans wait until a thread has sent them: bounded, and never in anybody's way.

A collector that is down, slow or refuses costs a counter: the queue is full, and what comes is not
taken. (The SDK's own processor logs a line for each span that it drops, and at its end waits for
whatever the exporter waits for.) One daemon thread sends; a stop waits for it as long as it is told
to and no longer.
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
    """The queue of one exporter, and the thread that empties it."""

    def __init__(
        self, exporter: SpanExporter, *, max_spans: int, batch_spans: int, delay_s: float
    ) -> None:
        """Sends a batch when it has `batch_spans`, or after `delay_s` seconds."""
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
        """Spans that the collector did not take."""
        self.dropped = 0
        """Spans that found the queue full."""
        self._told_dropped = 0
        threading.Thread(target=self._run, name="spans", daemon=True).start()

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Nothing: a span is of interest once it is over."""

    def on_end(self, span: ReadableSpan) -> None:
        """Take a finished span in, if there is room."""
        queue = self._queue
        if len(queue) >= self._max_spans:
            self.dropped += 1
            return
        queue.append(span)
        if len(queue) >= self._batch_spans and not self._has_batch.is_set():
            self._has_batch.set()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Nobody here asks for it; the thread sends what there is soon enough."""
        del timeout_millis
        return True

    def shutdown(self) -> None:
        """Send what is left, then end; `wait` tells when that is done."""
        self._is_stopping = True
        self._has_batch.set()

    def wait(self, timeout_s: float) -> bool:
        """Whether all was sent within the time; the exporter is closed in either case."""
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
            self._tell_dropped()

    def _tell_dropped(self) -> None:
        """Of all that were dropped since the last time, in one line."""
        dropped = self.dropped - self._told_dropped
        if dropped:
            self._told_dropped += dropped
            _log.warning("spans_dropped", count=dropped)

    def _send(self, batch: list[ReadableSpan]) -> None:
        try:
            is_sent = self._exporter.export(batch) is SpanExportResult.SUCCESS
        except Exception as error:  # noqa: BLE001 - whatever it is, deliveries go on without it
            is_sent = False
            _log.debug("spans_unexportable", error=str(error))
        if is_sent:
            self.sent += len(batch)
        else:
            self.refused += len(batch)
        if is_sent is self._was_refused:  # it turned
            self._was_refused = not is_sent
            if is_sent:
                _log.info("spans_sent_again")
            else:
                _log.warning("spans_not_sent", count=len(batch))
