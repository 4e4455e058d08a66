"""The delivery pool: httpx's transport interface over our own connections.

Theory. A request takes a warm connection of its origin, or opens one; its bytes are written, and
one future comes to the answer. Everything is bounded: connections, idle ones, bytes and headers of
an answer, and time, by one deadline from the name's resolution to the answer's last byte. It
follows no redirect, reads no proxy from the environment, keeps no cookie, decodes no body.

A request's `extensions`, all optional:
    timeout_s          the deadline, in seconds from now (15)
    connect_timeout_s  the part of it that a new connection may take (all of it)
    may_send           called just before the first byte; False: nothing is sent, INTERNAL_ERROR
    origin             the `Origin` of the URL, where the caller keeps it
    target             the request target, exactly as it is to be sent (httpx's own convention)
    tenant_id          who named the URL: tenants take turns where names are looked up

Written for POST: a request of another method is sent all the same, but HEAD and CONNECT, whose
answers have bodies by other rules, are not understood. The request's headers are sent as they are,
so `host` and `content-length` are the caller's to give. An answer's body is its first
`kept_body_bytes` only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import httpx

from hookline_service.domain.attempt import AttemptOutcome
from hookline_service.domain.subscription import DEFAULT_TIMEOUT_S
from hookline_service.targets.http.answer import (
    DEFAULT_KEPT_BODY_BYTES,
    DEFAULT_LIMIT_BYTES,
    AnswerReader,
)
from hookline_service.targets.http.certificate_budget import (
    CERTIFICATE_BYTES_MAX,
    CertificateBudget,
)
from hookline_service.targets.http.client_certificate import MakeTls, TlsContexts
from hookline_service.targets.http.connection import Answer, Connection, StaleConnectionError
from hookline_service.targets.http.deadlines import Deadlines
from hookline_service.targets.http.dialer import HANDSHAKES_MAX, Dialer
from hookline_service.targets.http.egress import EgressPolicy
from hookline_service.targets.http.failure import AttemptFailure
from hookline_service.targets.http.origin import Origin, origin_of
from hookline_service.targets.http.pool import IdlePool
from hookline_service.targets.http.proxy import EgressProxy, ProxyRoute
from hookline_service.targets.http.resolver import Resolver
from hookline_service.targets.http.route import DirectRoute
from hookline_service.targets.http.tls_handshake import make_tls_context

_NO_BODY = httpx.ByteStream(b"")


@dataclass(frozen=True, slots=True, kw_only=True)
class TransportLimits:
    """The bounds of a transport."""

    connections_max: int = 4_096
    """Open and opening connections; beyond it a request is our own fault."""
    idle_per_origin_max: int = 512
    idle_max: int = 1_024
    idle_timeout_s: float = 30.0
    answer_bytes_max: int = DEFAULT_LIMIT_BYTES
    """Head, interim answers and body; then the connection is closed."""
    kept_body_bytes: int = DEFAULT_KEPT_BODY_BYTES
    addresses_max: int = 16
    """Addresses of a name that are tried in one attempt."""
    handshakes_max: int = HANDSHAKES_MAX
    """TLS handshakes that run at once; their certificates' memory is bounded by it."""
    certificate_bytes_max: int = CERTIFICATE_BYTES_MAX
    """What targets sent in the handshakes of all open connections."""
    tick_s: float = 0.1
    """How late a deadline may be noticed, halved."""


