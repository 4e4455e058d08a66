"""Opening a connection to an origin: resolve, apply the egress policy, connect, TLS handshake.

Theory. The host and the port are checked against the deployment's lists. All addresses of a name
are checked before any is tried: one denied address blocks the whole name, since the name's owner
chose it. The addresses are tried in turn, each with a share of the time left, over a route: direct,
or through an egress proxy (`proxy`). The address that was checked is the address that is connected
to, and the socket's peer is checked once more before a byte is sent. The name stays with the
connection, for SNI and certificate verification.

A route only opens sockets: which addresses may be reached, and in which order, is decided here.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable
from typing import Protocol

from hookline_service.domain.attempt import AttemptOutcome
from hookline_service.targets.http.connection import Connection, Origin
from hookline_service.targets.http.egress import EgressPolicy, is_address
from hookline_service.targets.http.failure import OWN_ERRNOS, AttemptFailure, failure_of_os_error
from hookline_service.targets.http.resolver import Resolver
from hookline_service.targets.http.tenant_shares import HandshakeQueue
from hookline_service.targets.http.tls import HandshakeTooLargeError, TargetTlsContext, TlsContexts

BLOCKED = "the host leads to an address that is neither public nor expressly allowed"


class Route(Protocol):
    """A way to open a socket to a target."""

    @property
    def takes_names(self) -> bool:
        """Whether the route takes names; the proxy then resolves and checks them."""

    async def open(self, host: str, port: int, limit: float, tenant_id: str = "") -> socket.socket:
        """Return a socket to the host; `limit` is on the loop's clock.

        `tenant_id` is the tenant that owns the target. Raises `AttemptFailure`, or `RouteFailure`
        if all other addresses would fail, too.
        """


class RouteFailure(AttemptFailure):
    """The route itself failed, for every target: an internal error."""

    def __init__(self, message: str, *, is_shortage: bool = False) -> None:
        super().__init__(AttemptOutcome.INTERNAL_ERROR, message, is_shortage=is_shortage)


class DirectRoute:
    """The direct route: connect to the address itself."""

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
        """Return a connected socket whose peer address is allowed."""
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
    """Return a connected socket and its peer's address; raise OSError."""
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
    """A machine without IPv6 always reports EADDRNOTAVAIL: a retry of ours would not help."""
    return AttemptFailure(
        AttemptOutcome.CONNECTION_FAILED,
        "this machine has no IPv6 to reach the address with",
        remote_address=address,
    )


MakeConnection = Callable[[Origin, str | None], Connection]
"""Make a connection to an origin at an address; None if only the proxy resolves it."""

HANDSHAKES_MAX = 64
"""TLS handshakes that run at once."""
_HOST_BLOCKED = "the host is not one that this service may send to"

_PORT_BLOCKED = "the port is not one that this service may send to"


