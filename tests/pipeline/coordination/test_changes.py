"""What others decided reaches memory: in time, whole, and however late it commits. Rule 18."""

from __future__ import annotations

import asyncio
from uuid import UUID

import asyncpg
import pytest

from hookline_service.domain.event import EventType
from hookline_service.domain.ids import bucket_of, format_type_id
from hookline_service.pipeline.coordination.changes import INTERVAL_S
from hookline_service.pipeline.upkeep.chores import CHANGES_KEPT_S
from tests.pipeline.rig import Receiver, Rig, order_created, running
from tests.pipeline.rival import rival, until_blocked
from tests.pipeline.wire import Wire
from tests.waiting import until

LOG = """INSERT INTO change_log (kind, bucket, subscription_uid)
         SELECT 'SUBSCRIPTION', bucket, subscription_uid FROM subscriptions
         WHERE subscription_uid = $1"""
PAUSE = """UPDATE subscriptions
           SET state = 'PAUSED', state_reason = 'OPERATOR', version = version + 1
           WHERE subscription_uid = $1"""
DELETE = "UPDATE subscriptions SET deleted_at = now(), version = version + 1"


async def standing_lane(rig: Rig, uid: UUID) -> None:
    """Let one event pass, so that the subscription's lane is in memory and complete."""
    await rig.publisher.publish("acme", [order_created()])
    await until(lambda: rig.recorder.recorded == 1, "the first event is delivered")
    lane = rig.lanes.get(uid)
    assert lane is not None
    await until(lambda: lane.state == "COMPLETE", "its lane is complete")


def sends(rig: Rig, uid: UUID) -> bool:
    lane = rig.lanes.get(uid)
    return lane is not None and lane.sends()


async def pause(connection: asyncpg.Connection[asyncpg.Record], uid: UUID) -> None:
    await connection.execute(PAUSE, uid)
    await connection.execute(LOG, uid)


async def test_after_a_pause_no_attempt_starts_and_a_resume_sends(
    rig: Rig, receiver: Receiver
) -> None:
    tenant_uid = await rig.tenant()
    uid = await rig.subscription(tenant_uid, receiver.url, max_in_flight=1)
    receiver.gate = asyncio.Event()
    await rig.publisher.publish("acme", [order_created(n) for n in range(20)])
    await receiver.wait_for(1)

    await rig.set_state(uid, "PAUSED")
    await until(lambda: not sends(rig, uid), "the pause is read")
    receiver.gate.set()
    await until(lambda: rig.recorder.recorded == 1, "what was on the wire ends")
    await rig.publisher.publish("acme", [order_created(n) for n in range(5)])
    await rig.turn(1)
    assert len(receiver.ids) == 1

    await rig.set_state(uid, "ACTIVE")
    await until(lambda: rig.recorder.recorded == 25, "all that was held goes out")
    assert set(receiver.counts.values()) == {1}


async def test_a_pause_on_another_node_is_read_within_one_interval(
    rig: Rig, receiver: Receiver
) -> None:
    """Without a notification the log is read every second."""
    tenant_uid = await rig.tenant()
    uid = await rig.subscription(tenant_uid, receiver.url)
    await standing_lane(rig, uid)

    async with rig.database.transaction() as other:
        await other.execute(PAUSE, uid)
        await other.execute(LOG, uid)

    await until(lambda: not sends(rig, uid), "it is read")
    assert INTERVAL_S == 1


async def test_a_change_that_commits_late_is_not_missed(
    rig: Rig, receiver: Receiver, database_url: str
) -> None:
    """Its number is small, its commit is late: the cursor must have waited for it."""
    tenant_uid = await rig.tenant()
    early = await rig.subscription(tenant_uid, receiver.url, "order.created")
    late = await rig.subscription(tenant_uid, receiver.url, "order.paid")
    await rig.publisher.publish("acme", [order_created(), order_created(type="order.paid")])
    await until(lambda: rig.recorder.recorded == 2, "both lanes stand")
    await rig.changes.stop()
    async with rival(database_url) as slow:
        await pause(slow, late)
        async with rival(database_url) as fast:
            await pause(fast, early)
            await fast.execute("COMMIT")
        for _ in range(3):
            await rig.changes.read()
        assert not sends(rig, early)
        assert sends(rig, late)

        await slow.execute("COMMIT")
        await rig.changes.read()

    assert not sends(rig, late)