class WebhookTransport(httpx.AsyncBaseTransport):
    """Sends requests over pooled connections. Belongs to the event loop of its first request.

    Raises `AttemptFailure` for whatever the network or the target does.
    """

    def __init__(
        self,
        *,
        egress: EgressPolicy,
        proxy: EgressProxy | None = None,
        resolver: Resolver | None = None,
        make_tls: MakeTls = make_tls_context,
        limits: TransportLimits | None = None,
    ) -> None:
        """`resolver` asks the system by default; `make_tls` makes the contexts of connections.

        With a `proxy` every connection is a tunnel through it.

        The transport closes its resolver.
        """
        self._limits = limits or TransportLimits()
        self._resolver = resolver or Resolver()
        self._dialer = Dialer(
            resolver=self._resolver,
            egress=egress,
            route=ProxyRoute(proxy, self._resolver) if proxy else DirectRoute(egress),
            tls=TlsContexts(make_tls),
            addresses_max=self._limits.addresses_max,
            handshakes_max=self._limits.handshakes_max,
        )
        self._pool = IdlePool(
            per_origin_max=self._limits.idle_per_origin_max,
            total_max=self._limits.idle_max,
            idle_timeout_s=self._limits.idle_timeout_s,
        )
        self._certificates = CertificateBudget(self._limits.certificate_bytes_max)
        self._connections: set[Connection] = set()
        self._dialing_count = 0
        self._is_closed = False
        self._drained: asyncio.Future[None] | None = None
        self._bound_loop: asyncio.AbstractEventLoop | None = None
        self._bound_deadlines: Deadlines | None = None

    @property
    def connection_count(self) -> int:
        """Connections that are open or being opened."""
        return len(self._connections) + self._dialing_count

    @property
    def idle_count(self) -> int:
        """Connections that are open and wait for a request."""
        return len(self._pool)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, and return its final answer; raises `AttemptFailure`."""
        loop = self._bound_loop or self._bind()
        extensions = request.extensions
        began = loop.time()
        deadline = began + extensions.get("timeout_s", DEFAULT_TIMEOUT_S)
        origin = extensions.get("origin") or origin_of(request.url)
        may_send: Callable[[], bool] | None = extensions.get("may_send")
        head = _head_of(request)
        stream = request.stream
        body = b"".join(stream) if isinstance(stream, httpx.ByteStream) else await request.aread()
        connection = self._take(origin)
        while True:
            if connection is None:
                connect_timeout_s: float | None = extensions.get("connect_timeout_s")
                connect_by = deadline if connect_timeout_s is None else began + connect_timeout_s
                tenant_id: str = extensions.get("tenant_id", "")
                connection = await self._open(origin, min(connect_by, deadline), tenant_id)
            if may_send is not None and not may_send():
                self.released(connection)
                raise AttemptFailure(AttemptOutcome.INTERNAL_ERROR, "the right to send was lost")
            waiter = connection.start(head, body, deadline)
            try:
                answer = await waiter
            except StaleConnectionError:
                connection = None
            except asyncio.CancelledError:
                connection.abandon(waiter)
                raise
            else:
                return _response_of(answer, connection)

    async def aclose(self) -> None:
        """Close every connection; exchanges that are under way end as INTERNAL_ERROR."""
        self._is_closed = True
        await self._resolver.aclose()
        if self._bound_loop is None:
            return
        self._deadlines.stop()
        for connection in tuple(self._connections):
            connection.stop()
        if self._connections:
            self._drained = self._bound_loop.create_future()
            await self._drained

    async def __aenter__(self) -> Self:
        return self

    # What follows makes the transport a `ConnectionOwner`.

    def connected(self, connection: Connection) -> None:
        """The connection stands."""
        self._connections.add(connection)

    def released(self, connection: Connection) -> None:
        """The connection can carry another exchange."""
        if self._is_closed:
            connection.abort()
            return
        surplus = self._pool.put(connection, self._loop.time())
        if surplus is not None:
            surplus.abort()
        else:
            self._deadlines.wake()

    def closing(self, connection: Connection) -> None:
        """The connection must not be used again."""
        self._pool.discard(connection)
        self._certificates.release(connection)

    def closed(self, connection: Connection) -> None:
        """The connection is gone."""
        self._connections.discard(connection)
        if self._drained is not None and not self._connections and not self._drained.done():
            self._drained.set_result(None)

    def watch(self, connection: Connection, deadline: float) -> None:
        """Expire the connection's exchange at its deadline."""
        self._deadlines.add(connection, deadline)

    def unwatch(self, connection: Connection) -> None:
        """The connection's exchange is over."""
        self._deadlines.discard(connection)

    @property
    def _loop(self) -> asyncio.AbstractEventLoop:
        return self._bound_loop or self._bind()

    @property
    def _deadlines(self) -> Deadlines:
        if self._bound_deadlines is None:
            raise RuntimeError("the transport has not sent anything yet")
        return self._bound_deadlines

    def _bind(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        self._bound_loop = loop
        self._bound_deadlines = Deadlines(
            loop, tick_s=self._limits.tick_s, on_tick=self._close_expired
        )
        return loop

    def _close_expired(self, now: float) -> bool:
        for connection in self._pool.expired(now):
            connection.abort()
        return len(self._pool) > 0

    def _take(self, origin: Origin) -> Connection | None:
        """An idle connection on which the peer has been silent; one that spoke is closed."""
        while (connection := self._pool.take(origin)) is not None:
            if not connection.has_unread:
                return connection
            connection.abort()
        return None

    async def _open(self, origin: Origin, deadline: float, tenant_id: str) -> Connection:
        self._check_open()
        if self.connection_count >= self._limits.connections_max:
            idle = self._pool.oldest()
            if idle is None:
                raise AttemptFailure(AttemptOutcome.INTERNAL_ERROR, "too many connections are open")
            idle.abort()
        self._dialing_count += 1
        try:
            connection = await self._dialer.dial(origin, deadline, self._make_connection, tenant_id)
        except AttemptFailure as failure:
            if failure.is_shortage:
                self._shed_idle()
            raise
        finally:
            self._dialing_count -= 1
        try:
            self._check_open()
            self._hold_certificates(connection, tenant_id)
        except AttemptFailure:
            connection.abort()
            raise
        return connection

    def _hold_certificates(self, connection: Connection, tenant_id: str) -> None:
        """Count a new connection's certificates; idle connections make room for them."""
        if connection not in self._connections:  # the peer has closed it meanwhile
            return
        while not self._certificates.hold(connection, tenant_id):
            idle = self._pool.oldest()
            if idle is None:
                raise AttemptFailure(
                    AttemptOutcome.INTERNAL_ERROR,
                    "the certificates of open connections come to HOOKLINE_EGRESS_CERTIFICATE_BYTES"
                    f" ({self._limits.certificate_bytes_max}), or to this tenant's share of it",
                )
            idle.abort()

    def _check_open(self) -> None:
        if self._is_closed:
            raise AttemptFailure(AttemptOutcome.INTERNAL_ERROR, "the service is stopping")

    def _shed_idle(self) -> None:
        """Give back half of what idle connections hold, the oldest first: others need it now."""
        for _ in range((len(self._pool) + 1) // 2):
            idle = self._pool.oldest()
            if idle is not None:
                idle.abort()

    def _make_connection(self, origin: Origin, address: str | None) -> Connection:
        reader = AnswerReader(self._limits.answer_bytes_max, self._limits.kept_body_bytes)
        return Connection(origin, address, self, reader, self._loop)


def _head_of(request: httpx.Request) -> bytes:
    target: bytes = request.extensions.get("target") or request.url.raw_path
    lines = [b"%b: %b\r\n" % header for header in request.headers.raw]
    return b"%b %b HTTP/1.1\r\n%b\r\n" % (request.method.encode(), target, b"".join(lines))


def _response_of(answer: Answer, connection: Connection) -> httpx.Response:
    status, headers, body = answer
    return httpx.Response(
        status,
        headers=headers,
        stream=httpx.ByteStream(body) if body else _NO_BODY,
        extensions={"remote_address": connection.remote_address},
    )
