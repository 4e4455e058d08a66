"""Ordered subscriptions: one delivery at a time for each key, in publish order. Rule 17."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest

from hookline_service.domain.event import NewEvent
from hookline_service.pipeline.dispatch.lane import LaneState
from hookline_service.store.lanes import Page, PageRequest
from tests.pipeline.dispatch.ordering import arrivals, first_arrivals, keyed
from tests.pipeline.dispatch.test_refill import lane_of
from tests.pipeline.pair import pair, uid_of
from tests.pipeline.rig import Receiver, Rig, running
from tests.waiting import until


async def ordered(rig: Rig, receiver: Receiver, **columns: object) -> UUID:
    """Create tenant acme, and its ordered subscription to all events."""
    values: dict[str, object] = {"ordered": True, "schedule_s": [0.0, 40.0]} | columns
    return await rig.subscription(await rig.tenant(), receiver.url, **values)


async def publish(rig: Rig, *events: NewEvent) -> list[UUID]:
    return [one.event_id for one in await rig.publisher.publish("acme", events)]


async def delivery_ids(rig: Rig) -> dict[UUID, UUID]:
    """Return the pending delivery of each event."""
    return {row["event_id"]: row["delivery_id"] for row in await rig.pending()}


async def recorded(rig: Rig, count: int) -> None:
    await until(lambda: rig.recorder.recorded == count, f"{count} are recorded")


async def walked(rig: Rig) -> None:
    """Wait until a sweep has marked the lane DIRTY and its keys have been walked."""
    walks = 0
    ask = rig.lane_store.first_of_lanes

    async def count(
        requests: list[PageRequest], in_memory: list[tuple[UUID, int]]
    ) -> dict[UUID, Page]:
        nonlocal walks
        found = await ask(requests, in_memory)
        walks += 1
        return found

    rig.lane_store.first_of_lanes = count  # type: ignore[method-assign,assignment]
    for walk in range(2):  # the first may have been under way
        rig.sweeper.sweep_soon()
        await until(lambda: walks > walk, "the lane is walked through")  # noqa: B023 - awaited here
    rig.lane_store.first_of_lanes = ask  # type: ignore[method-assign]


async def test_deliveries_of_a_key_are_sent_one_at_a_time_beside_other_keys(
    rig: Rig, receiver: Receiver
) -> None:
    await ordered(rig, receiver)
    receiver.gate = asyncio.Event()

    await publish(rig, *[keyed(key, n) for n in range(3) for key in ("a", "b")])

    await receiver.wait_for(2)
    await walked(rig)
    assert sorted(arrivals(receiver)) == [("a", 0), ("b", 0)]
    receiver.gate.set()
    await recorded(rig, 6)
    assert first_arrivals(receiver) == {"a": [0, 1, 2], "b": [0, 1, 2]}
    assert len(receiver.ids) == 6


async def test_events_without_a_key_do_not_wait(rig: Rig, receiver: Receiver) -> None:
    await ordered(rig, receiver)
    receiver.gate = asyncio.Event()

    await publish(rig, *[keyed("", n) for n in range(5)])

    await receiver.wait_for(5)
    receiver.gate.set()
    await recorded(rig, 5)


async def test_subscriptions_order_the_same_key_independently(rig: Rig, receiver: Receiver) -> None:
    tenant_uid = await rig.tenant()
    for _ in range(2):
        await rig.subscription(tenant_uid, receiver.url, ordered=True)
    receiver.gate = asyncio.Event()

    await publish(rig, keyed("a", 0), keyed("a", 1))

    await receiver.wait_for(2)
    assert arrivals(receiver) == [("a", 0)] * 2
    receiver.gate.set()
    await recorded(rig, 4)


async def test_a_retry_blocks_only_its_own_key(rig: Rig, receiver: Receiver) -> None:
    await ordered(rig, receiver)
    await rig.matcher.index("acme")
    receiver.answers = 500
    await publish(rig, keyed("a", 0))
    await recorded(rig, 1)
    receiver.answers = 200

    await publish(rig, keyed("a", 1), keyed("b", 0))
    await recorded(rig, 2)
    await walked(rig)
    assert arrivals(receiver) == [("a", 0), ("b", 0)]

    await rig.turn(41)
    await recorded(rig, 4)
    assert arrivals(receiver) == [("a", 0), ("b", 0), ("a", 0), ("a", 1)]


async def test_a_retry_is_sent_when_due_without_a_sweep(
    rig: Rig, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ordered(rig, receiver, schedule_s=[0.0] + [0.05] * 5)
    await rig.matcher.index("acme")
    await publish(rig, keyed("b", 0))
    await recorded(rig, 1)
    monkeypatch.setattr("hookline_service.pipeline.dispatch.sweep.INTERVAL_S", 3_600.0)
    swept = asyncio.Event()
    sweep = rig.sweeper.sweep

    async def sweep_once() -> None:
        await sweep()
        swept.set()

    monkeypatch.setattr(rig.sweeper, "sweep", sweep_once)
    rig.sweeper.sweep_soon()
    await swept.wait()
    receiver.answers = lambda _: 500 if len(receiver.ids) < 5 else 200

    await publish(rig, keyed("a", 0), keyed("a", 1))

    await recorded(rig, 6)
    assert arrivals(receiver)[1:] == [("a", 0)] * 4 + [("a", 1)]


async def test_an_exhausted_delivery_unblocks_its_key(rig: Rig, receiver: Receiver) -> None:
    await ordered(rig, receiver, schedule_s=[0.0])
    await rig.matcher.index("acme")
    receiver.answers = lambda _: 500 if len(receiver.ids) == 1 else 200

    await publish(rig, keyed("a", 0), keyed("a", 1))

    await recorded(rig, 2)
    assert arrivals(receiver) == [("a", 0), ("a", 1)]
    assert [row["state"] for row in await rig.finished()] == ["EXHAUSTED", "SUCCEEDED"]


async def test_a_cancelled_delivery_unblocks_its_key(rig: Rig, receiver: Receiver) -> None:
    await ordered(rig, receiver)
    receiver.answers = lambda _: 500 if len(receiver.ids) == 1 else 200
    events = await publish(rig, keyed("a", 0), keyed("a", 1), keyed("a", 2))
    await recorded(rig, 1)
    of = await delivery_ids(rig)

    await rig.delivery_actions.cancel("acme", of[events[1]])
    await rig.delivery_actions.cancel("acme", of[events[0]])

    await recorded(rig, 2)
    assert arrivals(receiver) == [("a", 0), ("a", 2)]


async def test_a_cancelled_delivery_on_the_wire_is_not_overtaken(
    rig: Rig, receiver: Receiver
) -> None:
    await ordered(rig, receiver)
    receiver.gate = asyncio.Event()
    events = await publish(rig, keyed("a", 0), keyed("a", 1))
    await receiver.wait_for(1)
    of = await delivery_ids(rig)

    await rig.delivery_actions.cancel("acme", of[events[0]])
    await walked(rig)

    assert arrivals(receiver) == [("a", 0)]
    receiver.gate.set()
    await receiver.wait_for(2)
    assert arrivals(receiver) == [("a", 0), ("a", 1)]
    await until(lambda: rig.recorder.recorded == 1, "the second is recorded")


async def test_a_retried_delivery_still_waits_for_earlier_ones(
    rig: Rig, receiver: Receiver
) -> None:
    uid = await ordered(rig, receiver)
    receiver.answers = 500
    events = await publish(rig, keyed("a", 0), keyed("a", 1))
    await recorded(rig, 1)
    of = await delivery_ids(rig)
    receiver.answers = 200

    await rig.delivery_actions.retry("acme", of[events[1]])
    await walked(rig)
    lane = await lane_of(rig, uid)
    assert not lane.known
    await rig.delivery_actions.retry("acme", of[events[0]])

    await recorded(rig, 3)
    assert arrivals(receiver) == [("a", 0), ("a", 0), ("a", 1)]


async def test_a_retried_delivery_keeps_its_publish_order(rig: Rig, receiver: Receiver) -> None:
    await ordered(rig, receiver, schedule_s=[0.0, 40.0])
    events = []
    receiver.answers = 500
    for n in range(3):
        events += await publish(rig, keyed("a", n))
    await recorded(rig, 1)
    of = await delivery_ids(rig)
    await rig.delivery_actions.cancel("acme", of[events[0]])
    await recorded(rig, 2)
    receiver.answers = 200

    await rig.delivery_actions.retry("acme", of[events[0]])

    await recorded(rig, 3)  # before the second one's retry is due
    await rig.turn(41)
    await recorded(rig, 5)
    assert arrivals(receiver) == [("a", 0), ("a", 1), ("a", 0), ("a", 1), ("a", 2)]


async def test_a_resume_after_410_starts_with_the_held_delivery(
    rig: Rig, receiver: Receiver
) -> None:
    uid = await ordered(rig, receiver)
    receiver.answers = lambda _: 410 if len(receiver.ids) == 1 else 200
    await publish(rig, keyed("a", 0), keyed("a", 1))
    await recorded(rig, 1)
    lane = await lane_of(rig, uid)
    await until(lambda: not lane.sends(), "it is disabled")

    await rig.set_state(uid, "ACTIVE")

    await recorded(rig, 3)
    assert arrivals(receiver) == [("a", 0), ("a", 0), ("a", 1)]


async def test_a_pause_and_a_resume_keep_the_order(rig: Rig, receiver: Receiver) -> None:
    uid = await ordered(rig, receiver)
    await publish(rig, keyed("a", 0))
    await recorded(rig, 1)
    lane = await lane_of(rig, uid)
    await rig.set_state(uid, "PAUSED")
    await until(lambda: not lane.sends(), "the pause takes effect")
    for n in range(1, 6):
        await publish(rig, keyed("a", n))

    await rig.set_state(uid, "ACTIVE")

    await recorded(rig, 6)
    assert first_arrivals(receiver) == {"a": list(range(6))}


async def test_an_expired_delivery_unblocks_its_key(rig: Rig, receiver: Receiver) -> None:
    await ordered(rig, receiver)
    receiver.answers = lambda _: 500 if len(receiver.ids) == 1 else 200
    events = await publish(rig, keyed("a", 0), keyed("a", 1))
    await recorded(rig, 1)
    of = await delivery_ids(rig)
    await rig.database.fetch(
        """WITH gone AS (DELETE FROM pending_deliveries WHERE delivery_id = $1 RETURNING *)
           INSERT INTO change_log (kind, bucket, subscription_uid, delivery_id)
           SELECT 'DELIVERY', bucket, subscription_uid, delivery_id FROM gone""",
        of[events[0]],
    )

    await recorded(rig, 2)
    assert arrivals(receiver) == [("a", 0), ("a", 1)]


async def test_a_sweep_finds_due_keys_behind_a_busy_key(rig: Rig, receiver: Receiver) -> None:
    """The earliest due row always belongs to the busy key, and says nothing about others."""
    uid = await ordered(rig, receiver, schedule_s=[0.0, 600.0])
    receiver.answers = lambda _: 500 if len(receiver.ids) == 1 else 200
    await publish(rig, keyed("late", 0))
    await recorded(rig, 1)
    receiver.gate = asyncio.Event()
    await publish(rig, keyed("busy", 0), keyed("busy", 1))
    await receiver.wait_for(2)
    lane = await lane_of(rig, uid)
    await until(lambda: lane.state is LaneState.COMPLETE, "memory holds all due deliveries")

    await rig.turn(601)

    await receiver.wait_for(3)
    assert arrivals(receiver)[2] == ("late", 0)
    receiver.gate.set()
    await recorded(rig, 4)


async def test_a_retried_delivery_is_sent_before_later_ones_in_memory(
    rig: Rig, receiver: Receiver
) -> None:
    await ordered(rig, receiver, schedule_s=[0.0], max_in_flight=1)
    receiver.answers = lambda _: 500 if len(receiver.ids) == 1 else 200
    (first,) = await publish(rig, keyed("a", 0))
    await recorded(rig, 1)
    (dead,) = await rig.finished()
    assert dead["event_id"] == first
    receiver.gate = asyncio.Event()
    await publish(rig, keyed("busy", 0))
    await receiver.wait_for(2)
    await publish(rig, keyed("a", 1))
    lane = await lane_of(rig, dead["subscription_uid"])
    await until(lambda: len(lane.known) == 2, "the second of its key is in memory")

    await rig.delivery_actions.retry("acme", dead["delivery_id"])
    await until(
        lambda: {job.message.event.event_id for job in lane.known.values()} >= {first},
        "the first is in memory instead",
    )
    receiver.gate.set()

    await recorded(rig, 4)
    assert arrivals(receiver)[1:] == [("busy", 0), ("a", 0), ("a", 1)]


async def test_a_notification_sends_events_published_on_another_node(
    database_url: str, receiver: Receiver
) -> None:
    async with pair(database_url) as (owner, other):
        tenant_uid = await owner.tenant()
        await owner.subscription_as(uid_of(owner), tenant_uid, receiver.url, ordered=True)

        for n in range(10):
            await (owner, other)[n % 2].publisher.publish("acme", [keyed("a", n)])

        await receiver.wait_for(10)
        assert first_arrivals(receiver) == {"a": list(range(10))}
        assert len(receiver.ids) == 10
        await until(lambda: owner.recorder.recorded == 10, "all are recorded")


async def test_an_internal_error_blocks_its_key_until_the_next_attempt(
    rig: Rig, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    uid = await ordered(rig, receiver)
    monkeypatch.setattr(rig.ownership, "may_send", lambda: False)
    monkeypatch.setattr(rig.deliverer, "_may_send", lambda: False)
    (first, _) = await publish(rig, keyed("a", 0), keyed("a", 1))
    lane = await lane_of(rig, uid)
    await until(lambda: lane.timer_count == 1, "it waits for its next attempt")
    assert [job.message.event.event_id for job in lane.known.values()] == [first]
    monkeypatch.undo()
    rig.deliverer._may_send = rig.ownership.may_send  # noqa: SLF001 - undone by hand

    await rig.turn(2)

    await recorded(rig, 2)
    assert arrivals(receiver) == [("a", 0), ("a", 1)]


async def test_a_full_budget_strands_no_ordered_delivery(
    database_url: str, receiver: Receiver
) -> None:
    async with running(database_url, max_queued_jobs=20) as rig:
        await ordered(rig, receiver, max_in_flight=1)

        await publish(rig, *[keyed(f"k{n % 100}", n) for n in range(300)])

        await recorded(rig, 300)
        assert len(receiver.ids) == 300
        for key, numbers in first_arrivals(receiver).items():
            assert numbers == sorted(numbers), key
