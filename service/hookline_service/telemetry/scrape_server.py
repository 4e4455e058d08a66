"""The HTTP port that Prometheus scrapes, on the node's event loop, with a bound on every resource.

Theory of operation. A connection serves one request: h11 parses the header, the answer is written,
the connection is closed. One timer bounds all of it, from the accepted connection to the last byte
read by the peer. If there are too many connections, the oldest without a complete request is
closed, so that unfinished requests neither exhaust descriptors nor block Prometheus.

Metrics are collected in one thread, one collection at a time, and an answer is reused while it is
younger than `max_age_s`, so that the CPU cost is bounded for any number of requests.
docs/adr/0027-a-bounded-scrape-server.md compares the servers that were considered.
"""

from __future__ import annotations

import asyncio
import gzip
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Final, NamedTuple, cast

import h11
import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder, gzip_accepted

from hookline_service.telemetry.settings import PrometheusSettings

_log = structlog.get_logger(__name__)

_BACKLOG: Final = 64
"""Connections that the kernel queues until they are accepted."""


class _Answer(NamedTuple):
    status: HTTPStatus
    headers: Sequence[tuple[str, str]]
    body: bytes


def _text(status: HTTPStatus, text: str, *headers: tuple[str, str]) -> _Answer:
    content_type = ("Content-Type", "text/plain; charset=utf-8")
    return _Answer(status, [content_type, *headers], f"{text}\n".encode())


class ScrapeServer:
    """Serves GET with the metrics of a registry, within the bounds of its settings."""

    def __init__(self, registry: CollectorRegistry, settings: PrometheusSettings) -> None:
        self.settings = settings
        self._registry = registry
        self._server: asyncio.Server | None = None
        self._connections: dict[_Connection, None] = {}
        """Open connections, oldest first."""
        self._collecting = ThreadPoolExecutor(1, "scrape")
        self._collected: dict[tuple[str, bool], tuple[float, _Answer]] = {}
        """By content type and compression: the time of the collection, and the answer."""

    async def start(self, port: int) -> None:
        """Listen on the settings' host. Raises `OSError`."""
        self._server = await asyncio.get_running_loop().create_server(
            lambda: _Connection(self), self.settings.host, port, backlog=_BACKLOG
        )

    def stop(self) -> None:
        """Close the port and every connection."""
        if self._server is not None:
            self._server.close()
        for connection in tuple(self._connections):
            connection.abort()
        self._collecting.shutdown(wait=False, cancel_futures=True)

    def admit(self, connection: _Connection) -> None:
        """Count a new connection; beyond the bound the oldest without a request is closed.

        That is the new one itself where all others are being answered.
        """
        self._connections[connection] = None
        if len(self._connections) > self.settings.max_connections:
            next(one for one in self._connections if not one.has_request).abort()

    def forget(self, connection: _Connection) -> None:
        """Stop counting a connection that is closed."""
        self._connections.pop(connection, None)

    async def answer(self, request: h11.Request) -> _Answer:
        """Return the answer to a request; a failed collection is logged and answered with 500."""
        if request.method != b"GET":
            status = HTTPStatus.METHOD_NOT_ALLOWED
            return _text(status, "only GET is allowed", ("Allow", "GET"))
        headers = {name: value.decode("latin-1") for name, value in request.headers}
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(
                self._collecting,
                self._collect,
                headers.get(b"accept", ""),
                headers.get(b"accept-encoding", ""),
            )
        except Exception:  # noqa: BLE001 - answered with 500
            _log.exception("scrape_broken")
            return _text(HTTPStatus.INTERNAL_SERVER_ERROR, "collection failed; see the log")

    def _collect(self, accept: str, accept_encoding: str) -> _Answer:
        """Collect and encode the metrics, or reuse a recent answer. Runs in the one thread."""
        encode, content_type = choose_encoder(accept)
        is_zipped = gzip_accepted(accept_encoding)
        key = (content_type, is_zipped)
        collected_s, answer = self._collected.get(key, (-float("inf"), None))
        if answer is not None and time.monotonic() - collected_s < self.settings.max_age_s:
            return answer
        body = encode(self._registry)
        headers = [("Content-Type", content_type)]
        if is_zipped:
            body = gzip.compress(body, compresslevel=1)
            headers.append(("Content-Encoding", "gzip"))
        answer = _Answer(HTTPStatus.OK, headers, body)
        self._collected[key] = (time.monotonic(), answer)
        return answer


class _Connection(asyncio.Protocol):
    """One connection with one request and one answer."""

    def __init__(self, server: ScrapeServer) -> None:
        self.has_request = False
        self._server = server
        self._left_bytes = server.settings.max_header_bytes + 1
        self._http = h11.Connection(
            h11.SERVER, max_incomplete_event_size=server.settings.max_header_bytes
        )
        self._transport: asyncio.Transport | None = None
        self._timeout: asyncio.TimerHandle | None = None
        self._answering: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        loop = asyncio.get_running_loop()
        self._timeout = loop.call_later(self._server.settings.timeout_s, self.abort)
        self._server.admit(self)

    def data_received(self, data: bytes) -> None:
        if self.has_request:
            return
        # At most one byte beyond the bound, because h11 only measures incomplete headers.
        data = data[: self._left_bytes]
        self._left_bytes -= len(data)
        try:
            self._http.receive_data(data)
            event = self._http.next_event()
        except h11.RemoteProtocolError as error:
            self.has_request = True
            self._send(self._refusal(error), is_head=False)
            return
        if isinstance(event, h11.Request):
            self.has_request = True
            if self._transport is not None:
                self._transport.pause_reading()
            self._answering = asyncio.create_task(self._answer(event))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's name
        self._server.forget(self)
        if self._timeout is not None:
            self._timeout.cancel()
        if self._answering is not None:
            self._answering.cancel()

    def abort(self) -> None:
        """Close the connection at once and drop unwritten data."""
        self._server.forget(self)
        if self._transport is not None:
            self._transport.abort()

    async def _answer(self, request: h11.Request) -> None:
        self._send(await self._server.answer(request), is_head=request.method == b"HEAD")

    def _refusal(self, error: h11.RemoteProtocolError) -> _Answer:
        status = HTTPStatus(error.error_status_hint)
        if status is HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE:
            limit = self._server.settings.max_header_bytes
            return _text(
                status,
                f"the request header is larger than {limit} bytes; the limit is"
                " HOOKLINE_PROMETHEUS_MAX_HEADER_BYTES",
            )
        return _text(status, "not a valid HTTP/1.1 request")

    def _send(self, answer: _Answer, *, is_head: bool) -> None:
        """Write an answer; close the connection once it is written."""
        if self._transport is None or self._transport.is_closing():
            return
        headers = [
            *answer.headers,
            ("Content-Length", str(len(answer.body))),
            ("Connection", "close"),
        ]
        head = h11.Response(status_code=answer.status, headers=headers, reason=answer.status.phrase)
        self._transport.write(self._http.send(head) or b"")
        if not is_head:
            self._transport.write(answer.body)
        self._transport.close()
