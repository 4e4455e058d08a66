"""Fair queueing of requests that are read, and their timeouts."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from hookline_service.api.middleware.read_slots import ReadSlots
from hookline_service.domain.errors import ResourceExhaustedError, UnavailableError
from tests.waiting import until


class Peer:
    """Callers whose requests come when a test says so."""

    def __init__(self, slots: ReadSlots) -> None:
        self._slots = slots
        self.begun: list[str] = []
        self.requests: list[asyncio.Future[str]] = []

    def call(self, caller: str) -> asyncio.Task[Any]:
        request = asyncio.get_running_loop().create_future()
        self.requests.append(request)

        async def read() -> str:
            self.begun.append(caller)
            return str(await request)

        return asyncio.create_task(self._slots.read(caller, read))


def slots(count: int, timeout_s: float = 60.0, patience_s: float = 60.0) -> ReadSlots:
    return ReadSlots(
        "HOOKLINE_MAX_REQUESTS_READ", count, timeout_s=timeout_s, patience_s=patience_s
    )


async def test_a_caller_gets_as_many_slots_as_are_free_and_others_find_one() -> None:
    peer = Peer(slots(4))
    calls = [peer.call("greedy") for _ in range(10)]
    await until(lambda: len(peer.begun) == 2, "half are read")
    other = peer.call("other")
    await until(lambda: "other" in peer.begun, "the other's is read")
    assert peer.begun == ["greedy", "greedy", "other"]
    peer.requests[-1].set_result("read")
    assert await other == "read"
    for request in peer.requests[:-1]:
        request.set_result("read")
    assert await asyncio.gather(*calls) == ["read"] * 10


async def test_a_slow_read_ends_when_others_wait() -> None:
    peer = Peer(slots(2, patience_s=0.0))
    slow = [peer.call("slow"), peer.call("slow")]
    await until(slow[0].done, "it gives way")
    with pytest.raises(UnavailableError, match="HOOKLINE_MAX_REQUESTS_READ"):
        await slow[0]
    await until(lambda: len(peer.begun) == 2, "the next is read")
    peer.requests[1].set_result("read")
    assert await slow[1] == "read"


async def test_a_request_that_does_not_arrive_ends_and_frees_its_slot() -> None:
    peer = Peer(slots(2, timeout_s=0.2))
    with pytest.raises(UnavailableError, match=r"0\.2 s"):
        await peer.call("silent")
    last = peer.call("silent")
    await until(lambda: len(peer.begun) == 2, "its slot is free")
    peer.requests[-1].set_result("read")
    assert await last == "read"


async def test_a_wait_beyond_the_timeout_is_refused_with_the_setting() -> None:
    peer = Peer(slots(2, timeout_s=0.3))
    calls = [peer.call("one") for _ in range(30)]
    ends = await asyncio.gather(*calls, return_exceptions=True)
    kinds = {type(end) for end in ends}
    assert kinds == {UnavailableError, ResourceExhaustedError}
    refused = next(end for end in ends if isinstance(end, ResourceExhaustedError))
    assert refused.metadata == {"limit": "HOOKLINE_MAX_REQUESTS_READ", "maximum": "2"}


async def test_a_cancelled_call_frees_its_slot() -> None:
    peer = Peer(slots(2))
    first, waiting = peer.call("one"), peer.call("one")
    await until(lambda: len(peer.begun) == 1, "one is read, the other waits")
    waiting.cancel()
    first.cancel()
    await asyncio.gather(first, waiting, return_exceptions=True)
    last = peer.call("one")
    await until(lambda: len(peer.begun) == 2, "the slot is free")
    peer.requests[-1].set_result("read")
    assert await last == "read"
