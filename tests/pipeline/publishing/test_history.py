"""A failover of the database to another copy while a node runs.

Here the same server reports another history: no state from before may be used, even if its epochs
are equal. `tests/faults/test_failover.py` uses a real standby.
"""

import asyncio
from contextlib import suppress
from uuid import UUID

import pytest

from hookline_service.domain.errors import Reason, UnavailableError
from hookline_service.domain.event import NewEvent
from hookline_service.domain.ids import BUCKET_COUNT
from hookline_service.pipeline.publishing.commit import GroupLimits
from hookline_service.pipeline.publishing.matching import Matcher, TenantIndex
from hookline_service.store.database import Database
from hookline_service.store.lanes import ChangeCursor
from hookline_service.store.publishing import PublishRows, PublishStore
from hookline_service.store.routes import IndexLoad, IndexReader, load_index
from tests.pipeline.frozen import freeze
from tests.pipeline.rig import Receiver, Rig, order_created, running
from tests.waiting import until

EPOCH_BACK = "UPDATE tenants SET epoch = epoch - 1 WHERE tenant_uid = $1"


async def replace(rig: Rig) -> None:
    """Close all connections; the server then reports that it was promoted."""
    await rig.database.fetch("UPDATE database_history SET timeline = timeline - 1")
    other = Database(rig.url, pool_size=1)
    await other.open()  # begins the new history, as any node's next connection would
    await other.fetch(
        """SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
           WHERE datname = current_database() AND pid <> pg_backend_pid()
             AND application_name LIKE 'hookline %'"""
    )
    await other.close()


async def publish(rig: Rig, *events: NewEvent) -> None:
    """Publish, and repeat the call after UNAVAILABLE, as a caller does."""

    async def is_taken() -> bool:
        with suppress(UnavailableError):
            await rig.publisher.publish("acme", events)
            return True
        return False

    await until(is_taken, "the events are taken")


async def test_node_registers_again_and_reloads_its_state_after_a_failover(
    rig: Rig, receiver: Receiver
) -> None:
    tenant_uid = await rig.tenant()
    await rig.subscription(tenant_uid, receiver.url)
    await rig.publisher.publish("acme", [order_created()])
    await receiver.wait_for(1)
    before, history_id = rig.ownership.node_id, rig.database.history_id
    await replace(rig)

    await until(lambda: rig.ownership.node_id != before, "it registers anew")
    await until(lambda: len(rig.ownership.buckets) == BUCKET_COUNT, "it owns all again")
    await publish(rig, order_created(2))
    await receiver.wait_for(2)
    assert rig.database.history_id != history_id
    rows = await rig.database.fetch("SELECT node_id FROM nodes")
    assert [row["node_id"] for row in rows] == [rig.ownership.node_id], "its old row is deleted"


async def test_index_is_loaded_whole_when_an_epoch_is_of_another_history(
    rig: Rig, receiver: Receiver
) -> None:
    """The same epoch stands for other subscriptions on the new copy."""
    tenant_uid = await rig.tenant()
    lost = await rig.subscription(tenant_uid, receiver.url)
    await rig.publisher.publish("acme", [order_created()])
    await receiver.wait_for(1)
    await until(lambda: rig.recorder.recorded == 1, "it is recorded")
    await rig.database.fetch("DELETE FROM signing_keys WHERE subscription_uid = $1", lost)
    await rig.database.fetch("DELETE FROM subscriptions WHERE subscription_uid = $1", lost)
    await rig.database.fetch(
        "UPDATE tenants SET epoch = epoch - 1 WHERE tenant_uid = $1", tenant_uid
    )
    kept = await rig.subscription(tenant_uid, receiver.url)
    await replace(rig)

    await publish(rig, order_created(2))

    await receiver.wait_for(2)
    rows = await rig.database.fetch(
        """SELECT subscription_uid FROM pending_deliveries
           UNION SELECT subscription_uid FROM deliveries"""
    )
    assert {row["subscription_uid"] for row in rows} == {lost, kept}


