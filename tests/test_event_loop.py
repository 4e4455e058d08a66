"""A test that leaves something open fails; it neither passes nor hangs."""

import asyncio

import pytest

from tests.event_loop import StrictLoop


async def leave_open() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
    await loop.create_connection(asyncio.Protocol, *server.sockets[0].getsockname())


def test_closing_the_loop_closes_what_was_left_open_and_says_so() -> None:
    loop = StrictLoop()
    loop.run_until_complete(leave_open())
    with pytest.raises(ResourceWarning, match="unclosed resource"):
        loop.close()
    assert loop.is_closed()


async def test_async_tests_run_on_it() -> None:
    assert isinstance(asyncio.get_running_loop(), StrictLoop)
