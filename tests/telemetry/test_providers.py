"""Telemetry of one process: its exporters, the scraped port of each worker, and its end."""

import asyncio
import socket
import urllib.request

import pytest

from hookline_service.telemetry.providers import Telemetry, TelemetryError
from hookline_service.telemetry.settings import Exporter, PrometheusSettings, TelemetrySettings


def free_ports() -> int:
    """Return a free port whose next one is free as well."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
            try:
                second.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port


async def is_scraped(port: int) -> bool:
    def read() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    return await asyncio.to_thread(read)


async def test_nothing_is_started_by_default() -> None:
    telemetry = Telemetry(TelemetrySettings(), version="0")
    assert not telemetry.tracer.is_on
    assert not telemetry.meters.is_on
    await telemetry.stop()


async def test_each_worker_is_scraped_on_its_own_port() -> None:
    port = free_ports()
    prometheus = PrometheusSettings(host="127.0.0.1", port=port)
    settings = TelemetrySettings(prometheus=prometheus)
    first = Telemetry(settings, version="0", worker=1)
    second = Telemetry(settings, version="0", worker=2)
    await first.start()
    await second.start()
    assert await is_scraped(port)
    assert await is_scraped(port + 1)
    third = Telemetry(settings, version="0", worker=2)
    with pytest.raises(TelemetryError, match="HOOKLINE_PROMETHEUS_LISTEN"):
        await third.start()
    await third.stop()
    await first.stop()
    await second.stop()
    assert not await is_scraped(port)


async def test_console_exporter_prints_spans(capfd: pytest.CaptureFixture[str]) -> None:
    telemetry = Telemetry(TelemetrySettings(traces=Exporter.CONSOLE), version="0")
    telemetry.tracer.call_began("hookline.v1.EventService/GetEvent", None)
    telemetry.tracer.call_ended("OK")
    await telemetry.stop()
    line = capfd.readouterr().err
    assert line.count("\n") == 1
    assert '"rpc.response.status_code": "OK"' in line
