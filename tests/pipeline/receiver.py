"""A target for the data path's tests: real HTTP over loopback, answered as the test says."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Self

from tests.waiting import PATIENCE_S


class Receiver:
    """A target: answers each request with a status, and remembers what it got.

    `answers` is a status, or is asked with the webhook id; `gate`, where set, holds every answer
    back until it is opened.
    """

    def __init__(self) -> None:
        self.answers: int | Callable[[str], int] = 200
        self.gate: asyncio.Event | None = None
        self.headers: dict[str, str] = {}
        self.body = b""
        self.ids: list[str] = []
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.in_flight = 0
        self.in_flight_most = 0
        self._server: asyncio.Server | None = None
        self._arrived = asyncio.Condition()

    @property
    def url(self) -> str:
        """Where it listens."""
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/hook"

    @property
    def counts(self) -> Counter[str]:
        """How often each webhook id came."""
        return Counter(self.ids)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()

    async def wait_for(self, count: int, within_s: float = PATIENCE_S) -> None:
        """Wait until so many requests have come, in all."""
        async with asyncio.timeout(within_s), self._arrived:
            await self._arrived.wait_for(lambda: len(self.ids) >= count)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await self._answer_one(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        headers = dict(_header(line) for line in head.strip().split("\r\n")[1:])
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        self.in_flight += 1
        self.in_flight_most = max(self.in_flight_most, self.in_flight)
        webhook_id = headers["webhook-id"]
        async with self._arrived:
            self.requests.append((headers, body))
            self.ids.append(webhook_id)
            self._arrived.notify_all()
        if self.gate is not None:
            await self.gate.wait()
        status = self.answers if isinstance(self.answers, int) else self.answers(webhook_id)
        lines = [f"HTTP/1.1 {status} X", f"content-length: {len(self.body)}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        writer.write("\r\n".join([*lines, "", ""]).encode() + self.body)
        self.in_flight -= 1
        await writer.drain()


def _header(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.strip().lower(), value.strip()
