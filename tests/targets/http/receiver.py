"""A receiver on real sockets whose script determines each byte that it sends.

A script is a coroutine over one connection's streams. What it reads with `read_request` is
recorded; `connection_count` counts every connection, whether or not a request came over it.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self


@dataclass(frozen=True)
class Received:
    """A request with the bytes that were received."""

    request_line: bytes
    header_lines: list[bytes]
    body: bytes

    @property
    def headers(self) -> dict[str, str]:
        """Return the headers by lower-case name; fails the test if a name is repeated."""
        pairs = [line.decode().split(": ", 1) for line in self.header_lines]
        headers = {name.lower(): value for name, value in pairs}
        assert len(headers) == len(pairs), "a header came twice"
        return headers


@dataclass
class Connected:
    """One connection, for use by a script."""

    receiver: Receiver
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    number: int
    """1 for the first connection of the receiver."""

    async def read_request(self) -> Received:
        """Read the next request; raises IncompleteReadError at the end of the stream."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        request_line, *header_lines = head[:-4].split(b"\r\n")
        lengths = [
            int(line.split(b":")[1])
            for line in header_lines
            if line.lower().startswith(b"content-length:")
        ]
        body = await self.reader.readexactly(lengths[0] if lengths else 0)
        received = Received(request_line, header_lines, body)
        self.receiver.requests.append(received)
        return received

    async def write(self, data: bytes) -> None:
        """Send bytes; waits while the peer reads none."""
        if self.writer.is_closing():
            raise ConnectionResetError
        self.writer.write(data)
        await self.writer.drain()

    async def wait_closed_by_peer(self) -> None:
        """Read and drop bytes until the peer closes the connection."""
        try:
            while await self.reader.read(65_536):
                pass
        except ConnectionError:
            pass
        self.receiver.peer_closed.set()

    async def linger(self, at_most_s: float) -> None:
        """Wait at most this long for the peer to close the connection."""
        try:
            async with asyncio.timeout(at_most_s):
                await self.wait_closed_by_peer()
        except TimeoutError:
            return
        raise ConnectionResetError

    def reset(self) -> None:
        """Close the connection with a RST."""
        abortive = struct.pack("ii", 1, 0)
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, abortive)
        self.writer.transport.abort()


Script = Callable[[Connected], Awaitable[None]]


@dataclass
class Receiver:
    """A server on a loopback address that runs a script for each connection."""

    script: Script
    host: str = "127.0.0.1"
    tls: ssl.SSLContext | None = None
    port: int = 0
    connection_count: int = 0
    requests: list[Received] = field(default_factory=list)
    peer_closed: asyncio.Event = field(default_factory=asyncio.Event)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def url(self, path: str = "/", host: str | None = None) -> str:
        """Return a URL of this receiver, by its address or by a name that a test resolves to it."""
        scheme = "https" if self.tls else "http"
        return f"{scheme}://{host or self.host}:{self.port}{path}"

    async def until_left(self) -> None:
        """Wait for a peer to close its connection, before a deadline or the idle timeout would."""
        async with asyncio.timeout(10):
            await self.peer_closed.wait()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(
            self._accept, self.host, self.port, ssl=self.tls, backlog=1_024
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connection_count += 1
        try:
            await self.script(Connected(self, reader, writer, self.connection_count))
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the peer is done with us, or the test is
        finally:
            self._tasks.discard(task)
            writer.transport.abort() if not writer.can_write_eof() else writer.close()


def answering(*answers: bytes) -> Script:
    """Answer requests with these in order, repeat the last, and keep the connection open."""

    async def script(connected: Connected) -> None:
        while True:
            await connected.read_request()
            number = len(connected.receiver.requests) - 1
            await connected.write(answers[min(number, len(answers) - 1)])

    return script


def answer(status: str = "200 OK", body: bytes = b"", *headers: str) -> bytes:
    """Return a well-formed response."""
    lines = [f"HTTP/1.1 {status}", *headers, f"content-length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


OK = answer()
