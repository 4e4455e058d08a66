"""Telemetry of one process: made where a node starts, after any fork; ended within its stop.

Nothing is exported unless somebody said where to (`OTEL_*`, `HOOKLINE_PROMETHEUS_LISTEN`); then
this is what owns the exporters, their threads and the port that is scraped. What an exporter says
of its troubles is kept out of the logs: `Outbox` and `_MetricExporter` tell when they begin and
end.
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
"""What a stop waits at most for a collector to take what is left."""


class TelemetryError(Exception):
    """What was asked for cannot be done; the text says what, and what to do."""


class Telemetry:
    """The tracer and the meters of one process, and what exports them."""

    def __init__(self, settings: TelemetrySettings, *, version: str, worker: int = 0) -> None:
        """Starts the exporters. `worker` counts the processes behind one port from 1; 0: alone.

        Each worker answers Prometheus on a port of its own, the first on the one that was set.
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
        """Open the port that Prometheus scrapes, where one is set. Raises `TelemetryError`."""
        if self._scraped is None:
            return
        try:
            await self._scraped.start(self._scraped_port)
        except OSError as error:
            raise TelemetryError(
                f"cannot answer Prometheus on {self._settings.prometheus.host}:"
                f"{self._scraped_port}: {error.strerror or error}; name another address with"
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
        # What is not sampled never comes as far as the SDK.
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
        """Bring the counters of spans up to date."""
        outbox = self._outbox
        if outbox is not None:
            for fate in ("sent", "refused", "dropped"):
                labels = (("hookline.span.fate", fate),)
                self.meters.spans.set(getattr(outbox, fate), labels)

    async def stop(self, timeout_s: float = FLUSH_S) -> None:
        """Send what is left, for at most so long, and end; never raises for a collector."""
        if self._scraped is not None:
            self._scraped.stop()
        loop = asyncio.get_running_loop()
        is_over = asyncio.Event()

        def end() -> None:
            self._end(time.monotonic() + timeout_s)
            with suppress(RuntimeError):  # nobody waits any more, and the loop is closed
                loop.call_soon_threadsafe(is_over.set)

        # A thread that nobody waits for at the process's end, as an executor's is.
        threading.Thread(target=end, name="telemetry's end", daemon=True).start()
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
    """Sends metrics, and tells when they cease to be taken."""

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
