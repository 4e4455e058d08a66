"""A node that cannot do the work of its buckets gives them up, though its lease is renewed."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from hookline_service.domain.errors import Reason, UnavailableError
from hookline_service.domain.ids import BUCKET_COUNT
from hookline_service.store.database import RejectedError
from hookline_service.store.ownership import OwnershipStore
from hookline_service.store.recording import RecordStore
from tests.pipeline.frozen import freeze, run_out, wake
from tests.pipeline.rig import Receiver, Rig, order_created, running
from tests.pipeline.wire import Wire
from tests.waiting import until

ALL = frozenset(range(BUCKET_COUNT))


async def test_a_node_whose_records_and_reads_fail_for_a_lease_gives_its_buckets_up(
    database_url: str, receiver: Receiver
) -> None:
    async with (
        Wire(database_url) as wire,
        running(
            database_url, session_urls=dict.fromkeys(("record", "refill", "sweep"), wire.url)
        ) as rig,
        running(database_url) as heir,
    ):
        await heir.ownership.heartbeat()
        await rig.ownership.heartbeat()
        tenant_uid = await rig.tenant()
        for _ in range(8):
            await rig.subscription(tenant_uid, receiver.url)
        wire.close()
        await until(lambda: rig.sweeper.is_failing, "its reads fail")
        await heir.publisher.publish("acme", [order_created(n) for n in range(5)])
        await rig.ownership.heartbeat()
        assert rig.ownership.buckets, "a short failure costs nothing"

        rig.clock.ahead_s += rig.lease_s
        await rig.ownership.heartbeat()
        assert rig.ownership.buckets == frozenset()
        await rig.ownership.heartbeat()  # by which it counts out of the shares
        await heir.ownership.heartbeat()
        assert heir.ownership.buckets == ALL
        await receiver.wait_for(40)
        await until(lambda: heir.recorder.recorded == 40, "everything is recorded")

        wire.is_open = True
        await until(lambda: not rig.sweeper.is_failing, "its reads come through again")

        async def is_shared() -> bool:
            await rig.ownership.heartbeat()
            await heir.ownership.heartbeat()
            return len(rig.ownership.buckets) == BUCKET_COUNT // 2

        await until(is_shared, "it has its share again")


@dataclass
class Failing:
    """A worker that fails."""

    is_failing: bool = True


async def test_reads_fail_until_one_succeeds_though_there_is_nothing_to_read(
    database_url: str,
) -> None:
    """Else a node that gave its buckets up would take them again at once, and give them up."""
    async with (
        Wire(database_url) as wire,
        running(database_url, session_urls={"refill": wire.url, "sweep": wire.url}) as rig,
    ):
        await rig.stop_reading()
        rig.ownership.begin_leaving()
        await rig.ownership.heartbeat()
        assert rig.ownership.buckets == frozenset()
        rig.refiller.is_failing = rig.sweeper.is_failing = True
        wire.close()
        for read in (rig.refiller.refill, rig.sweeper.sweep):
            with pytest.raises(UnavailableError):
                await read()
        assert rig.sweeper.is_failing

        wire.is_open = True
        await rig.refiller.refill()
        await rig.sweeper.sweep()
        assert not rig.sweeper.is_failing


async def test_without_another_node_the_buckets_are_kept(rig: Rig, database_url: str) -> None:
    """What was in flight would be sent again, each time that they were given up and taken."""
    rig.ownership.workers = [Failing()]
    await rig.ownership.heartbeat()
    rig.clock.ahead_s += rig.lease_s
    for _ in range(2):
        await rig.ownership.heartbeat()
        assert rig.ownership.buckets == ALL

    async with running(database_url) as heir:
        await rig.ownership.heartbeat()
        assert rig.ownership.buckets == frozenset()
        await heir.ownership.heartbeat()
        assert heir.ownership.buckets == ALL


async def test_failures_together_with_the_heartbeat_are_those_of_the_database(
    rig: Rig, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then no other node could do better, and what waits to be recorded is worth keeping."""

    async def fail(_store: OwnershipStore, *_: object, **__: object) -> float | None:
        raise UnavailableError("away", Reason.DATABASE_UNAVAILABLE)

    async with running(database_url):
        rig.ownership.workers = [Failing()]
        await rig.ownership.heartbeat()
        rig.clock.ahead_s += rig.lease_s / 2
        with monkeypatch.context() as away:
            away.setattr("hookline_service.store.ownership.OwnershipStore.renew", fail)
            with pytest.raises(UnavailableError):
                await rig.ownership.heartbeat()
        rig.clock.ahead_s += rig.lease_s / 2
        await rig.ownership.heartbeat()

        assert len(rig.ownership.buckets) == BUCKET_COUNT // 2


async def test_a_repeated_record_checks_the_owner_of_its_bucket_again(
    database_url: str, receiver: Receiver
) -> None:
    """The node registered anew while it waited for the database: its new lease holds."""
    async with (
        Wire(database_url) as wire,
        running(database_url, session_urls={"record": wire.url}) as rig,
    ):
        tenant_uid = await rig.tenant()
        await rig.subscription(tenant_uid, receiver.url)
        wire.close()
        await rig.publisher.publish("acme", [order_created()])
        await until(lambda: rig.recorder.is_failing, "the record is repeated")
        await lose_everything(rig, database_url)
        wire.is_open = True
        await until(lambda: not rig.recorder.is_failing, "the database is back")

        assert rig.recorder.recorded == 0
        (row,) = await rig.pending()
        assert row["version"] == 0


async def test_a_row_is_not_put_off_once_its_bucket_was_lost(
    rig: Rig, receiver: Receiver, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant_uid = await rig.tenant()
    await rig.subscription(tenant_uid, receiver.url)
    refusals: list[str] = []

    async def refuse(_store: RecordStore, *_: object) -> None:
        refusals.append("refused")
        if len(refusals) == 2:  # that without words, too
            await lose_everything(rig, database_url)
        raise RejectedError("it cannot be stored", "22000")

    monkeypatch.setattr(RecordStore, "record", refuse)
    await rig.publisher.publish("acme", [order_created()])
    await until(lambda: len(refusals) == 2, "it was refused twice")
    await until(lambda: rig.deliverer.free_slots == rig.max_in_flight, "it is dealt with")

    (row,) = await rig.pending()
    assert row["version"] == 0


async def lose_everything(rig: Rig, database_url: str) -> None:
    """Let the node be expired, its buckets be taken, and let it register anew."""
    freeze(rig)
    await run_out(rig)
    async with running(database_url) as heir:
        heir.deliverer.pause()
        await heir.ownership.heartbeat()
        await wake(rig)
        assert rig.ownership.may_send()
