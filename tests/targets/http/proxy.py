"""An egress proxy for tests: opens tunnels, or answers as a test specifies."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from tests.targets.http.receiver import Connected, Receiver

OPEN = b"HTTP/1.1 200 Connection established\r\nvia: 1.1 proxy\r\n\r\n"


@dataclass
class Proxy:
    """A proxy that records each CONNECT and relays bytes in both directions."""

    leads_to: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    """Where tunnels end, by the place that was asked for; others end at that place itself."""
    answers: dict[str, bytes] = field(default_factory=dict)
    """Responses instead of tunnels, by place; `*` is the default."""
    asked: list[str] = field(default_factory=list)
    """The places that were asked for, in order."""
    heads: list[dict[str, str]] = field(default_factory=list)

    @property
    def port(self) -> int:
        """Return the port on 127.0.0.1 that it listens on."""
        return self._receiver.port

    @property
    def connection_count(self) -> int:
        """Return the number of connections accepted so far."""
        return self._receiver.connection_count

    async def __aenter__(self) -> Self:
        self._receiver = Receiver(self._serve)
        await self._receiver.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        await self._receiver.__aexit__(kind, error, at)

    async def _serve(self, connected: Connected) -> None:
        received = await connected.read_request()
        method, place, _ = received.request_line.decode().split(" ")
        assert method == "CONNECT"
        self.asked.append(place)
        self.heads.append(received.headers)
        said = self.answers.get(place, self.answers.get("*"))
        if said is not None:
            await connected.write(said)
            await connected.wait_closed_by_peer()
            return
        host, _, port = place.rpartition(":")
        reader, writer = await asyncio.open_connection(
            *self.leads_to.get(place, (host.strip("[]"), int(port)))
        )
        await connected.write(OPEN)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(_pass_on(connected.reader, writer))
                both.create_task(_pass_on(reader, connected.writer))
        finally:
            writer.close()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass  # the other direction will see it, too
    writer.transport.abort()
