"""The delivery pool: httpx's transport interface over our own connections.

Theory. A request takes a warm connection of its origin, or opens one; its bytes are written, and
one future yields the response. Everything is bounded: connections, idle ones, bytes and headers of
a response, and time, by one deadline from the name's resolution to the response's last byte. The
transport follows no redirect, reads no proxy from the environment, keeps no cookie and decodes no
body.

A request's `extensions`, all optional:
    timeout_s          the deadline, in seconds from now (15)
    connect_timeout_s  the part of it that a new connection may take (all of it)
    may_send           called just before the first byte; False: nothing is sent, INTERNAL_ERROR
    origin             the `Origin` of the URL, where the caller keeps it
    target             the request target, exactly as it is to be sent (httpx's own convention)
    tenant_id          the tenant that owns the URL, for fair shares (`tenant_shares`)

Written for POST: a request of another method is sent, but HEAD and CONNECT, whose responses have
bodies by other rules, are not supported. The request's headers are sent unchanged, so the caller
must set `host` and `content-length`. The body of a response is its first `kept_body_bytes` only.

`IdlePool` keeps idle connections by origin and decides only: it returns what must be closed. It
hands out the most recently used connection first, so that those not needed grow old and expire.
Every operation is O(1), and origins without connections are removed, so that memory does not grow
with the number of targets.

`Deadlines` keeps the deadlines of all exchanges with one timer instead of one for each request.
Time is divided into ticks; a connection waits in the slot of the first tick after its deadline, so
it never expires early and, on an idle loop, at most two ticks late. The timer runs only while there
is something to wait for. A late tick shows that the event loop was blocked (or the process frozen)
and that responses may lie unread in the sockets. It expires nothing; the next tick does, late or
not, after they have been read: a stall of ours must not look like a silent target.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
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
from hookline_service.targets.http.connection import (
    Answer,
    Connection,
    Origin,
    StaleConnectionError,
    origin_of,
)
from hookline_service.targets.http.dialer import HANDSHAKES_MAX, Dialer, DirectRoute
from hookline_service.targets.http.egress import EgressPolicy
from hookline_service.targets.http.failure import AttemptFailure
from hookline_service.targets.http.proxy import EgressProxy, ProxyRoute
from hookline_service.targets.http.resolver import Resolver
from hookline_service.targets.http.tenant_shares import CERTIFICATE_BYTES_MAX, CertificateBudget
from hookline_service.targets.http.tls import MakeTls, TlsContexts, make_tls_context


class IdlePool:
    """Idle connections, bounded for each origin, in total, and in age."""

    def __init__(self, *, per_origin_max: int, total_max: int, idle_timeout_s: float) -> None:
        self._per_origin_max = per_origin_max
        self._total_max = total_max
        self._idle_timeout_s = idle_timeout_s
        self._by_age: OrderedDict[Connection, None] = OrderedDict()
        self._by_origin: dict[Origin, dict[Connection, None]] = {}

    def __len__(self) -> int:
        return len(self._by_age)

    @property
    def origin_count(self) -> int:
        """Origins with connections, idle or not."""
        return len(self._by_origin)

    def take(self, origin: Origin) -> Connection | None:
        """Remove and return the most recently used idle connection of an origin."""
        idle = self._by_origin.get(origin)
        if not idle:
            return None
        connection, _ = idle.popitem()
        del self._by_age[connection]
        return connection

    def put(self, connection: Connection, now: float) -> Connection | None:
        """Keep a connection that is idle from `now` on; return the one to close for it, if any."""
        idle = self._by_origin.get(connection.origin)
        if idle is None:
            idle = self._by_origin[connection.origin] = {}
        if len(idle) >= self._per_origin_max:
            return connection
        connection.idle_since = now
        idle[connection] = None
        self._by_age[connection] = None
        return self.oldest() if len(self._by_age) > self._total_max else None

    def oldest(self) -> Connection | None:
        """Return the connection that has been idle longest, if any; it stays until discarded."""
        return next(iter(self._by_age), None)

    def discard(self, connection: Connection) -> None:
        """Remove a connection, idle or not, and its origin with its last connection."""
        self._by_age.pop(connection, None)
        idle = self._by_origin.get(connection.origin)
        if idle is not None:
            idle.pop(connection, None)
            if not idle:
                del self._by_origin[connection.origin]

    def expired(self, now: float) -> list[Connection]:
        """Return the connections that were idle for too long; they stay until discarded."""
        expired = []
        for connection in self._by_age:
            if connection.idle_since + self._idle_timeout_s > now:
                break
            expired.append(connection)
        return expired


class Deadlines:
    """Connections by deadline; calls `expire` on those whose deadline has passed."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        tick_s: float,
        on_tick: Callable[[float], bool],
    ) -> None:
        """`on_tick` receives the loop's time at each tick; the timer runs while it returns True."""
        self._loop = loop
        self._tick_s = tick_s
        self._on_tick = on_tick
        self._slots: dict[int, set[Connection]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._expected_at = 0.0
        self._spared_last = False

    def add(self, connection: Connection, deadline: float) -> None:
        """Expire the connection once the loop's clock has passed `deadline`."""
        number = int(deadline / self._tick_s) + 1
        connection.watched_slot = number
        slot = self._slots.get(number)
        if slot is None:
            slot = self._slots[number] = set()
            self.wake()
        slot.add(connection)

    def discard(self, connection: Connection) -> None:
        """Forget a connection: its exchange ended."""
        slot = self._slots.get(connection.watched_slot)
        if slot is not None:
            slot.discard(connection)

    def wake(self) -> None:
        """Start the timer unless it runs."""
        if self._timer is None:
            self._expected_at = self._loop.time() + self._tick_s
            self._timer = self._loop.call_later(self._tick_s, self._tick)

    def stop(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self) -> None:
        now = self._loop.time()
        is_late = now > self._expected_at + self._tick_s
        self._spared_last = is_late and not self._spared_last
        self._timer = None
        if not self._spared_last:
            current = int(now / self._tick_s)
            for number in [number for number in self._slots if number <= current]:
                for connection in tuple(self._slots.pop(number)):
                    connection.expire()
        if self._on_tick(now) or self._slots:
            self.wake()


_NO_BODY = httpx.ByteStream(b"")


@dataclass(frozen=True, slots=True, kw_only=True)
class TransportLimits:
    """The bounds of a transport."""

    connections_max: int = 4_096
    """Open and opening connections; a request beyond it is an internal error."""
    idle_per_origin_max: int = 512
    idle_max: int = 1_024
    idle_timeout_s: float = 30.0
    answer_bytes_max: int = DEFAULT_LIMIT_BYTES
    """Head, interim responses and body; then the connection is closed."""
    kept_body_bytes: int = DEFAULT_KEPT_BODY_BYTES
    addresses_max: int = 16
    """Addresses of a name that are tried in one attempt."""
    handshakes_max: int = HANDSHAKES_MAX
    """Concurrent TLS handshakes; bounds the memory of their certificates."""
    certificate_bytes_max: int = CERTIFICATE_BYTES_MAX
    """Handshake bytes of all open connections."""
    tick_s: float = 0.1
    """Half of the delay after which a deadline is noticed at the latest."""


class WebhookTransport(httpx.AsyncBaseTransport):
    """Sends requests over pooled connections. It is bound to the event loop of its first request.

    Raises `AttemptFailure` for every failure of the network or the target.
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
        """`resolver` uses the system's by default; `make_tls` makes the TLS contexts.

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
        """Open connections without a request."""
        return len(self._pool)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request and return its final response; raise `AttemptFailure`."""
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
        """Close every connection; running exchanges end as INTERNAL_ERROR."""
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

    # The methods of a `ConnectionOwner`.

    def connected(self, connection: Connection) -> None:
        """Count an established connection."""
        self._connections.add(connection)

    def released(self, connection: Connection) -> None:
        """Return a connection to the pool."""
        if self._is_closed:
            connection.abort()
            return
        surplus = self._pool.put(connection, self._loop.time())
        if surplus is not None:
            surplus.abort()
        else:
            self._deadlines.wake()

    def closing(self, connection: Connection) -> None:
        """Remove a connection from the pool."""
        self._pool.discard(connection)
        self._certificates.release(connection)

    def closed(self, connection: Connection) -> None:
        """Forget a closed connection."""
        self._connections.discard(connection)
        if self._drained is not None and not self._connections and not self._drained.done():
            self._drained.set_result(None)

    def watch(self, connection: Connection, deadline: float) -> None:
        """Watch the deadline of an exchange."""
        self._deadlines.add(connection, deadline)

    def unwatch(self, connection: Connection) -> None:
        """Forget a connection: its exchange ended."""
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
        """Return an idle connection without unread bytes; close those that have any."""
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
        """Count a new connection's certificates; close idle connections until they fit."""
        if connection not in self._connections:  # the peer has already closed it
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
        """Close half of the idle connections, the oldest first, to free what they hold."""
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
