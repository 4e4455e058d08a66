"""The environment variables of OpenTelemetry: parsing, and values that are rejected."""

import pytest

from hookline_service.config.otel import VARIABLES, read_telemetry
from hookline_service.telemetry.sampling import Sampling
from hookline_service.telemetry.settings import Exporter, TelemetrySettings
from tests.docs.pages import page

ENDPOINT = "http://collector:4317"


def read(**environ: str) -> TelemetrySettings:
    problems: list[str] = []
    settings = read_telemetry(environ, problems)
    assert problems == []
    return settings


def test_nothing_is_exported_without_an_endpoint() -> None:
    settings = read()
    assert settings.traces is Exporter.NONE
    assert settings.metrics is Exporter.NONE
    assert settings.prometheus.host == ""


def test_endpoint_of_a_signal_overrides_the_common_endpoint() -> None:
    both = read(OTEL_EXPORTER_OTLP_ENDPOINT=ENDPOINT)
    assert (both.traces, both.metrics) == (Exporter.OTLP, Exporter.OTLP)
    assert both.traces_endpoint == both.metrics_endpoint == ENDPOINT
    one = read(OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=ENDPOINT)
    assert (one.traces, one.metrics) == (Exporter.OTLP, Exporter.NONE)
    none = read(OTEL_EXPORTER_OTLP_ENDPOINT=ENDPOINT, OTEL_METRICS_EXPORTER="none")
    assert (none.traces, none.metrics) == (Exporter.OTLP, Exporter.NONE)
    usual = read(OTEL_TRACES_EXPORTER="otlp")
    assert usual.traces_endpoint == "http://localhost:4317"


def test_telemetry_can_be_turned_off() -> None:
    off = read(OTEL_EXPORTER_OTLP_ENDPOINT=ENDPOINT, OTEL_SDK_DISABLED="true")
    assert off == TelemetrySettings()


@pytest.mark.parametrize(
    "sampler, ratio, follows",
    [
        ("always_on", 1.0, False),
        ("always_off", 0.0, False),
        ("traceidratio", 0.25, False),
        ("parentbased_always_on", 1.0, True),
        ("parentbased_always_off", 0.0, True),
        ("parentbased_traceidratio", 0.25, True),
    ],
)
def test_samplers_of_opentelemetry_are_supported(
    sampler: str, ratio: float, *, follows: bool
) -> None:
    settings = read(OTEL_TRACES_SAMPLER=sampler, OTEL_TRACES_SAMPLER_ARG="0.25")
    assert settings.sampling == Sampling(ratio, follows_parent=follows)


@pytest.mark.parametrize(
    "name, value",
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
        ("OTEL_TRACES_EXPORTER", "zipkin"),
        ("OTEL_METRICS_EXPORTER", "console"),
        ("OTEL_TRACES_SAMPLER", "jaeger_remote"),
        ("OTEL_TRACES_SAMPLER_ARG", "1.5"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "2049"),
        ("OTEL_BSP_SCHEDULE_DELAY", "soon"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "-1"),
    ],
)
def test_unsupported_value_is_rejected_with_the_variable_name(name: str, value: str) -> None:
    problems: list[str] = []
    read_telemetry({name: value}, problems)
    assert len(problems) == 1
    assert problems[0].startswith(f'{name} is "{value}": ')


def test_every_variable_read_is_documented() -> None:
    rows = page("docs/observability.md").table("Settings")
    documented = {name.strip(" `") for row in rows for name in row[0].split(",")}
    assert documented == set(VARIABLES)
