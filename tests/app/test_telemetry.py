"""A node's telemetry: what a collector gets, what Prometheus reads, and what neither may cost."""

import asyncio
import socket
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest
from structlog.testing import capture_logs

from hookline import HooklineClient
from hookline.v1.event_pb2 import Event
from hookline_service.app import StartError
from tests.app.test_node import fetch_one, started, subscribe
from tests.collector import Collector, values_of
from tests.pipeline.rig import Receiver
from tests.waiting import until

TRACE = f"00-{'a' * 32}-{'b' * 16}-01"

EXPECTED = {
    "hookline.events.published",
    "hookline.deliveries.created",
    "hookline.attempts",
    "hookline.deliveries.finished",
    "hookline.deliveries.pending",
    "hookline.deliveries.oldest_age",
    "hookline.deliveries.in_flight",
    "hookline.lanes",
    "hookline.buckets.owned",
    "hookline.buckets.changed",
    "hookline.delivery.latency",
    "hookline.attempt.duration",
    "hookline.publish.batch_size",
    "hookline.record.batch_size",
    "hookline.event_loop.lag",
    "hookline.postgres.oldest_xmin_age",
    "hookline.postgres.unfrozen_age",
    "hookline.telemetry.spans",
    "hookline.upkeep.chores",
    "hookline.audit_log.diverged",
    "rpc.server.call.duration",
    "db.client.operation.duration",
    "db.client.connection.count",
    "http.client.open_connections",
    "process.cpu.time",
}


async def deliver(client: HooklineClient, url: str, database_url: str, count: int = 5) -> None:
    """Publish so many events, and wait until all are delivered and recorded."""
    await subscribe(client, url)
    events = [Event(type="a.b", json_data="{}", traceparent=TRACE)] * count
    await client.publish("default", events)

    async def are_done() -> bool:
        return await fetch_one(database_url, "SELECT count(*) FROM deliveries") == count

    await until(are_done, "all are delivered")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


async def scraped(port: int) -> str:
    def read() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            text: str = answer.read().decode()
            return text

    return await asyncio.to_thread(read)


async def test_collector_receives_every_metric_with_few_labels(database_url: str) -> None:
    async with (
        Collector() as collector,
        Receiver() as target,
        started(database_url, **collector.variables) as (_, client),
    ):
        await deliver(client, target.url, database_url)
        await until(lambda: not EXPECTED - set(collector.metrics), "all metrics have come")

        def published() -> bool:
            points = collector.metrics["hookline.events.published"].sum.data_points
            return [point.as_double or point.as_int for point in points] == [5]

        await until(published, "all five are counted")
        (latency,) = collector.metrics["hookline.delivery.latency"].histogram.data_points
        (attempt,) = collector.metrics["hookline.attempt.duration"].histogram.data_points
        calls = collector.metrics["rpc.server.call.duration"].histogram.data_points
        assert latency.count == attempt.count == sum(latency.bucket_counts) == 5
        assert 0 < attempt.sum < 5 * 20
        assert values_of(attempt.attributes) == {"hookline.attempt.outcome": "ACCEPTED"}
        assert {
            "rpc.system.name": "grpc",
            "rpc.method": "hookline.v1.EventService/PublishEvents",
            "rpc.response.status_code": "OK",
        } in [values_of(point.attributes) for point in calls]
    exported = str(collector.metrics)
    assert "127.0.0.1" not in exported
    assert "tenants/" not in exported


async def test_stopped_node_reports_no_owned_resources(database_url: str) -> None:
    def owned(collector: Collector) -> list[float]:
        if (metric := collector.metrics.get("hookline.buckets.owned")) is None:
            return []
        return [point.as_double or point.as_int for point in metric.gauge.data_points]

    async with Collector() as collector:
        async with started(database_url, **collector.variables):
            await until(lambda: owned(collector) == [256], "it owns all")
        assert owned(collector) == [0]


