"""Buckets that go from node to node while all of them live: at once, whole, and nothing sent twice.

Rule 13. Leases are long here: what happens soon, happens on a notification.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from uuid import UUID

import pytest

from hookline_service.domain.ids import BUCKET_COUNT, bucket_of
from hookline_service.pipeline.membership import ownership
from hookline_service.store.ownership import BucketLease
from tests.pipeline.frozen import freeze, run_out
from tests.pipeline.pair import pair, shared, uid_of
from tests.pipeline.rig import Receiver, Rig, order_created, running
from tests.pipeline.rival import rival
from tests.waiting import until

LONG_S = 300.0


@asynccontextmanager
async def node(url: str, seed: int = 1) -> AsyncIterator[Rig]:
    """A node that has word of others, and beats every hundred seconds only."""
    async with running(url, seed=seed, has_word=True, lease_s=LONG_S) as rig:
        yield rig


async def subscriptions(rig: Rig, url: str, count: int, **columns: object) -> list[UUID]:
    """So many subscriptions of acme's, to every event."""
    tenant_uid = await rig.tenant()
    return [await rig.subscription(tenant_uid, url, **columns) for _ in range(count)]


def owns_all(rig: Rig) -> bool:
    return len(rig.ownership.buckets) == BUCKET_COUNT


async def test_a_new_node_gets_its_share_at_once(database_url: str) -> None:
    async with node(database_url) as one, node(database_url, 2) as two:
        await shared(one, two)
        async with node(database_url, 3) as three:
            await shared(one, two, three)


async def test_a_leaving_node_gives_all_buckets_at_once(database_url: str) -> None:
    async with node(database_url) as one:
        async with node(database_url, 2) as two, node(database_url, 3) as three:
            await shared(one, two, three)
        await until(lambda: owns_all(one), "the last one has everything")


async def test_pending_deliveries_are_sent_once_and_without_a_pause_during_a_hand_over(
    database_url: str, receiver: Receiver
) -> None:
    async with node(database_url) as one:
        await subscriptions(one, receiver.url, 20, max_in_flight=1)
        async with node(database_url, 2) as two:
            await one.publisher.publish("acme", [order_created(n) for n in range(20)])
            await shared(one, two)
            await until(lambda: two.recorder.recorded > 20, "the newcomer sends its share")
            await two.publisher.publish("acme", [order_created(n) for n in range(20)])
        await receiver.wait_for(800)
        await until(
            lambda: one.recorder.recorded + two.recorder.recorded == 800, "all are recorded"
        )
        assert set(receiver.counts.values()) == {20}


async def test_a_slow_target_keeps_its_own_bucket_only_while_the_others_go(
    database_url: str, receiver: Receiver
) -> None:
    async with pair(database_url) as (one, two), Receiver() as slow:
        slow.gate = asyncio.Event()
        tenant_uid = await one.tenant()
        uid = await one.subscription(tenant_uid, slow.url, "slow")
        for _ in range(20):
            while bucket_of(quick := one.new_uid()) == bucket_of(uid):
                pass
            await one.subscription_as(quick, tenant_uid, receiver.url, "quick", max_in_flight=1)
        owner, other = (one, two) if one.ownership.owns(bucket_of(uid)) else (two, one)
        await other.publisher.publish("acme", [order_created(type="slow")])
        await slow.wait_for(1)
        await other.publisher.publish("acme", [order_created(n, type="quick") for n in range(20)])

        owner.ownership.begin_leaving()

        await until(
            lambda: len(other.ownership.buckets) == BUCKET_COUNT - 1, "all others are given"
        )
        assert owner.ownership.buckets == {bucket_of(uid)}
        assert slow.in_flight == 1
        await until(
            lambda: one.recorder.recorded + two.recorder.recorded == 400, "the quick ones are sent"
        )
        assert owner.ownership.may_send()
        slow.gate.set()
        await until(lambda: owns_all(other), "and the last when its answer is recorded")
        assert (await one.finished())[0]["state"] == "SUCCEEDED"
        assert set(receiver.counts.values()) == {20}
        assert slow.counts.total() == 1
        assert await one.pending() == []


async def test_a_leaving_node_is_given_no_bucket_and_takes_none(database_url: str) -> None:
    async with pair(database_url) as (one, two):
        one.ownership.begin_leaving()
        await until(lambda: owns_all(two), "the other has everything")

        for rig in (one, two, one):
            await rig.ownership.heartbeat()
            assert one.ownership.buckets == frozenset()

        async with node(database_url, 3) as three:
            await until(lambda: len(three.ownership.buckets) == 128, "two share, not three")
            assert len(two.ownership.buckets) == 128


