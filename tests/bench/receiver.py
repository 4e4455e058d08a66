"""The receivers of a run in one lightweight process: groups of ports with one behaviour each.

`python -m tests.bench.receiver '{"counters": …, "secret": …, "groups": […]}'` prints its ports, a
list a group, as JSON; then answers each line `latencies` with the latencies since the last one, a
list of microseconds a group; and ends with its standard input. It verifies 1 signature in 100. An
event whose data begins with `{"t":N,` was scheduled at N (monotonic nanoseconds).
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import sys
import time
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import cast

import uvloop

from tests.bench.counters import Counters

_STAMP = b'"data":{"t":'
_VERIFY_EACH = 100


class Behaviour(StrEnum):
    """The behaviour of a receiver after reading a request."""

    ACCEPT = "accept"
    REFUSE = "refuse"
    """Answer 503, so that the delivery is retried."""
    HANG = "hang"
    """Never answer."""


_ANSWERS = {
    Behaviour.ACCEPT: b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
    Behaviour.REFUSE: b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n",
    Behaviour.HANG: b"",
}


@dataclass(frozen=True)
class Group:
    """A number of receivers with the same behaviour, each on its own port."""

    behaviour: Behaviour = Behaviour.ACCEPT
    ports: int = 1


class Tally:
    """The requests to one group."""

    def __init__(self, counters: Counters, number: int, secret: str) -> None:
        self._counters = counters
        self._number = number
        self._key = base64.b64decode(secret.removeprefix("whsec_"))
        self._seen: set[int] = set()
        self._count = 0
        self.latencies_us: list[int] = []

    def take(self, head: bytes, body: bytes) -> None:
        """Handle one request with its head and body."""
        arrived_ns = time.monotonic_ns()
        webhook_id = _header(head, b"\r\nwebhook-id: ")
        self._count += 1
        # 64 bits of it: a million ids as strings would make the receiver the heaviest part.
        self._seen.add(hash((head[: head.index(b"\r\n")], webhook_id)))
        if self._count % _VERIFY_EACH == 0 and not self._is_signed(head, webhook_id, body):
            self._counters.count_mismatch()
        self._counters.set_received(self._number, self._count, len(self._seen))
        at = body.find(_STAMP)
        if at >= 0:
            sent_ns = int(body[at + len(_STAMP) : body.index(b",", at + len(_STAMP))])
            self.latencies_us.append((arrived_ns - sent_ns) // 1_000)

    def _is_signed(self, head: bytes, webhook_id: bytes, body: bytes) -> bool:
        signed = b".".join([webhook_id, _header(head, b"\r\nwebhook-timestamp: "), body])
        expected = base64.b64encode(hmac.digest(self._key, signed, hashlib.sha256))
        return _header(head, b"\r\nwebhook-signature: ") == b"v1," + expected


def _header(head: bytes, name: bytes) -> bytes:
    begin = head.index(name) + len(name)
    return head[begin : head.index(b"\r\n", begin)]


class Connection(asyncio.Protocol):
    """Reads requests, and answers with the behaviour of its group."""

    def __init__(self, tally: Tally, answer: bytes) -> None:
        self._tally = tally
        self._answer = answer
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Store the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Handle every complete request."""
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[: end + 2]
            total = end + 4 + int(_header(head, b"\r\ncontent-length: "))
            if len(self._buffer) < total:
                return
            self._tally.take(head, self._buffer[end + 4 : total])
            self._buffer = self._buffer[total:]
            if self._transport is not None and self._answer:
                self._transport.write(self._answer)


async def serve(counters: Counters, secret: str, groups: list[Group]) -> None:
    """Serve until standard input closes."""
    loop = asyncio.get_running_loop()
    tallies = [Tally(counters, number, secret) for number in range(len(groups))]
    ports = []
    servers = []
    for tally, group in zip(tallies, groups, strict=True):
        answer = _ANSWERS[group.behaviour]
        opened = [
            await loop.create_server(
                lambda tally=tally, answer=answer: Connection(tally, answer),  # type: ignore[misc]
                "127.0.0.1",
                0,
                backlog=4_096,
            )
            for _ in range(group.ports)
        ]
        servers += opened
        ports.append([server.sockets[0].getsockname()[1] for server in opened])
    _say(ports)
    commands = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    while await commands.readline():
        _say([tally.latencies_us for tally in tallies])
        for tally in tallies:
            tally.latencies_us = []


def _say(what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    spec = json.loads(sys.argv[1])
    asked = [Group(Behaviour(group["behaviour"]), group["ports"]) for group in spec["groups"]]
    with Counters(Path(spec["counters"])) as shared:
        uvloop.run(serve(shared, spec["secret"], asked))
