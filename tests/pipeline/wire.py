"""A wire to Postgres that a test can cut: before a request arrives, or before its answer does.

What is cut is named by a mark, bytes that the request holds, such as an event's data. A statement's
answer leaves Postgres after its commit, so a cut answer is an ambiguous commit made to order.
"""

from __future__ import annotations

import asyncio
from asyncio import StreamReader, StreamWriter
from contextlib import suppress
from typing import Self
from urllib.parse import parse_qs, urlsplit

_CHUNK = 1 << 20
_PORT = 5432


class Wire:
    """Relays to the server of a URL, until it is changed.

    `cut_request` and `cut_sent` and `cut_answer` close the connection that carries the mark, once:
    before the request is passed on, as soon as it is, or instead of passing on its answer.
    `hold_answer` keeps the answer until `release`. It accepts connections while `is_open`.
    """

    def __init__(self, url: str) -> None:
        self._target = urlsplit(url)
        self._server: asyncio.Server | None = None
        self._links: set[asyncio.Task[None]] = set()
        self._writers: set[StreamWriter] = set()
        self.is_open = True
        self.cut_request = b""
        self.cut_sent = b""
        self.cut_answer = b""
        self.hold_answer = b""
        self.is_cut = asyncio.Event()
        self.is_held = asyncio.Event()
        self.connections = 0
        self._released = asyncio.Event()

    @property
    def url(self) -> str:
        """The database's URL, through this wire."""
        assert self._server is not None
        port = self._server.sockets[0].getsockname()[1]
        user, at, _ = self._target.netloc.rpartition("@")
        netloc = f"{user}{at}127.0.0.1:{port}"
        return self._target._replace(netloc=netloc, query="").geturl()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.close()
        self.release()
        await asyncio.gather(*self._links, return_exceptions=True)

    def close(self) -> None:
        """Accept no connection any more, and close what is open; what is held is lost."""
        self.is_open = False
        for writer in self._writers:
            writer.close()

    def release(self) -> None:
        """Pass on the answer that is held."""
        self._released.set()

    async def _accept(self, reader: StreamReader, writer: StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._links.add(task)
        self._writers.add(writer)
        try:
            if self.is_open:
                await self._relay(reader, writer)
        finally:
            self._links.discard(task)
            self._writers.discard(writer)
            writer.close()

    async def _relay(self, reader: StreamReader, writer: StreamWriter) -> None:
        self.connections += 1
        server_reader, server_writer = await self._connect()
        self._writers.add(server_writer)
        marks: set[str] = set()
        ways = [
            asyncio.create_task(self._upward(reader, server_writer, marks)),
            asyncio.create_task(self._downward(server_reader, writer, marks)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            self._writers.discard(server_writer)
            server_writer.close()

    async def _connect(self) -> tuple[StreamReader, StreamWriter]:
        query = parse_qs(self._target.query)
        host = query.get("host", [self._target.hostname or "localhost"])[0]
        port = int(query.get("port", [self._target.port or _PORT])[0])
        if host.startswith("/"):
            return await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        return await asyncio.open_connection(host, port)

    async def _upward(self, reader: StreamReader, writer: StreamWriter, marks: set[str]) -> None:
        with suppress(ConnectionError):
            while chunk := await reader.read(_CHUNK):
                if self.cut_request and self.cut_request in chunk:
                    self.cut_request = b""
                    self.is_cut.set()
                    return
                if self.cut_answer and self.cut_answer in chunk:
                    self.cut_answer = b""
                    marks.add("cut")
                if self.hold_answer and self.hold_answer in chunk:
                    self.hold_answer = b""
                    marks.add("hold")
                writer.write(chunk)
                await writer.drain()
                if self.cut_sent and self.cut_sent in chunk:
                    self.cut_sent = b""
                    self.is_cut.set()
                    return

    async def _downward(self, reader: StreamReader, writer: StreamWriter, marks: set[str]) -> None:
        with suppress(ConnectionError):
            while chunk := await reader.read(_CHUNK):
                if "cut" in marks:
                    self.is_cut.set()
                    return
                if "hold" in marks:
                    marks.discard("hold")
                    self._released.clear()
                    self.is_held.set()
                    await self._released.wait()
                writer.write(chunk)
                await writer.drain()
