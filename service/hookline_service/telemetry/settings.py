"""Settings of telemetry; `config/otel.py` reads them. Imports nothing that is slow to import."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from hookline_service.telemetry.sampling import Sampling


class Exporter(StrEnum):
    """The destination of spans or metrics."""

    NONE = "none"
    OTLP = "otlp"
    """A collector, over gRPC."""
    CONSOLE = "console"
    """Standard error, one line of JSON per span."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrometheusSettings:
    """The port that Prometheus scrapes, and its bounds."""

    host: str = ""
    """HOOKLINE_PROMETHEUS_LISTEN; empty: none"""
    port: int = 0
    """The port of the first worker; each further worker uses the next one."""
    max_connections: int = 16
    """HOOKLINE_PROMETHEUS_MAX_CONNECTIONS"""
    max_header_bytes: int = 8_192
    """HOOKLINE_PROMETHEUS_MAX_HEADER_BYTES"""
    timeout_s: float = 10.0
    """HOOKLINE_PROMETHEUS_TIMEOUT_S: from the accepted connection to the last byte of the answer"""
    max_age_s: float = 1.0
    """HOOKLINE_PROMETHEUS_MAX_AGE_S: how long an answer is reused"""


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetrySettings:
    """What is exported, and where. By default nothing."""

    service_name: str = "hookline"
    traces: Exporter = Exporter.NONE
    traces_endpoint: str = ""
    metrics: Exporter = Exporter.NONE
    metrics_endpoint: str = ""
    metrics_interval_s: float = 60.0
    prometheus: PrometheusSettings = field(default_factory=PrometheusSettings)
    sampling: Sampling = field(default_factory=Sampling)
    max_spans: int = 2_048
    """Bound of the queue of finished spans; further ones are dropped and counted."""
    batch_spans: int = 512
    delay_s: float = 5.0
    """The longest wait for a full batch."""
