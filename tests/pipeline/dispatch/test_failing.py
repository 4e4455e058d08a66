"""`failing_since` of a subscription, and disabling after five days. Rule 20."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from uuid import UUID

import pytest

from tests.pipeline.rig import Receiver, Rig, order_created, running
from tests.pipeline.rival import rival, until_blocked
from tests.waiting import until

DAY_S = 86_400.0
RARELY = [0.0, *[6 * 3_600.0] * 90]


async def failing_since(rig: Rig, uid: UUID) -> datetime | None:
    row = await rig.database.fetchrow(
        "SELECT failing_since FROM subscriptions WHERE subscription_uid = $1", uid
    )
    assert row is not None
    found: datetime | None = row["failing_since"]
    return found


async def state_of(rig: Rig, uid: UUID) -> tuple[str, str | None]:
    row = await rig.database.fetchrow(
        "SELECT state, state_reason FROM subscriptions WHERE subscription_uid = $1", uid
    )
    assert row is not None
    return row["state"], row["state_reason"]


async def publish_one(rig: Rig) -> None:
    count = rig.recorder.recorded
    await rig.publisher.publish("acme", [order_created()])
    await until(lambda: rig.recorder.recorded > count, "its outcome is recorded")


async def test_failing_since_is_the_first_failure_and_a_success_clears_it(
    rig: Rig, receiver: Receiver
) -> None:
    tenant_uid = await rig.tenant()
    uid = await rig.subscription(tenant_uid, receiver.url, schedule_s=RARELY)
    await publish_one(rig)
    assert await failing_since(rig, uid) is None

    receiver.answers = 500
    await publish_one(rig)
    first = await failing_since(rig, uid)
    assert first is not None
    await publish_one(rig)
    assert await failing_since(rig, uid) == first

    receiver.answers = 200
    await publish_one(rig)
    assert await failing_since(rig, uid) is None


async def test_failing_since_follows_the_order_of_outcomes_in_a_batch(
    rig: Rig, receiver: Receiver, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an older failure, a success and a failure in one record: it began to fail just now."""
    monkeypatch.setattr(
        "hookline_service.pipeline.batch_queue.GATHER_S", 0.0
    )  # the first outcome is written alone
    tenant_uid = await rig.tenant()
    uid = await rig.subscription(tenant_uid, receiver.url, schedule_s=RARELY, max_in_flight=1)
    receiver.answers = 500
    await publish_one(rig)
    began = await failing_since(rig, uid)
    assert began is not None
    answers = iter([500, 200, 500])
    receiver.answers = lambda _: next(answers)
    async with rival(database_url) as other:
        await other.execute("LOCK TABLE attempts IN SHARE MODE")
        await rig.publisher.publish("acme", [order_created(n) for n in range(3)])
        await receiver.wait_for(4)
        await until(lambda: receiver.in_flight == 0, "the target has answered all")
        await until_blocked(rig.database, "record")
        await other.execute("ROLLBACK")
    await until(lambda: rig.recorder.recorded == 4, "all are recorded")

    assert rig.recorder.batches == 3
    since = await failing_since(rig, uid)
    assert since is not None
    assert since > began
    lane = rig.lanes.get(uid)
    assert lane is not None
    assert lane.failing_since_us is not None


async def test_five_days_of_failures_disable_a_subscription(rig: Rig, receiver: Receiver) -> None:
    tenant_uid = await rig.tenant()
    uid = await rig.subscription(tenant_uid, receiver.url, schedule_s=RARELY)
    receiver.answers = 500
    await publish_one(rig)
    began = await failing_since(rig, uid)
    assert began is not None

    await rig.turn(5 * DAY_S - 600)
    await until(lambda: rig.recorder.recorded == 2, "it fails just before five days")
    assert await state_of(rig, uid) == ("ACTIVE", None)
    await rig.turn(6 * 3_600)
    await until(lambda: rig.recorder.recorded == 3, "it fails after five days")

    assert await state_of(rig, uid) == ("DISABLED", "FAILING")
    (row,) = await rig.pending()
    assert row["attempt_count"] == 3
    await rig.turn(DAY_S)
    lane = rig.lanes.get(uid)
    assert lane is not None
    assert not lane.sends()
    assert len(receiver.ids) == 3


