"""How streams end: by a stop, by invalid credentials, or by a client that disconnects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from hookline_service.api.middleware.errors import interrupted
from hookline_service.api.middleware.streams import Stream, Streams
from hookline_service.domain.errors import (
    HooklineError,
    UnauthenticatedError,
    UnavailableError,
    unauthenticated,
)


async def test_a_stream_that_reads_no_message_is_cancelled_at_the_second_check() -> None:
    """Its client may not read the answers, so that it waits elsewhere and for ever."""

    async def streaming() -> HooklineError | None:
        stream = Stream(takes_messages=True)
        checking = asyncio.create_task(Streams(recheck_s=0).recheck_repeatedly(stream, refuse))
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return stream.reason
        finally:
            checking.cancel()
        return None

    async def refuse() -> None:
        raise unauthenticated()

    assert isinstance(await asyncio.create_task(streaming()), UnauthenticatedError)


async def test_a_node_that_stops_ends_its_streams_and_begins_none() -> None:
    async def streaming(streams: Streams) -> HooklineError | None:
        stream = Stream(takes_messages=False)
        streams.enter(stream)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return stream.reason
        return None

    streams = Streams()
    running = asyncio.create_task(streaming(streams))
    await asyncio.sleep(0)
    streams.end_all()
    assert isinstance(await running, UnavailableError)
    with pytest.raises(UnavailableError):
        streams.enter(Stream(takes_messages=False))


async def silence() -> AsyncIterator[bytes]:
    await asyncio.Event().wait()
    yield b""


async def no_recheck() -> None:
    pass


async def reading(meanwhile: Callable[[Stream], None]) -> int:
    """Read a silent stream, of which something becomes; how often its task is cancelled then."""
    stream, task = Stream(takes_messages=True), asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().call_soon(meanwhile, stream)
    with pytest.raises(UnavailableError):
        async for _ in stream.messages(silence(), lambda _: None, no_recheck):
            pass
    return task.cancelling()


async def test_a_stream_whose_reading_ended_is_not_cancelled() -> None:
    assert await asyncio.create_task(reading(lambda stream: stream.end(interrupted()))) == 0


async def test_a_disconnect_while_reading_ends_is_a_cancellation() -> None:
    def both(stream: Stream) -> None:
        stream.end(interrupted())
        task.cancel()

    task = asyncio.create_task(reading(both))
    with pytest.raises(asyncio.CancelledError):
        await task
