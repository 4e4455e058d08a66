"""One HTTP/1.1 connection: write a request, read its response, report the result.

A connection is unconnected, idle, in an exchange, or closed. It handles bytes and callbacks only;
its owner (`transport`) decides which origin is dialled and which connection carries a request. An
exchange runs in callbacks of the event loop; its caller awaits one future, which ends as an
`Answer`, an `AttemptFailure`, or a `StaleConnectionError`.

Connections are shared by origin, never by address. Two names behind one address may have two owners
with two certificates: a pool by address would send one tenant's request over another's TLS
connection. All connections of a transport verify against the same authorities. A connection with a
client certificate is never shared with a sender that shows another one or none, since the target
may have authorised the connection by it.
"""

from __future__ import annotations

import asyncio
import select
from typing import NamedTuple, Protocol, cast

import httpx

from hookline_service.domain.attempt import AttemptOutcome
from hookline_service.domain.target import DEFAULT_PORTS
from hookline_service.targets.http.answer import AnswerReader, BadAnswerError
from hookline_service.targets.http.failure import AttemptFailure, failure_of_os_error
from hookline_service.targets.http.tls import ClientIdentity


class Origin(NamedTuple):
    """The key of the connection pool: scheme, host, port and client certificate."""

    scheme: str
    """`http` or `https`."""
    host: str
    """A name, or an address without brackets."""
    port: int
    identity: ClientIdentity | None = None
    """The client certificate; None if there is none."""


def origin_of(url: httpx.URL) -> Origin:
    """Return the origin of a URL; raise `httpx.UnsupportedProtocol` unless it is http or https."""
    if url.scheme not in DEFAULT_PORTS:
        raise httpx.UnsupportedProtocol(f"cannot send to a URL of the scheme {url.scheme!r}")
    # `url.host` would decode xn-- names, and raise where they decode to nothing.
    host = url.raw_host.decode("ascii")
    return Origin(url.scheme, host, url.port or DEFAULT_PORTS[url.scheme])


WRITE_SLICE_BYTES = 65_536
"""Larger requests are written in slices, the next when the socket has taken the one before."""

_REQUEST_TIMEOUT = 408


