"""Telemetry of one process: created when a node starts, after any fork, and ended in its shutdown.

By default nothing is exported; `OTEL_*` and `HOOKLINE_PROMETHEUS_LISTEN` turn exporters on. This
module owns the exporters, their threads and the scraped port. Errors that an exporter logs itself
are suppressed: `Outbox` and `_MetricExporter` log the beginning and the end of a failure.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import uuid
from contextlib import suppress
from typing import Any, Final

import structlog
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics.export import MetricExportResult, MetricReader, MetricsData
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from prometheus_client import CollectorRegistry

from hookline_service.telemetry.export import PushingReader, ScrapedReader, provide_metrics
from hookline_service.telemetry.meters import Meters
from hookline_service.telemetry.otlp import CollectorExporter
from hookline_service.telemetry.outbox import Outbox
from hookline_service.telemetry.scrape_server import ScrapeServer
from hookline_service.telemetry.settings import Exporter, TelemetrySettings
from hookline_service.telemetry.tracing import Tracer

_log = structlog.get_logger(__name__)

FLUSH_S: Final = 3.0
"""The longest that a shutdown waits for a collector to accept the rest, in seconds."""


class TelemetryError(Exception):
    """Telemetry cannot be started; the text names the cause and the setting."""


class Telemetry:
    """The tracer, the meters and the exporters of one process."""

    def __init__(self, settings: TelemetrySettings, *, version: str, worker: int = 0) -> None:
        """Start the exporters. `worker` counts the processes behind one port from 1; 0: alone.

        Each worker serves Prometheus on its own port, the first one on the configured port.
        """
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        self._settings = settings
        self._outbox: Outbox | None = None
        self._readers: list[MetricReader] = []
        self._scraped: ScrapeServer | None = None
        self._scraped_port = settings.prometheus.port + max(0, worker - 1)
        resource = Resource.create(
            {
                SERVICE_NAME: settings.service_name,
                SERVICE_VERSION: version,
                SERVICE_INSTANCE_ID: str(uuid.uuid4()),
            }
        )
        is_metered = settings.metrics is Exporter.OTLP or bool(settings.prometheus.host)
        self.meters = Meters(is_on=is_metered)
        if is_metered:
            self._start_metrics(resource)
        self.tracer = self._make_tracer(resource)

    async def start(self) -> None:
        """Open the port that Prometheus scrapes, if one is set. Raises `TelemetryError`."""
        if self._scraped is None:
            return
        try:
            await self._scraped.start(self._scraped_port)
        except OSError as error:
            raise TelemetryError(
                f"cannot serve Prometheus on {self._settings.prometheus.host}:"
                f"{self._scraped_port}: {error.strerror or error}; set another address in"
                " HOOKLINE_PROMETHEUS_LISTEN"
            ) from error

    def _start_metrics(self, resource: Resource) -> None:
        settings = self._settings
        if settings.prometheus.host:
            registry = CollectorRegistry()
            self._readers.append(ScrapedReader(registry=registry))
            self._scraped = ScrapeServer(registry, settings.prometheus)
        if settings.metrics is Exporter.OTLP:
            exporter = _MetricExporter(endpoint=settings.metrics_endpoint)
            interval_ms = settings.metrics_interval_s * 1_000
            self._readers.append(PushingReader(exporter, interval_ms, interval_ms))
        provide_metrics(self.meters, resource, self._readers)

    def _make_tracer(self, resource: Resource) -> Tracer:
        settings = self._settings
        exporter: SpanExporter
        if settings.traces is Exporter.OTLP:
            exporter = CollectorExporter(endpoint=settings.traces_endpoint)
        elif settings.traces is Exporter.CONSOLE:
            exporter = ConsoleSpanExporter(out=sys.stderr, formatter=_line_of)
        else:
            return Tracer()
        # Unsampled spans are not created, so the SDK samples all.
        provider = TracerProvider(ALWAYS_ON, resource, shutdown_on_exit=False)
        self._outbox = Outbox(
            exporter,
            max_spans=settings.max_spans,
            batch_spans=settings.batch_spans,
            delay_s=settings.delay_s,
        )
        provider.add_span_processor(self._outbox)
        return Tracer(provider, settings.sampling)

    def count_spans(self) -> None:
        """Copy the counters of spans from the queue to the meters."""
        outbox = self._outbox
        if outbox is not None:
            for result in ("sent", "refused", "dropped"):
                labels = (("hookline.span.result", result),)
                self.meters.spans.set(getattr(outbox, result), labels)

    async def stop(self, timeout_s: float = FLUSH_S) -> None:
        """Export the rest for at most `timeout_s`, then end; ignores errors of the collector."""
        if self._scraped is not None:
            self._scraped.stop()
        loop = asyncio.get_running_loop()
        is_over = asyncio.Event()

        def end() -> None:
            self._end(time.monotonic() + timeout_s)
            with suppress(RuntimeError):  # after a timeout, the loop may be closed
                loop.call_soon_threadsafe(is_over.set)

        # A daemon thread: the interpreter waits for threads of an executor at its exit.
        threading.Thread(target=end, name="telemetry-stop", daemon=True).start()
        try:
            async with asyncio.timeout(timeout_s + 1):
                await is_over.wait()
        except TimeoutError:
            _log.warning("telemetry_not_flushed")

    def _end(self, ends_at_s: float) -> None:
        outbox = self._outbox
        if outbox is not None:
            outbox.shutdown()
            if not outbox.wait(_left_s(ends_at_s)):
                _log.warning("spans_left_unsent")
        for reader in self._readers:
            reader.shutdown(timeout_millis=_left_s(ends_at_s) * 1_000)


class _MetricExporter(OTLPMetricExporter):
    """Sends metrics, and logs when the collector stops or resumes accepting them."""

    _was_refused = False

    def export(
        self,
        metrics_data: MetricsData,
        timeout_millis: float = 10_000,
        **kwargs: Any,  # noqa: ANN401 - the SDK's own
    ) -> MetricExportResult:
        result = super().export(metrics_data, timeout_millis, **kwargs)
        is_refused = result is not MetricExportResult.SUCCESS
        if is_refused is not self._was_refused:
            self._was_refused = is_refused
            if is_refused:
                _log.warning("metrics_not_sent")
            else:
                _log.info("metrics_sent_again")
        return result


def _left_s(ends_at_s: float) -> float:
    return max(0.0, ends_at_s - time.monotonic())


def _line_of(span: ReadableSpan) -> str:
    return f"{span.to_json(indent=None)}\n"