class Dialer:
    """Opens connections within a deadline; raises `AttemptFailure` if it cannot."""

    def __init__(
        self,
        *,
        resolver: Resolver,
        egress: EgressPolicy,
        route: Route,
        tls: TlsContexts,
        addresses_max: int = 16,
        address_share_max_s: float = 5.0,
        handshakes_max: int = HANDSHAKES_MAX,
    ) -> None:
        """Bound one dial, and all of them: `handshakes_max` TLS handshakes run at once.

        At most `addresses_max` addresses of a name are tried, all but the last of them for no
        longer than `address_share_max_s` seconds.
        """
        self._resolver = resolver
        self._egress = egress
        self._route = route
        self._tls = tls
        self._addresses_max = addresses_max
        self._address_share_max_s = address_share_max_s
        self._handshakes = HandshakeQueue(handshakes_max)

    async def dial(
        self, origin: Origin, deadline: float, make: MakeConnection, tenant_id: str = ""
    ) -> Connection:
        """Open a connection; `deadline` is on the loop's clock, `tenant_id` owns the target."""
        loop = asyncio.get_running_loop()
        if not self._egress.allows_host(origin.host):
            raise AttemptFailure(AttemptOutcome.ADDRESS_BLOCKED, _HOST_BLOCKED)
        if not self._egress.allows_port(origin.port):
            raise AttemptFailure(AttemptOutcome.ADDRESS_BLOCKED, _PORT_BLOCKED)
        places = await self._places_of(origin.host, deadline, tenant_id)
        failures: list[AttemptFailure] = []
        for index, place in enumerate(places):
            now = loop.time()
            share_s = (deadline - now) / (len(places) - index)
            is_last = index == len(places) - 1
            limit = deadline if is_last else now + min(share_s, self._address_share_max_s)
            try:
                return await self._connect(origin, place, limit, make, tenant_id)
            except RouteFailure:
                raise
            except AttemptFailure as failure:
                if failure.kind is AttemptOutcome.ADDRESS_BLOCKED:
                    raise
                failures.append(failure)
        try:
            raise _first_failure(failures)
        finally:
            # The failure's traceback holds this frame: with the list in it, a cycle would keep each
            # failed handshake with all its certificates until a garbage collection.
            failures.clear()

    async def _places_of(self, host: str, deadline: float, tenant_id: str) -> tuple[str, ...]:
        """Return the addresses to try, all allowed; or the name, if the proxy checks it."""
        if is_address(host):
            addresses: tuple[str, ...] = (host,)
        elif self._route.takes_names:
            return (host,)
        else:
            addresses = await self._resolve(host, deadline, tenant_id)
        if not self._egress.allows_all(addresses):
            raise AttemptFailure(AttemptOutcome.ADDRESS_BLOCKED, BLOCKED)
        return addresses[: self._addresses_max]

    async def _resolve(self, host: str, deadline: float, tenant_id: str) -> tuple[str, ...]:
        try:
            async with asyncio.timeout_at(deadline):
                return await self._resolver.resolve(host, tenant_id)
        except TimeoutError:
            # A target's slow name servers look like our own slow resolver. The lookup continues,
            # and its result serves the next attempt.
            raise AttemptFailure(
                AttemptOutcome.INTERNAL_ERROR, "the host's name did not resolve before the deadline"
            ) from None

    async def _connect(
        self, origin: Origin, place: str, limit: float, make: MakeConnection, tenant_id: str
    ) -> Connection:
        """Open a connection through the route to an address, or to a name."""
        context = await self._context_of(origin, limit)
        sock = await self._route.open(place, origin.port, limit, tenant_id)
        address = place if is_address(place) else None
        is_begun = context is None
        try:
            async with asyncio.timeout_at(limit):
                if context is None:
                    return await self._greet(origin, sock, address, None, make)
                async with self._handshakes.slot(tenant_id):
                    is_begun = True
                    return await self._greet(origin, sock, address, context, make)
        except TimeoutError:
            if not is_begun:
                message = "no TLS handshake could begin before the deadline: too many are under way"
                raise AttemptFailure(AttemptOutcome.INTERNAL_ERROR, message) from None
            message = "no connection could be made before the deadline"
            raise AttemptFailure(AttemptOutcome.TIMEOUT, message, remote_address=address) from None
        finally:
            if not is_begun:
                sock.close()

    async def _context_of(self, origin: Origin, limit: float) -> TargetTlsContext | None:
        if origin.scheme != "https":
            return None
        try:
            async with asyncio.timeout_at(limit):
                return await self._tls.of(origin.identity)
        except TimeoutError:
            raise AttemptFailure(
                AttemptOutcome.INTERNAL_ERROR,
                "the client certificate was not ready before the deadline",
            ) from None
        except (ssl.SSLError, ValueError):
            raise AttemptFailure(
                AttemptOutcome.TLS_FAILED, "the client certificate cannot be used"
            ) from None
        except OSError as error:
            raise AttemptFailure(
                AttemptOutcome.INTERNAL_ERROR,
                "the client certificate could not be made ready",
                is_shortage=error.errno in OWN_ERRNOS,
            ) from None

    async def _greet(
        self,
        origin: Origin,
        sock: socket.socket,
        address: str | None,
        context: TargetTlsContext | None,
        make: MakeConnection,
    ) -> Connection:
        """Wrap a connected socket in a connection, after a TLS handshake if `context` is given."""
        loop = asyncio.get_running_loop()
        try:
            transport, connection = await loop.create_connection(
                lambda: make(origin, address),
                sock=sock,
                ssl=context,
                server_hostname=origin.host if context else None,
            )
        except TimeoutError:
            raise
        except HandshakeTooLargeError as error:
            raise AttemptFailure(
                AttemptOutcome.TLS_FAILED,
                f"the target sent more than {error.bytes_max} bytes in its TLS handshake"
                " (HOOKLINE_EGRESS_HANDSHAKE_BYTES)",
                remote_address=address,
            ) from None
        except (OSError, ValueError) as error:
            raise _handshake_failure(error, address) from None
        if context is not None:
            connection.handshake_bytes = transport.get_extra_info("ssl_object").handshake_bytes
        return connection


def _handshake_failure(error: OSError | ValueError, address: str | None) -> AttemptFailure:
    """The failure of a handshake that ended without a TLS error: reset, closed, an odd name."""
    if isinstance(error, OSError):
        failure = failure_of_os_error(error, remote_address=address)
        if failure.kind is not AttemptOutcome.CONNECTION_FAILED:
            return failure
    return AttemptFailure(
        AttemptOutcome.TLS_FAILED,
        "the connection was closed during the TLS handshake",
        remote_address=address,
    )


def _first_failure(failures: list[AttemptFailure]) -> AttemptFailure:
    """Return the failure of the first address; internal errors only if there are no others."""
    for failure in failures:
        if failure.kind is not AttemptOutcome.INTERNAL_ERROR:
            return failure
    return failures[0]