async def test_an_event_published_at_a_leaving_node_is_sent_by_the_new_owner(
    database_url: str, receiver: Receiver
) -> None:
    async with pair(database_url) as (one, two):
        await subscriptions(one, receiver.url, 5)
        one.ownership.begin_leaving()
        await until(lambda: owns_all(two), "the other has everything")

        await one.publisher.publish("acme", [order_created()])

        await until(lambda: two.recorder.recorded == 5, "the other has sent it")


async def test_pending_deliveries_of_a_taken_bucket_are_read_at_once(
    database_url: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not when the heir would have swept anyway."""
    monkeypatch.setattr("hookline_service.pipeline.dispatch.sweep.INTERVAL_S", 3_600.0)
    async with pair(database_url) as (one, two):
        tenant_uid = await one.tenant()
        await one.subscription_as(uid_of(one), tenant_uid, receiver.url)
        one.deliverer.pause()
        await one.publisher.publish("acme", [order_created()])

        one.ownership.begin_leaving()

        await until(lambda: two.recorder.recorded == 1, "the heir has sent it")


async def test_a_bucket_that_a_slow_target_holds_up_is_kept_and_another_given(
    database_url: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would accept no work while the target hangs, for all its subscriptions."""
    monkeypatch.setattr(ownership, "SLOW_S", 0.0)
    async with node(database_url) as one, Receiver() as slow:
        slow.gate = asyncio.Event()
        tenant_uid = await one.tenant()
        # The highest buckets go first.
        while bucket_of(uid := one.new_uid()) < 200:
            pass
        await one.subscription_as(uid, tenant_uid, slow.url, "slow")
        await one.publisher.publish("acme", [order_created(type="slow")])
        await slow.wait_for(1)

        async with node(database_url, 2) as two:
            await until(lambda: len(two.ownership.buckets) == 127, "what is quiet is given")
            await one.ownership.heartbeat()
            await shared(one, two)

            assert one.ownership.owns(bucket_of(uid))
            await one.subscription_as(uid_beside(one, uid), tenant_uid, receiver.url, "quick")
            await one.publisher.publish("acme", [order_created(type="quick")])
            await receiver.wait_for(1)
            slow.gate.set()
            await until(lambda: one.recorder.recorded == 2, "both are recorded")


def uid_beside(rig: Rig, uid: UUID) -> UUID:
    """Another uid in the same bucket."""
    while bucket_of(other := rig.new_uid()) != bucket_of(uid):
        pass
    return other


async def test_a_lease_that_ends_is_seen_when_it_ends(database_url: str) -> None:
    """Not at the next heartbeat after it, which is a third of a lease away."""
    async with node(database_url) as one, node(database_url, 2) as two:
        await shared(one, two)
        freeze(two)
        await one.database.fetch(
            """UPDATE nodes SET lease_until = clock_timestamp() + interval '300 ms'
               WHERE node_id = $1""",
            two.ownership.node_id,
        )
        one.ownership.poke()

        await until(lambda: owns_all(one), "it has taken over")


async def test_a_dead_node_that_was_recording_is_expired_once_the_record_ends(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its record holds its row, and the expiry is tried again before the next heartbeat."""
    async with node(database_url) as one, node(database_url, 2) as two:
        await shared(one, two)
        freeze(two)
        await run_out(two)
        async with rival(database_url) as record:
            await record.execute(
                f"SELECT FROM nodes WHERE node_id = '{two.ownership.node_id}' FOR KEY SHARE"
            )
            tried = asyncio.Event()
            take = one.ownership_store.take

            async def try_it(
                node_id: UUID, overdue: Sequence[UUID], wanted: Sequence[BucketLease]
            ) -> list[int]:
                taken = await take(node_id, overdue, wanted)
                tried.set()
                return taken

            monkeypatch.setattr(one.ownership_store, "take", try_it)
            one.ownership.poke()
            await tried.wait()
            assert not owns_all(one)

        await until(lambda: owns_all(one), "it has taken over")


@pytest.mark.parametrize("place", ["supervisor/1", "supervisor/2"])
async def test_a_process_with_the_worker_name_of_a_dead_one_waits_for_no_lease(
    database_url: str, place: str
) -> None:
    async with running(database_url, lease_s=LONG_S, place="supervisor/1") as dead:
        freeze(dead)

        async with running(database_url, seed=2, lease_s=LONG_S, place=place) as heir:
            has_succeeded = place == "supervisor/1"
            assert owns_all(heir) is has_succeeded
            rows = await heir.database.fetch("SELECT node_id FROM nodes")
            assert len(rows) == (1 if has_succeeded else 2)
