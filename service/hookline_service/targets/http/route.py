"""The way to an address: straight, or (in `proxy`) through another machine.

A route opens sockets and nothing more: which addresses may be reached, and which is tried when, is
the dialer's. What a socket says of its peer is checked before it is handed out.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import Protocol

from hookline_service.domain.attempt import AttemptOutcome
from hookline_service.targets.http.egress import EgressPolicy
from hookline_service.targets.http.failure import AttemptFailure, failure_of_os_error

BLOCKED = "the host leads to an address that is neither public nor expressly allowed"


class Route(Protocol):
    """How the dialer gets a socket that leads to a target."""

    @property
    def takes_names(self) -> bool:
        """Whether names are not resolved here: whoever resolves them judges where they lead."""

    async def open(self, host: str, port: int, limit: float, tenant_id: str = "") -> socket.socket:
        """A socket whose bytes reach the host; `limit` is on the loop's clock.

        `tenant_id`: the tenant that named the host.

        Raises `AttemptFailure`, or `RouteFailure` where another address would fail alike.
        """


class RouteFailure(AttemptFailure):
    """The route itself failed, whatever it should have led to: our own fault."""

    def __init__(self, message: str, *, is_shortage: bool = False) -> None:
        super().__init__(AttemptOutcome.INTERNAL_ERROR, message, is_shortage=is_shortage)


class DirectRoute:
    """Connects to the address itself."""

    takes_names = False

    def __init__(self, egress: EgressPolicy) -> None:
        self._egress = egress

    async def open(
        self,
        host: str,
        port: int,
        limit: float,
        tenant_id: str = "",  # noqa: ARG002 - as of `Route`
    ) -> socket.socket:
        """A connected socket, whose peer is allowed."""
        try:
            async with asyncio.timeout_at(limit):
                sock, peer = await connect_socket(host, port)
        except TimeoutError:
            message = "no connection could be made before the deadline"
            raise AttemptFailure(AttemptOutcome.TIMEOUT, message, remote_address=host) from None
        except OSError as error:
            if ":" in host and error.errno == errno.EADDRNOTAVAIL:
                raise _no_ipv6(host) from None
            raise failure_of_os_error(error, remote_address=host) from None
        if not self._egress.allows(peer):
            sock.close()
            raise AttemptFailure(AttemptOutcome.ADDRESS_BLOCKED, BLOCKED)
        return sock


async def connect_socket(address: str, port: int) -> tuple[socket.socket, str]:
    """A connected socket, and the address that it says its peer has; raises OSError."""
    loop = asyncio.get_running_loop()
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)  # noqa: FBT003 - the standard library's own signature
        await loop.sock_connect(sock, (address, port))
        return sock, sock.getpeername()[0]
    except BaseException:
        sock.close()
        raise


def _no_ipv6(address: str) -> AttemptFailure:
    """A machine without IPv6 says EADDRNOTAVAIL for good: that is no passing fault of ours."""
    return AttemptFailure(
        AttemptOutcome.CONNECTION_FAILED,
        "this machine has no IPv6 to reach the address with",
        remote_address=address,
    )
