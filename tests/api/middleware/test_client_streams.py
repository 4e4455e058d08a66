"""Streams that send messages: which gives way to another, and what all of them may hold."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest

from hookline_service.api.middleware.client_streams import ClientStreams, StreamBudget
from hookline_service.api.middleware.streams import Stream as ServerStream
from hookline_service.domain.errors import HooklineError, ResourceExhaustedError, UnavailableError
from hookline_service.domain.limits import Limits
from tests.api.conftest import serving
from tests.api.publishing import order, publish
from tests.api.streaming import Stream, Submitted, uncommitted
from tests.waiting import until


class Opened:
    """A stream in a task of its own, which waits for a message."""

    def __init__(self) -> None:
        self.ended_with: HooklineError | None = None
        self.task = asyncio.create_task(self._run())
        self.stream: ServerStream

    async def _run(self) -> None:
        self.stream = ServerStream(takes_messages=True)

        async def silence() -> AsyncIterator[bytes]:
            await asyncio.Event().wait()
            yield b""

        async def known() -> None:
            return

        try:
            async for _ in self.stream.messages(silence(), bytes, known):
                pass
        except HooklineError as error:
            self.ended_with = error


@asynccontextmanager
async def opened(count: int) -> AsyncIterator[list[Opened]]:
    streams = [Opened() for _ in range(count)]
    await asyncio.sleep(0)
    try:
        yield streams
    finally:
        for one in streams:
            one.task.cancel()
        await asyncio.wait([one.task for one in streams])


async def test_the_longest_idle_stream_of_a_caller_is_ended_for_its_next() -> None:
    places = ClientStreams(4, idle_s=0)
    async with opened(3) as (first, second, third):
        places.enter("greedy", first.stream)
        places.enter("greedy", second.stream)
        places.enter("greedy", third.stream)
        await first.task
        assert isinstance(first.ended_with, UnavailableError)
        assert "HOOKLINE_MAX_CLIENT_STREAMS" in str(first.ended_with)
        places.leave(first.stream)  # as its call does once it has ended
        assert second.ended_with is None
        assert third.ended_with is None


async def test_another_caller_can_open_a_stream_where_one_has_taken_all() -> None:
    places = ClientStreams(2, idle_s=0)
    async with opened(3) as (first, second, third):
        places.enter("one", first.stream)
        places.enter("another", second.stream)
        places.enter("third", third.stream)
        await first.task
        assert isinstance(first.ended_with, UnavailableError)


async def test_a_stream_that_is_not_idle_is_not_ended() -> None:
    places = ClientStreams(2, idle_s=3_600)
    async with opened(2) as (first, second):
        places.enter("greedy", first.stream)
        with pytest.raises(ResourceExhaustedError, match="HOOKLINE_MAX_CLIENT_STREAMS") as refused:
            places.enter("greedy", second.stream)
        assert refused.value.retry_after_s is not None
        assert first.stream.reason is None


async def test_an_idle_stream_is_ended_over_a_channel(database_url: str) -> None:
    limits = Limits(max_client_streams=2, stream_idle_s=0)
    async with serving(database_url, limits=limits) as api:
        await api.rows.tenant("acme")
        first = Stream(api.channel)
        await first.send(order())
        assert list(await first.answers(1)) == [1]
        second = Stream(api.channel)
        await second.send(order())
        assert list(await second.answers(1)) == [1]
        with pytest.raises(grpc.aio.AioRpcError, match="HOOKLINE_MAX_CLIENT_STREAMS") as ended:
            await first.ended()
        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
        await second.finish()


async def test_streams_beyond_the_bytes_of_all_are_not_read_and_each_goes_on(
    database_url: str,
) -> None:
    limits = Limits(max_client_stream_bytes=2_500)
    async with serving(database_url, limits=limits) as api:
        await api.rows.tenant("acme")
        await publish(api, order())
        streams, submitted = [Stream(api.channel) for _ in range(3)], Submitted(api)
        async with uncommitted(api):
            for stream in streams:
                for _ in range(5):
                    await stream.send(order(binary_data=bytes(2_000)))
            assert await submitted.when_steady() == len(streams)
        for stream in streams:
            assert sorted(await stream.answers(5)) == [1, 2, 3, 4, 5]
            await stream.finish()


async def test_a_cancelled_stream_releases_its_bytes(database_url: str) -> None:
    limits = Limits(max_client_stream_bytes=10_000)
    async with serving(database_url, limits=limits) as api:
        await api.rows.tenant("acme")
        await publish(api, order())
        gone, kept, submitted = Stream(api.channel), Stream(api.channel), Submitted(api)
        async with uncommitted(api):
            await gone.send(order(binary_data=bytes(9_000)))
            await until(lambda: submitted.count == 1, "it is read")
            gone.call.cancel()
            for _ in range(3):
                await kept.send(order())
            await until(lambda: submitted.count == 4, "the other's are read")
        assert sorted(await kept.answers(3)) == [1, 2, 3]
        await kept.finish()


def test_a_waiting_stream_is_checked_again_once_bytes_are_released() -> None:
    budget, asked = StreamBudget(100), list[str]()

    def look_again() -> None:
        asked.append("again")

    budget.take("greedy", 95)
    assert not budget.has_capacity("greedy", look_again)
    assert budget.has_capacity("other", look_again)
    budget.give("greedy", 90)
    assert asked == ["again"]
    budget.give("greedy", 5)
    assert asked == ["again"]
    assert budget.held_bytes == 0
