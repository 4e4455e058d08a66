"""The transport: reuse of connections, their bounds, and stale connections."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import httpx
import pytest

from hookline_service.domain.attempt import AttemptOutcome
from hookline_service.targets.http.egress import EgressPolicy
from hookline_service.targets.http.failure import AttemptFailure
from hookline_service.targets.http.transport import WebhookTransport
from tests.targets.http.conftest import LOOPBACK, SHORT_S, MakePost, Post
from tests.targets.http.receiver import OK, Connected, Receiver, Script, answer, answering
from tests.waiting import until

LOCALHOST = ["127.0.0.1"]


class TestKeepAlive:
    async def test_sequential_requests_share_a_connection(self, post: Post) -> None:
        async with Receiver(answering(OK)) as receiver:
            for _ in range(20):
                assert (await post(receiver.url())).kind is AttemptOutcome.ACCEPTED
            assert len(receiver.requests) == 20
            assert receiver.connection_count == 1
            assert post.transport.idle_count == 1

    @pytest.mark.parametrize(
        "first",
        [
            answer("200 OK", b"", "connection: close"),
            b"HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n",
            answer() + answer(),
            answer() + b"HTTP/1.1 2",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\ncontent-length: 0\r\n\r\n",
        ],
        ids=["close", "1.0", "two answers", "bytes behind", "broken"],
    )
    async def test_connection_is_reused_only_after_a_complete_response(
        self, post: Post, first: bytes
    ) -> None:
        async with Receiver(answering(first, OK)) as receiver:
            await post(receiver.url())
            outcome = await post(receiver.url())
            assert outcome.kind is AttemptOutcome.ACCEPTED
            assert receiver.connection_count == 2

    async def test_connection_is_reused_after_an_http_error(self, post: Post) -> None:
        async with Receiver(answering(answer("500 No", b"busy"))) as receiver:
            for _ in range(3):
                await post(receiver.url())
            assert receiver.connection_count == 1

    async def test_unsolicited_response_answers_no_request(self, post: Post) -> None:
        """A second response, sent after the first was read, must not answer the next request."""

        async def script(connected: Connected) -> None:
            await connected.read_request()
            await connected.write(OK)
            if connected.number == 1:
                await first_was_taken.wait()
                await connected.write(answer("500 Never asked for"))
                await connected.wait_closed_by_peer()

        first_was_taken = asyncio.Event()
        async with Receiver(script) as receiver:
            await post(receiver.url())
            first_was_taken.set()
            await receiver.until_left()
            assert (await post(receiver.url())).kind is AttemptOutcome.ACCEPTED
            assert receiver.connection_count == 2

    async def test_unread_unsolicited_response_answers_no_request(self, post: Post) -> None:
        """The response is in the socket's buffer; the event loop has not run since it arrived."""

        async def script(connected: Connected) -> None:
            await connected.read_request()
            await connected.write(OK)
            taken.set_result(connected.writer.get_extra_info("socket").fileno())
            await connected.wait_closed_by_peer()

        async with Receiver(script) as receiver:
            for number in range(1, 4):
                taken = asyncio.get_running_loop().create_future()
                assert (await post(receiver.url())).kind is AttemptOutcome.ACCEPTED
                assert receiver.connection_count == number
                os.write(await taken, answer("500 Never asked for"))

    async def test_unread_end_of_stream_costs_no_attempt(self, post: Post) -> None:
        """Otherwise the request would be sent on the closed connection, then again on a new one."""
        strays: list[bytes] = []

        async def script(connected: Connected) -> None:
            await connected.read_request()
            await connected.write(OK)
            taken.set_result(connected.writer.get_extra_info("socket").fileno())
            strays.append(await connected.reader.read())

        async with Receiver(script) as receiver:
            for _ in range(3):
                taken = asyncio.get_running_loop().create_future()
                assert (await post(receiver.url())).kind is AttemptOutcome.ACCEPTED
                with socket.socket(fileno=os.dup(await taken)) as sock:
                    sock.shutdown(socket.SHUT_WR)
            await until(lambda: len(strays) == 3, "each connection is ended")
        assert strays == [b""] * 3

    async def test_response_before_the_whole_request_closes_the_connection(
        self, post: Post
    ) -> None:
        """A next request would be read as the rest of this request's body."""

        async def script(connected: Connected) -> None:
            await connected.reader.readuntil(b"\r\n\r\n")
            await connected.write(answer("413 Too Large"))
            await answered.wait()
            await connected.wait_closed_by_peer()

        answered = asyncio.Event()
        async with Receiver(script) as receiver:
            outcome = await post(receiver.url(), body=b"x" * 30_000_000)
            answered.set()
            assert (outcome.kind, outcome.http_status) == (AttemptOutcome.HTTP_ERROR, 413)
            await receiver.until_left()


