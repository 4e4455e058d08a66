"""Answers of receivers: another parser of HTTP/1.1 reads the same in them, and the limits hold."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import h11
from hypothesis import strategies as st

from hookline_service.domain.retry import MAX_RETRY_AFTER_S, parse_retry_after
from hookline_service.targets.http.answer import MAX_HEADER_FIELDS, AnswerReader, BadAnswerError
from tests.fuzz.mutation import bytes_corpus, edited, fuzz

LIMIT, KEPT = 512, 32
SEEDS = bytes_corpus("answers")
TOKENS = [
    b"HTTP/1.1 ", b"HTTP/1.0 ", b"200 OK", b"100 Go", b"\r\n", b"\n", b"\r", b"\r\n\r\n",
    b": ", b":",
    b" ", b"\t", b"0\r\n", b"5\r\n", b"-1", b"ffffffffffffffff\r\n", b"\x00", b"\xff", b"\x0b",
    b"content-length: ", b"content-length: 2\r\n", b"transfer-encoding: chunked\r\n",
    b"connection: close\r\n", b"connection: keep-alive\r\n", b"connection: upgrade\r\n",
    b"upgrade: x\r\n",
    b"x: y\r\n", b"x" * 600, b"retry-after: 5\r\n",
]  # fmt: skip
CUTS = st.lists(st.integers(0, 1 << 12), max_size=6)


@dataclass(frozen=True)
class Read:
    """What a reader made of some bytes."""

    end: str
    status: int = 0
    is_reusable: bool = False
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""
    reason: str = ""


def read(data: bytes, cuts: Sequence[int] = ()) -> Read:
    """Ours, fed in pieces."""
    reader = AnswerReader(LIMIT, KEPT)
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    for start, stop in itertools.pairwise(places):
        try:
            if reader.feed(data[start:stop]):
                return Read(
                    "settled",
                    reader.status,
                    reader.is_reusable,
                    tuple(reader.headers),
                    reader.body,
                )
        except BadAnswerError as error:
            return Read("refused", reason=str(error))
    return Read("waiting", reader.status)


def read_by_h11(data: bytes) -> Read | None:
    """The other parser's answer to a POST: None where it is refused or does not end."""
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=LIMIT)
    connection.send(h11.Request(method="POST", target="/", headers=[("host", "a.example")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(data)
    status, body = 0, b""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Response):
                status, headers = event.status_code, tuple(event.headers)
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return Read("settled", status, connection.their_state is h11.DONE, headers, body)
            elif not isinstance(event, h11.InformationalResponse):
                return None
    except h11.RemoteProtocolError:
        return None


@fuzz(data=edited(SEEDS, TOKENS), cuts=CUTS)
def test_reader_raises_only_its_own_error_and_keeps_its_limits(
    data: bytes, cuts: list[int]
) -> None:
    found = read(data, cuts)
    assert len(found.reason) < 200
    assert found.reason.isprintable()
    assert len(found.body) <= KEPT
    assert len(found.headers) <= MAX_HEADER_FIELDS
    assert sum(len(name) + len(value) for name, value in found.headers) <= LIMIT
    if found.end == "settled":
        assert 200 <= found.status <= 999
        assert data.startswith(b"HTTP/1.")
    if found.end == "waiting":
        assert len(data) < LIMIT


@fuzz(data=edited(SEEDS, TOKENS), cuts=CUTS)
def test_result_does_not_depend_on_how_bytes_are_split(data: bytes, cuts: list[int]) -> None:
    whole, pieces = read(data), read(data, cuts)
    assert (whole.end, whole.status) == (pieces.end, pieces.status)
    if whole.is_reusable or (whole.end == "settled" and not pieces.is_reusable):
        assert whole.headers == pieces.headers
    if whole.is_reusable:
        assert (whole.body, pieces.is_reusable) == (pieces.body, True)


@fuzz({"data": SEEDS}, data=edited(SEEDS, TOKENS))
def test_connection_is_reused_only_if_another_parser_ends_at_the_same_byte(
    data: bytes,
) -> None:
    """Else the next answer would be read from the middle of this one."""
    ours, theirs = read(data), read_by_h11(data)
    if not ours.is_reusable or theirs is None:
        return
    assert theirs.status == ours.status
    assert theirs.body[:KEPT] == ours.body
    headers = [(name.lower(), value.strip(b" \t")) for name, value in ours.headers]
    assert headers == [(name.lower(), value) for name, value in theirs.headers]


@fuzz({"data": SEEDS}, data=edited(SEEDS, TOKENS))
def test_answers_that_another_parser_accepts_have_the_same_status(data: bytes) -> None:
    ours, theirs = read(data), read_by_h11(data)
    if theirs is not None and ours.end == "settled":
        assert ours.status == theirs.status


RETRY_AFTER = bytes_corpus("retry_after")
NOW_S = 1_767_268_800.0  # 2026-01-01T12:00:00Z


@fuzz(
    value=edited(
        RETRY_AFTER,
        [
            b"GMT",
            b" ",
            b",",
            b":",
            b"-",
            b"+",
            b"0",
            b"9" * 20,
            b"Jan",
            b"\xff",
            b"\x00",
            b"(",
            b")",
        ],
    ),
    now_s=st.floats(0, 1e11),
)
def test_retry_after_is_bounded_or_ignored(value: bytes, now_s: float) -> None:
    for at in (NOW_S, now_s):
        seconds = parse_retry_after(value, at)
        assert seconds is None or 0.0 <= seconds <= MAX_RETRY_AFTER_S
    text = value.strip(b" \t")
    if 0 < len(text) <= 64 and not text.strip(b"0123456789"):
        assert parse_retry_after(value, NOW_S) == min(int(text), MAX_RETRY_AFTER_S)
