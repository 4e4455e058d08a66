"""Refills from the hot table, and lanes that are not read. Rules 14 to 16."""

from __future__ import annotations

import asyncio
from collections import Counter
from uuid import UUID

import pytest

from hookline_service.domain.ids import bucket_of, delivery_id_of, format_type_id
from hookline_service.pipeline.dispatch.lane import Lane, LaneState
from hookline_service.store.lanes import RefillRequest
from tests.pipeline.rig import Receiver, Rig, order_created, running
from tests.waiting import until


class Reads:
    """Records the refills of the hot table."""

    def __init__(self, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
        self.requests: list[RefillRequest] = []
        self.rows = 0
        store = rig.lane_store
        ask = store.refill

        async def refill(requests: list[RefillRequest], in_memory: list[UUID]) -> object:
            self.requests += requests
            rows = await ask(requests, in_memory)
            self.rows += len(rows)
            return rows

        monkeypatch.setattr(store, "refill", refill)


async def insert_pending(
    rig: Rig, tenant_uid: UUID, subscription_uid: UUID, count: int, *, due_s: float = 0.0
) -> None:
    """Insert pending deliveries without a hand-off, as another node would write them."""
    bucket = bucket_of(subscription_uid)
    events = [rig.new_uid() for _ in range(count)]
    await rig.database.fetch(
        """INSERT INTO events (tenant_uid, event_id, ordinal, is_json, type, content_type, data)
           SELECT $1, e, 1, true, 'order.created', 'application/json', '{}'
           FROM unnest($2::uuid[]) AS e""",
        tenant_uid,
        events,
    )
    await rig.database.fetch(
        """INSERT INTO pending_deliveries (bucket, due_at, ordinal, delivery_id, subscription_uid,
                                           event_id)
           SELECT $1, hookline_now() + make_interval(secs => $2), 1, d, $3, e
           FROM unnest($4::uuid[], $5::uuid[]) AS w (d, e)""",
        bucket,
        due_s,
        subscription_uid,
        [delivery_id_of(event, 0, bucket) for event in events],
        events,
    )


async def lane_of(rig: Rig, subscription_uid: UUID) -> Lane:
    await until(lambda: rig.lanes.get(subscription_uid) is not None, "the lane is created")
    lane = rig.lanes.get(subscription_uid)
    assert lane is not None
    return lane


async def delivery_of(rig: Rig, subscription_uid: UUID) -> UUID:
    """Return the pending delivery of a subscription."""
    (found,) = [
        row["delivery_id"]
        for row in await rig.pending()
        if row["subscription_uid"] == subscription_uid
    ]
    assert isinstance(found, UUID)
    return found


async def test_the_sweep_finds_deliveries_without_a_hand_off(rig: Rig, receiver: Receiver) -> None:
    tenant_uid = await rig.tenant()
    uid = await rig.subscription(tenant_uid, receiver.url)

    await insert_pending(rig, tenant_uid, uid, 3)

    await receiver.wait_for(3)
    await until(lambda: rig.recorder.recorded == 3, "all are recorded")
    assert await rig.pending() == []


async def test_dropped_hand_offs_are_found(database_url: str, receiver: Receiver) -> None:
    async with running(database_url, max_queued_jobs=20) as rig:
        tenant_uid = await rig.tenant()
        await rig.subscription(tenant_uid, receiver.url, max_in_flight=1)

        await rig.publisher.publish("acme", [order_created(n) for n in range(200)])

        await until(lambda: rig.recorder.recorded == 200, "all are recorded")
        assert set(receiver.counts.values()) == {1}


async def test_the_sweep_marks_only_lanes_that_lack_their_earliest_row(
    rig: Rig, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant_uid = await rig.tenant()
    held, missing = [await rig.subscription(tenant_uid, receiver.url, "order.*") for _ in range(2)]
    await rig.publisher.publish("acme", [order_created()])
    await until(lambda: rig.recorder.recorded == 2, "both lanes are created")
    await until(
        lambda: all(lane.state is LaneState.COMPLETE for lane in rig.lanes.all()),
        "both are refilled",
    )
    rig.deliverer.pause()
    await rig.stop_reading()
    await rig.publisher.publish("acme", [order_created()])
    rig.lanes.forget(await lane_of(rig, missing), (await delivery_of(rig, missing)))
    touched: list[UUID] = []
    monkeypatch.setattr(rig.lanes, "touch", lambda uid, _bucket, **_: touched.append(uid))

    await rig.sweeper.sweep()

    assert touched == [missing]
    assert held != missing


async def test_a_paused_subscription_is_not_read(
    rig: Rig, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant_uid = await rig.tenant()
    uid = await rig.subscription(tenant_uid, receiver.url)
    await rig.set_state(uid, "PAUSED")
    reads = Reads(rig, monkeypatch)
    await rig.publisher.publish("acme", [order_created(n) for n in range(50)])
    lane = await lane_of(rig, uid)
    await until(lambda: lane.config is not None, "the lane is configured as paused")
    await rig.stop_reading()

    for _ in range(3):
        await rig.sweeper.sweep()
        await rig.refiller.refill()
    assert (reads.requests, receiver.ids) == ([], [])

    rig.refiller.start()
    await rig.set_state(uid, "ACTIVE")
    await until(lambda: rig.recorder.recorded == 50, "all are sent on resume")
    assert set(receiver.counts.values()) == {1}


async def test_pending_deliveries_of_a_dead_target_are_not_read(
    rig: Rig, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant_uid = await rig.tenant()
    dead = await rig.subscription(tenant_uid, receiver.url, "dead.*", schedule_s=[0.0, 3_600.0])
    receiver.answers = 500
    await rig.publisher.publish("acme", [order_created(n, type="dead.x") for n in range(10)])
    await until(lambda: rig.recorder.recorded == 10, "ten failures are recorded")
    lane = await lane_of(rig, dead)
    assert lane.is_circuit_open
    await insert_pending(rig, tenant_uid, dead, 20_000)
    await rig.stop_reading()
    reads = Reads(rig, monkeypatch)

    for _ in range(5):
        await rig.sweeper.sweep()
        await rig.refiller.refill()
    assert reads.requests == []

    await rig.turn(5)
    await rig.refiller.refill()
    await receiver.wait_for(11)
    await until(lambda: rig.recorder.recorded == 11, "the probe's failure is recorded")
    await rig.refiller.refill()
    assert reads.rows <= 3
    assert lane.known == {}
    assert len(receiver.ids) == 11


async def test_a_later_commit_with_a_smaller_id_is_found(rig: Rig, receiver: Receiver) -> None:
    tenant_uid = await rig.tenant()
    uid = await rig.subscription(tenant_uid, receiver.url)
    early = rig.new_uid()
    (published,) = await rig.publisher.publish("acme", [order_created()])
    await until(lambda: rig.recorder.recorded == 1, "the later id is delivered")
    assert published.event_id > early

    bucket = bucket_of(uid)
    await rig.database.fetch(
        """WITH e AS (INSERT INTO events (tenant_uid, event_id, ordinal, is_json, type,
                                          content_type, data)
                      VALUES ($1, $2, 1, true, 'order.created', 'application/json', '{}'))
           INSERT INTO pending_deliveries (bucket, due_at, ordinal, delivery_id, subscription_uid,
                                           event_id)
           VALUES ($3, hookline_now() - interval '1 hour', 1, $4, $5, $2)""",
        tenant_uid,
        early,
        bucket,
        delivery_id_of(early, 0, bucket),
        uid,
    )

    await until(lambda: rig.recorder.recorded == 2, "the smaller id is delivered too")
    assert receiver.ids[-1] == format_type_id("evt", early)


async def test_a_commit_during_a_read_is_sent_once(
    rig: Rig, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The refill began before the announcement and reads the row; the hand-off comes after it."""
    tenant_uid = await rig.tenant()
    uid = await rig.subscription(tenant_uid, receiver.url)
    await rig.publisher.publish("acme", [order_created()])
    await until(lambda: rig.recorder.recorded == 1, "the lane is created")
    lane = await lane_of(rig, uid)
    await rig.stop_reading()
    store, hand_over = rig.lane_store, rig.builder.hand_over
    ask = store.refill

    async def refill(requests: list[RefillRequest], in_memory: list[UUID]) -> object:
        """Publish without the hand-off, after the ids in memory were listed."""
        monkeypatch.setattr(rig.builder, "hand_over", lambda *group: handed.append(group))
        await rig.publisher.publish("acme", [order_created()])
        return await ask(requests, in_memory)

    handed: list[tuple[object, ...]] = []
    monkeypatch.setattr(store, "refill", refill)
    lane.mark_dirty()
    rig.lanes.touch(uid, bucket_of(uid))
    await rig.refiller.refill()
    (group,) = handed
    hand_over(*group)  # type: ignore[arg-type]  # as the publisher calls it

    await until(lambda: rig.recorder.recorded == 2, "the second is recorded")
    assert set(receiver.counts.values()) == {1}
    assert not lane.announced


async def test_a_cancel_during_a_read_takes_effect(
    rig: Rig, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant_uid = await rig.tenant()
    uid = await rig.subscription(tenant_uid, receiver.url)
    await rig.stop_reading()
    await rig.changes.stop()
    await insert_pending(rig, tenant_uid, uid, 2)
    first = (await rig.pending())[0]["delivery_id"]
    ask = rig.lane_store.refill

    async def refill(requests: list[RefillRequest], in_memory: list[UUID]) -> object:
        rows = await ask(requests, in_memory)
        await rig.delivery_actions.cancel("acme", first)
        await rig.changes.read()
        return rows

    monkeypatch.setattr(rig.lane_store, "refill", refill)
    rig.lanes.touch(uid, bucket_of(uid))
    await rig.refiller.refill()

    await until(lambda: rig.recorder.recorded == 1, "the other is recorded")
    assert len(receiver.ids) == 1
    assert Counter(row["state"] for row in await rig.finished()) == {"CANCELLED": 1, "SUCCEEDED": 1}


async def test_small_events_are_read_with_their_rows(
    rig: Rig, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant_uid = await rig.tenant()
    uid = await rig.subscription(tenant_uid, receiver.url)
    await rig.stop_reading()
    await insert_pending(rig, tenant_uid, uid, 2)
    monkeypatch.setattr(rig.lane_store, "events", None)
    rig.lanes.touch(uid, bucket_of(uid))
    await rig.refiller.refill()

    await receiver.wait_for(2)
    assert set(receiver.counts.values()) == {1}


async def test_retries_within_a_minute_wait_in_memory_and_later_ones_in_postgres(
    rig: Rig, receiver: Receiver
) -> None:
    tenant_uid = await rig.tenant()
    soon = await rig.subscription(tenant_uid, receiver.url, schedule_s=[0.0, 50.0])
    late = await rig.subscription(tenant_uid, receiver.url, schedule_s=[0.0, 100.0])
    receiver.answers = 500
    await rig.publisher.publish("acme", [order_created()])
    await until(lambda: rig.recorder.recorded == 2, "both failed once")

    assert len((await lane_of(rig, soon)).known) == 1
    assert len((await lane_of(rig, late)).known) == 0
    receiver.answers = 200
    await rig.turn(101)
    await until(lambda: rig.recorder.recorded == 4, "both succeed at their second attempt")
    assert await rig.pending() == []


async def test_large_events_of_a_slow_lane_leave_memory_for_other_lanes(
    database_url: str, receiver: Receiver
) -> None:
    async with running(database_url, max_queued_bytes=64 * 1024) as rig, Receiver() as slow:
        tenant_uid = await rig.tenant()
        slow_uid = await rig.subscription(tenant_uid, slow.url, "big.*", max_in_flight=1)
        await rig.subscription(tenant_uid, receiver.url, "small.*")
        slow.gate = asyncio.Event()
        big = b'"' + b"x" * 10_000 + b'"'
        await rig.publisher.publish("acme", [order_created(data=big, type="big.x")] * 50)
        await slow.wait_for(1)
        lane = await lane_of(rig, slow_uid)
        await rig.refiller.refill()
        assert lane.bytes_held <= 16 * 1024

        await rig.publisher.publish("acme", [order_created(n, type="small.x") for n in range(100)])
        await receiver.wait_for(100)
        slow.gate.set()
        await until(lambda: rig.recorder.recorded == 150, "the large ones follow")
        assert set(slow.counts.values()) == {1}


async def test_lanes_take_turns_in_spite_of_a_long_backlog(rig: Rig, receiver: Receiver) -> None:
    tenant_uid, other_uid = await rig.tenant(), await rig.tenant("globex")
    async with Receiver() as busy:
        await rig.subscription(tenant_uid, busy.url, max_in_flight=4)
        await rig.subscription(other_uid, receiver.url)
        await rig.publisher.publish("acme", [order_created(n) for n in range(2_000)])
        await busy.wait_for(50)

        await rig.publisher.publish("globex", [order_created()])
        await receiver.wait_for(1)

        assert len(busy.ids) < 2_000
        await until(lambda: rig.recorder.recorded == 2_001, "the backlog is delivered")


async def test_the_sweep_ignores_rows_that_are_due_later(rig: Rig, receiver: Receiver) -> None:
    tenant_uid = await rig.tenant()
    uid = await rig.subscription(tenant_uid, receiver.url)
    await insert_pending(rig, tenant_uid, uid, 1, due_s=3_600)
    await rig.stop_reading()

    await rig.sweeper.sweep()

    assert rig.lanes.get(uid) is None
