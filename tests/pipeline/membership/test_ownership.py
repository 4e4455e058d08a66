"""Which node may send what, and until when. Rules 11 to 13, and the fence of rule 20."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from uuid import UUID

import pytest

from hookline_service.domain.ids import BUCKET_COUNT, bucket_of
from hookline_service.pipeline.membership.ownership import DRIFT_S
from hookline_service.store.database import OutcomeUnknownError
from tests.pipeline.frozen import freeze, run_out, wake
from tests.pipeline.rig import Receiver, Rig, order_created, running
from tests.pipeline.rival import rival
from tests.pipeline.wire import Wire
from tests.waiting import PATIENCE_S, until

ALL = frozenset(range(BUCKET_COUNT))


async def owners(rig: Rig) -> dict[UUID | None, int]:
    """How many buckets each node owns, by the database's word."""
    rows = await rig.database.fetch("SELECT node_id, count(*) FROM bucket_leases GROUP BY node_id")
    return {row["node_id"]: row["count"] for row in rows}


async def test_a_node_alone_owns_everything(rig: Rig) -> None:
    assert rig.ownership.buckets == ALL
    assert await owners(rig) == {rig.ownership.node_id: BUCKET_COUNT}


async def test_a_dead_nodes_buckets_are_taken_at_the_next_heartbeat(
    rig: Rig, database_url: str
) -> None:
    async with running(database_url) as heir:
        assert heir.ownership.buckets == frozenset()
        freeze(rig)
        await run_out(rig)

        await heir.ownership.heartbeat()

        assert heir.ownership.buckets == ALL
        assert await owners(rig) == {heir.ownership.node_id: BUCKET_COUNT}


async def test_the_first_node_back_after_an_outage_leaves_the_others_a_lease(
    rig: Rig, database_url: str
) -> None:
    """The database was away from all nodes for longer than a lease: none has expired another."""
    async with running(database_url) as other:
        freeze(rig)
        freeze(other)
        await rig.database.fetch(
            "UPDATE bucket_leases SET node_id = $1 WHERE bucket >= 128", other.ownership.node_id
        )
        rig.clock.ahead_s += 2 * rig.lease_s
        await run_out(rig)
        await run_out(other)
        both = {rig.ownership.node_id, other.ownership.node_id}

        await wake(rig)
        assert set(await owners(rig)) == both
        rig.clock.ahead_s += rig.lease_s / 2
        await wake(rig)
        assert set(await owners(rig)) == both

        rig.clock.ahead_s += rig.lease_s / 2
        await wake(rig)
        assert set(await owners(rig)) == {rig.ownership.node_id}, "the other has not come back"


async def test_a_living_node_is_not_expired(rig: Rig, database_url: str) -> None:
    """It renewed between the survey that found it overdue and the expiry."""
    async with running(database_url) as heir:
        freeze(rig)
        await run_out(rig)
        survey = await heir.ownership_store.survey(heir.ownership.node_id)
        assert await rig.ownership_store.renew(rig.ownership.node_id, rig.lease_s)

        taken = await heir.ownership_store.take(
            heir.ownership.node_id, [rig.ownership.node_id], survey.leases
        )

        assert taken == []
        assert await owners(rig) == {rig.ownership.node_id: BUCKET_COUNT}


async def test_two_nodes_never_take_the_same_bucket(rig: Rig, database_url: str) -> None:
    async with running(database_url) as one, running(database_url, seed=2) as two:
        freeze(rig)
        await run_out(rig)
        surveys = [await heir.ownership_store.survey(heir.ownership.node_id) for heir in (one, two)]

        taken = await asyncio.gather(
            *(
                heir.ownership_store.take(
                    heir.ownership.node_id, [rig.ownership.node_id], survey.leases
                )
                for heir, survey in zip((one, two), surveys, strict=True)
            )
        )

        assert sorted(taken[0] + taken[1]) == sorted(ALL)


