"""W3C trace context: parsing, malformed headers, and the stored form."""

import pytest

from hookline_service.telemetry.context import (
    PACKED_BYTES,
    format_traceparent,
    pack,
    parse_traceparent,
    unpack,
)

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"


def test_traceparent_is_parsed_and_formatted() -> None:
    parent = parse_traceparent(f"00-{TRACE}-{SPAN}-01")
    assert parent is not None
    assert f"{parent.trace_id:032x}" == TRACE
    assert f"{parent.span_id:016x}" == SPAN
    assert parent.is_sampled
    assert format_traceparent(*parent) == f"00-{TRACE}-{SPAN}-01"


@pytest.mark.parametrize(
    "flags, sampled", [("00", False), ("01", True), ("03", True), ("fe", False)]
)
def test_lowest_flag_bit_means_sampled(flags: str, *, sampled: bool) -> None:
    parent = parse_traceparent(f"00-{TRACE}-{SPAN}-{flags}")
    assert parent is not None
    assert parent.is_sampled is sampled


def test_later_version_may_have_more_fields() -> None:
    parent = parse_traceparent(f"cc-{TRACE}-{SPAN}-01-what-the-future-brings")
    assert parent is not None
    assert parent.is_sampled


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE[:-1]}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{SPAN}-0g",
        f"00-{TRACE}-{SPAN}",
        f"cc-{TRACE}-{SPAN}-01-{'x' * 600}",
    ],
)
def test_malformed_traceparent_is_ignored(text: str) -> None:
    assert parse_traceparent(text) is None


def test_context_is_stored_in_25_bytes() -> None:
    packed = pack(int(TRACE, 16), int(SPAN, 16))
    assert len(packed) == PACKED_BYTES == 25
    assert packed[:16].hex() == TRACE
    assert unpack(packed) == parse_traceparent(f"00-{TRACE}-{SPAN}-01")
    assert unpack(b"short") is None
