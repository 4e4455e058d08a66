"""From an origin to an open connection: resolve, refuse what is not allowed, connect, TLS.

Theory. All addresses of a name are checked before any is tried: one that is not allowed taints the
name, since its owner chose it. Then they are tried in turn, each with a share of what is left of
the deadline. What was checked is what is connected to; the socket's own idea of its peer is checked
once more before a byte is sent. The name stays with the connection, for SNI and for the
certificate.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path

from service.domain.attempt import AttemptOutcome
from service.webhook.connection import Connection
from service.webhook.egress import EgressPolicy
from service.webhook.failure import AttemptFailure, failure_of_os_error
from service.webhook.origin import Origin
from service.webhook.resolver import Resolver

MakeConnection = Callable[[Origin, str], Connection]
"""A new connection to an origin, at the address that is being tried."""

_BLOCKED = "the host leads to an address that is neither public nor expressly allowed"


def make_tls_context(extra_ca_file: Path | None = None) -> ssl.SSLContext:
    """TLS as every request uses it: always verified, HTTP/1.1 only.

    `extra_ca_file` adds authorities to the system's, for internal targets.
    """
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    if extra_ca_file is not None:
        context.load_verify_locations(extra_ca_file)
    return context


class Dialer:
    """Opens connections within a deadline; raises `AttemptFailure` where it cannot."""

    def __init__(
        self,
        *,
        resolver: Resolver,
        egress: EgressPolicy,
        tls_context: ssl.SSLContext,
        addresses_max: int = 16,
        address_share_max_s: float = 5.0,
    ) -> None:
        """Bounds of one dial.

        At most `addresses_max` addresses of a name are tried, all but the last of them for no
        longer than `address_share_max_s` seconds.
        """
        self._resolver = resolver
        self._egress = egress
        self._tls_context = tls_context
        self._addresses_max = addresses_max
        self._address_share_max_s = address_share_max_s

    async def dial(self, origin: Origin, deadline: float, make: MakeConnection) -> Connection:
        """A new connection; `deadline` is on the loop's clock."""
        loop = asyncio.get_running_loop()
        addresses = await self._addresses_of(origin.host, deadline)
        if not self._egress.allows_all(addresses):
            raise AttemptFailure(AttemptOutcome.ADDRESS_BLOCKED, _BLOCKED)
        addresses = addresses[: self._addresses_max]
        failures: list[AttemptFailure] = []
        for index, address in enumerate(addresses):
            now = loop.time()
            share_s = (deadline - now) / (len(addresses) - index)
            is_last = index == len(addresses) - 1
            limit = deadline if is_last else now + min(share_s, self._address_share_max_s)
            try:
                async with asyncio.timeout_at(limit):
                    return await self._connect(origin, address, make)
            except AttemptFailure as failure:
                if failure.kind is AttemptOutcome.ADDRESS_BLOCKED:
                    raise
                failures.append(failure)
            except TimeoutError:
                message = "no connection could be made before the deadline"
                failures.append(
                    AttemptFailure(AttemptOutcome.TIMEOUT, message, remote_address=address)
                )
        raise _verdict(failures)

    async def _addresses_of(self, host: str, deadline: float) -> tuple[str, ...]:
        try:
            ip_address(host)
        except ValueError:
            pass
        else:
            return (host,)
        try:
            async with asyncio.timeout_at(deadline):
                return await self._resolver.resolve(host)
        except TimeoutError:
            # Nobody can tell a slow target's name servers from our own slow resolver; the lookup
            # goes on, and its verdict is there for the next attempt.
            raise AttemptFailure(
                AttemptOutcome.OWN_FAULT, "the host's name did not resolve before the deadline"
            ) from None

    async def _connect(self, origin: Origin, address: str, make: MakeConnection) -> Connection:
        sock = await self._connect_socket(address, origin.port)
        loop = asyncio.get_running_loop()
        is_tls = origin.scheme == "https"
        try:
            _, connection = await loop.create_connection(
                lambda: make(origin, address),
                sock=sock,
                ssl=self._tls_context if is_tls else None,
                server_hostname=origin.host if is_tls else None,
            )
        except TimeoutError:
            raise
        except (OSError, ValueError) as error:
            raise _handshake_failure(error, address) from None
        return connection

    async def _connect_socket(self, address: str, port: int) -> socket.socket:
        """A connected socket, whose peer is allowed."""
        loop = asyncio.get_running_loop()
        try:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            sock = socket.socket(family, socket.SOCK_STREAM)
        except OSError as error:
            raise failure_of_os_error(error) from None
        try:
            sock.setblocking(False)  # noqa: FBT003 - the standard library's own signature
            await loop.sock_connect(sock, (address, port))
            self._check_peer(sock)
        except TimeoutError:
            sock.close()
            raise
        except OSError as error:
            sock.close()
            if family == socket.AF_INET6 and error.errno == errno.EADDRNOTAVAIL:
                raise _no_ipv6(address) from None
            raise failure_of_os_error(error, remote_address=address) from None
        except BaseException:
            sock.close()
            raise
        return sock

    def _check_peer(self, sock: socket.socket) -> None:
        if not self._egress.allows(sock.getpeername()[0]):
            raise AttemptFailure(AttemptOutcome.ADDRESS_BLOCKED, _BLOCKED)


def _handshake_failure(error: OSError | ValueError, address: str) -> AttemptFailure:
    """The failure of a handshake that ended without TLS saying why: reset, closed, an odd name."""
    if isinstance(error, OSError):
        failure = failure_of_os_error(error, remote_address=address)
        if failure.kind is not AttemptOutcome.CONNECTION_FAILED:
            return failure
    return AttemptFailure(
        AttemptOutcome.TLS_FAILED,
        "the connection was closed during the TLS handshake",
        remote_address=address,
    )


def _no_ipv6(address: str) -> AttemptFailure:
    """A machine without IPv6 says EADDRNOTAVAIL for good: that is no passing fault of ours."""
    return AttemptFailure(
        AttemptOutcome.CONNECTION_FAILED,
        "this machine has no IPv6 to reach the address with",
        remote_address=address,
    )


def _verdict(failures: list[AttemptFailure]) -> AttemptFailure:
    """What several addresses come to: the failure of the best one, save for faults of our own."""
    for failure in failures:
        if failure.kind is not AttemptOutcome.OWN_FAULT:
            return failure
    return failures[0]
