"""A lean receiver in a process of its own: counts distinct webhook ids, verifies 1 signature in 100.

`python -m tests.bench.receiver COUNTERS SECRET` prints its port, then serves until its standard input
closes, then prints its latencies in microseconds as JSON. An event whose data begins with `{"t":N,`
was meant to be sent at N (monotonic nanoseconds).
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import sys
import time
from pathlib import Path
from typing import cast

import uvloop

from tests.bench.counters import DISTINCT, MISMATCHED, RECEIVED, Counters

_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
_STAMP = b'"data":{"t":'
_VERIFY_EACH = 100


class Tally:
    """What came in."""

    def __init__(self, counters: Counters, secret: str) -> None:
        self.counters = counters
        self.key = base64.b64decode(secret.removeprefix("whsec_"))
        self.ids: set[bytes] = set()
        self.latencies_us: list[int] = []
        self.count = 0

    def take(self, head: bytes, body: bytes) -> None:
        """One request, head and body."""
        webhook_id = _header(head, b"\r\nwebhook-id: ")
        self.count += 1
        self.ids.add(webhook_id)
        if self.count % _VERIFY_EACH == 0 and not self._is_signed(head, webhook_id, body):
            self.counters[MISMATCHED] += 1
        self.counters[RECEIVED] = self.count
        self.counters[DISTINCT] = len(self.ids)
        at = body.find(_STAMP)
        if at >= 0:
            sent_ns = int(body[at + len(_STAMP) : body.index(b",", at + len(_STAMP))])
            self.latencies_us.append((time.monotonic_ns() - sent_ns) // 1_000)

    def _is_signed(self, head: bytes, webhook_id: bytes, body: bytes) -> bool:
        signed = b".".join([webhook_id, _header(head, b"\r\nwebhook-timestamp: "), body])
        expected = base64.b64encode(hmac.digest(self.key, signed, hashlib.sha256))
        return _header(head, b"\r\nwebhook-signature: ") == b"v1," + expected


def _header(head: bytes, name: bytes) -> bytes:
    begin = head.index(name) + len(name)
    return head[begin : head.index(b"\r\n", begin)]


class Connection(asyncio.Protocol):
    """Reads requests, answers 200."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport to answer on."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Take every whole request."""
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[: end + 2]
            total = end + 4 + int(_header(head, b"\r\ncontent-length: "))
            if len(self._buffer) < total:
                return
            self._tally.take(head, self._buffer[end + 4 : total])
            self._buffer = self._buffer[total:]
            assert self._transport is not None
            self._transport.write(_ANSWER)


async def serve(counters: Counters, secret: str) -> None:
    """Serve until standard input closes."""
    tally = Tally(counters, secret)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(tally), "127.0.0.1", 0, backlog=4_096)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await loop.run_in_executor(None, sys.stdin.read)
    json.dump(tally.latencies_us, sys.stdout)
    sys.stdout.flush()


if __name__ == "__main__":
    with Counters(Path(sys.argv[1])) as shared:
        uvloop.run(serve(shared, sys.argv[2]))
