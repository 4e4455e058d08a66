"""Answers that clients have not read yet: a byte budget, and a time limit.

An answer stays in memory until the client's flow control window lets it go, and grpc.aio cannot end
a call whose answer it was given. So an answer that is not read in time is dropped by closing its
connection: the socket is shut down, with every other call on it. Its owner, gRPC's core, then finds
it closed.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import structlog

from hookline_service.api.middleware.byte_budget import ByteBudget

SMALL_BYTES: Final = 4_096
"""Answers of up to this size count for their call alone (HOOKLINE_MAX_CALLS)."""
TICK_S: Final = 1.0
_DESCRIPTORS: Final = Path("/dev/fd")

_log = structlog.get_logger(__name__)

Address = tuple[str, int]


class UnreadAnswer:
    """The answer of one call; the interceptor's record of a call derives from it."""

    __slots__ = ("counted_bytes", "holder", "peer", "since_s")

    def __init__(self, holder: str, peer: str) -> None:
        self.holder = holder
        """The caller whose budget the answer counts against."""
        self.peer = peer
        """The connection, as gRPC names it."""
        self.counted_bytes = 0
        self.since_s = 0.0


class UnreadAnswers:
    """The answers of a server that were given to gRPC and that clients have not read yet."""

    def __init__(self, budget: ByteBudget, timeout_s: float) -> None:
        self._budget = budget
        self._timeout_s = timeout_s
        self._unread: dict[UnreadAnswer, None] = {}
        """The oldest first."""
        self._timer: asyncio.TimerHandle | None = None
        self._closing: asyncio.Future[int] | None = None

    def check_capacity(self, holder: str) -> None:
        """Raise `ResourceExhaustedError` where a caller already holds more than its share."""
        self._budget.check(holder)

    def begin(self, answer: UnreadAnswer, size: int, *, may_refuse: bool = True) -> None:
        """Count an answer of `size` bytes that is about to be given to gRPC.

        Raise `ResourceExhaustedError` where its caller holds too many bytes, if it `may_refuse`: a
        call that has changed something is always answered.
        """
        if size > SMALL_BYTES:
            self._budget.take(answer.holder, size, may_refuse=may_refuse)
            answer.counted_bytes = size
        loop = asyncio.get_running_loop()
        answer.since_s = loop.time()
        self._unread[answer] = None
        if self._timer is None:
            self._timer = loop.call_later(TICK_S, self._look)

    def end(self, answer: UnreadAnswer) -> None:
        """Count an answer no more: the client has read it, or its call has ended."""
        self._unread.pop(answer, None)
        if answer.counted_bytes:
            self._budget.give(answer.holder, answer.counted_bytes)
            answer.counted_bytes = 0

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(TICK_S, self._look) if self._unread else None
        late_before_s = loop.time() - self._timeout_s
        late = set()
        for unread in self._unread:
            if unread.since_s > late_before_s:
                break
            late.add(unread.peer)
        if late and (self._closing is None or self._closing.done()):
            _log.warning("unread_answers_dropped", connections=len(late))
            self._closing = loop.run_in_executor(None, close_connections, late)


def close_connections(peers: Iterable[str]) -> int:
    """Shut down the sockets to these peers (`ipv4:192.0.2.1:5000`); return how many there were."""
    wanted = {address for peer in peers if (address := _address_in(peer)) is not None}
    closed = 0
    for path in list(_DESCRIPTORS.iterdir()):
        try:
            copy = os.dup(
                int(path.name)
            )  # the socket examined below is then the one that is shut down
        except OSError:
            continue
        try:
            connection = socket.socket(fileno=copy)
        except OSError:  # no socket
            os.close(copy)
            continue
        with connection:
            try:
                if _address_of(connection.getpeername()) in wanted:
                    connection.shutdown(socket.SHUT_RDWR)
                    closed += 1
            except OSError:  # not connected, or no longer
                continue
    return closed


def _address_in(peer: str) -> Address | None:
    kind, _, address = unquote(peer).partition(":")
    if kind not in {"ipv4", "ipv6"}:
        return None
    host, _, port = address.rpartition(":")
    return _plain(host.strip("[]")), int(port)


def _address_of(name: Any) -> Address | None:  # noqa: ANN401 - depends on the address family
    if not isinstance(name, tuple):
        return None
    return _plain(name[0]), int(name[1])


def _plain(host: str) -> str:
    """Return an address in the form that gRPC and the kernel share: mapped IPv6 as IPv4."""
    address = ipaddress.ip_address(host.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)
