"""Effects of outcomes: exhausted, retried later, held, sent on resume."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

import asyncpg
import pytest

from hookline_service.domain.delivery import DeliveryState
from tests.pipeline.rig import Receiver, Rig, order_created
from tests.waiting import until


async def subscription_row(rig: Rig, uid: UUID) -> asyncpg.Record:
    row = await rig.database.fetchrow(
        "SELECT * FROM subscriptions WHERE subscription_uid = $1", uid
    )
    assert row is not None
    return row


async def recorded(rig: Rig, count: int) -> None:
    await until(lambda: rig.recorder.recorded >= count, f"{count} outcomes are recorded")


@asynccontextmanager
async def replaced_target(rig: Rig, uid: UUID) -> AsyncIterator[Receiver]:
    """Replace the target in a subscription's row, without an entry in the change log."""
    async with Receiver() as replacement:
        await rig.database.fetch(
            "UPDATE subscriptions SET url = $2, version = version + 1 WHERE subscription_uid = $1",
            uid,
            replacement.url,
        )
        yield replacement


async def test_the_delay_of_a_retry_counts_from_the_start_of_the_attempt(
    rig: Rig, receiver: Receiver
) -> None:
    tenant_uid = await rig.tenant()
    await rig.subscription(tenant_uid, receiver.url, schedule_s=[0.0, 1_000.0])
    receiver.answers, receiver.gate = 500, asyncio.Event()
    await rig.publisher.publish("acme", [order_created()])
    await receiver.wait_for(1)
    await rig.turn(1_000)  # more than the delay, whatever its jitter
    receiver.gate.set()
    await recorded(rig, 1)

    (row,) = await rig.database.fetch(
        "SELECT due_at <= hookline_now() AS is_due FROM pending_deliveries"
        " UNION ALL SELECT true FROM deliveries"
    )
    assert row["is_due"]


async def test_a_delivery_is_exhausted_after_its_last_attempt(rig: Rig, receiver: Receiver) -> None:
    tenant_uid = await rig.tenant()
    await rig.subscription(tenant_uid, receiver.url, schedule_s=[0.0, 10.0, 10.0])
    receiver.answers, receiver.body = 500, b"sorry"
    await rig.publisher.publish("acme", [order_created()])
    for count in (1, 2, 3):
        await recorded(rig, count)
        await rig.turn(11)

    (row,) = await rig.finished()
    assert (row["state"], row["attempt_count"]) == (DeliveryState.EXHAUSTED, 3)
    attempts = await rig.attempts()
    assert [(a["number"], a["response_excerpt"]) for a in attempts] == [
        (1, b"sorry"),
        (2, b"sorry"),
        (3, b"sorry"),
    ]
    assert len(receiver.ids) == 3


async def test_retry_after_is_a_floor(rig: Rig, receiver: Receiver) -> None:
    tenant_uid = await rig.tenant()
    await rig.subscription(tenant_uid, receiver.url, "floor.*", schedule_s=[0.0, 5.0])
    await rig.subscription(tenant_uid, receiver.url, "later.*", schedule_s=[0.0, 500.0])
    receiver.answers, receiver.headers = 503, {"retry-after": "100"}
    await rig.publisher.publish("acme", [order_created(type="floor.x")])
    await rig.publisher.publish("acme", [order_created(type="later.x")])
    await recorded(rig, 2)

    rows = await rig.database.fetch(
        "SELECT extract(epoch FROM due_at - hookline_now())::float8 AS in_s"
        " FROM pending_deliveries ORDER BY due_at"
    )
    floor_s, later_s = (row["in_s"] for row in rows)
    assert 95 < floor_s <= 100
    assert 395 < later_s <= 500


async def test_410_disables_the_subscription_and_a_resume_sends_again(
    rig: Rig, receiver: Receiver
) -> None:
    tenant_uid = await rig.tenant()
    uid = await rig.subscription(tenant_uid, receiver.url)
    receiver.answers = 410
    await rig.publisher.publish("acme", [order_created()])
    await recorded(rig, 1)

    row = await subscription_row(rig, uid)
    assert (row["state"], row["state_reason"]) == ("DISABLED", "GONE")
    assert "410" in row["state_message"]
    await rig.publisher.publish("acme", [order_created(n) for n in range(3)])
    await rig.turn(100_000)
    await until(lambda: rig.lanes.get(uid) is not None, "the lane is created")
    assert len(receiver.ids) == 1
    assert [r["attempt_count"] for r in await rig.pending()] == [1, 0, 0, 0]

    receiver.answers = 200
    await rig.set_state(uid, "ACTIVE")
    await recorded(rig, 5)
    assert await rig.pending() == []
    assert [r["attempt_count"] for r in await rig.finished()] == [2, 1, 1, 1]


async def test_a_410_of_a_replaced_target_does_not_disable(rig: Rig, receiver: Receiver) -> None:
    tenant_uid = await rig.tenant()
    uid = await rig.subscription(tenant_uid, receiver.url)
    receiver.gate, receiver.answers = asyncio.Event(), 410
    await rig.publisher.publish("acme", [order_created()])
    await receiver.wait_for(1)
    async with replaced_target(rig, uid) as replacement:
        receiver.gate.set()
        await recorded(rig, 1)
        await rig.set_state(uid, "ACTIVE")
        await recorded(rig, 2)

        assert (await subscription_row(rig, uid))["state"] == "ACTIVE"
        assert len(replacement.ids) == 1


@pytest.mark.parametrize("is_ordered", [False, True])
async def test_a_replaced_target_is_not_called_again_after_its_410(
    rig: Rig, receiver: Receiver, *, is_ordered: bool
) -> None:
    """The node has not read the change yet; calls of the old target would spend attempts."""
    tenant_uid = await rig.tenant()
    uid = await rig.subscription(tenant_uid, receiver.url, ordered=is_ordered, max_in_flight=1)
    receiver.gate, receiver.answers = asyncio.Event(), 410
    await rig.publisher.publish("acme", [order_created(n, ordering_key="k") for n in range(3)])
    await receiver.wait_for(1)
    async with replaced_target(rig, uid) as replacement:
        receiver.gate.set()
        await recorded(rig, 4)

        assert (len(receiver.ids), len(replacement.ids)) == (1, 3)
        assert [row["attempt_count"] for row in await rig.finished()] == [2, 1, 1]
