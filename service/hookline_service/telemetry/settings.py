"""What can be set of telemetry; `config/otel.py` reads it. Imports nothing that is slow."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from hookline_service.telemetry.sampling import Sampling


class Exporter(StrEnum):
    """Where spans or metrics go."""

    NONE = "none"
    OTLP = "otlp"
    """To a collector, over gRPC."""
    CONSOLE = "console"
    """To standard error, a line of JSON each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrometheusSettings:
    """The port that Prometheus scrapes, and its bounds."""

    host: str = ""
    """HOOKLINE_PROMETHEUS_LISTEN; empty: none"""
    port: int = 0
    """The first worker's; each further one has the next port."""
    max_connections: int = 16
    """HOOKLINE_PROMETHEUS_MAX_CONNECTIONS"""
    max_header_bytes: int = 8_192
    """HOOKLINE_PROMETHEUS_MAX_HEADER_BYTES"""
    timeout_s: float = 10.0
    """HOOKLINE_PROMETHEUS_TIMEOUT_S: from the accepted connection to the last byte of the answer"""
    max_age_s: float = 1.0
    """HOOKLINE_PROMETHEUS_MAX_AGE_S: an answer is reused for so long"""


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetrySettings:
    """What is exported, and where to. By default nothing."""

    service_name: str = "hookline"
    traces: Exporter = Exporter.NONE
    traces_endpoint: str = ""
    metrics: Exporter = Exporter.NONE
    metrics_endpoint: str = ""
    metrics_interval_s: float = 60.0
    prometheus: PrometheusSettings = field(default_factory=PrometheusSettings)
    sampling: Sampling = field(default_factory=Sampling)
    max_spans: int = 2_048
    """Finished spans that wait to be sent; more are dropped, and counted."""
    batch_spans: int = 512
    delay_s: float = 5.0
    """How long a span waits for others."""