async def test_prometheus_reads_the_metrics_of_the_collector(database_url: str) -> None:
    port = free_port()
    listen = {"HOOKLINE_PROMETHEUS_LISTEN": f"127.0.0.1:{port}"}
    async with Receiver() as target, started(database_url, **listen) as (_, client):
        await deliver(client, target.url, database_url)
        text = await scraped(port)
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert any(
        line.startswith("hookline_events_published_total{") and line.endswith(" 5.0")
        for line in lines
    )
    assert any(line.startswith("hookline_delivery_latency_seconds_bucket{") for line in lines)
    assert any(
        line.startswith("hookline_attempts_total{")
        and 'hookline_attempt_outcome="ACCEPTED"' in line
        for line in lines
    )
    with pytest.raises(OSError):  # noqa: PT011 - refused, by whatever name
        await scraped(port)


async def test_internal_error_is_counted_and_logged_though_it_is_not_recorded(
    database_url: str,
) -> None:
    port = free_port()
    variables = {
        "HOOKLINE_PROMETHEUS_LISTEN": f"127.0.0.1:{port}",
        "HOOKLINE_EGRESS_PROXY": f"http://127.0.0.1:{free_port()}",
    }
    with capture_logs() as logs:
        async with Receiver() as target, started(database_url, **variables) as (_, client):
            await subscribe(client, target.url)
            (event,) = await client.publish("default", [Event(type="a.b", json_data="{}")])

            async def is_counted() -> bool:
                return 'hookline_attempt_outcome="INTERNAL_ERROR"' in await scraped(port)

            await until(is_counted, "the alert has something to go by")
    entry = next(line for line in logs if line["event"] == "internal_error")
    assert entry["reason"] == "the egress proxy cannot be reached"
    assert event.name.endswith(entry["event_id"])


async def test_used_metrics_port_is_reported_in_a_sentence(database_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartError, match="HOOKLINE_PROMETHEUS_LISTEN"):
            async with started(database_url, HOOKLINE_PROMETHEUS_LISTEN=f"127.0.0.1:{port}"):
                pass


# ------------------------------------------------------------- a collector that is no good


@contextmanager
def silent() -> Iterator[int]:
    """A port that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield server.getsockname()[1]


@asynccontextmanager
async def troubled(how: str) -> AsyncIterator[dict[str, str]]:
    """The settings that lead to a collector which is down, slow, or refuses."""
    if how == "refuses":
        async with Collector(refuses=True) as collector:
            yield collector.variables
        return
    with silent() as port:
        endpoint_port = free_port() if how == "is down" else port
        yield {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{endpoint_port}",
            "OTEL_BSP_SCHEDULE_DELAY": "50",
            "OTEL_BSP_MAX_QUEUE_SIZE": "4",
            "OTEL_METRIC_EXPORT_INTERVAL": "200",
        }


@pytest.mark.parametrize("how", ["is down", "is slow", "refuses"])
async def test_failing_collector_only_increases_a_counter(database_url: str, how: str) -> None:
    port = free_port()
    async with (
        troubled(how) as variables,
        Receiver() as target,
        started(database_url, **variables, HOOKLINE_PROMETHEUS_LISTEN=f"127.0.0.1:{port}") as (
            app,
            client,
        ),
    ):
        await deliver(client, target.url, database_url, count=20)
        assert sum(target.counts.values()) == 20
        lost = "refused" if how == "refuses" else "dropped"

        async def is_counted() -> bool:
            lines = [
                line
                for line in (await scraped(port)).splitlines()
                if line.startswith("hookline_telemetry_spans_total{") and f'"{lost}"' in line
            ]
            return any(float(line.rpartition(" ")[2]) > 0 for line in lines)

        await until(is_counted, f"spans are {lost}")
        began = time.monotonic()
        await app.stop()
        assert time.monotonic() - began < 20, "the stop waits for no collector"
