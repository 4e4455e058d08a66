"""The small receiver of the demo and of `hookline listen`, over real sockets."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
import standardwebhooks

from hookline.webhook import Verifier
from hookline_service.cli.receiver import Arrival, Receiver
from tests.waiting import PATIENCE_S

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@pytest.fixture
def arrivals() -> list[Arrival]:
    return []


@pytest.fixture
async def receiver(arrivals: list[Arrival]) -> AsyncIterator[Receiver]:
    async with Receiver("test", arrivals.append, answers=[500, 503, 200]) as listening:
        listening.verifier = Verifier(SECRET)
        yield listening


def request(body: bytes = b'{"type":"a.b"}', *, signed: bytes | None = None) -> bytes:
    """A request, signed by an independent signer; `signed` is the body that was signed instead."""
    sent = datetime.now(UTC)
    signature = standardwebhooks.Webhook(SECRET).sign("evt_1", sent, (signed or body).decode())
    head = (
        "POST / HTTP/1.1\r\nHost: test\r\n"
        f"Webhook-Id: evt_1\r\nWebhook-Timestamp: {int(sent.timestamp())}\r\n"
        f"Webhook-Signature: {signature}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def exchange(receiver: Receiver, *requests: bytes) -> list[int]:
    """Send requests over one connection; the statuses of the answers."""
    host, port = receiver.url.removeprefix("http://").rstrip("/").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    statuses = []
    try:
        for sent in requests:
            writer.write(sent)
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            statuses.append(int(head.split()[1]))
            length = int(head.lower().partition("content-length: ")[2].split()[0])
            await reader.readexactly(length)
    finally:
        writer.close()
    return statuses


async def test_answers_are_used_in_turn_and_the_last_is_repeated(
    receiver: Receiver, arrivals: list[Arrival]
) -> None:
    assert await exchange(receiver, *[request()] * 4) == [500, 503, 200, 200]
    assert [arrival.status for arrival in arrivals] == [500, 503, 200, 200]
    assert {arrival.webhook_id for arrival in arrivals} == {"evt_1"}
    assert {arrival.event_type for arrival in arrivals} == {"a.b"}
    assert all(arrival.webhook and not arrival.fault for arrival in arrivals)


async def test_a_forged_request_is_answered_with_401_and_uses_no_answer(
    receiver: Receiver, arrivals: list[Arrival]
) -> None:
    assert await exchange(receiver, request(signed=b"other"), request()) == [401, 500]
    assert arrivals[0].webhook is None
    assert "signature" in arrivals[0].fault


async def test_without_a_secret_nothing_is_verified(
    receiver: Receiver, arrivals: list[Arrival]
) -> None:
    receiver.verifier = None
    assert await exchange(receiver, b"POST / HTTP/1.1\r\n\r\n") == [500]
    assert (arrivals[0].webhook, arrivals[0].fault, arrivals[0].event_type) == (None, "", "")


@pytest.mark.parametrize(
    "sent",
    [
        b"\r\n\r\n" * 10,
        b"POST / HTTP/1.1\r\ncontent-length: many\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 99999999\r\n\r\n",
        b"x" * 100_000,
        b"POST / HTTP/1.1\r\ncontent-length: 10\r\n\r\nshort",
    ],
)
async def test_an_invalid_request_closes_only_its_connection(
    receiver: Receiver, sent: bytes
) -> None:
    host, port = receiver.url.removeprefix("http://").rstrip("/").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(sent)
    writer.write_eof()
    await asyncio.wait_for(reader.read(), PATIENCE_S)
    writer.close()
    assert await exchange(receiver, request()) != []


async def test_receiver_stops_despite_an_open_connection() -> None:
    async with Receiver("test", lambda _arrival: None) as receiver:
        host, port = receiver.url.removeprefix("http://").rstrip("/").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST / HTTP/1.1\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
    with pytest.raises(OSError, match=r"(?i)connect"):
        await asyncio.open_connection(host, int(port))
    writer.close()