async def test_an_expired_node_drops_everything_and_registers_again(
    rig: Rig, receiver: Receiver, database_url: str
) -> None:
    tenant_uid = await rig.tenant()
    uid = await rig.subscription(tenant_uid, receiver.url)
    await rig.publisher.publish("acme", [order_created()])
    await until(lambda: rig.recorder.recorded == 1, "the lane stands")
    lane, old_id = rig.lanes.get(uid), rig.ownership.node_id
    async with running(database_url) as heir:
        freeze(rig)
        await run_out(rig)
        await heir.ownership.heartbeat()

        await wake(rig)

        assert rig.ownership.node_id != old_id
        assert rig.ownership.buckets == frozenset()
        assert lane is not None
        assert lane.is_gone
        assert rig.lanes.get(uid) is None
        assert set(await owners(rig)) == {heir.ownership.node_id}


async def test_the_work_of_a_dead_node_goes_on(
    rig: Rig, receiver: Receiver, database_url: str
) -> None:
    tenant_uid = await rig.tenant()
    await rig.subscription(tenant_uid, receiver.url, max_in_flight=1)
    receiver.gate = asyncio.Event()
    await rig.publisher.publish("acme", [order_created(n) for n in range(20)])
    await receiver.wait_for(1)
    async with running(database_url) as heir:
        freeze(rig)
        rig.clock.ahead_s += rig.lease_s
        await run_out(rig)
        await heir.ownership.heartbeat()
        receiver.gate.set()

        await until(lambda: heir.recorder.recorded == 20, "the heir delivers what was pending")

        assert await heir.pending() == []
        twice = [count for count in receiver.counts.values() if count > 1]
        assert len(receiver.counts) == 20
        assert twice in ([], [2])  # what was in flight on the dead node


