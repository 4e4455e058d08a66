"""One HTTP/1.1 connection: writes a request, reads its answer, says what became of it.

Knows bytes and callbacks; who is connected to, and which connection a request gets, is for others.
At any moment it is unconnected, idle, in an exchange, or closed. All of an exchange runs in
callbacks of the event loop; its caller awaits one future, which comes to an `Answer`, an
`AttemptFailure`, or `StaleConnectionError`.
"""

from __future__ import annotations

import asyncio
import select
from typing import NamedTuple, Protocol, cast

from hookline_service.domain.attempt import AttemptOutcome
from hookline_service.targets.http.answer import AnswerReader, BadAnswerError
from hookline_service.targets.http.failure import AttemptFailure, failure_of_os_error
from hookline_service.targets.http.origin import Origin

WRITE_SLICE_BYTES = 65_536
"""Larger requests are written in slices, the next when the socket has taken the one before."""

_REQUEST_TIMEOUT = 408


class Answer(NamedTuple):
    """A final answer: what is judged, and the beginning of its body."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


class StaleConnectionError(Exception):
    """A kept-alive connection turned out to be closed before it carried any byte of an answer.

    The target had closed it while it was idle, and its notice crossed the request. The request is
    sent once more, on a new connection: every attempt of a delivery carries the same `webhook-id`,
    by which a receiver knows a repeated one, so that repeating is allowed although POST is not
    idempotent (RFC 9110 section 9.2.2), and a target's idle timeout costs it no attempt. On a new
    connection the same is a failure of the attempt, so a request is sent twice at most.
    """


class ConnectionOwner(Protocol):
    """Whoever keeps connections: told when one is free, going or gone, and watching its time."""

    def connected(self, connection: Connection) -> None:
        """The connection stands."""

    def released(self, connection: Connection) -> None:
        """An exchange is over, and the connection can carry another."""

    def closing(self, connection: Connection) -> None:
        """The connection must not be used again."""

    def closed(self, connection: Connection) -> None:
        """The connection is gone, its descriptor free."""

    def watch(self, connection: Connection, deadline: float) -> None:
        """Call the connection's `expire` once the loop's clock passes `deadline`."""

    def unwatch(self, connection: Connection) -> None:
        """The exchange is over: its deadline means nothing any more."""


class Connection(asyncio.Protocol):
    """A connection to an origin, kept by an owner."""

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
        """What the peer sent in the TLS handshake: its certificates are kept as long as this."""
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
        """Whether bytes that nobody asked for, or the peer's end, wait in the socket.

        The event loop reads what came before it looked last; what came since, only the system has.
        Asked before an idle connection is used: an answer that is here already answers nothing.
        """
        return bool(self._unread.poll(0))

    def start(self, head: bytes, body: bytes, deadline: float) -> asyncio.Future[Answer]:
        """Send a request; the future comes to its answer. `deadline` is on the loop's clock.

        Raises `AttemptFailure` where the connection closed before anything was sent on it. Whoever
        stops waiting calls `abandon`.
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
        """Give up an exchange that nobody waits for. Does nothing once the exchange is over."""
        if self._waiter is waiter:
            self._waiter = None
            self._owner.unwatch(self)
            self.abort()

    def abort(self) -> None:
        """Close at once, whatever is unsent or unread."""
        self._rest = None
        self._owner.closing(self)
        if self._transport is not None:
            self._transport.abort()

    def expire(self) -> None:
        """The deadline of the exchange has passed."""
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
        """The service is stopping: an exchange on the wire ends as our own fault."""
        self._fail(AttemptOutcome.INTERNAL_ERROR, "the service is stopping")

    # What follows is called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected, and through the TLS handshake where there is one."""
        self._transport = cast("asyncio.Transport", transport)
        self._unread.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
        self._owner.connected(self)

    def data_received(self, data: bytes) -> None:
        """Bytes of an answer; outside an exchange nobody asked for them."""
        if self._waiter is None:
            self._failure = AttemptFailure(
                AttemptOutcome.PROTOCOL_ERROR,
                "the target spoke before it was asked",
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
        """The peer sends no more; what it could still receive is of no use to anybody."""
        self._end(None)
        self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Gone, by our own doing or the network's: the last callback."""
        self._transport = None
        self._owner.closing(self)
        self._end(exc)
        self._owner.closed(self)

    def pause_writing(self) -> None:
        """The socket takes no more for now."""
        self._is_paused = True

    def resume_writing(self) -> None:
        """The socket takes more again."""
        self._is_paused = False
        self._write_rest()

    def _write_rest(self) -> None:
        while self._rest is not None and not self._is_paused and self._transport is not None:
            chunk, rest = self._rest[:WRITE_SLICE_BYTES], self._rest[WRITE_SLICE_BYTES:]
            self._rest = rest or None
            self._transport.write(chunk)

    @property
    def _is_written(self) -> bool:
        """Whether the system has taken the whole request: an answer before that is an early one."""
        transport = self._transport
        return self._rest is None and not (transport and transport.get_write_buffer_size())

    def _settle(self) -> None:
        """The answer is settled: hand it over, and keep the connection if it can be used again."""
        waiter, reader = self._waiter, self._reader
        if waiter is None:
            return
        was_reused, self._is_used = self._is_used, True
        is_reusable = reader.is_reusable and self._is_written
        if reader.status == _REQUEST_TIMEOUT and was_reused and not is_reusable:
            # The notice of a closed idle connection (RFC 9110 section 15.5.9), not an answer to
            # this.
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
        """The peer, or the network, ended the connection."""
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
        """End the exchange and the connection with it."""
        self._waiter = None
        self._owner.unwatch(self)
        self.abort()
        if waiter.done():
            return
        if isinstance(end, Exception):
            waiter.set_exception(end)
        else:
            waiter.set_result(end)