class Answer(NamedTuple):
    """A final response with the beginning of its body."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


class StaleConnectionError(Exception):
    """A kept-alive connection was closed before it carried any byte of a response.

    The target closed it while it was idle, at the time the request was written. The request is sent
    once more on a new connection, so that a target's idle timeout costs no attempt. The repetition
    is allowed although POST is not idempotent (RFC 9110 section 9.2.2): every attempt of a delivery
    carries the same `webhook-id`, by which a receiver recognises a duplicate. On a new connection
    the same event is a failure of the attempt, so a request is sent twice at most.
    """


class ConnectionOwner(Protocol):
    """The owner of connections: receives their events and keeps their deadlines."""

    def connected(self, connection: Connection) -> None:
        """The connection is established."""

    def released(self, connection: Connection) -> None:
        """The exchange ended; the connection can carry another."""

    def closing(self, connection: Connection) -> None:
        """The connection must not be used again."""

    def closed(self, connection: Connection) -> None:
        """The connection is closed and its descriptor free."""

    def watch(self, connection: Connection, deadline: float) -> None:
        """Call the connection's `expire` once the loop's clock passes `deadline`."""

    def unwatch(self, connection: Connection) -> None:
        """Forget the deadline: the exchange ended."""


class Connection(asyncio.Protocol):
    """A connection to an origin."""

    __slots__ = (
        "_failure",
        "_is_paused",
        "_is_used",
        "_loop",
        "_owner",
        "_reader",
        "_rest",
        "_transport",
        "_unread",
        "_waiter",
        "handshake_bytes",
        "idle_since",
        "origin",
        "remote_address",
        "watched_slot",
    )

    def __init__(
        self,
        origin: Origin,
        remote_address: str | None,
        owner: ConnectionOwner,
        reader: AnswerReader,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.origin = origin
        self.remote_address = remote_address
        self.handshake_bytes = 0
        """Bytes received in the TLS handshake; its certificates live as long as the connection."""
        self.idle_since = 0.0
        self.watched_slot = 0
        self._owner = owner
        self._reader = reader
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._unread = select.poll()
        self._waiter: asyncio.Future[Answer] | None = None
        self._rest: memoryview | None = None
        self._failure: AttemptFailure | None = None
        self._is_paused = False
        self._is_used = False

    @property
    def has_unread(self) -> bool:
        """Whether unsolicited bytes, or the peer's end of stream, wait in the socket.

        The event loop has read only what arrived before its last poll. The transport checks this
        before it uses an idle connection: a response that arrived early belongs to no request.
        """
        return bool(self._unread.poll(0))

    def start(self, head: bytes, body: bytes, deadline: float) -> asyncio.Future[Answer]:
        """Send a request; the future yields its `Answer`. `deadline` is on the loop's clock.

        Raises `AttemptFailure` if the connection closed before anything was sent on it. A caller
        that stops waiting must call `abandon`.
        """
        if self._failure is not None or self._transport is None:
            raise self._failure or AttemptFailure(
                AttemptOutcome.CONNECTION_FAILED,
                "the connection was closed before the request was sent",
                remote_address=self.remote_address,
            )
        waiter: asyncio.Future[Answer] = self._loop.create_future()
        self._waiter = waiter
        self._owner.watch(self, deadline)
        if len(body) <= WRITE_SLICE_BYTES:
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            self._rest = memoryview(body)
            self._write_rest()
        return waiter

    def abandon(self, waiter: asyncio.Future[Answer]) -> None:
        """Abort the exchange of a caller that gave up; do nothing if it has ended."""
        if self._waiter is waiter:
            self._waiter = None
            self._owner.unwatch(self)
            self.abort()

    def abort(self) -> None:
        """Close at once and drop unsent and unread bytes."""
        self._rest = None
        self._owner.closing(self)
        if self._transport is not None:
            self._transport.abort()

    def expire(self) -> None:
        """End the exchange with a timeout."""
        if self._waiter is None:
            return
        if self._reader.head_complete:
            message = (
                f"the body of the {self._reader.status} answer did not end before the deadline"
            )
        elif self._reader.was_started:
            message = "the head of the answer was not complete before the deadline"
        elif self._rest is not None:
            message = "the target did not take the whole request before the deadline"
        else:
            message = "no answer came before the deadline"
        self._fail(AttemptOutcome.TIMEOUT, message)

    def stop(self) -> None:
        """End the exchange as INTERNAL_ERROR: the service is stopping."""
        self._fail(AttemptOutcome.INTERNAL_ERROR, "the service is stopping")

    # Callbacks of the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected; a TLS handshake is complete."""
        self._transport = cast("asyncio.Transport", transport)
        self._unread.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
        self._owner.connected(self)

    def data_received(self, data: bytes) -> None:
        """Parse bytes of a response; close the connection if they are unsolicited."""
        if self._waiter is None:
            self._failure = AttemptFailure(
                AttemptOutcome.PROTOCOL_ERROR,
                "the target sent bytes before any request",
                remote_address=self.remote_address,
            )
            self.abort()
            return
        try:
            if self._reader.feed(data):
                self._settle()
        except BadAnswerError as error:
            self._fail(AttemptOutcome.PROTOCOL_ERROR, str(error))

    def eof_received(self) -> None:
        """Close: the peer sends no more."""
        self._end(None)
        self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed; this is the last callback."""
        self._transport = None
        self._owner.closing(self)
        self._end(exc)
        self._owner.closed(self)

    def pause_writing(self) -> None:
        """Pause writing: the socket's buffer is full."""
        self._is_paused = True

    def resume_writing(self) -> None:
        """Continue writing."""
        self._is_paused = False
        self._write_rest()

    def _write_rest(self) -> None:
        while self._rest is not None and not self._is_paused and self._transport is not None:
            chunk, rest = self._rest[:WRITE_SLICE_BYTES], self._rest[WRITE_SLICE_BYTES:]
            self._rest = rest or None
            self._transport.write(chunk)

    @property
    def _is_written(self) -> bool:
        """Whether the operating system has accepted the whole request."""
        transport = self._transport
        return self._rest is None and not (transport and transport.get_write_buffer_size())

    def _settle(self) -> None:
        """Deliver the response; keep the connection if it can be used again."""
        waiter, reader = self._waiter, self._reader
        if waiter is None:
            return
        was_reused, self._is_used = self._is_used, True
        is_reusable = reader.is_reusable and self._is_written
        if reader.status == _REQUEST_TIMEOUT and was_reused and not is_reusable:
            # It announces the end of an idle connection (RFC 9110 section 15.5.9), and does not
            # answer this request.
            self._finish(waiter, StaleConnectionError())
            return
        answer = Answer(reader.status, reader.headers, reader.body)
        if is_reusable:
            self._waiter = None
            reader.begin()
            self._owner.unwatch(self)
            self._owner.released(self)
            if not waiter.done():
                waiter.set_result(answer)
        else:
            self._finish(waiter, answer)

    def _end(self, error: Exception | None) -> None:
        """Settle or fail the exchange: the peer or the network ended the connection."""
        waiter = self._waiter
        if waiter is None:
            return
        if self._reader.head_complete:
            self._settle()
        elif self._is_used and not self._reader.was_started:
            self._finish(waiter, StaleConnectionError())
        elif isinstance(error, OSError):
            failure = failure_of_os_error(error)
            self._fail(failure.kind, failure.message)
        else:
            self._fail(
                AttemptOutcome.CONNECTION_FAILED,
                "the connection was closed within the head of the answer"
                if self._reader.was_started
                else "the connection was closed without an answer",
            )

    def _fail(self, kind: AttemptOutcome, message: str) -> None:
        if self._waiter is None:
            self.abort()
            return
        failure = AttemptFailure(kind, message, remote_address=self.remote_address, was_sent=True)
        self._finish(self._waiter, failure)

    def _finish(self, waiter: asyncio.Future[Answer], end: Answer | Exception) -> None:
        """End the exchange and close the connection."""
        self._waiter = None
        self._owner.unwatch(self)
        self.abort()
        if waiter.done():
            return
        if isinstance(end, Exception):
            waiter.set_exception(end)
        else:
            waiter.set_result(end)
