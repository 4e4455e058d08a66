"""Calls that share a group commit: only concurrent calls wait, and only briefly."""

import asyncio

import pytest

from hookline_service.pipeline.batch_queue import ENOUGH
from hookline_service.pipeline.publishing import publish
from tests.pipeline.rig import Rig, order_created
from tests.pipeline.rival import STALL, rival, until_blocked

FOREVER_S = 3_600.0


async def test_answered_caller_shares_the_next_group(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "GATHER_S", FOREVER_S)
    await rig.tenant("acme")
    await rig.publisher.publish("acme", [order_created()])
    groups = rig.publisher.committed_groups

    async with rival(rig.url) as other:
        await other.execute(STALL)
        first = asyncio.create_task(rig.publisher.publish("acme", [order_created(0)]))
        await until_blocked(rig.database)
        second = asyncio.create_task(rig.publisher.publish("acme", [order_created(1)]))
        await asyncio.sleep(0)
        await other.execute("ROLLBACK")
        await first
        await rig.publisher.publish("acme", [order_created(2)])
        await second

    assert rig.publisher.committed_groups == groups + 2


async def test_single_caller_does_not_wait(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "GATHER_S", FOREVER_S)
    await rig.tenant("acme")

    for number in range(3):
        await rig.publisher.publish("acme", [order_created(number)])


async def test_wait_for_an_absent_caller_is_short(rig: Rig) -> None:
    await rig.tenant("acme")
    await rig.publisher.publish("acme", [order_created()])
    await asyncio.gather(
        *[rig.publisher.publish("acme", [order_created(number)]) for number in range(3)]
    )

    await rig.publisher.publish("acme", [order_created(3)])


async def test_large_batch_does_not_wait(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "GATHER_S", FOREVER_S)
    await rig.tenant("acme")
    await rig.publisher.publish("acme", [order_created()])
    calls = [[order_created(number)] for number in range(3)]
    await asyncio.gather(*[rig.publisher.publish("acme", events) for events in calls])

    await rig.publisher.publish("acme", [order_created(number) for number in range(ENOUGH)])


async def test_stop_does_not_wait_for_callers(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "GATHER_S", FOREVER_S)
    await rig.tenant("acme")
    await rig.publisher.publish("acme", [order_created()])
    await asyncio.gather(
        *[rig.publisher.publish("acme", [order_created(number)]) for number in range(3)]
    )
    last = await rig.publisher.submit("acme", [order_created(3)])
    await asyncio.sleep(0)
    assert not last.done()

    await rig.publisher.stop()

    assert last.done()
