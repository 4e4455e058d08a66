"""A record whose answer is lost, or whose database is away: nothing is lost, nothing sent twice."""

from __future__ import annotations

import asyncio

import pytest

from tests.pipeline.rig import Receiver, Rig, order_created, running
from tests.pipeline.wire import Wire
from tests.waiting import PATIENCE_S, until


async def recorded(rig: Rig, count: int) -> None:
    await until(lambda: rig.recorder.recorded >= count, f"{count} outcomes are recorded")


@pytest.mark.parametrize("cut", ["cut_request", "cut_answer"])
@pytest.mark.parametrize("status", [200, 500])
async def test_record_with_a_lost_answer_is_written_and_sent_once(
    database_url: str, receiver: Receiver, cut: str, status: int
) -> None:
    async with (
        Wire(database_url) as wire,
        running(database_url, session_urls={"record": wire.url}) as rig,
    ):
        tenant_uid = await rig.tenant()
        await rig.subscription(tenant_uid, receiver.url, schedule_s=[0.0, 3_600.0])
        await rig.publisher.publish("acme", [order_created()])
        await recorded(rig, 1)
        receiver.answers = status
        (published,) = await rig.publisher.publish("acme", [order_created()])
        setattr(wire, cut, published.event_id.bytes[:12])

        await asyncio.wait_for(wire.is_cut.wait(), PATIENCE_S)
        await until(lambda: rig.deliverer.free_slots == rig.max_in_flight, "it is dealt with")

        if status == 200:
            row = (await rig.finished())[-1]
            assert await rig.pending() == []
            assert (row["state"], row["attempt_count"]) == ("SUCCEEDED", 1)
        else:
            (row,) = await rig.pending()
            assert (row["version"], row["attempt_count"]) == (1, 1)
            assert [a["number"] for a in await rig.attempts()] == [1]
        assert set(receiver.counts.values()) == {1}


async def test_killed_backend_loses_no_delivery(rig: Rig, receiver: Receiver) -> None:
    tenant_uid = await rig.tenant()
    await rig.subscription(tenant_uid, receiver.url, max_in_flight=8)
    published = asyncio.gather(
        *(rig.publisher.publish("acme", [order_created(n)] * 10) for n in range(30))
    )
    for count in (20, 100, 200):
        await receiver.wait_for(count)
        await rig.database.fetch(
            """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
               WHERE datname = current_database() AND application_name = 'hookline record'"""
        )
    await published

    async def is_done() -> bool:
        return not await rig.pending()

    await until(is_done, "nothing is pending any more")
    rows = await rig.finished()
    assert len(rows) == 300
    assert {(row["state"], row["attempt_count"]) for row in rows} == {("SUCCEEDED", 1)}
    assert len(receiver.counts) == 300


async def test_stop_without_a_database_ends_and_keeps_the_rows(
    database_url: str, receiver: Receiver
) -> None:
    async with Wire(database_url) as wire:
        async with running(database_url, session_urls={"record": wire.url}) as rig:
            tenant_uid = await rig.tenant()
            await rig.subscription(tenant_uid, receiver.url)
            receiver.gate = asyncio.Event()
            await rig.publisher.publish("acme", [order_created()])
            await receiver.wait_for(1)
            wire.close()
            receiver.gate.set()
            await until(lambda: receiver.in_flight == 0, "the target has answered")
        async with running(database_url) as successor:
            await recorded(successor, 1)
            assert await successor.pending() == []
