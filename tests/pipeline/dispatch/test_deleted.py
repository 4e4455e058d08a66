"""Deliveries of a deleted subscription are cancelled in batches and block no other lane."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest

from hookline_service.store.tenants import Tenants
from tests.pipeline.dispatch.ordering import keyed
from tests.pipeline.dispatch.test_refill import insert_pending
from tests.pipeline.lane_harness import LaneHarness
from tests.pipeline.rig import Receiver, Rig
from tests.waiting import until

BATCH = 20


async def delete(rig: Rig, uid: UUID) -> None:
    """Delete a subscription as the API does, and have its node read the change."""
    await rig.database.fetch(
        """WITH s AS (UPDATE subscriptions SET deleted_at = hookline_now(), version = version + 1
                      WHERE subscription_uid = $1 RETURNING *),
                t AS (UPDATE tenants
                      SET epoch = epoch + 1, subscription_count = subscription_count - 1
                      WHERE tenant_uid IN (SELECT tenant_uid FROM s))
           INSERT INTO change_log (kind, bucket, subscription_uid)
           SELECT 'SUBSCRIPTION', bucket, subscription_uid FROM s""",
        uid,
    )
    rig.changes.poke()


async def test_an_ordered_backlog_is_cancelled_and_its_tenant_can_be_deleted(
    rig: Rig, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys on the wire, waiting for a retry, waiting behind others: all are cancelled."""
    monkeypatch.setattr("hookline_service.pipeline.dispatch.refill.CANCEL_BATCH", BATCH)
    tenant_uid = await rig.tenant()
    uid = await rig.subscription(
        tenant_uid, receiver.url, ordered=True, max_in_flight=8, schedule_s=[0.0, 40.0]
    )
    await rig.matcher.index("acme")
    receiver.answers = 500
    await rig.publisher.publish("acme", [keyed(f"late{n}", 0) for n in range(5)])
    await until(lambda: rig.recorder.recorded == 5, "five wait for their retries")
    receiver.gate = asyncio.Event()
    await rig.publisher.publish("acme", [keyed(f"k{n % 50}", n) for n in range(300)])
    await receiver.wait_for(13)

    await delete(rig, uid)

    async def is_gone() -> bool:
        return not await rig.pending()

    await until(is_gone, "all is cancelled")
    receiver.gate.set()
    await until(lambda: rig.deliverer.free_slots == rig.max_in_flight, "the sent requests end")
    lane = rig.lanes.get(uid)
    assert lane is not None
    await until(lambda: not lane.needs_reading(), "the lane is not read again")
    assert (lane.known, lane.bytes_held, lane.unrecorded, lane.order) == ({}, 0, 0, None)
    assert (rig.lanes.budget.jobs, rig.lanes.budget.bytes) == (0, 0)
    assert {row["state_reason"] for row in await rig.finished()} == {"SUBSCRIPTION_DELETED"}
    assert len(receiver.ids) == 13
    await Tenants(rig.database).delete("acme")


async def test_the_keys_of_a_tombstone_are_not_read(
    harness: LaneHarness,
) -> None:
    lane = harness.lane(is_ordered=True)
    harness.lanes.next_of_key(lane, 7)

    harness.lanes.deleted(lane)
    lane.begin_refill()
    harness.lanes.end_refill(lane, found_all=True)

    assert not lane.needs_reading()


async def test_other_lanes_take_turns_between_cancelled_batches(
    rig: Rig, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hookline_service.pipeline.dispatch.refill.CANCEL_BATCH", BATCH)
    tenant_uid = await rig.tenant()
    uid = await rig.subscription(tenant_uid, receiver.url)
    await rig.stop_reading()
    await insert_pending(rig, tenant_uid, uid, 2 * BATCH + 1)
    await delete(rig, uid)
    await rig.sweeper.sweep()

    left = []
    for _ in range(3):
        await rig.refiller.refill()
        left.append(len(await rig.pending()))

    assert left == [BATCH + 1, 1, 0]


@pytest.fixture
async def harness() -> LaneHarness:
    """Create a harness inside the event loop, which the timers need."""
    return LaneHarness()
