"""One attempt of a delivery: its verdict, and the record that history keeps.

A failure of the receiver is a value here, never an exception: a sender (`targets`) returns an
`Outcome` for every attempt. Dispatching acts on the verdict alone (`delivery.decide`, the lane's
circuit breaker and concurrency limit); the record is stored and shown, and decides nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import NamedTuple


class Verdict(Enum):
    """What an attempt means for its delivery and its lane, whatever the kind of the target."""

    ACCEPTED = "accepted"
    """The target has the event."""
    RETRYABLE = "retryable"
    """The attempt failed; a later one may succeed."""
    THROTTLED = "throttled"
    """As RETRYABLE, because the target is overloaded: the lane halves its concurrency limit."""
    GONE = "gone"
    """The target is gone for good: its subscription is disabled."""
    INTERNAL_ERROR = "internal error"
    """The failure is not the target's: the attempt is not counted, and is made again."""


class AttemptOutcome(StrEnum):
    """How an attempt ended: the values of the proto enum.

    The database's CHECK has all but INTERNAL_ERROR, which is not recorded.
    """

    ACCEPTED = "ACCEPTED"
    """The target answered 2xx within the deadline."""
    HTTP_ERROR = "HTTP_ERROR"
    """The target answered any other status; a redirect too, since none is followed."""
    TIMEOUT = "TIMEOUT"
    """The deadline passed between the name's resolution and the response's last byte."""
    CONNECTION_FAILED = "CONNECTION_FAILED"
    """The name did not resolve, or the connection was refused or reset."""
    TLS_FAILED = "TLS_FAILED"
    """The handshake failed or the certificate did not verify."""
    PROTOCOL_ERROR = "PROTOCOL_ERROR"
    """The response was not HTTP/1.1, or larger than is read."""
    ADDRESS_BLOCKED = "ADDRESS_BLOCKED"
    """The name resolves to an address that is neither public nor allowed."""
    INTERNAL_ERROR = "INTERNAL_ERROR"
    """Ours: no descriptors, resolver down, lease lost. Spends no attempt and leaves no row."""


class AttemptRecord(NamedTuple):
    """What history keeps of an attempt; a field that a kind of target lacks keeps its default."""

    kind: AttemptOutcome
    latency_us: int
    """From before the name's resolution to the last byte read, in microseconds."""
    url: str = ""
    """The URL that was tried last; empty if none was tried."""
    http_status: int | None = None
    error: str = ""
    """One line for a reader; empty when accepted. Never contains a secret or a header value."""
    excerpt: bytes = b""
    """The first bytes of a failed response's body, not decoded; empty when accepted."""
    remote_address: str | None = None
    """The address connected to, without the port; None when nothing was connected."""

    def without_texts(self, error: str) -> AttemptRecord:
        """Return a copy without the bytes that came from the target, and with another error."""
        return self._replace(error=error, excerpt=b"", remote_address=None)


class Outcome(NamedTuple):
    """The result of an attempt, as a sender returns it."""

    verdict: Verdict
    record: AttemptRecord
    retry_after_s: float | None = None
    """The earliest time of the next attempt, in seconds from now, as the target asked; clamped."""


def internal_error(error: str, latency_us: int = 0) -> Outcome:
    """Return the outcome of an attempt that failed for a reason of our own."""
    record = AttemptRecord(AttemptOutcome.INTERNAL_ERROR, latency_us, error=error)
    return Outcome(Verdict.INTERNAL_ERROR, record)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt as history shows it."""

    number: int
    start_time_us: int
    """Unix time in microseconds, database time."""
    record: AttemptRecord
    trace_id: bytes | None = None
