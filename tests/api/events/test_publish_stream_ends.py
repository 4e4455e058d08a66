"""Flow control of publish streams and the ways in which they end, over a real channel."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest

from hookline.v1.event_pb2 import Event
from hookline.v1.event_service_pb2 import StreamPublishEventsResponse
from hookline_service.domain.limits import Limits
from tests.api.conftest import Api, serving
from tests.api.publishing import order, publish
from tests.api.refusals import refusal
from tests.api.streaming import METHOD, Stream, Submitted, stored, uncommitted
from tests.pipeline.rival import until_blocked
from tests.waiting import until


@pytest.fixture
async def stream(api: Api) -> AsyncIterator[Stream]:
    opened = Stream(api.channel)
    yield opened
    opened.call.cancel()


@pytest.mark.parametrize(
    "limits, events, read",
    [
        (Limits(max_stream_messages=3), [order()], 3),
        (Limits(max_stream_events=10), [order()] * 3, 4),
        (Limits(max_stream_bytes=2_000), [order(binary_data=bytes(600))], 4),
        (Limits(max_stream_bytes=1), [order()], 1),
    ],
    ids=["messages", "events", "bytes", "one at least"],
)
async def test_beyond_the_limit_of_unanswered_messages_nothing_is_read(
    database_url: str, limits: Limits, events: list[Event], read: int
) -> None:
    async with serving(database_url, limits=limits) as api:
        await api.rows.tenant("acme")
        await publish(api, order())
        stream, submitted = Stream(api.channel), Submitted(api)
        async with uncommitted(api):
            for _ in range(12):
                await stream.send(*events)
            assert await submitted.when_steady() == read
        assert sorted(await stream.answers(12)) == list(range(1, 13))
        await stream.finish()
        assert submitted.count == 12


async def test_flow_control_limits_a_client_that_sends_without_pause(database_url: str) -> None:
    """GRPC's flow control windows bound the data that is sent but not yet read."""
    limits = Limits(max_stream_bytes=500_000)
    async with serving(database_url, limits=limits) as api:
        await api.rows.tenant("acme")
        await publish(api, order())
        stream, submitted, sent = Stream(api.channel), Submitted(api), 0

        async def send() -> None:
            nonlocal sent
            while sent < 200:
                await stream.send(order(binary_data=bytes(200_000)))
                sent += 1

        async with uncommitted(api):
            sending = asyncio.create_task(send())
            assert await submitted.when_steady() == 3
            assert not sending.done()
            assert sent < 100
        assert len(await stream.answers(200)) == 200
        await sending
        await stream.finish()


async def test_a_client_that_reads_no_answers_is_not_read(database_url: str) -> None:
    async with serving(database_url, limits=Limits(max_stream_messages=3)) as api:
        await api.rows.tenant("acme")
        windows = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_535)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{api.port}", windows) as channel:
            stream, submitted = Stream(channel), Submitted(api)

            async def send() -> None:
                for _ in range(40):
                    await stream.send(*[order()] * 200)  # 15 kB of answer

            sending = asyncio.create_task(send())
            assert await submitted.when_steady() < 40
            assert sorted(await stream.answers(40)) == list(range(1, 41))
            await sending
            await stream.finish()


# ------------------------------------------------------------------------------ other endings


async def test_disconnected_client_leaves_no_task_and_its_messages_are_stored(
    api: Api, stream: Stream
) -> None:
    await publish(api, order())
    before = _tasks()
    async with uncommitted(api):
        await stream.send(order())
        await until_blocked(api.rig.database)
        stream.call.cancel()
        await until(lambda: (METHOD, grpc.StatusCode.CANCELLED) in api.calls.ended, "it ended")
        await until(lambda: _tasks() <= before, "its tasks ended")

    async def is_stored() -> bool:
        return len(await stored(api)) == 2

    await until(is_stored, "the message is stored")


async def test_client_that_disconnects_during_a_write_leaves_no_task(
    database_url: str,
) -> None:
    async with serving(database_url) as api:
        await api.rows.tenant("acme")
        await publish(api, order())
        before = _tasks()
        windows = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_535)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{api.port}", windows) as channel:
            stream, submitted = Stream(channel), Submitted(api)
            for _ in range(40):
                await stream.send(*[order()] * 200)
            await submitted.when_steady()
            stream.call.cancel()
            await until(lambda: (METHOD, grpc.StatusCode.CANCELLED) in api.calls.ended, "it ended")
            await until(lambda: _tasks() <= before, "its tasks ended")


async def test_a_stream_ends_at_its_deadline(api: Api) -> None:
    stream = Stream(api.channel, timeout_s=0.3)
    await stream.send(order())
    await stream.answer()
    assert (await refusal(stream.ended())).code is grpc.StatusCode.DEADLINE_EXCEEDED
    await publish(api, order())


async def test_stop_ends_a_stream_at_once_with_a_reason(api: Api, stream: Stream) -> None:
    await stream.send(order())
    await stream.answer()
    async with asyncio.timeout(10):
        await api.server.stop(600)
    ending = await refusal(stream.ended())
    assert (ending.code, ending.reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")


async def test_stop_waits_for_answers_to_messages_already_read(api: Api, stream: Stream) -> None:
    await publish(api, order())
    async with uncommitted(api):
        for _ in range(3):
            await stream.send(order())
        await until_blocked(api.rig.database)
        stopping = asyncio.create_task(api.server.stop(600))
        await asyncio.sleep(0)
        assert not stopping.done()
    async with asyncio.timeout(10):
        await stopping
    answers: list[StreamPublishEventsResponse] = []
    ending = await refusal(_read_all(stream, answers))
    assert (ending.code, ending.reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
    assert answers
    assert [answer.WhichOneof("outcome") for answer in answers] == ["published"] * len(answers)
    assert len(await stored(api)) == 1 + len(answers), "what was read was answered"


async def test_a_stop_ends_a_stream_whose_client_reads_nothing_when_the_grace_is_over(
    database_url: str,
) -> None:
    async with serving(database_url, limits=Limits(max_stream_messages=3)) as api:
        await api.rows.tenant("acme")
        await publish(api, order())
        stream = Stream(api.channel)
        async with uncommitted(api):
            await stream.send(order())
            await until_blocked(api.rig.database)
            async with asyncio.timeout(10):
                await api.server.stop(0.1)
            ending = await refusal(stream.ended())
            assert ending.code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}


async def test_a_stream_cannot_begin_during_a_stop(api: Api, stream: Stream) -> None:
    """The message of the stream is not read, so nothing is stored."""
    await publish(api, order())
    async with uncommitted(api):
        unary = asyncio.create_task(publish(api, order()))
        await until_blocked(api.rig.database)
        stopping = asyncio.create_task(api.server.stop(600))
        await asyncio.sleep(0)
        ending = await refusal(stream.finish())
    await unary
    await stopping
    assert ending.code is grpc.StatusCode.UNAVAILABLE


async def _read_all(stream: Stream, answers: list[StreamPublishEventsResponse]) -> None:
    async with asyncio.timeout(20):
        async for answer in stream.call:
            answers.append(answer)  # noqa: PERF401 - what came before an error counts


def _tasks() -> set[str]:
    """Return the names of the running coroutines."""
    names = {
        getattr(task.get_coro(), "__qualname__", "")
        for task in asyncio.all_tasks()
        if not task.done()
    }
    return {name for name in names if "Stream" in name or "guard" in name}
