"""Misbehaving receivers: each attempt has a clear outcome, within its deadline and its limits.

Each row is a receiver's behaviour. None of them may hold an attempt beyond its deadline: a hang
fails the test by its timeout. Afterwards no connection is left that could carry a broken exchange
on.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hookline_service.domain.attempt import AttemptOutcome
from hookline_service.targets.http.answer import DEFAULT_LIMIT_BYTES
from tests.targets.http.conftest import SHORT_S, Post
from tests.targets.http.receiver import Connected, Receiver, Script, answer
from tests.waiting import until

ACCEPTED = AttemptOutcome.ACCEPTED
CONNECTION_FAILED = AttemptOutcome.CONNECTION_FAILED
PROTOCOL_ERROR = AttemptOutcome.PROTOCOL_ERROR
HTTP_ERROR = AttemptOutcome.HTTP_ERROR
TIMEOUT = AttemptOutcome.TIMEOUT

HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"


def then_wait(*pieces: bytes) -> Script:
    """Answer with these bytes, then wait for the peer to close the connection."""

    async def script(connected: Connected) -> None:
        await connected.read_request()
        for piece in pieces:
            await connected.write(piece)
        await connected.wait_closed_by_peer()

    return script


def then_close(*pieces: bytes) -> Script:
    """Answer with these bytes, then close the connection."""

    async def script(connected: Connected) -> None:
        await connected.read_request()
        for piece in pieces:
            await connected.write(piece)

    return script


def then_reset(*pieces: bytes) -> Script:
    """Answer with these bytes, then reset the connection."""

    async def script(connected: Connected) -> None:
        await connected.read_request()
        for piece in pieces:
            await connected.write(piece)
        connected.reset()

    return script


def for_ever(first: bytes, again: Callable[[], bytes], pause_s: float = 0.0) -> Script:
    """Answer with `first`, then repeat `again`, as fast as the peer reads or with pauses."""

    async def script(connected: Connected) -> None:
        await connected.read_request()
        await connected.write(first)
        while True:
            await connected.write(again())
            if pause_s:
                await connected.linger(pause_s)

    return script


async def refuse_request(connected: Connected) -> None:
    """Reset before reading anything."""
    connected.reset()


async def speak_first(connected: Connected) -> None:
    """Act as a server of another protocol, which sends before it receives a request."""
    await connected.write(b"220 mail.example ESMTP\r\n")
    await connected.wait_closed_by_peer()


RECEIVERS: dict[str, tuple[Script, AttemptOutcome, str]] = {
    "resets at once": (refuse_request, CONNECTION_FAILED, "reset|closed"),
    "resets after the request": (then_reset(), CONNECTION_FAILED, "reset|closed"),
    "closes without an answer": (then_close(), CONNECTION_FAILED, "without an answer"),
    "closes within the head": (then_close(HEAD), CONNECTION_FAILED, "within the head"),
    "resets within the head": (then_reset(HEAD), CONNECTION_FAILED, "reset|within the head"),
    "speaks first": (speak_first, PROTOCOL_ERROR, "bytes before any request|does not begin with"),
    # Nonsense instead of a status line.
    "garbage": (then_wait(b"\x00\x12\x04 garbage\r\n\r\n"), PROTOCOL_ERROR, "does not begin"),
    "http/0.9": (then_wait(b"<html>hello</html>"), PROTOCOL_ERROR, "does not begin"),
    "an HTTP/2 preface": (then_wait(b"PRI * HTTP/2.0\r\n\r\n"), PROTOCOL_ERROR, "begin"),
    "HTTP/2 frames": (then_wait(b"\x00\x00\x12\x04\x00\x00"), PROTOCOL_ERROR, "begin"),
    "HTTP/2.0": (then_wait(b"HTTP/2.0 200 OK\r\n\r\n"), PROTOCOL_ERROR, "begin"),
    "HTTP/1.9": (then_wait(b"HTTP/1.9 200 OK\r\n\r\n"), PROTOCOL_ERROR, "HTTP"),
    "RTSP": (then_wait(b"RTSP/1.0 200 OK\r\n\r\n"), PROTOCOL_ERROR, "begin"),
    "a status of four digits": (then_wait(b"HTTP/1.1 2000 OK\r\n\r\n"), PROTOCOL_ERROR, "status"),
    "a status of two digits": (then_wait(b"HTTP/1.1 20 OK\r\n\r\n"), PROTOCOL_ERROR, "status"),
    "a negative status": (then_wait(b"HTTP/1.1 -20 OK\r\n\r\n"), PROTOCOL_ERROR, "status"),
    "a status below 100": (then_wait(answer("020 OK")), PROTOCOL_ERROR, "no HTTP status"),
    "status 000": (then_wait(answer("000 OK")), PROTOCOL_ERROR, "no HTTP status"),
    "no status": (then_wait(b"HTTP/1.1 OK\r\n\r\n"), PROTOCOL_ERROR, "status"),
    "bare line feeds": (then_wait(b"HTTP/1.1 200 OK\n\n"), PROTOCOL_ERROR, "no HTTP/1.1"),
    # Heads that contradict themselves.
    "two lengths": (
        then_wait(HEAD + b"content-length: 1\r\ncontent-length: 2\r\n\r\nab"),
        PROTOCOL_ERROR,
        "Content-Length",
    ),
    "a length and chunks": (
        then_wait(HEAD + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
        PROTOCOL_ERROR,
        "Transfer-Encoding",
    ),
    "a negative length": (
        then_wait(HEAD + b"content-length: -1\r\n\r\n"),
        PROTOCOL_ERROR,
        "Length",
    ),
    "a length beyond 64 bits": (
        then_wait(HEAD + b"content-length: " + b"9" * 30 + b"\r\n\r\n"),
        PROTOCOL_ERROR,
        "Length",
    ),
    "a NUL in a header": (then_wait(HEAD + b"x: a\x00b\r\n\r\n"), PROTOCOL_ERROR, "HTTP/1.1"),
    # An upgrade that was not requested.
    "an upgrade": (
        then_wait(b"HTTP/1.1 101 Go\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n\x00"),
        PROTOCOL_ERROR,
        "switches",
    ),
    "a bare 101": (then_wait(b"HTTP/1.1 101 Go\r\n\r\n"), PROTOCOL_ERROR, "switches"),
    # More than is read.
    "an endless header": (for_ever(HEAD + b"x: ", lambda: b"y" * 4_096), PROTOCOL_ERROR, "within"),
    "endless headers": (for_ever(HEAD, lambda: b"x: y\r\n" * 64), PROTOCOL_ERROR, "more than 256"),
    "endless interim answers": (
        for_ever(b"", lambda: b"HTTP/1.1 100 Continue\r\n\r\n" * 64),
        PROTOCOL_ERROR,
        "within",
    ),
    "an endless body": (for_ever(HEAD + b"\r\n", lambda: b"z" * 4_096), ACCEPTED, ""),
    "endless chunks": (for_ever(CHUNKED, lambda: b"5\r\nhello\r\n" * 99), ACCEPTED, ""),
    "endless trailers": (for_ever(CHUNKED + b"0\r\n", lambda: b"x: y\r\n" * 64), ACCEPTED, ""),
    "a body of a terabyte": (
        for_ever(HEAD + b"content-length: 1000000000000\r\n\r\n", lambda: b"z" * 4_096),
        ACCEPTED,
        "",
    ),
    # Broken bodies behind a complete head: the status decides.
    "a huge chunk size": (then_wait(CHUNKED + b"f" * 40 + b"\r\nx"), ACCEPTED, ""),
    "a chunk size of nonsense": (then_wait(CHUNKED + b"zz\r\nx"), ACCEPTED, ""),
    "a body cut off": (then_close(HEAD + b"content-length: 9\r\n\r\nab"), ACCEPTED, ""),
    "a body reset": (then_reset(HEAD + b"content-length: 9\r\n\r\nab"), ACCEPTED, ""),
    "a refusal cut off": (
        then_close(b"HTTP/1.1 500 No\r\ncontent-length: 9\r\n\r\nab"),
        HTTP_ERROR,
        "answered 500",
    ),
    "a body until the end": (then_close(HEAD + b"\r\nhello"), ACCEPTED, ""),
    # More than one answer, or more than an answer.
    "two answers in one": (then_wait(answer("200 OK") + answer("500 No")), ACCEPTED, ""),
    "two answers, the other way": (
        then_wait(answer("500 No") + answer("200 OK")),
        HTTP_ERROR,
        "500",
    ),
    "a byte behind the answer": (then_wait(answer("200 OK") + b"H"), ACCEPTED, ""),
    "interim answers first": (
        then_wait(b"HTTP/1.1 100 Continue\r\nx: 1\r\n\r\nHTTP/1.1 103 Hints\r\n\r\n", answer()),
        ACCEPTED,
        "",
    ),
    "an answer in single bytes": (
        then_wait(*(bytes([byte]) for byte in answer("503 No", b"busy"))),
        HTTP_ERROR,
        "answered 503",
    ),
    "HTTP/1.0": (then_close(b"HTTP/1.0 200 OK\r\n\r\nhello"), ACCEPTED, ""),
}

SLOW_RECEIVERS: dict[str, tuple[Script, str]] = {
    "never answers": (then_wait(), "no answer came"),
    "trickles the status line": (for_ever(b"HTTP/1.1 200 ", lambda: b"O", 0.01), "head"),
    "trickles headers": (for_ever(HEAD, lambda: b"x: y\r\n", 0.01), "head"),
    "trickles interim answers": (
        for_ever(b"", lambda: b"HTTP/1.1 100 Continue\r\n\r\n", 0.01),
        "head",
    ),
    "trickles the body": (for_ever(HEAD + b"\r\n", lambda: b"z", 0.01), "body of the 200"),
    "trickles chunks": (for_ever(CHUNKED, lambda: b"1\r\nz\r\n", 0.01), "body of the 200"),
    "stops within the body": (
        then_wait(b"HTTP/1.1 410 Gone\r\ncontent-length: 9\r\n\r\nab"),
        "body of the 410",
    ),
}


@pytest.mark.parametrize("name", RECEIVERS)
async def test_receiver_behaviour_has_its_outcome(post: Post, name: str) -> None:
    script, kind, error = RECEIVERS[name]
    async with Receiver(script) as receiver:
        outcome = await post(receiver.url())
        assert outcome.kind is kind, outcome
        assert re.search(error, outcome.error)
        assert bool(outcome.error) == (kind is not ACCEPTED)
        await until_only_whole_connections_are_left(post, name)
    assert receiver.connection_count == 1


async def until_only_whole_connections_are_left(post: Post, name: str) -> None:
    """Wait until a connection is left only after a response that was complete and alone."""
    survivors = int(name in {"interim answers first", "an answer in single bytes"})
    await until(
        lambda: post.transport.connection_count == survivors, f"{survivors} connections left"
    )


@pytest.mark.parametrize("name", SLOW_RECEIVERS)
async def test_slow_receiver_is_a_timeout(post: Post, name: str) -> None:
    script, error = SLOW_RECEIVERS[name]
    async with Receiver(script) as receiver:
        outcome = await post(receiver.url(), timeout_s=SHORT_S)
        assert outcome.kind is TIMEOUT
        assert error in outcome.error
        assert outcome.http_status is None
        assert outcome.latency_us >= SHORT_S * 1_000_000 * 0.9
        await until(lambda: post.transport.connection_count == 0, "the connection is closed")


async def test_silent_connect_is_a_timeout(post: Post, silent_port: int) -> None:
    outcome = await post(f"http://127.0.0.1:{silent_port}/", timeout_s=SHORT_S)
    assert outcome.kind is TIMEOUT
    assert "no connection" in outcome.error


async def test_response_is_read_up_to_its_limit(post: Post) -> None:
    """Bytes beyond the limit stay in the sockets' buffers, not in memory of the process."""
    sent = 0

    async def script(connected: Connected) -> None:
        nonlocal sent
        await connected.read_request()
        await connected.write(b"HTTP/1.1 500 No\r\n\r\n")
        while True:
            await connected.write(b"z" * 1_024)
            sent += 1_024

    async with Receiver(script) as receiver:
        outcome = await post(receiver.url())
    assert len(outcome.excerpt) == 1_024
    assert sent >= DEFAULT_LIMIT_BYTES - 2_048


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(
    head=st.sampled_from([b"", b"HTTP/1.1 ", HEAD, CHUNKED, answer("500 No", b"busy")]),
    garbage=st.binary(max_size=200),
)
async def test_arbitrary_response_bytes_have_an_outcome(
    post: Post, head: bytes, garbage: bytes
) -> None:
    async with Receiver(then_close(head + garbage)) as receiver:
        outcome = await post(receiver.url())
        assert outcome.kind in {ACCEPTED, HTTP_ERROR, PROTOCOL_ERROR, CONNECTION_FAILED}
        assert bool(outcome.error) == (outcome.kind is not ACCEPTED)
        await until(lambda: post.transport.connection_count == 0, "nothing is left")
