"""The port that Prometheus scrapes: its answers, and every bound that a peer can reach."""

import asyncio
import gzip
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from structlog.testing import capture_logs

from hookline_service.telemetry.scrape_server import ScrapeServer
from hookline_service.telemetry.settings import PrometheusSettings
from tests.telemetry.test_providers import free_ports
from tests.waiting import until

DEFAULTS = PrometheusSettings(host="127.0.0.1")
GET = b"GET /metrics HTTP/1.1\r\nHost: a\r\n"


class Counted(Collector):
    """A metric that counts its collections."""

    def __init__(self, size: int = 1) -> None:
        self.times = 0
        self._size = size

    def collect(self) -> Iterator[Metric]:
        self.times += 1
        family = GaugeMetricFamily("collected", "How often.", labels=["n"])
        for number in range(self._size):
            family.add_metric([str(number)], self.times)
        yield family


class Broken(Collector):
    """A metric whose collection fails."""

    def collect(self) -> Iterator[Metric]:
        raise RuntimeError("no figure")


@asynccontextmanager
async def serving(
    collector: Collector, settings: PrometheusSettings = DEFAULTS
) -> AsyncIterator[int]:
    """Run a server with one metric; yield its port."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    server, port = ScrapeServer(registry, settings), free_ports()
    await server.start(port)
    try:
        yield port
    finally:
        server.stop()


async def asked(port: int, request: bytes) -> tuple[bytes, bytes]:
    """Send a request; return head and body of the answer, up to the end of the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    try:
        answer = await reader.read()
    except ConnectionResetError:  # closed before the request was read
        answer = b""
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return head, body


async def test_scrape_is_answered_and_the_connection_closed() -> None:
    async with serving(Counted()) as port:
        head, body = await asked(port, GET + b"\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"Connection: close" in head
        assert b'collected{n="0"} ' in body
        head, body = await asked(port, GET + b"Accept-Encoding: gzip\r\n\r\n")
        assert b'collected{n="0"} ' in gzip.decompress(body)
        head, body = await asked(port, GET + b"Accept: application/openmetrics-text\r\n\r\n")
        assert b"application/openmetrics-text" in head
        assert body.endswith(b"# EOF\n")


async def test_request_may_arrive_in_pieces() -> None:
    async with serving(Counted()) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for piece in (GET[:9], GET[9:], b"\r\n"):
            writer.write(piece)
            await asyncio.sleep(0)
        assert (await reader.read()).startswith(b"HTTP/1.1 200 OK\r\n")
        writer.close()


async def test_other_methods_are_rejected() -> None:
    async with serving(Counted()) as port:
        head, body = await asked(port, b"POST /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 405 ")
        assert b"Allow: GET" in head
        assert body == b"only GET is allowed\n"
        head, body = await asked(port, b"HEAD /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (head[:13], body) == (b"HTTP/1.1 405 ", b"")


async def test_malformed_request_is_rejected() -> None:
    async with serving(Counted()) as port:
        head, _ = await asked(port, b"\x16\x03\x01 no HTTP\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 ")


async def test_header_beyond_the_limit_is_rejected_with_the_setting() -> None:
    settings = replace(DEFAULTS, max_header_bytes=1_024)
    async with serving(Counted(), settings) as port:
        for end in (b"", b"\r\n\r\n"):  # an unfinished header, and a complete one
            head, body = await asked(port, GET + b"X: " + b"x" * 1_024 + end)
            assert head.startswith(b"HTTP/1.1 431 ")
            assert b"1024 bytes" in body
            assert b"HOOKLINE_PROMETHEUS_MAX_HEADER_BYTES" in body


async def test_oldest_unfinished_request_is_closed_beyond_the_limit() -> None:
    settings = replace(DEFAULTS, max_connections=2)
    async with serving(Counted(), settings) as port:
        first, _first = await asyncio.open_connection("127.0.0.1", port)
        second, _second = await asyncio.open_connection("127.0.0.1", port)
        head, _ = await asked(port, GET + b"\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert await first.read() == b"", "closed"
        assert not second.at_eof()
        _first.close()
        _second.close()


async def test_unfinished_request_is_closed_after_the_timeout() -> None:
    async with serving(Counted(), replace(DEFAULTS, timeout_s=0.05)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(GET)
        assert await reader.read() == b""
        writer.close()


async def test_unread_answer_is_dropped_after_the_timeout() -> None:
    settings = replace(DEFAULTS, timeout_s=1.0, max_connections=1)
    async with serving(Counted(size=200_000), settings) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1_024)
        writer.write(GET + b"\r\n")

        async def is_refused() -> bool:
            return await asked(port, GET + b"\r\n") == (b"", b"")

        async def is_free() -> bool:
            return not await is_refused()

        await until(is_refused, "it is being answered, and takes the one place")
        await until(is_free, "it is given up")
        writer.close()


async def test_concurrent_requests_share_one_collection() -> None:
    collector = Counted()
    async with serving(collector, replace(DEFAULTS, max_age_s=60.0)) as port:
        before = collector.times
        answers = await asyncio.gather(*(asked(port, GET + b"\r\n") for _ in range(10)))
        assert {head[:12] for head, _ in answers} == {b"HTTP/1.1 200"}
        assert collector.times == before + 1
    async with serving(collector, replace(DEFAULTS, max_age_s=0.0)) as port:
        before = collector.times
        await asked(port, GET + b"\r\n")
        await asked(port, GET + b"\r\n")
        assert collector.times == before + 2


async def test_failed_collection_is_logged_and_not_revealed() -> None:
    with capture_logs() as logs:
        async with serving(Broken()) as port:
            head, body = await asked(port, GET + b"\r\n")
    assert head.startswith(b"HTTP/1.1 500 ")
    assert b"figure" not in body
    assert [line["event"] for line in logs] == ["scrape_broken"]
