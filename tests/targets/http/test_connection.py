"""Stale connections: a target that closes idle ones costs its deliveries no attempt."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter

import pytest

from hookline_service.domain.attempt import AttemptOutcome
from hookline_service.targets.http.answer import AnswerReader
from hookline_service.targets.http.connection import Answer, Connection, Origin
from tests.targets.http.conftest import Post
from tests.targets.http.receiver import OK, Connected, Receiver, Script, answer, answering
from tests.waiting import until


def closing_on_second_request(parting: bytes, *, resets: bool) -> Script:
    """Close the first connection at its second request; answer all requests on later ones."""

    async def script(connected: Connected) -> None:
        if connected.number > 1:
            await answering(OK)(connected)
        await connected.read_request()
        await connected.write(OK)
        await connected.read_request()
        if parting:
            await connected.write(parting)
        if resets and not parting:
            connected.reset()

    return script


async def test_connection_closed_while_idle_costs_no_attempt(post: Post) -> None:
    async def script(connected: Connected) -> None:
        await connected.read_request()
        await connected.write(OK)

    async with Receiver(script) as receiver:
        for _ in range(3):
            assert (await post(receiver.url())).kind is AttemptOutcome.ACCEPTED
            await until(lambda: post.transport.connection_count == 0, "the close is noticed")
        assert receiver.connection_count == 3


@pytest.mark.parametrize(
    "parting",
    [b"", answer("408 Request Timeout", b"", "connection: close")],
    ids=["in silence", "with a 408"],
)
@pytest.mark.parametrize("resets", [False, True], ids=["closes", "resets"])
async def test_connection_closed_while_the_request_is_written_costs_no_attempt(
    post: Post, parting: bytes, *, resets: bool
) -> None:
    async with Receiver(closing_on_second_request(parting, resets=resets)) as receiver:
        assert (await post(receiver.url())).kind is AttemptOutcome.ACCEPTED
        assert (await post(receiver.url())).kind is AttemptOutcome.ACCEPTED
        assert receiver.connection_count == 2
        sent = Counter(request.headers["webhook-id"] for request in receiver.requests)
        assert list(sent.values()) == [3]


async def test_repeated_request_checks_may_send_again(post: Post) -> None:
    rights = iter([True, True, False])
    async with Receiver(closing_on_second_request(b"", resets=False)) as receiver:
        await post(receiver.url(), may_send=lambda: next(rights))
        outcome = await post(receiver.url(), may_send=lambda: next(rights))
        assert outcome.kind is AttemptOutcome.INTERNAL_ERROR
        assert len(receiver.requests) == 2


async def test_request_is_repeated_at_most_once(post: Post) -> None:
    async def script(connected: Connected) -> None:
        await connected.read_request()
        if connected.number == 1:
            await connected.write(OK)
            await connected.read_request()

    async with Receiver(script) as receiver:
        await post(receiver.url())
        outcome = await post(receiver.url())
        assert outcome.kind is AttemptOutcome.CONNECTION_FAILED
        assert len(receiver.requests) == 3


async def test_close_of_a_new_connection_is_a_failure(post: Post) -> None:
    async def script(connected: Connected) -> None:
        await connected.read_request()

    async with Receiver(script) as receiver:
        outcome = await post(receiver.url())
        assert outcome.kind is AttemptOutcome.CONNECTION_FAILED
        assert len(receiver.requests) == 1


async def test_partial_response_is_not_stale(post: Post) -> None:
    async with Receiver(closing_on_second_request(b"HTTP/1.1", resets=False)) as receiver:
        await post(receiver.url())
        outcome = await post(receiver.url())
        assert outcome.kind is AttemptOutcome.CONNECTION_FAILED
        assert len(receiver.requests) == 2


async def test_status_408_on_a_new_connection_is_a_response(post: Post) -> None:
    parting = answer("408 Request Timeout", b"", "connection: close")
    async with Receiver(answering(parting)) as receiver:
        outcome = await post(receiver.url())
        assert (outcome.kind, outcome.http_status) == (AttemptOutcome.HTTP_ERROR, 408)
        assert len(receiver.requests) == 1


class Unwritten(asyncio.Transport):
    """A transport whose socket accepts no bytes for now."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__({"socket": sock})
        self.buffered = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.buffered += data

    def get_write_buffer_size(self) -> int:
        return len(self.buffered)

    def abort(self) -> None:
        self.buffered = b""


class Owner:
    """An owner that records the end of its connections."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def connected(self, _: Connection) -> None:
        self.events.append("connected")

    def released(self, _: Connection) -> None:
        self.events.append("released")

    def closing(self, _: Connection) -> None:
        self.events.append("closing")

    def closed(self, _: Connection) -> None:
        self.events.append("closed")

    def watch(self, _: Connection, __: float) -> None: ...

    def unwatch(self, _: Connection) -> None: ...


@pytest.mark.parametrize(
    "is_taken, end", [(True, "released"), (False, "closing")], ids=["written", "unwritten"]
)
async def test_response_before_the_request_is_written_closes_the_connection(
    *, is_taken: bool, end: str
) -> None:
    """Unsent bytes of the request would be written into the next exchange."""
    near, far = socket.socketpair()
    with near, far:
        owner, transport = Owner(), Unwritten(near)
        origin = Origin("http", "192.0.2.1", 80)
        loop = asyncio.get_running_loop()
        connection = Connection(origin, None, owner, AnswerReader(), loop)
        connection.connection_made(transport)
        waiter = connection.start(b"POST / HTTP/1.1\r\n\r\n", b"body", loop.time() + 5)
        if is_taken:
            transport.buffered = b""
        connection.data_received(OK)
        assert await waiter == Answer(200, [(b"content-length", b"0")], b"")
        assert owner.events == ["connected", end]