async def test_a_change_that_is_read_twice_is_applied_once(
    rig: Rig, receiver: Receiver, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant_uid = await rig.tenant()
    uid = await rig.subscription(tenant_uid, receiver.url)
    await standing_lane(rig, uid)
    await rig.changes.stop()
    reads: list[object] = []
    reconfigure = rig.configs.reconfigure

    async def counted(uids: list[UUID]) -> None:
        reads.append(uids)
        await reconfigure(uids)

    monkeypatch.setattr(rig.configs, "reconfigure", counted)
    async with rival(database_url) as open_one:
        await open_one.execute("SELECT pg_current_xact_id()")  # holds the cursor back
        await rig.database.fetch(LOG, uid)
        for _ in range(3):
            await rig.changes.read()

    assert reads == [[uid]]


async def test_a_change_that_could_not_be_applied_is_tried_again(
    rig: Rig, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant_uid = await rig.tenant()
    uid = await rig.subscription(tenant_uid, receiver.url)
    await standing_lane(rig, uid)
    reconfigure, tries = rig.configs.reconfigure, 0

    async def fails_once(uids: list[UUID]) -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise ZeroDivisionError
        await reconfigure(uids)

    monkeypatch.setattr(rig.configs, "reconfigure", fails_once)
    await rig.set_state(uid, "PAUSED")

    await until(lambda: not sends(rig, uid), "the second try does it")
    assert tries == 2


async def test_an_older_read_that_ends_later_does_not_undo_a_pause(
    rig: Rig, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lane's first read of its subscription is slow, and a pause is read meanwhile."""
    tenant_uid = await rig.tenant()
    uid = await rig.subscription(tenant_uid, receiver.url)
    read, held, go_on = rig.database.fetch, asyncio.Event(), asyncio.Event()
    calls = 0

    async def fetch(statement: str, *args: object) -> object:
        nonlocal calls
        rows = await read(statement, *args)
        if "signing_keys" in statement:
            calls += 1
            if calls == 1:
                held.set()
                await go_on.wait()
        return rows

    monkeypatch.setattr(rig.database, "fetch", fetch)
    await rig.publisher.publish("acme", [order_created()])
    await held.wait()
    await rig.set_state(uid, "PAUSED")
    await until(lambda: calls == 2, "the pause is read")
    lane = rig.lanes.get(uid)
    assert lane is not None
    await until(lambda: lane.config is not None, "and read")
    go_on.set()
    await rig.stop_reading()

    assert not lane.sends()
    assert receiver.ids == []


async def test_a_cancelled_delivery_is_not_sent(rig: Rig, receiver: Receiver) -> None:
    tenant_uid = await rig.tenant()
    await rig.subscription(tenant_uid, receiver.url, max_in_flight=1)
    receiver.gate = asyncio.Event()
    await rig.publisher.publish("acme", [order_created(n) for n in range(3)])
    await receiver.wait_for(1)
    last = (await rig.pending())[-1]["delivery_id"]
    sent = receiver.ids[0]

    await rig.delivery_actions.cancel("acme", last)
    await until(lambda: rig.lanes.budget.jobs == 1, "it is taken out of the queue")
    receiver.gate.set()
    await until(lambda: rig.recorder.recorded == 2, "the others go out")

    assert len(receiver.ids) == 2
    assert sent == receiver.ids[0]
    assert sorted(row["state"] for row in await rig.finished()) == [
        "CANCELLED",
        "SUCCEEDED",
        "SUCCEEDED",
    ]


async def test_what_is_cancelled_before_its_bytes_go_out_is_not_sent(
    rig: Rig, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taken out of its lane already, waiting for a connection."""
    tenant_uid = await rig.tenant()
    await rig.subscription(tenant_uid, receiver.url)
    await rig.changes.stop()
    send, reached, go_on = rig.sender.send, asyncio.Event(), asyncio.Event()

    async def slow(*args: object) -> object:
        reached.set()
        await go_on.wait()
        return await send(*args)  # type: ignore[arg-type]  # as it was called

    monkeypatch.setattr(rig.sender, "send", slow)
    await rig.publisher.publish("acme", [order_created()])
    await reached.wait()
    await rig.delivery_actions.cancel("acme", (await rig.pending())[0]["delivery_id"])
    await rig.changes.read()
    go_on.set()
    await until(lambda: rig.deliverer.free_slots == rig.max_in_flight, "it is let go")

    assert receiver.ids == []
    assert [row["state"] for row in await rig.finished()] == ["CANCELLED"]


async def test_a_retry_of_what_waits_in_memory_is_sent_now_and_once(
    rig: Rig, receiver: Receiver
) -> None:
    tenant_uid = await rig.tenant()
    await rig.subscription(tenant_uid, receiver.url, schedule_s=[0.0, 50.0])
    receiver.answers = lambda _: 500 if len(receiver.ids) == 1 else 200
    await rig.publisher.publish("acme", [order_created()])
    await until(lambda: rig.recorder.recorded == 1, "it failed once")
    (row,) = await rig.pending()

    await rig.delivery_actions.retry("acme", row["delivery_id"])
    await until(lambda: rig.recorder.recorded == 2, "it is sent without waiting")
    await rig.turn(60)

    assert len(receiver.ids) == 2
    assert await rig.pending() == []


async def test_what_a_deleted_subscription_has_left_is_cancelled(
    rig: Rig, receiver: Receiver
) -> None:
    """Due or not, also what a publish that matched before commits after."""
    tenant_uid = await rig.tenant()
    uid = await rig.subscription(
        tenant_uid, receiver.url, max_in_flight=1, schedule_s=[0.0, 3_600.0]
    )
    receiver.answers = lambda _: 500 if len(receiver.ids) == 1 else 200
    await rig.publisher.publish("acme", [order_created()])
    await until(lambda: rig.recorder.recorded == 1, "one waits for an hour")
    receiver.gate = asyncio.Event()
    await rig.publisher.publish("acme", [order_created(n) for n in range(700)])
    await receiver.wait_for(2)

    async with rig.database.transaction() as other:
        await other.execute(DELETE)
        await other.execute(LOG, uid)
    rig.changes.poke()

    async def nothing_pends() -> bool:
        return await rig.pending() == []

    await until(nothing_pends, "all is cancelled")
    rows = await rig.finished()
    assert len(rows) == 701
    assert {(row["state"], row["state_reason"]) for row in rows} == {
        ("CANCELLED", "SUBSCRIPTION_DELETED")
    }
    receiver.gate.set()
    await until(lambda: rig.deliverer.free_slots == rig.max_in_flight, "the wire is empty")
    assert len(await rig.finished()) == 701

    await rig.database.fetch(
        """INSERT INTO pending_deliveries (bucket, due_at, ordinal, delivery_id, subscription_uid,
                                           event_id)
           SELECT $1, hookline_now(), 1, $2, $3, event_id FROM events LIMIT 1""",
        bucket_of(uid),
        rig.new_uid(),
        uid,
    )
    await until(nothing_pends, "the orphan is found by the sweep")
    assert len(receiver.ids) == 2


async def test_a_change_of_event_types_is_read(rig: Rig) -> None:
    rig.event_types.event_types = [EventType(name="order.created", revision=7)]
    await rig.database.fetch("INSERT INTO change_log (kind) VALUES ('EVENT_TYPE')")
    rig.changes.poke()

    async def is_known() -> bool:
        return await rig.catalog.check("acme", [order_created()]) == [7]

    await until(is_known, "the new revision is known")


async def test_what_was_deleted_before_it_was_read_is_read_from_its_source(rig: Rig) -> None:
    """A node that could not read the log for as long as changes are kept misses some."""
    rig.event_types.event_types = [EventType(name="order.created", revision=7)]
    rig.clock.ahead_s += CHANGES_KEPT_S

    async def is_known() -> bool:
        return await rig.catalog.check("acme", [order_created()]) == [7]

    await until(is_known, "the new revision is known")


async def test_deliveries_are_read_anew_after_changes_of_them_were_missed(
    rig: Rig, receiver: Receiver
) -> None:
    """A cancel was deleted from the log unread: what memory has of each lane counts for nothing."""
    uid = await rig.subscription(await rig.tenant(), receiver.url, max_in_flight=1)
    receiver.gate = asyncio.Event()
    await rig.publisher.publish("acme", [order_created(n) for n in range(3)])
    await receiver.wait_for(1)
    await until(lambda: rig.lanes.budget.jobs == 2, "the others are queued in memory")
    await rig.changes.stop()
    lane, cancelled = rig.lanes.get(uid), (await rig.pending())[-1]["delivery_id"]
    await rig.delivery_actions.cancel("acme", cancelled)
    await rig.database.fetch("DELETE FROM change_log")

    rig.clock.ahead_s += CHANGES_KEPT_S
    await rig.ownership.heartbeat()
    await rig.changes.read()
    receiver.gate.set()
    await until(lambda: rig.recorder.recorded == 2, "what was not cancelled goes out")
    await until(lambda: rig.deliverer.free_slots == rig.max_in_flight, "the wire is empty")

    assert rig.lanes.get(uid) is lane, "it was not dropped for another reason"
    assert len(receiver.ids) == 2
    assert set(receiver.counts.values()) == {1}


async def test_a_change_is_of_the_time_when_it_was_written(rig: Rig, database_url: str) -> None:
    """Else one that waited for a lock as long as changes are kept could be deleted unread."""
    tenant_uid = await rig.tenant()
    async with rival(database_url) as slow:
        await slow.execute("SELECT FROM tenants WHERE tenant_uid = $1 FOR UPDATE", tenant_uid)
        changing = asyncio.create_task(
            rig.database.fetch(
                """WITH locked AS MATERIALIZED (
                       SELECT FROM tenants WHERE tenant_uid = $1 FOR UPDATE)
                   INSERT INTO change_log (kind) SELECT 'EVENT_TYPE' FROM locked
                   RETURNING create_time""",
                tenant_uid,
            )
        )
        await until_blocked(rig.database, "calls")
        released = await slow.fetchval("SELECT clock_timestamp()")
        await slow.execute("COMMIT")
    (row,) = await changing

    assert row["create_time"] > released


async def test_a_node_that_cannot_read_the_log_says_so(database_url: str) -> None:
    async with (
        Wire(database_url) as wire,
        running(database_url, session_urls={"changes": wire.url}) as rig,
    ):
        wire.close()
        await until(lambda: rig.changes.is_failing, "its reads fail")
        assert rig.changes in rig.ownership.workers
        wire.is_open = True
        await until(lambda: not rig.changes.is_failing, "its reads come through again")


async def test_a_change_of_url_is_used_by_the_next_attempt(rig: Rig, receiver: Receiver) -> None:
    tenant_uid = await rig.tenant()
    uid = await rig.subscription(tenant_uid, receiver.url)
    await standing_lane(rig, uid)
    async with Receiver() as elsewhere:
        await rig.database.fetch(
            "UPDATE subscriptions SET url = $2, version = version + 1 WHERE subscription_uid = $1",
            uid,
            elsewhere.url,
        )
        await rig.database.fetch(LOG, uid)
        rig.changes.poke()
        lane = rig.lanes.get(uid)
        assert lane is not None
        await until(
            lambda: lane.config is not None and lane.config.sender.destination == elsewhere.url,
            "it is read",
        )

        await rig.publisher.publish("acme", [order_created()])
        await elsewhere.wait_for(1)
    assert len(receiver.ids) == 1


async def test_a_starting_node_reads_changes_made_before(
    rig: Rig, receiver: Receiver, database_url: str
) -> None:
    tenant_uid = await rig.tenant()
    uid = await rig.subscription(tenant_uid, receiver.url)
    await rig.set_state(uid, "PAUSED")
    await rig.publisher.publish("acme", [order_created()])
    await rig.stop_reading()
    await rig.ownership.stop()

    async with running(database_url) as heir:
        await heir.stop_reading()
        await heir.sweeper.sweep()
        assert heir.lanes.get(uid) is None, "a paused subscription takes no memory"
        assert receiver.ids == []
        heir.refiller.start()

        await heir.set_state(uid, "ACTIVE")

        await receiver.wait_for(1)


async def test_one_change_of_a_lane_stands_for_all_its_deliveries(
    rig: Rig, receiver: Receiver
) -> None:
    """What a statement cancelled by the batch is not sent, and what it left is sent once."""
    tenant_uid = await rig.tenant()
    uid = await rig.subscription(tenant_uid, receiver.url, max_in_flight=1)
    receiver.gate = asyncio.Event()
    await rig.publisher.publish("acme", [order_created(n) for n in range(20)])
    await receiver.wait_for(1)
    lane = rig.lanes.get(uid)
    assert lane is not None
    await until(lambda: rig.lanes.budget.jobs == 19, "the others are queued in memory")
    await rig.changes.stop()
    kept = (await rig.pending())[-1]["delivery_id"]
    await rig.database.fetch(
        """DELETE FROM pending_deliveries WHERE delivery_id <> $1 AND delivery_id NOT IN (
               SELECT delivery_id FROM pending_deliveries ORDER BY ordinal LIMIT 1)""",
        kept,
    )
    await rig.database.fetch(
        "INSERT INTO change_log (kind, bucket, subscription_uid) VALUES ('LANE', $1, $2)",
        bucket_of(uid),
        uid,
    )

    await rig.changes.read()
    receiver.gate.set()
    await until(lambda: rig.recorder.recorded == 2, "two are left")

    assert len(receiver.ids) == 2
    assert set(receiver.counts.values()) == {1}
    assert await rig.pending() == []


async def test_a_change_of_a_lane_discards_the_read_that_is_under_way(
    rig: Rig, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant_uid = await rig.tenant()
    uid = await rig.subscription(tenant_uid, receiver.url)
    await rig.changes.stop()
    refill, held, go_on = rig.lane_store.refill, asyncio.Event(), asyncio.Event()

    async def slow(*args: object) -> object:
        rows = await refill(*args)  # type: ignore[arg-type]  # as it was called
        held.set()
        await go_on.wait()
        return rows

    monkeypatch.setattr(rig.lane_store, "refill", slow)
    await rig.publisher.publish("acme", [order_created()])
    await held.wait()
    await rig.database.fetch("DELETE FROM pending_deliveries")
    await rig.database.fetch(
        "INSERT INTO change_log (kind, bucket, subscription_uid) VALUES ('LANE', $1, $2)",
        bucket_of(uid),
        uid,
    )
    await rig.changes.read()
    go_on.set()
    (later,) = await rig.publisher.publish("acme", [order_created()])
    await until(lambda: rig.recorder.recorded >= 1, "the next event is delivered")
    await until(lambda: rig.deliverer.free_slots == rig.max_in_flight, "the wire is empty")

    assert receiver.ids == [format_type_id("evt", later.event_id)]