class TestOrigins:
    async def test_names_of_one_address_share_no_connection(self, make_post: MakePost) -> None:
        post = make_post(names={"a.test": LOCALHOST, "b.test": LOCALHOST})
        async with Receiver(answering(OK)) as receiver:
            for host in ("a.test", "b.test", "a.test", "b.test", "127.0.0.1", "A.TEST"):
                outcome = await post(receiver.url(host=host))
                assert outcome.kind is AttemptOutcome.ACCEPTED
                assert outcome.remote_address == "127.0.0.1"
            assert receiver.connection_count == 3
        hosts = [request.headers["host"].split(":")[0] for request in receiver.requests]
        assert hosts == ["a.test", "b.test", "a.test", "b.test", "127.0.0.1", "a.test"]

    async def test_ports_of_one_name_share_no_connection(self, post: Post) -> None:
        async with Receiver(answering(OK)) as one, Receiver(answering(OK)) as other:
            for receiver in (one, other, one, other):
                await post(receiver.url())
            assert (one.connection_count, other.connection_count) == (1, 1)


class TestBounds:
    async def test_idle_connections_of_an_origin_are_bounded(self, make_post: MakePost) -> None:
        post = make_post(idle_per_origin_max=3)
        async with Receiver(answering_together(10)) as receiver:
            await asyncio.gather(*(post(receiver.url()) for _ in range(10)))
            assert receiver.connection_count == 10
            await until(lambda: post.transport.connection_count == 3, "three are kept")
            assert post.transport.idle_count == 3

    async def test_idle_connections_of_all_origins_are_bounded(self, make_post: MakePost) -> None:
        names = {f"{number}.test": LOCALHOST for number in range(5)}
        post = make_post(names=names, idle_max=2)
        async with Receiver(answering(OK)) as receiver:
            for name in names:
                await post(receiver.url(host=name))
            await until(lambda: post.transport.connection_count == 2, "two are kept")
            # The two that are kept are the latest.
            await post(receiver.url(host="4.test"))
            await post(receiver.url(host="3.test"))
            assert receiver.connection_count == 5

    async def test_idle_connection_is_closed_after_its_timeout(self, make_post: MakePost) -> None:
        post = make_post(idle_timeout_s=SHORT_S)
        async with Receiver(answering(OK)) as receiver:
            await post(receiver.url())
            assert post.transport.idle_count == 1
            await until(lambda: post.transport.connection_count == 0, "it is closed for its age")
            assert (await post(receiver.url())).kind is AttemptOutcome.ACCEPTED

    async def test_number_of_open_connections_is_bounded(self, make_post: MakePost) -> None:
        """An idle connection is closed for a new one; without one it is an internal error."""
        post = make_post(connections_max=2, names={"a.test": LOCALHOST})
        async with Receiver(answering(OK)) as idle, Receiver(never_answer) as silent:
            await post(idle.url())
            held = [asyncio.create_task(post(silent.url())) for _ in range(2)]
            await until(lambda: len(silent.requests) == 2, "both are sent")
            outcome = await post(idle.url(host="a.test"))
            assert outcome.kind is AttemptOutcome.INTERNAL_ERROR
            assert outcome.error == "too many connections are open"
            for attempt in held:
                attempt.cancel()
            await asyncio.gather(*held, return_exceptions=True)

    async def test_five_hundred_concurrent_requests_are_accepted_and_reuse_connections(
        self, post: Post
    ) -> None:
        async with Receiver(answering_together(500)) as receiver:
            outcomes = await asyncio.gather(*(post(receiver.url()) for _ in range(500)))
            assert {outcome.kind for outcome in outcomes} == {AttemptOutcome.ACCEPTED}
            assert receiver.connection_count == 500
            again = await asyncio.gather(*(post(receiver.url()) for _ in range(500)))
            assert {outcome.kind for outcome in again} == {AttemptOutcome.ACCEPTED}
            assert receiver.connection_count == 500

    async def test_five_hundred_concurrent_deadlines_expire(self, post: Post) -> None:
        async with Receiver(never_answer) as receiver:
            outcomes = await asyncio.gather(
                *(post(receiver.url(), timeout_s=1.0) for _ in range(500))
            )
            assert {outcome.kind for outcome in outcomes} == {AttemptOutcome.TIMEOUT}
            await until(lambda: post.transport.connection_count == 0, "all are closed")

    async def test_large_request_is_written_as_the_receiver_reads(self, post: Post) -> None:
        """Bytes that the socket does not accept yet are not copied."""
        body = os.urandom(20_000_000)
        async with Receiver(answering(OK)) as receiver:
            outcome = await post(receiver.url(), body=body)
            assert outcome.kind is AttemptOutcome.ACCEPTED
            assert receiver.requests[0].body == body
            assert (await post(receiver.url())).kind is AttemptOutcome.ACCEPTED
            assert receiver.connection_count == 1

    async def test_receiver_that_reads_nothing_is_a_timeout(self, post: Post) -> None:
        async def script(connected: Connected) -> None:
            connected.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await asyncio.Event().wait()

        async with Receiver(script) as receiver:
            outcome = await post(receiver.url(), body=b"x" * 30_000_000, timeout_s=SHORT_S)
            assert outcome.kind is AttemptOutcome.TIMEOUT
            assert "did not take the whole request" in outcome.error

    async def test_idle_connections_are_closed_when_descriptors_run_out(
        self, post: Post, closed_port: int
    ) -> None:
        async with Receiver(answering(OK)) as receiver:
            await post(receiver.url())
            with no_descriptors():
                outcome = await post(f"http://127.0.0.1:{closed_port}/")
                assert outcome.kind is AttemptOutcome.INTERNAL_ERROR
                assert outcome.error == "no file descriptor is left in this process"
                await until(lambda: post.transport.connection_count == 0, "the idle one is closed")
                outcome = await post(f"http://127.0.0.1:{closed_port}/")
                assert outcome.kind is AttemptOutcome.CONNECTION_FAILED


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Lower the limit so that the process cannot open another descriptor."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def never_answer(connected: Connected) -> None:
    """Read the request, and wait for the peer to close the connection."""
    await connected.read_request()
    await connected.wait_closed_by_peer()