async def test_group_matched_before_a_failover_is_not_written_after_it(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rig.tenant()
    await rig.publisher.publish("acme", [order_created()])
    write = PublishStore.write

    async def write_late(store: PublishStore, rows: PublishRows) -> set[UUID] | None:
        monkeypatch.setattr(PublishStore, "write", write)
        await replace(rig)
        await store._session.open()  # noqa: SLF001 - it is on the other copy before it is asked
        return await write(store, rows)

    monkeypatch.setattr(PublishStore, "write", write_late)
    with pytest.raises(UnavailableError) as refusal:
        await rig.publisher.publish("acme", [order_created(2)])

    assert refusal.value.reason is Reason.DATABASE_UNAVAILABLE
    assert (await rig.database.fetch("SELECT count(*) FROM events"))[0][0] == 1


async def test_calls_matched_before_and_after_a_failover_are_refused(
    rig: Rig, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One tenant is matched again just before the failover, another just after it."""
    acme = await rig.tenant()
    await rig.tenant("other")
    lost = await rig.subscription(acme, receiver.url)
    await rig.publisher.publish("acme", [order_created()])
    await rig.publisher.publish("other", [order_created()])
    await until(lambda: rig.recorder.recorded == 1, "it is recorded")
    await rig.database.fetch("UPDATE tenants SET epoch = epoch + 1")
    before, read = rig.database.history_id, Matcher.read

    def is_matched_again() -> bool:
        index = rig.matcher.cached("acme")
        return index is not None and index.epoch == 3

    async def read_late(matcher: Matcher, reader: IndexReader, tenant_id: str) -> TenantIndex:
        if tenant_id == "other":
            monkeypatch.setattr(Matcher, "read", read)
            await until(is_matched_again, "the first is matched again")
            await rig.database.fetch("DELETE FROM signing_keys WHERE subscription_uid = $1", lost)
            await rig.database.fetch("DELETE FROM subscriptions WHERE subscription_uid = $1", lost)
            await rig.database.fetch(EPOCH_BACK, acme)
            await rig.subscription(acme, receiver.url)
            await replace(rig)
            await until(lambda: rig.database.history_id != before, "the copy is found out")
        return await read(matcher, reader, tenant_id)

    monkeypatch.setattr(Matcher, "read", read_late)
    answers = await asyncio.gather(
        rig.publisher.publish("acme", [order_created(2)]),
        rig.publisher.publish("other", [order_created(2)]),
        return_exceptions=True,
    )

    rows = await rig.database.fetch(
        """SELECT FROM pending_deliveries WHERE subscription_uid = $1
           UNION ALL SELECT FROM deliveries WHERE subscription_uid = $1""",
        lost,
    )
    assert len(rows) == 1, "the second event went to the subscription that is no more"
    assert all(isinstance(answer, UnavailableError) for answer in answers), answers


async def test_index_read_before_a_failover_is_not_cached(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows were read just before the failover was detected; they are not of the new copy."""
    await rig.tenant()
    before = rig.database.history_id

    async def load_late(reader: IndexReader, tenant_id: str, *_: object) -> IndexLoad | None:
        load = await load_index(reader, tenant_id)
        await replace(rig)
        await until(lambda: rig.database.history_id != before, "the copy is found out")
        return load

    monkeypatch.setattr("hookline_service.pipeline.publishing.matching.load_index", load_late)
    with pytest.raises(UnavailableError):
        await rig.matcher.reload("acme")

    assert rig.matcher.cached("acme") is None


async def test_index_cached_after_a_failover_but_read_before_is_replaced(
    rig: Rig, receiver: Receiver
) -> None:
    """The read ended on the old copy, just after the cache had been cleared."""
    await rig.subscription(await rig.tenant(), receiver.url)
    await rig.publisher.publish("acme", [order_created()])
    late, before = rig.matcher.cached("acme"), rig.database.history_id
    assert late is not None
    await replace(rig)
    await until(lambda: rig.database.history_id != before, "the copy is found out")
    rig.matcher._indexes.put("acme", late, 1)  # noqa: SLF001

    await publish(rig, order_created(2))

    await receiver.wait_for(2)


async def test_changes_are_read_with_a_new_cursor_after_a_failover(
    rig: Rig, receiver: Receiver
) -> None:
    """The old cursor may be ahead of every transaction of the new copy."""
    tenant_uid = await rig.tenant()
    uid = await rig.subscription(tenant_uid, receiver.url, max_in_flight=1)
    await rig.publisher.publish("acme", [order_created()])
    await receiver.wait_for(1)
    ahead = f"{2**40}:{2**40}:"  # of a copy on which more had happened
    rig.changes._cursor = ChangeCursor(ahead)  # noqa: SLF001
    before = rig.ownership.node_id
    await replace(rig)
    await until(lambda: rig.ownership.node_id != before, "it registers anew")
    receiver.gate = asyncio.Event()
    await publish(rig, order_created(2), order_created(3))
    await receiver.wait_for(2)

    await rig.set_state(uid, "PAUSED")
    await until(
        lambda: any(
            lane.config is not None and lane.config.state == "PAUSED" for lane in rig.lanes.all()
        ),
        "the pause is read",
        within_s=5.0,
    )
    receiver.gate.set()


async def test_index_is_loaded_whole_when_its_epoch_went_back(rig: Rig, receiver: Receiver) -> None:
    """Otherwise the publisher would match by the cached index again and again."""
    tenant_uid = await rig.tenant()
    await rig.subscription(tenant_uid, receiver.url)
    await rig.publisher.publish("acme", [order_created()])
    await rig.database.fetch(
        "UPDATE tenants SET epoch = epoch - 1 WHERE tenant_uid = $1", tenant_uid
    )

    await rig.publisher.publish("acme", [order_created(2)])

    assert rig.matcher.reads <= 3
    await receiver.wait_for(2)


async def test_call_that_fails_every_epoch_check_is_refused(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def pass_none(_store: PublishStore, *_: object) -> set[UUID]:
        return set()

    monkeypatch.setattr(PublishStore, "write", pass_none)
    monkeypatch.setattr(PublishStore, "write_held", pass_none)
    async with running(database_url, group_limits=GroupLimits(lock_wait_s=0.1)) as rig:
        await rig.tenant()
        with pytest.raises(UnavailableError) as refusal:
            await rig.publisher.publish("acme", [order_created()])

    assert refusal.value.reason is Reason.CONCURRENT_CHANGE


async def test_nodes_registered_before_a_failover_keep_their_buckets_for_a_lease(
    rig: Rig, database_url: str
) -> None:
    """A node may have renewed its lease on the lost copy, and may still act on it."""
    async with running(database_url) as other:
        await other.ownership.heartbeat()
        await rig.ownership.heartbeat()
        await until(lambda: len(other.ownership.buckets) == BUCKET_COUNT // 2, "they share")
        freeze(other)
        theirs = other.ownership.buckets
        await rig.database.fetch(
            "UPDATE nodes SET lease_until = now() WHERE node_id = $1", other.ownership.node_id
        )
        rig.ownership.history_changed()
        await rig.ownership.heartbeat()
        assert not rig.ownership.buckets & theirs
        for _ in range(2):
            rig.clock.ahead_s += rig.lease_s / 2
            await rig.ownership.heartbeat()
        assert rig.ownership.buckets == frozenset(range(BUCKET_COUNT))
