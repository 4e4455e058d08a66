"""One HTTP request of a delivery, and what came of it.

A receiver's failure is a value here, never an exception: whatever the network or the target does,
the delivery room returns an `Outcome`, and `delivery.decide` turns it into a move.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class AttemptOutcome(StrEnum):
    """How an attempt ended; the proto enum and the database's CHECK name the same values."""

    ACCEPTED = "ACCEPTED"
    """The target answered 2xx within the deadline."""
    HTTP_ERROR = "HTTP_ERROR"
    """The target answered any other status; redirects are refusals, since none is followed."""
    TIMEOUT = "TIMEOUT"
    """The deadline passed between the name's resolution and the answer's last byte."""
    CONNECTION_FAILED = "CONNECTION_FAILED"
    """The name did not resolve, or the connection was refused or reset."""
    TLS_FAILED = "TLS_FAILED"
    """The handshake failed or the certificate did not verify."""
    PROTOCOL_ERROR = "PROTOCOL_ERROR"
    """The answer was no HTTP/1.1, or larger than is read."""
    ADDRESS_BLOCKED = "ADDRESS_BLOCKED"
    """The name leads to an address that is neither public nor expressly allowed."""
    INTERNAL_ERROR = "INTERNAL_ERROR"
    """Ours: no descriptors, resolver down, lease lost. Spends no attempt and leaves no row."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one HTTP request came to."""

    kind: AttemptOutcome
    latency_us: int
    """From before the name's resolution to the last byte read, in microseconds."""
    url: str
    http_status: int | None = None
    error: str = ""
    """One line for a reader; empty when accepted. Never carries a secret or a header value."""
    excerpt: bytes = b""
    """The first bytes of a failed answer's body, as they came; empty when accepted."""
    remote_address: str | None = None
    """The address connected to, without the port; None when nothing was connected."""
    retry_after_s: float | None = None
    """What the target asked for in `Retry-After`, in seconds, already clamped."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt as history shows it."""

    number: int
    start_time_us: int
    """Unix time in microseconds, database time."""
    outcome: Outcome
    trace_id: bytes | None = None
