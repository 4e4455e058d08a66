"""Reading of responses: the result does not depend on how the bytes are split, and is bounded."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hookline_service.targets.http.answer import MAX_HEADER_FIELDS, AnswerReader, BadAnswerError

LIMIT = 2_048
KEPT = 64


def pieces_of(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    """Return the bytes, split at these positions."""
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in itertools.pairwise(places)]


def read(pieces: Sequence[bytes]) -> tuple[str, int, bool, list[tuple[bytes, bytes]], bytes]:
    """Read these pieces; return the result and the reader's fields."""
    reader = AnswerReader(LIMIT, KEPT)
    end = "waiting"
    for piece in pieces:
        try:
            if reader.feed(piece):
                end = "settled"
                break
        except BadAnswerError:
            end = "bad"
            break
    return end, reader.status, reader.is_reusable, reader.headers, reader.body


GARBAGE = st.one_of(
    st.binary(max_size=300),
    st.binary(max_size=300).map(b"HTTP/1.1 200 OK\r\n".__add__),
    st.binary(max_size=300).map(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".__add__),
    st.lists(
        st.sampled_from(
            [
                b"HTTP/1.1 ", b"HTTP/1.0 ", b"HTTP/", b"200", b"100", b"101", b"503", b" OK",
                b"\r\n", b"\n", b"\r", b"\r\n\r\n", b": ", b" ", b"-", b"0", b"5", b"hello",
                b"\x00", b"\xff", b"content-length: ", b"transfer-encoding: chunked",
                b"connection: close",
            ]
        ),
        max_size=40,
    ).map(b"".join),
)  # fmt: skip


@given(data=GARBAGE, cuts=st.lists(st.integers(0, 400), max_size=8))
def test_any_bytes_complete_a_response_or_wait_or_are_rejected(
    data: bytes, cuts: list[int]
) -> None:
    end, status, is_reusable, _, body = read(pieces_of(data, cuts))
    assert len(body) <= KEPT
    if end == "settled":
        assert 200 <= status <= 999
    else:
        assert not is_reusable


@given(
    status=st.integers(200, 999),
    fields=st.dictionaries(
        st.from_regex(rb"\Ax-[a-z]{1,8}\Z"), st.from_regex(rb"\A[a-z0-9]{0,9}\Z"), max_size=5
    ),
    chunks=st.lists(st.binary(min_size=1, max_size=50), max_size=4),
    is_chunked=st.booleans(),
    interim=st.lists(st.sampled_from([100, 102, 103, 199]), max_size=3),
    cuts=st.lists(st.integers(0, 2_000), max_size=10),
)
def test_response_is_the_same_in_any_pieces(
    status: int,
    fields: dict[bytes, bytes],
    chunks: list[bytes],
    is_chunked: bool,  # noqa: FBT001 - hypothesis calls it by name
    interim: list[int],
    cuts: list[int],
) -> None:
    body = b"".join(chunks)
    if status in {204, 304}:
        body, chunks, is_chunked = b"", [], False
    head = b"".join(b"HTTP/1.1 %d Wait\r\nx: y\r\n\r\n" % number for number in interim)
    head += b"HTTP/1.1 %d Some Reason\r\n" % status
    head += b"".join(b"%b: %b\r\n" % field for field in fields.items())
    if is_chunked:
        framed = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
        data = head + b"transfer-encoding: chunked\r\n\r\n" + framed + b"0\r\nx-trailer: 1\r\n\r\n"
    else:
        data = head + b"content-length: %d\r\n\r\n" % len(body) + body
    end, read_status, is_reusable, headers, kept = read(pieces_of(data, cuts))
    assert (end, read_status, is_reusable) == ("settled", status, True)
    assert headers[:-1] == list(fields.items())
    assert kept == body[:KEPT]


@given(data=st.binary(min_size=1, max_size=40), cuts=st.lists(st.integers(0, 100), max_size=4))
def test_bytes_after_a_response_never_change_it(data: bytes, cuts: list[int]) -> None:
    first = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"
    end, status, _, _, body = read([first + data])
    assert (end, status, body) == ("settled", 200, b"hi")
    assert read(pieces_of(first, cuts))[0] == "settled"


def test_reader_reads_one_response_after_another() -> None:
    reader = AnswerReader(LIMIT, KEPT)
    for number in (200, 503, 204):
        assert not reader.was_started
        assert reader.feed(b"HTTP/1.1 %d X\r\ncontent-length: 0\r\n\r\n" % number)
        assert (reader.status, reader.is_reusable) == (number, True)
        reader.begin()
        assert (reader.status, reader.headers, reader.body) == (0, [], b"")


@pytest.mark.parametrize(
    "head",
    [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 9999\r\n\r\n"],
    ids=["until the end", "by length"],
)
def test_body_beyond_the_limit_ends_the_read_at_the_limit(head: bytes) -> None:
    reader = AnswerReader(LIMIT, KEPT)
    assert not reader.feed(head + b"z" * (LIMIT - len(head) - 1))
    assert reader.feed(b"z" * 1_000_000)
    assert (reader.status, reader.is_reusable, reader.body) == (200, False, b"z" * KEPT)


def test_response_in_one_piece_is_cut_at_the_limit() -> None:
    reader = AnswerReader(LIMIT, KEPT)
    body = b"z" * LIMIT
    assert reader.feed(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
    assert (reader.status, reader.is_reusable) == (200, False)


def test_response_of_another_http_version_after_an_interim_response_is_rejected() -> None:
    with pytest.raises(BadAnswerError, match="another HTTP version"):
        AnswerReader().feed(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/2.0 200 OK\r\n\r\n")


@pytest.mark.parametrize("lead", [b"HTTP/2", b"HTTX", b"HTTP 1.1", b"\r\n", b"RTSP/1.0"])
def test_wrong_first_bytes_are_rejected_at_once(lead: bytes) -> None:
    reader = AnswerReader()
    with pytest.raises(BadAnswerError, match="does not begin"):
        assert not any(reader.feed(bytes([byte])) for byte in lead)


def test_head_beyond_the_limit_is_rejected() -> None:
    reader = AnswerReader(LIMIT, KEPT)
    assert not reader.feed(b"HTTP/1.1 200 OK\r\nx: ")
    with pytest.raises(BadAnswerError, match="within 2048 bytes"):
        reader.feed(b"y" * LIMIT)


def test_number_of_header_fields_has_a_limit() -> None:
    fields = [b"x: %d\r\n" % number for number in range(MAX_HEADER_FIELDS + 1)]
    head = b"HTTP/1.1 204 OK\r\n"
    assert AnswerReader().feed(head + b"".join(fields[:-1]) + b"\r\n")
    with pytest.raises(BadAnswerError, match="more than 256"):
        AnswerReader().feed(head + b"".join(fields) + b"\r\n")


def test_body_of_exactly_the_limit_is_read_whole() -> None:
    reader = AnswerReader(LIMIT, KEPT)
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 2000\r\n\r\n"
    assert reader.feed(head + b"z" * 2_000)
    assert reader.is_reusable


def test_excerpt_of_a_body_in_single_bytes_is_its_beginning() -> None:
    reader = AnswerReader(LIMIT, KEPT)
    reader.feed(b"HTTP/1.1 200 OK\r\n\r\n")
    for number in range(200):
        reader.feed(bytes([number]))
    assert reader.body == bytes(range(KEPT))