async def test_a_resumed_subscription_is_not_disabled_by_its_next_failure(
    rig: Rig, receiver: Receiver
) -> None:
    """A resume clears the failures in the database; the lane must clear them too."""
    tenant_uid = await rig.tenant()
    uid = await rig.subscription(tenant_uid, receiver.url, schedule_s=RARELY)
    receiver.answers = 500
    await publish_one(rig)
    await rig.turn(5 * DAY_S + 600)
    await until(lambda: rig.recorder.recorded == 2, "it failed too long")
    assert await state_of(rig, uid) == ("DISABLED", "FAILING")

    await rig.database.fetch("UPDATE subscriptions SET failing_since = NULL")
    await rig.set_state(uid, "ACTIVE")
    await rig.turn(6 * 3_600)
    await until(lambda: rig.recorder.recorded == 3, "it fails once more")

    assert await state_of(rig, uid) == ("ACTIVE", None)
    assert await failing_since(rig, uid) is not None


async def test_a_new_owner_reads_failing_since_from_the_database(
    rig: Rig, receiver: Receiver, database_url: str
) -> None:
    tenant_uid = await rig.tenant()
    uid = await rig.subscription(tenant_uid, receiver.url, schedule_s=RARELY)
    receiver.answers = 500
    await publish_one(rig)
    await rig.database.fetch(
        "UPDATE subscriptions SET failing_since = failing_since - $1::interval",
        timedelta(days=6),
    )
    await rig.ownership.stop()
    rig.deliverer.pause()

    async with running(database_url) as successor:
        successor.deliverer.pause()
        await successor.publisher.publish("acme", [order_created()])
        await until(lambda: successor.lanes.get(uid) is not None, "the lane is created")
        lane = successor.lanes.get(uid)
        assert lane is not None
        await until(lambda: lane.config is not None, "the lane is configured")
        assert lane.failing_since_us is not None
        since = await failing_since(successor, uid)
        assert since is not None
        assert lane.failing_since_us == int(since.timestamp() * 1_000_000)


async def test_a_410_does_not_replace_the_reason_of_an_operators_pause(
    rig: Rig, receiver: Receiver
) -> None:
    tenant_uid = await rig.tenant()
    uid = await rig.subscription(tenant_uid, receiver.url)
    receiver.gate, receiver.answers = asyncio.Event(), 410
    await rig.publisher.publish("acme", [order_created()])
    await receiver.wait_for(1)
    await rig.set_state(uid, "PAUSED")

    receiver.gate.set()
    await until(lambda: rig.recorder.recorded == 1, "the 410 is recorded")

    assert await state_of(rig, uid) == ("PAUSED", "OPERATOR")


async def test_a_410_whose_record_did_not_match_disables_no_subscription(
    rig: Rig, receiver: Receiver
) -> None:
    tenant_uid = await rig.tenant()
    uid = await rig.subscription(tenant_uid, receiver.url)
    receiver.gate, receiver.answers = asyncio.Event(), 410
    await rig.publisher.publish("acme", [order_created()])
    await receiver.wait_for(1)
    await rig.stop_reading()
    await rig.database.fetch("UPDATE pending_deliveries SET version = version + 1")

    receiver.gate.set()
    await until(lambda: rig.deliverer.free_slots == rig.max_in_flight, "the 410 is handled")

    assert await state_of(rig, uid) == ("ACTIVE", None)
    assert await failing_since(rig, uid) is None
    lane = rig.lanes.get(uid)
    assert lane is not None
    assert lane.sends()