def answering_together(count: int) -> Script:
    """Answer after this many requests have arrived, so that each needs its own connection."""

    def have_come(receiver: Receiver, wanted: int) -> bool:
        return len(receiver.requests) >= wanted

    async def script(connected: Connected) -> None:
        while True:
            await connected.read_request()
            receiver = connected.receiver
            wanted = -(-len(receiver.requests) // count) * count
            await until(partial(have_come, receiver, wanted), "all have come")
            await connected.write(OK)

    return script


class TestClosing:
    async def test_request_on_the_wire_ends_as_an_internal_error(self, post: Post) -> None:
        async with Receiver(never_answer) as receiver:
            attempt = asyncio.create_task(post(receiver.url()))
            await until(lambda: len(receiver.requests) == 1, "it is sent")
            await post.transport.aclose()
            assert (await attempt).kind is AttemptOutcome.INTERNAL_ERROR
            assert post.transport.connection_count == 0

    async def test_closed_transport_sends_nothing(self, post: Post) -> None:
        async with Receiver(answering(OK)) as receiver:
            await post(receiver.url())
            await post.transport.aclose()
            assert (await post(receiver.url())).kind is AttemptOutcome.INTERNAL_ERROR
            assert len(receiver.requests) == 1

    async def test_unused_transport_closes(self) -> None:
        async with WebhookTransport(egress=EgressPolicy()):
            pass


class TestAsHttpx:
    """The transport serves any httpx client, also without Hookline's request extensions."""

    async def test_httpx_client_can_use_the_transport(self) -> None:
        async with (
            Receiver(answering(answer("200 OK", b"hello", "x-one: 1"))) as receiver,
            httpx.AsyncClient(transport=WebhookTransport(egress=LOOPBACK)) as client,
        ):
            got = await client.post(receiver.url("/a?b=c"), content=b"body")
            assert (got.status_code, got.content, got.headers["x-one"]) == (200, b"hello", "1")
            assert receiver.requests[0].request_line == b"POST /a?b=c HTTP/1.1"
            assert receiver.requests[0].body == b"body"

    async def test_failures_are_httpx_errors(self, closed_port: int) -> None:
        async with httpx.AsyncClient(transport=WebhookTransport(egress=LOOPBACK)) as client:
            with pytest.raises(httpx.TransportError) as caught:
                await client.post(f"http://127.0.0.1:{closed_port}/")
            assert isinstance(caught.value, AttemptFailure)
            with pytest.raises(httpx.UnsupportedProtocol):
                await client.post("ftp://127.0.0.1/")
