"""Answers on their way: how many bytes they hold, and until when their readers may take.

An answer stays in memory until the caller's flow control has let it go, and grpc.aio has no way to
end a call whose answer was handed over. So what ends it is the end of its connection: the socket is
shut down, with every other call on it. Its owner, gRPC's core, then finds it closed.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

from hookline_service.api.middleware.byte_budget import ByteBudget

SMALL_BYTES: Final = 4_096
"""Answers of up to this size count for their call alone (HOOKLINE_MAX_CALLS)."""
TICK_S: Final = 1.0
_DESCRIPTORS: Final = Path("/dev/fd")

_log = logging.getLogger(__name__)

Address = tuple[str, int]


@dataclass(eq=False, slots=True)
class _Unread:
    peer: str
    since_s: float


class UnreadAnswers:
    """The answers of a server that were handed over and are not taken yet."""

    def __init__(self, budget: ByteBudget, timeout_s: float) -> None:
        self._budget = budget
        self._timeout_s = timeout_s
        self._unread: dict[object, _Unread] = {}
        """The oldest first."""
        self._timer: asyncio.TimerHandle | None = None
        self._closing: asyncio.Future[int] | None = None

    def check_room(self, holder: str) -> None:
        """Raise where a caller already holds more than his share: before anything is done."""
        self._budget.check(holder)

    def begin(
        self, holder: str, call: object, peer: str, size: int, *, may_refuse: bool = True
    ) -> int:
        """Count an answer that is about to be handed over; returns what to give to `end`.

        Raises `ResourceExhaustedError` where the caller holds too many, if it `may_refuse`: what a
        call has changed is always answered.
        """
        counted = size if size > SMALL_BYTES else 0
        if counted:
            self._budget.take(holder, counted, may_refuse=may_refuse)
        loop = asyncio.get_running_loop()
        self._unread[call] = _Unread(peer, loop.time())
        if self._timer is None:
            self._timer = loop.call_later(TICK_S, self._look)
        return counted

    def end(self, holder: str, call: object, counted: int) -> None:
        """The answer was taken, or its call has ended."""
        self._unread.pop(call, None)
        if counted:
            self._budget.give(holder, counted)

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(TICK_S, self._look) if self._unread else None
        late_before_s = loop.time() - self._timeout_s
        late = set()
        for unread in self._unread.values():
            if unread.since_s > late_before_s:
                break
            late.add(unread.peer)
        if late and (self._closing is None or self._closing.done()):
            _log.warning("callers do not read their answers: %d connections are closed", len(late))
            self._closing = loop.run_in_executor(None, close_connections, late)


def close_connections(peers: Iterable[str]) -> int:
    """Shut down this process's sockets to these peers (`ipv4:192.0.2.1:5000`); how many it were."""
    wanted = {address for peer in peers if (address := _address_in(peer)) is not None}
    closed = 0
    for path in list(_DESCRIPTORS.iterdir()):
        try:
            copy = os.dup(int(path.name))  # what is looked at is what is shut down
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
            except OSError:  # not connected, or not any more
                continue
    return closed


def _address_in(peer: str) -> Address | None:
    kind, _, address = unquote(peer).partition(":")
    if kind not in {"ipv4", "ipv6"}:
        return None
    host, _, port = address.rpartition(":")
    return _plain(host.strip("[]")), int(port)


def _address_of(name: Any) -> Address | None:  # noqa: ANN401 - as the family has it
    if not isinstance(name, tuple):
        return None
    return _plain(name[0]), int(name[1])


def _plain(host: str) -> str:
    """An address as both gRPC and the kernel mean it: IPv4 within IPv6 is IPv4."""
    address = ipaddress.ip_address(host.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)
