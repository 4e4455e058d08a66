"""A small receiver of webhooks, for `hookline demo` and `hookline listen`.

Reads HTTP/1.1 requests with a content-length, verifies their signature with `hookline.webhook`,
passes each to a callback and answers it with a given status. Not a general web server.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

from hookline.webhook import Verifier, Webhook, WebhookVerificationError

_MAX_BODY_BYTES = 1024 * 1024
_UNAUTHORIZED = 401


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One request, and how it was answered."""

    receiver: str
    at_s: float
    """When it was read, by the monotonic clock."""
    headers: dict[str, str]
    body: bytes
    webhook: Webhook | None
    """The verified webhook; None: there is no secret, or verification failed (`fault`)."""
    fault: str
    """Why the signature did not verify; empty: it did, or there is no secret."""
    status: int
    """The answer."""

    @property
    def webhook_id(self) -> str:
        """The header webhook-id; empty: it is missing."""
        return self.headers.get("webhook-id", "")

    @property
    def event_type(self) -> str:
        """The `type` of a STANDARD payload; empty: the body is something else."""
        try:
            payload = json.loads(self.body)
        except ValueError:
            return ""
        found = payload.get("type") if isinstance(payload, dict) else None
        return found if isinstance(found, str) else ""


class Receiver:
    """An HTTP server on a loopback port; `async with` starts and stops it."""

    def __init__(
        self,
        name: str,
        on_arrival: Callable[[Arrival], None],
        *,
        answers: Sequence[int] = (200,),
        port: int = 0,
    ) -> None:
        """`answers`: the statuses to answer with, in turn; the last one is repeated."""
        self.name = name
        self.verifier: Verifier | None = None
        """Set once there is a subscription. None: no signature is verified."""
        self._on_arrival = on_arrival
        self._answers = list(answers)
        self._port = port
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        """Where it listens, once it is started."""
        return f"http://127.0.0.1:{self._port}/"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
            for writer in self._open:
                writer.transport.abort()
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            while (arrival := await self._receive(reader)) is not None:
                phrase = http.client.responses.get(arrival.status, "")
                body = f"{phrase}\n".encode()
                head = f"HTTP/1.1 {arrival.status} {phrase}\r\ncontent-length: {len(body)}\r\n\r\n"
                # Before the answer: the demo reads an attempt back only after its arrival.
                self._on_arrival(arrival)
                writer.write(head.encode() + body)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
            pass  # the sender disconnected, or does not speak HTTP
        finally:
            self._open.discard(writer)
            writer.close()

    async def _receive(self, reader: asyncio.StreamReader) -> Arrival | None:
        """Read the next request; None: the sender closed the connection."""
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        except asyncio.IncompleteReadError:
            return None
        lines = [line.partition(":") for line in head.split("\r\n")[1:-2]]
        headers = {name.lower(): value.strip() for name, _, value in lines}
        length = int(headers.get("content-length", "0"))
        if length > _MAX_BODY_BYTES:
            raise ValueError("the body is too long")
        body = await reader.readexactly(length)
        webhook, fault = self._verified(headers, body)
        return Arrival(
            receiver=self.name,
            at_s=time.monotonic(),
            headers=headers,
            body=body,
            webhook=webhook,
            fault=fault,
            status=_UNAUTHORIZED if fault else self._next_answer(),
        )

    def _verified(self, headers: dict[str, str], body: bytes) -> tuple[Webhook | None, str]:
        if self.verifier is None:
            return None, ""
        try:
            return self.verifier.verify(headers, body), ""
        except WebhookVerificationError as error:
            return None, str(error)

    def _next_answer(self) -> int:
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
