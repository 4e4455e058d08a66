"""Fair queueing of lookups and TLS handshakes by tenant; every slot is released."""

from __future__ import annotations

import asyncio
import random

import pytest

from hookline_service.targets.http.failure import AttemptFailure
from hookline_service.targets.http.tenant_shares import FairQueue, HandshakeQueue
from tests.waiting import until


async def test_no_slot_is_lost_when_waiters_are_cancelled_or_fail() -> None:
    queue, running, most = HandshakeQueue(6), 0, 0

    async def shake(tenant_id: str, steps: int, *, fails: bool) -> None:
        nonlocal running, most
        async with queue.slot(tenant_id):
            running += 1
            most = max(most, running)
            try:
                for _ in range(steps):
                    await asyncio.sleep(0)
                assert not fails
            finally:
                running -= 1

    chance = random.Random(7)
    for _ in range(40):
        tasks = [
            asyncio.create_task(
                shake(chance.choice("abc"), chance.randrange(6), fails=chance.random() < 0.2)
            )
            for _ in range(60)
        ]
        while not all(task.done() for task in tasks):
            chance.choice(tasks).cancel()
            await asyncio.sleep(0)
        await asyncio.gather(*tasks, return_exceptions=True)
        assert running == 0
        assert queue.waiting_count == 0
    assert most > 1
    async with asyncio.timeout(20), queue.slot("a"), queue.slot("b"), queue.slot("a"):
        pass


async def test_cancelled_waiter_releases_its_slot() -> None:
    queue = HandshakeQueue(1, waiting_max=5)

    async def shake() -> None:
        async with queue.slot("busy"):
            await asyncio.get_running_loop().create_future()

    async with queue.slot("other"):
        for _ in range(3):
            tasks = [asyncio.create_task(shake()) for _ in range(4)]
            await until(lambda: queue.waiting_count == 4, "they wait")
            with pytest.raises(AttemptFailure, match="too many connections wait"):
                await shake()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert queue.waiting_count == 0


def filled_queue(running_max: int, waiting_max: int = 1_000) -> FairQueue:
    queue = FairQueue(running_max, waiting_max)
    for number in range(100):
        assert queue.join("busy", f"b{number}")
    for number in range(3):
        assert queue.join("calm", f"c{number}")
    return queue


def test_tenants_get_slots_in_rotation() -> None:
    queue, order = filled_queue(1), ""
    for _ in range(7):
        found = queue.next()
        assert found is not None
        assert queue.next() is None, "one runs at a time"
        order += found[1][0]
        queue.ended(found[0])
    assert order == "bcbcbcb"


def test_one_tenant_cannot_run_all_lookups() -> None:
    queue = FairQueue(16, 1_000)
    for number in range(100):
        queue.join("busy", f"b{number}")
    running = 0
    while queue.next() is not None:
        running += 1
    assert running == 13, "four times what is free"
    assert queue.join("calm", "c")
    assert queue.next() == ("calm", "c")
    queue.ended("busy")
    queue.ended("calm")
    assert queue.next() == ("busy", "b13")


def test_one_tenant_cannot_fill_the_waiting_list() -> None:
    queue, joined = FairQueue(1, 10), 0
    while queue.join("busy", f"b{joined}"):
        joined += 1
    assert joined == 8
    assert queue.join("busy", "b0"), "it waits already"
    assert queue.join("calm", "c")


def test_name_waits_once_for_each_tenant() -> None:
    queue = FairQueue(1, 10)
    for tenant_id in ("busy", "calm"):
        assert queue.join(tenant_id, "shared")
    assert queue.next() == ("busy", "shared")
    queue.ended("busy")
    assert queue.next() == ("calm", "shared")
