"""Trace context: parsed from a header, packed into 25 bytes of a row, and current in a task.

W3C Trace Context, version 00 (www.w3.org/TR/trace-context). Only contexts of sampled traces are
stored: an event of an unsampled trace has none.
"""

from __future__ import annotations

import re
from contextvars import ContextVar
from typing import Final, NamedTuple

from opentelemetry.trace import Span

HEADER: Final = "traceparent"
PACKED_BYTES: Final = 25
"""16 bytes of the trace id, 8 of the span id, 1 of flags."""

SAMPLED: Final = 0x01
RANDOM: Final = 0x02
"""The last 56 bits of the trace id are random (W3C level 2); forwarded unchanged."""
_KNOWN_FLAGS: Final = SAMPLED | RANDOM

# A later version may append fields to these four; ff is not a valid version.
_HEADER = re.compile(
    r"(?!ff)(?P<version>[0-9a-f]{2})-(?P<trace>[0-9a-f]{32})-(?P<span>[0-9a-f]{16})"
    r"-(?P<flags>[0-9a-f]{2})(?P<rest>-.*)?",
    re.ASCII,
)
_HEADER_CHARACTERS_MAX = 512


class Parent(NamedTuple):
    """The context of a caller, from its `traceparent`."""

    trace_id: int
    span_id: int
    flags: int

    @property
    def is_sampled(self) -> bool:
        """Whether the caller records this trace."""
        return bool(self.flags & SAMPLED)


def parse_traceparent(text: str | bytes) -> Parent | None:
    """Parse a `traceparent`; return None if it is malformed."""
    if isinstance(text, bytes):
        text = text.decode("latin-1")
    if (
        len(text) > _HEADER_CHARACTERS_MAX
        or (found := _HEADER.fullmatch(text.strip(" \t"))) is None
    ):
        return None
    if found["version"] == "00" and found["rest"]:
        return None
    trace_id, span_id = int(found["trace"], 16), int(found["span"], 16)
    if not trace_id or not span_id:
        return None
    return Parent(trace_id, span_id, int(found["flags"], 16) & _KNOWN_FLAGS)


def pack(trace_id: int, span_id: int, flags: int = SAMPLED) -> bytes:
    """Return a context in its stored form of `PACKED_BYTES`."""
    return trace_id.to_bytes(16, "big") + span_id.to_bytes(8, "big") + bytes((flags,))


def unpack(packed: bytes) -> Parent | None:
    """Return a stored context; None if the length is wrong."""
    if len(packed) != PACKED_BYTES:
        return None
    return Parent(
        int.from_bytes(packed[:16], "big"), int.from_bytes(packed[16:24], "big"), packed[24]
    )


def format_traceparent(trace_id: int, span_id: int, flags: int = SAMPLED) -> str:
    """Return a `traceparent` header."""
    return f"00-{trace_id:032x}-{span_id:016x}-{flags:02x}"


CURRENT: ContextVar[Span | None] = ContextVar("span", default=None)
"""The span of the call that the current task serves; None: no call, or not sampled."""


def current_trace_id() -> str:
    """Return the trace id of the current call, 32 hexadecimal digits; empty if not sampled."""
    ids = current_ids()
    return "" if ids is None else ids[0]


def current_ids() -> tuple[str, str] | None:
    """Return the trace id and the span id (16 digits) of the current call; None if not sampled."""
    span = CURRENT.get()
    if span is None:
        return None
    context = span.get_span_context()
    return f"{context.trace_id:032x}", f"{context.span_id:016x}"
