"""From an origin to an open connection: resolve, refuse what is not allowed, connect, TLS.

Theory. The host and the port are held against the deployment's lists. All addresses of a name are
checked before any is tried: one that is not allowed taints the name, since its owner chose it. Then
they are tried in turn, each with a share of what is left of the deadline, by a route: straight, or
through an egress proxy. What was checked is what is connected to; the socket's own idea of its peer
is checked once more before a byte is sent. The name stays with the connection, for SNI and for the
certificate.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable

from hookline_service.domain.attempt import AttemptOutcome
from hookline_service.targets.http.client_certificate import TlsContexts
from hookline_service.targets.http.connection import Connection
from hookline_service.targets.http.egress import EgressPolicy, is_address
from hookline_service.targets.http.failure import OWN_ERRNOS, AttemptFailure, failure_of_os_error
from hookline_service.targets.http.handshake_turns import HandshakeTurns
from hookline_service.targets.http.origin import Origin
from hookline_service.targets.http.resolver import Resolver
from hookline_service.targets.http.route import BLOCKED, Route, RouteFailure
from hookline_service.targets.http.tls_handshake import HandshakeTooLargeError, TargetTlsContext

MakeConnection = Callable[[Origin, str | None], Connection]
"""A new connection to an origin, at the address that is being tried; None where nobody knows it."""

HANDSHAKES_MAX = 64
"""TLS handshakes that run at once."""
_HOST_BLOCKED = "the host is not one that this service may send to"

_PORT_BLOCKED = "the port is not one that this service may send to"


class Dialer:
    """Opens connections within a deadline; raises `AttemptFailure` where it cannot."""

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
        """Bounds of one dial, and of all: `handshakes_max` TLS handshakes run at once.

        At most `addresses_max` addresses of a name are tried, all but the last of them for no
        longer than `address_share_max_s` seconds.
        """
        self._resolver = resolver
        self._egress = egress
        self._route = route
        self._tls = tls
        self._addresses_max = addresses_max
        self._address_share_max_s = address_share_max_s
        self._handshakes = HandshakeTurns(handshakes_max)

    async def dial(
        self, origin: Origin, deadline: float, make: MakeConnection, tenant_id: str = ""
    ) -> Connection:
        """A new connection; `deadline` is on the loop's clock, `tenant_id` named the host."""
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
            raise _verdict(failures)
        finally:
            # The failure's traceback holds this frame: with the list in it, a cycle would keep each
            # failed handshake with all its certificates until a garbage collection.
            failures.clear()

    async def _places_of(self, host: str, deadline: float, tenant_id: str) -> tuple[str, ...]:
        """The addresses to try, all of them allowed; or the name, where the route judges it."""
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
            # Nobody can tell a slow target's name servers from our own slow resolver; the lookup
            # goes on, and its verdict is there for the next attempt.
            raise AttemptFailure(
                AttemptOutcome.INTERNAL_ERROR, "the host's name did not resolve before the deadline"
            ) from None

    async def _connect(
        self, origin: Origin, place: str, limit: float, make: MakeConnection, tenant_id: str
    ) -> Connection:
        """A connection through the route to an address, or to a name where the route takes it."""
        context = await self._context_of(origin, limit)
        sock = await self._route.open(place, origin.port, limit, tenant_id)
        address = place if is_address(place) else None
        is_begun = context is None
        try:
            async with asyncio.timeout_at(limit):
                if context is None:
                    return await self._greet(origin, sock, address, None, make)
                async with self._handshakes.turn(tenant_id):
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
        """What a connected socket becomes: a connection, through TLS where that is asked for."""
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


def _verdict(failures: list[AttemptFailure]) -> AttemptFailure:
    """What several addresses come to: the failure of the best one, save for faults of our own."""
    for failure in failures:
        if failure.kind is not AttemptOutcome.INTERNAL_ERROR:
            return failure
    return failures[0]
