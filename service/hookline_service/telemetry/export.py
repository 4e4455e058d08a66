"""Export of the instruments through the SDK's readers: pushed to a collector, or scraped.

Counters and gauges are observable instruments. Distributions are added to the data that a reader
has collected, as the data points that the SDK's own histograms would produce. Readers collect in
their own threads and read nothing but numbers of the event loop's thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Histogram,
    HistogramDataPoint,
    InMemoryMetricReader,
    Metric,
    MetricReader,
    MetricsData,
    PeriodicExportingMetricReader,
    ResourceMetrics,
    ScopeMetrics,
)
from opentelemetry.sdk.resources import Resource

from hookline_service.telemetry import names
from hookline_service.telemetry.attempts import SCOPE
from hookline_service.telemetry.distribution import Distribution, Series
from hookline_service.telemetry.meters import Meters, Number


def provide_metrics(meters: Meters, resource: Resource, readers: list[MetricReader]) -> None:
    """Register the instruments with the readers; the caller shuts each reader down."""
    provider = MeterProvider(readers, resource, shutdown_on_exit=False)
    meter = provider.get_meter(names.SCOPE, schema_url=names.SCHEMA_URL)
    for counter in meters.counters:
        meter.create_observable_counter(
            counter.name, [_observed(counter)], counter.unit, counter.description
        )
    for gauge in meters.gauges:
        meter.create_observable_gauge(gauge.name, [_observed(gauge)], gauge.unit, gauge.description)
    for reader in readers:
        if isinstance(reader, _WithDistributions):
            reader.bind(meters, resource)


def _observed(number: Number) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observe(_options: CallbackOptions) -> Iterable[Observation]:
        return [Observation(value, dict(labels)) for labels, value in tuple(number.values.items())]

    return observe


class _WithDistributions:
    """Mixin of readers: adds the distributions to the collected metrics."""

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - the reader's own
        super().__init__(*args, **options)
        self._meters: Meters | None = None
        self._resource: Resource | None = None
        self._began_ns = time.time_ns()

    def bind(self, meters: Meters, resource: Resource) -> None:
        """Whose distributions these are."""
        self._meters, self._resource = meters, resource

    def _receive_metrics(
        self,
        metrics_data: MetricsData,
        timeout_millis: float = 10_000,
        **kwargs: Any,  # noqa: ANN401 - the reader's own
    ) -> None:
        super()._receive_metrics(  # type: ignore[misc] # a method of the reader
            self._completed(metrics_data), timeout_millis=timeout_millis, **kwargs
        )

    def _completed(self, data: MetricsData) -> MetricsData:
        if self._meters is None or self._resource is None:
            return data
        now_ns = time.time_ns()
        metrics = [
            metric
            for distribution in self._meters.distributions
            if (metric := _metric_of(distribution, self._began_ns, now_ns)) is not None
        ]
        # Into the scope of all other metrics: exporters keep one entry per resource and scope.
        collected = [
            metric
            for group in data.resource_metrics
            for scope in group.scope_metrics
            for metric in scope.metrics
        ]
        scope = ScopeMetrics(SCOPE, [*collected, *metrics], names.SCHEMA_URL)
        return MetricsData([ResourceMetrics(self._resource, [scope], names.SCHEMA_URL)])


def _metric_of(distribution: Distribution, began_ns: int, now_ns: int) -> Metric | None:
    points = [
        _point_of(series, dict(labels), distribution.bounds, began_ns, now_ns)
        for labels, series in distribution.snapshot().items()
    ]
    if not points:
        return None
    data = Histogram(points, AggregationTemporality.CUMULATIVE)
    return Metric(distribution.name, distribution.description, distribution.unit, data)


def _point_of(
    series: Series, labels: dict[str, str], bounds: Iterable[float], began_ns: int, now_ns: int
) -> HistogramDataPoint:
    return HistogramDataPoint(
        attributes=labels,
        start_time_unix_nano=began_ns,
        time_unix_nano=now_ns,
        count=sum(series.counts),
        sum=series.total,
        bucket_counts=series.counts,
        explicit_bounds=tuple(bounds),
        min=series.minimum,
        max=series.maximum,
    )


class PushingReader(_WithDistributions, PeriodicExportingMetricReader):
    """Pushes to a collector at an interval."""


class ScrapedReader(_WithDistributions, PrometheusMetricReader):
    """Serves Prometheus."""


class KeptReader(_WithDistributions, InMemoryMetricReader):
    """Keeps the collected metrics in memory, for tests."""
