"""The standard variables of OpenTelemetry, as far as they say something here.

Their names, values and defaults are OpenTelemetry's; what is refused is refused like a setting of
ours. `OTEL_EXPORTER_OTLP_*` that only the exporter has to know (headers, certificates, timeout,
compression) it reads by itself. Variables that are not listed here are none of ours to judge.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final, TypeVar
from urllib.parse import urlsplit

from hookline_service.config.reading import ListenAddress, Reader, integer, number, parse_address
from hookline_service.telemetry.sampling import SAMPLERS, sampling_of
from hookline_service.telemetry.settings import Exporter, PrometheusSettings, TelemetrySettings

T = TypeVar("T")

VARIABLES: Final = (
    "OTEL_SDK_DISABLED",
    "OTEL_SERVICE_NAME",
    "OTEL_TRACES_EXPORTER",
    "OTEL_METRICS_EXPORTER",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
    "OTEL_EXPORTER_OTLP_PROTOCOL",
    "OTEL_TRACES_SAMPLER",
    "OTEL_TRACES_SAMPLER_ARG",
    "OTEL_BSP_MAX_QUEUE_SIZE",
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
    "OTEL_BSP_SCHEDULE_DELAY",
    "OTEL_METRIC_EXPORT_INTERVAL",
)
"""What is read here; docs/observability.md has a line for each."""


class _OtelReader:
    """Reads the variables, and keeps what is wrong with them."""

    def __init__(self, environ: Mapping[str, str], problems: list[str]) -> None:
        self._environ = environ
        self._problems = problems

    def __call__(self, name: str, parse: Callable[[str], T], default: T) -> T:
        text = self._environ.get(name, "").strip()
        if not text:
            return default
        try:
            return parse(text)
        except ValueError as error:
            self._problems.append(f'{name} is "{text}": {error}')
            return default


def read_prometheus(read: Reader) -> PrometheusSettings:
    """Read the port that is scraped, and its bounds: settings of ours."""
    default = PrometheusSettings()
    listen = read("PROMETHEUS_LISTEN", parse_address, ListenAddress("", 0))
    return PrometheusSettings(
        host=listen.host,
        port=listen.port,
        max_connections=read(
            "PROMETHEUS_MAX_CONNECTIONS", integer(1, 1_000), default.max_connections
        ),
        max_header_bytes=read(
            "PROMETHEUS_MAX_HEADER_BYTES", integer(1_024, 65_536, "bytes"), default.max_header_bytes
        ),
        timeout_s=read("PROMETHEUS_TIMEOUT_S", number(1, 120, "seconds"), default.timeout_s),
        max_age_s=read("PROMETHEUS_MAX_AGE_S", number(0, 60, "seconds"), default.max_age_s),
    )


def read_telemetry(
    environ: Mapping[str, str],
    problems: list[str],
    prometheus: PrometheusSettings | None = None,
) -> TelemetrySettings:
    """What the environment says of telemetry; adds a sentence for each thing that is wrong."""
    read = _OtelReader(environ, problems)
    read("OTEL_EXPORTER_OTLP_PROTOCOL", _protocol, "grpc")
    common = read("OTEL_EXPORTER_OTLP_ENDPOINT", _endpoint, "")
    traces_endpoint = read("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", _endpoint, common)
    metrics_endpoint = read("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", _endpoint, common)
    usual = Exporter.OTLP
    traces = read(
        "OTEL_TRACES_EXPORTER",
        _exporter(Exporter.OTLP, Exporter.CONSOLE, Exporter.NONE),
        usual if traces_endpoint else Exporter.NONE,
    )
    metrics = read(
        "OTEL_METRICS_EXPORTER",
        _exporter(Exporter.OTLP, Exporter.NONE),
        usual if metrics_endpoint else Exporter.NONE,
    )
    ratio = read("OTEL_TRACES_SAMPLER_ARG", _ratio, 1.0)
    sampler = read("OTEL_TRACES_SAMPLER", _sampler, "parentbased_always_on")
    max_spans = read("OTEL_BSP_MAX_QUEUE_SIZE", integer(1, 1_000_000), 2_048)
    settings = TelemetrySettings(
        service_name=environ.get("OTEL_SERVICE_NAME", "").strip() or "hookline",
        traces=traces,
        traces_endpoint=traces_endpoint or _USUAL_ENDPOINT,
        metrics=metrics,
        metrics_endpoint=metrics_endpoint or _USUAL_ENDPOINT,
        metrics_interval_s=read("OTEL_METRIC_EXPORT_INTERVAL", integer(100, 3_600_000), 60_000)
        / 1_000,
        prometheus=prometheus or PrometheusSettings(),
        sampling=sampling_of(sampler, ratio),
        max_spans=max_spans,
        batch_spans=read(
            "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", integer(1, max_spans), min(512, max_spans)
        ),
        delay_s=read("OTEL_BSP_SCHEDULE_DELAY", integer(10, 600_000), 5_000) / 1_000,
    )
    if read("OTEL_SDK_DISABLED", _boolean, default=False):
        return TelemetrySettings()
    return settings


_USUAL_ENDPOINT: Final = "http://localhost:4317"


def _endpoint(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("must be a URL such as http://localhost:4317")
    return text


def _protocol(text: str) -> str:
    if text != "grpc":
        raise ValueError("this service exports by grpc alone, which collectors take on port 4317")
    return text


def _exporter(*known: Exporter) -> Callable[[str], Exporter]:
    def parse(text: str) -> Exporter:
        if text.lower() not in known:
            raise ValueError(f"must be one of {', '.join(known)}")
        return Exporter(text.lower())

    return parse


def _sampler(text: str) -> str:
    if text not in SAMPLERS:
        raise ValueError(f"must be one of {', '.join(SAMPLERS)}")
    return text


def _ratio(text: str) -> float:
    try:
        ratio = float(text)
    except ValueError:
        ratio = math.nan
    if not 0 <= ratio <= 1:
        raise ValueError("must be a number from 0 to 1")
    return ratio


def _boolean(text: str) -> bool:
    # OpenTelemetry's rule: what is not `true` is false.
    return text.lower() == "true"
