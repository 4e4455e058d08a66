"""The context of a trace as it is carried: in a header of text, in a row of 25 bytes.

W3C Trace Context, version 00 (www.w3.org/TR/trace-context). Only contexts of sampled traces are
carried: an event of an unsampled one has none, and so costs no byte. Standard library only.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

HEADER: Final = "traceparent"
PACKED_BYTES: Final = 25
"""16 of the trace's id, 8 of the span's, 1 of flags."""

SAMPLED: Final = 0x01
RANDOM: Final = 0x02
"""The trace's id is random in its last 56 bits (level 2); passed on as it came."""
_KNOWN_FLAGS: Final = SAMPLED | RANDOM

# A later version may add fields behind these four; version ff is no version.
_HEADER = re.compile(
    r"(?!ff)(?P<version>[0-9a-f]{2})-(?P<trace>[0-9a-f]{32})-(?P<span>[0-9a-f]{16})"
    r"-(?P<flags>[0-9a-f]{2})(?P<rest>-.*)?",
    re.ASCII,
)
_HEADER_CHARACTERS_MAX = 512


class Parent(NamedTuple):
    """A caller's context, as its `traceparent` says."""

    trace_id: int
    span_id: int
    flags: int

    @property
    def is_sampled(self) -> bool:
        """Whether the caller records this trace."""
        return bool(self.flags & SAMPLED)


def parse_traceparent(text: str | bytes) -> Parent | None:
    """What a header says; None where it says nothing that can be understood."""
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
    """A context as it is stored."""
    return trace_id.to_bytes(16, "big") + span_id.to_bytes(8, "big") + bytes((flags,))


def unpack(packed: bytes) -> Parent | None:
    """A stored context; None where it is none."""
    if len(packed) != PACKED_BYTES:
        return None
    return Parent(
        int.from_bytes(packed[:16], "big"), int.from_bytes(packed[16:24], "big"), packed[24]
    )


def format_traceparent(trace_id: int, span_id: int, flags: int = SAMPLED) -> str:
    """A header."""
    return f"00-{trace_id:032x}-{span_id:016x}-{flags:02x}"
