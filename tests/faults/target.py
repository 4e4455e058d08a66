"""A target for all subscriptions of a scene: counts requests, answers as configured.

Lean, since it shares the test's event loop with the publishers: one request at a time a connection,
no pipelining, bodies of known length, which is how Hookline sends.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self, cast


@dataclass(frozen=True, slots=True)
class Request:
    """One webhook as it arrived."""

    path: str
    webhook_id: str
    at_s: float
    """By the monotonic clock."""
    connection: Connection

    def answer(self, status: int, body: bytes = b"") -> None:
        """Answer it; nothing happens where its sender is gone."""
        head = f"HTTP/1.1 {status} X\r\ncontent-length: {len(body)}\r\n\r\n"
        self.connection.write(head.encode() + body)


class Target:
    """An HTTP server on a loopback port; `async with` starts and stops it.

    While `is_holding`, requests are held in `held`. `on_request` is called with each
    when it comes, before it is answered.
    """

    def __init__(self) -> None:
        self.host = "127.0.0.1"
        self.is_holding = False
        self.held: list[Request] = []
        self.status: int | Callable[[Request], int] = 200
        self.body = b""
        self.on_request: Callable[[Request], None] = lambda _request: None
        self.counts: Counter[str] = Counter()
        """How often each webhook id came."""
        self.arrivals = 0
        self.last_at_s = 0.0
        self._server: asyncio.Server | None = None
        self._open: set[Connection] = set()

    @property
    def port(self) -> int:
        """Where it listens."""
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def url(self, path: str = "/") -> str:
        """The URL of one of its endpoints."""
        return f"http://{self.host}:{self.port}{path}"

    @property
    def duplicates(self) -> int:
        """Arrivals beyond the first of each webhook id."""
        return self.arrivals - len(self.counts)

    def let_go(self) -> None:
        """Answer what is held, and hold no more."""
        self.is_holding = False
        held, self.held = self.held, []
        for request in held:
            self._answer(request)

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Connection(self), "127.0.0.1", 0, backlog=4_096
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for connection in tuple(self._open):
            connection.abort()
        await self._server.wait_closed()

    def opened(self, connection: Connection) -> None:
        """Count a new connection."""
        self._open.add(connection)

    def closed(self, connection: Connection) -> None:
        """Count a closed connection."""
        self._open.discard(connection)

    def take(self, path: str, webhook_id: str, connection: Connection) -> None:
        """A whole request has come."""
        request = Request(path, webhook_id, time.monotonic(), connection)
        self.arrivals += 1
        self.counts[webhook_id] += 1
        self.last_at_s = request.at_s
        self.on_request(request)
        if self.is_holding:
            self.held.append(request)
        else:
            self._answer(request)

    def _answer(self, request: Request) -> None:
        status = self.status if isinstance(self.status, int) else self.status(request)
        request.answer(status, self.body)


class Connection(asyncio.Protocol):
    """One connection of a sender."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport to answer on."""
        self._transport = cast("asyncio.Transport", transport)
        self._target.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Its sender is gone."""
        del exc
        self._transport = None
        self._target.closed(self)

    def data_received(self, data: bytes) -> None:
        """Take every whole request."""
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[: end + 2]
            total = end + 4 + int(_header(head, b"\r\ncontent-length: "))
            if len(self._buffer) < total:
                return
            self._buffer = self._buffer[total:]
            path = head.split(b" ", 2)[1].decode()
            self._target.take(path, _header(head, b"\r\nwebhook-id: ").decode(), self)

    def write(self, data: bytes) -> None:
        """Send, if a client is connected."""
        if self._transport is not None:
            self._transport.write(data)

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()


def _header(head: bytes, name: bytes) -> bytes:
    begin = head.index(name) + len(name)
    return head[begin : head.index(b"\r\n", begin)]