async def test_a_node_sends_nothing_once_its_lease_is_over(
    rig: Rig, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taken out of its lane, but not yet on the wire: the lease is asked just before the bytes."""
    tenant_uid = await rig.tenant()
    await rig.subscription(tenant_uid, receiver.url)
    send, late = rig.sender.send, asyncio.Event()

    async def slow(*args: object) -> object:
        if not late.is_set():
            rig.clock.ahead_s += rig.lease_s
            late.set()
        return await send(*args)  # type: ignore[arg-type]  # as it was called

    monkeypatch.setattr(rig.sender, "send", slow)
    await rig.publisher.publish("acme", [order_created()])
    await late.wait()
    await until(lambda: rig.deliverer.free_slots == rig.max_in_flight, "it is let go")

    assert receiver.ids == []
    (row,) = await rig.pending()
    assert (row["attempt_count"], row["version"]) == (0, 0)
    await rig.ownership.heartbeat()
    await rig.turn(2)
    await until(lambda: rig.recorder.recorded == 1, "it is sent once the lease holds again")
    assert len(receiver.ids) == 1
    assert await rig.attempts() == []


async def test_the_local_lease_ends_before_the_databases(rig: Rig) -> None:
    freeze(rig)
    rig.clock.ahead_s += rig.lease_s
    assert not rig.ownership.may_send()
    await wake(rig)

    rig.clock.ahead_s += rig.lease_s - DRIFT_S - 0.5
    assert rig.ownership.may_send()
    rig.clock.ahead_s += 0.5
    assert not rig.ownership.may_send()
    assert DRIFT_S >= 1


async def test_a_renewal_counts_from_before_it_was_sent(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that is frozen between sending and hearing has no lease when it wakes."""
    renew = rig.ownership_store.renew

    async def frozen(
        node_id: UUID, lease_s: float, address: str, *, is_leaving: bool
    ) -> float | None:
        answer = await renew(node_id, lease_s, address, is_leaving=is_leaving)
        rig.clock.ahead_s += lease_s
        return answer

    monkeypatch.setattr(rig.ownership_store, "renew", frozen)

    await rig.ownership.heartbeat()

    assert not rig.ownership.may_send()


async def test_a_late_record_of_a_frozen_node_matches_nothing(
    rig: Rig, receiver: Receiver, database_url: str
) -> None:
    """Its rows are as it saw them: that it was expired is what keeps it out."""
    tenant_uid = await rig.tenant()
    await rig.subscription(tenant_uid, receiver.url)
    receiver.gate, receiver.answers = asyncio.Event(), 500
    await rig.publisher.publish("acme", [order_created()])
    await receiver.wait_for(1)
    freeze(rig)
    await run_out(rig)
    async with running(database_url) as heir:
        heir.deliverer.pause()
        await heir.ownership.heartbeat()
        assert heir.ownership.buckets == ALL

        receiver.gate.set()
        await until(lambda: rig.deliverer.free_slots == rig.max_in_flight, "the late answer ends")

        assert rig.recorder.recorded == 0
        (row,) = await rig.pending()
        assert (row["version"], row["attempt_count"]) == (0, 0)
        assert await rig.attempts() == []


async def test_a_late_record_is_not_written_under_the_nodes_new_id(
    rig: Rig, receiver: Receiver, database_url: str
) -> None:
    """It woke, learned that it was expired and registered anew, and then the answer came."""
    tenant_uid = await rig.tenant()
    await rig.subscription(tenant_uid, receiver.url)
    receiver.gate, receiver.answers = asyncio.Event(), 500
    await rig.publisher.publish("acme", [order_created()])
    await receiver.wait_for(1)
    freeze(rig)
    await run_out(rig)
    async with running(database_url) as heir:
        heir.deliverer.pause()
        await heir.ownership.heartbeat()
        await wake(rig)
        assert rig.ownership.may_send()

        receiver.gate.set()
        await until(lambda: rig.deliverer.free_slots == rig.max_in_flight, "the late answer ends")

        assert rig.recorder.recorded == 0
        (row,) = await rig.pending()
        assert (row["version"], row["attempt_count"]) == (0, 0)


async def test_a_clean_stop_frees_the_buckets_at_once(rig: Rig, database_url: str) -> None:
    async with running(database_url) as second:
        await second.ownership.heartbeat()
        async with running(database_url) as third:
            assert third.ownership.buckets == frozenset()
        assert await owners(rig) == {rig.ownership.node_id: BUCKET_COUNT}
        await rig.ownership.stop()
        assert not rig.ownership.may_send()

        await second.ownership.heartbeat()

        assert second.ownership.buckets == ALL


@pytest.mark.parametrize("count,shares", [(2, [128, 128]), (3, [84, 86, 86])])
async def test_nodes_share_fairly_rounded_up(
    database_url: str, count: int, shares: Sequence[int]
) -> None:
    rigs = [Rig(database_url, seed=seed) for seed in range(count)]
    try:
        for rig in rigs:
            await rig.start()
        for _ in range(3):
            for rig in rigs:
                await rig.ownership.heartbeat()

        assert sorted(len(rig.ownership.buckets) for rig in rigs) == shares
        assert frozenset().union(*(rig.ownership.buckets for rig in rigs)) == ALL
    finally:
        for rig in rigs:
            await rig.stop()


async def test_a_surplus_is_given_only_when_nothing_of_it_is_in_flight(
    rig: Rig, receiver: Receiver, database_url: str
) -> None:
    """And what rests because it is a surplus is sent after all when it is one no longer."""
    tenant_uid = await rig.tenant()
    uids = [await rig.subscription(tenant_uid, receiver.url, max_in_flight=1) for _ in range(40)]
    receiver.gate = asyncio.Event()
    await rig.publisher.publish("acme", [order_created(n) for n in range(2)])
    await receiver.wait_for(40)
    busy = {bucket_of(uid) for uid in uids}
    async with running(database_url) as second:
        await rig.ownership.heartbeat()
        await second.ownership.heartbeat()

        assert busy <= rig.ownership.buckets
        assert not busy & second.ownership.buckets
        kept = set(sorted(rig.ownership.buckets)[128:])
        assert kept == {bucket for bucket in busy if bucket >= 128} or kept <= busy
        assert kept
        receiver.gate.set()
        await until(lambda: rig.lanes.quiet_buckets(kept) == kept, "what was on the wire ends")

    await rig.ownership.heartbeat()
    assert rig.ownership.buckets == ALL
    await until(lambda: rig.recorder.recorded == 80, "what rested goes out")
    assert max(receiver.counts.values()) == 40


async def test_a_bucket_that_was_given_is_served_by_its_new_owner_without_a_double(
    rig: Rig, receiver: Receiver, database_url: str
) -> None:
    tenant_uid = await rig.tenant()
    for _ in range(20):
        await rig.subscription(tenant_uid, receiver.url)
    async with running(database_url) as second:
        for _ in range(10):
            await rig.publisher.publish("acme", [order_created(n) for n in range(5)])
            await rig.ownership.heartbeat()
            await second.ownership.heartbeat()

        await until(
            lambda: rig.recorder.recorded + second.recorder.recorded == 1_000, "all are recorded"
        )
        assert len(second.ownership.buckets) == 128
        assert second.recorder.recorded > 0
        assert set(receiver.counts.values()) == {20}


async def test_buckets_that_were_taken_though_the_answer_was_lost_are_served(
    rig: Rig, database_url: str
) -> None:
    async with (
        Wire(database_url) as wire,
        running(database_url, session_urls={"heartbeat": wire.url}) as heir,
    ):
        freeze(rig)
        await run_out(rig)
        wire.cut_answer = b"COMMIT;"
        with pytest.raises(OutcomeUnknownError):
            await heir.ownership.heartbeat()
        assert await owners(rig) == {heir.ownership.node_id: BUCKET_COUNT}

        await heir.ownership.heartbeat()

        assert heir.ownership.buckets == ALL


async def test_a_node_alone_waits_for_no_lease(rig: Rig, database_url: str) -> None:
    """`hookline dev` after a kill -9: its predecessor's lease has ten seconds to go."""
    freeze(rig)

    async with running(database_url, is_alone=True) as heir:
        assert heir.ownership.buckets == ALL
        rows = await heir.database.fetch("SELECT node_id FROM nodes")
        assert [row["node_id"] for row in rows] == [heir.ownership.node_id]


async def test_a_node_frozen_in_a_transaction_does_not_delay_the_new_owner(
    rig: Rig, database_url: str
) -> None:
    """It holds its own row; a node that waited to expire it would lose its own lease."""
    async with running(database_url) as heir, rival(database_url) as transaction:
        freeze(rig)
        await run_out(rig)
        await transaction.execute(
            "SELECT FROM nodes WHERE node_id = $1 FOR KEY SHARE", rig.ownership.node_id
        )

        async with asyncio.timeout(PATIENCE_S):
            await heir.ownership.heartbeat()

        assert heir.ownership.may_send()
        assert heir.ownership.buckets == frozenset()
        await transaction.execute("ROLLBACK")
        await heir.ownership.heartbeat()
        assert heir.ownership.buckets == ALL


async def test_the_heartbeat_after_a_lost_connection_succeeds(
    database_url: str,
) -> None:
    async with (
        Wire(database_url) as wire,
        running(database_url, session_urls={"heartbeat": wire.url}) as rig,
    ):
        node_id = rig.ownership.node_id
        wire.cut_answer = node_id.bytes
        with pytest.raises(OutcomeUnknownError):
            await rig.ownership.heartbeat()

        await rig.ownership.heartbeat()

        assert rig.ownership.node_id == node_id
        assert rig.ownership.may_send()
        assert rig.ownership.buckets == ALL
