"""Group commits: the matched deliveries are written in order, all of a call or none."""

import asyncio
from itertools import pairwise

import pytest

from hookline_service.domain.errors import (
    InvalidArgumentError,
    NotFoundError,
    Reason,
    ResourceExhaustedError,
    UnavailableError,
)
from hookline_service.domain.ids import delivery_range_of, unix_ms_of
from hookline_service.domain.limits import Limits
from hookline_service.pipeline.publishing.commit import GroupLimits
from tests.pipeline.rig import Receiver, Rig, order_created, running
from tests.pipeline.rival import (
    BUMP,
    STALL,
    copy_subscription,
    rival,
    take_key,
    until_blocked,
    until_waiting,
)
from tests.waiting import PATIENCE_S


async def test_publish_waits_for_an_open_change_and_matches_again(
    rig: Rig, receiver: Receiver
) -> None:
    tenant_uid = await rig.tenant()
    first_uid = await rig.subscription(tenant_uid, receiver.url)
    await rig.publisher.publish("acme", [order_created(0)])

    async with rival(rig.url) as other:
        await copy_subscription(other, first_uid, rig.new_uid())
        publishing = asyncio.create_task(rig.publisher.publish("acme", [order_created(1)]))
        await until_blocked(rig.database, "contended")
        await other.execute("COMMIT")
        (published,) = await publishing

    assert published.delivery_count == 2
    rows = await rig.database.fetch(  # in one statement: they move from the one to the other
        "SELECT event_id FROM pending_deliveries UNION ALL SELECT event_id FROM deliveries"
    )
    assert [row["event_id"] for row in rows].count(published.event_id) == 2
    assert len(await _events(rig)) == 2
    assert len(rows) == 1 + 2, "and no delivery of what was matched in vain"


async def test_change_waits_for_an_open_publish(rig: Rig, receiver: Receiver) -> None:
    """A change after the epoch check of a publish takes effect after the commit of the publish."""
    acme, blocker = await rig.tenant("acme"), await rig.tenant("blocker")
    await rig.subscription(acme, receiver.url)
    await _warm(rig, "acme", "blocker")

    async with rival(rig.url) as other, rival(rig.url) as changer:
        await take_key(other, blocker, "k")
        publishing = [
            asyncio.create_task(rig.publisher.publish(tenant, [event]))
            for tenant, event in (
                ("acme", order_created(1)),
                ("blocker", order_created(1, idempotency_key="k")),
            )
        ]
        await until_blocked(rig.database)
        bump = asyncio.create_task(changer.fetchval(BUMP, acme))
        await until_waiting(rig.database, "advisory")
        assert not bump.done()
        await other.execute("ROLLBACK")
        results = await asyncio.gather(*publishing)
        assert await bump == 3
        await changer.execute("COMMIT")

    assert [result[0].delivery_count for result in results] == [1, 0]


async def test_only_the_changed_tenant_is_matched_again(rig: Rig, receiver: Receiver) -> None:
    acme, globex = await rig.tenant("acme"), await rig.tenant("globex")
    for tenant_uid in (acme, globex):
        await rig.subscription(tenant_uid, receiver.url)
    await _warm(rig, "acme", "globex")

    async with rival(rig.url) as other:
        await other.fetchval(BUMP, acme)
        publishing = [
            asyncio.create_task(rig.publisher.publish(tenant, [order_created(n)]))
            for n, tenant in enumerate(("acme", "globex", "acme"))
        ]
        await until_blocked(rig.database, "contended")
        groups = rig.publisher.committed_groups
        await other.execute("COMMIT")
        results = await asyncio.gather(*publishing)

    assert rig.publisher.committed_groups == groups + 1, "globex did not wait"
    stored = {row["event_id"]: row["data"] for row in await _events(rig)}
    assert [stored[result[0].event_id] for result in results] == [
        b'{"id":0}', b'{"id":1}', b'{"id":2}',
    ]  # fmt: skip
    assert len(stored) == 3 + 2
    await receiver.wait_for(5)
    assert set(receiver.counts.values()) == {1}


async def test_group_with_a_deleted_tenant_stores_the_events_of_the_other(rig: Rig) -> None:
    acme, _ = await rig.tenant("acme"), await rig.tenant("globex")
    await _warm(rig, "acme", "globex")

    async with rival(rig.url) as other:
        await other.execute(
            "UPDATE tenants SET deleted_at = now(), epoch = epoch + 1 WHERE tenant_uid = $1", acme
        )
        publishing = [
            asyncio.create_task(rig.publisher.publish(tenant, [order_created()]))
            for tenant in ("acme", "globex")
        ]
        await until_blocked(rig.database, "contended")
        await other.execute("COMMIT")
        gone, stored = await asyncio.gather(*publishing, return_exceptions=True)

    assert isinstance(gone, NotFoundError)
    assert gone.reason is Reason.TENANT_NOT_FOUND
    assert not isinstance(stored, BaseException)
    assert [row["tenant_uid"] for row in await _events(rig)].count(acme) == 1, "the warm-up's"


async def test_index_of_a_changed_tenant_is_read_once_for_all_calls_of_a_group(rig: Rig) -> None:
    """Otherwise a hundred waiting calls of a tenant would read the index a hundred times."""
    tenant_uid = await rig.tenant()
    await _warm(rig, "acme")

    async with rival(rig.url) as other:
        await other.fetchval(BUMP, tenant_uid)
        publishing = [
            asyncio.create_task(rig.publisher.publish("acme", [order_created(n)]))
            for n in range(20)
        ]
        await until_blocked(rig.database, "contended")
        reads = rig.matcher.reads
        await other.execute("COMMIT")
        await asyncio.gather(*publishing)

    assert rig.matcher.reads == reads + 1
    data = [row["data"] for row in await _events(rig)]
    assert data[1:] == [b'{"id":%d}' % n for n in range(20)], "and keep their order"


async def test_ordinals_follow_the_order_within_batches_and_of_answers(rig: Rig) -> None:
    await rig.tenant("acme")
    await rig.tenant("globex")
    for number in range(4):
        tenant = ("acme", "globex")[number % 2]
        batch = [order_created(10 * number + n, type=f"t{n}") for n in range(5)]
        await rig.publisher.publish(tenant, batch)

    rows = await rig.database.fetch("SELECT * FROM events ORDER BY ordinal")
    assert [row["data"] for row in rows] == [
        b'{"id":%d}' % (10 * number + n) for number in range(4) for n in range(5)
    ]
    assert all(a["ordinal"] < b["ordinal"] for a, b in pairwise(rows))


async def test_deliveries_have_the_ordinal_of_their_event(rig: Rig) -> None:
    tenant_uid = await rig.tenant()
    for pattern in ("order.created", "order.*", "*"):
        await rig.subscription(tenant_uid, "http://127.0.0.1:1024/", pattern, state="PAUSED",
                               state_reason="OPERATOR")  # fmt: skip
    published = await rig.publisher.publish(
        "acme", [order_created(1, type="other"), order_created(2), order_created(3)]
    )

    assert [result.delivery_count for result in published] == [1, 3, 3]
    ordinals = {row["event_id"]: row["ordinal"] for row in await _events(rig)}
    for row in await rig.pending():
        assert row["ordinal"] == ordinals[row["event_id"]]
    for result in published:
        first, last = delivery_range_of(result.event_id)
        within = [row for row in await rig.pending() if first <= row["delivery_id"] <= last]
        assert [row["event_id"] for row in within] == [result.event_id] * result.delivery_count


async def test_event_ids_use_the_database_time(rig: Rig) -> None:
    """A node whose clock is a year ahead still writes into the current partitions."""
    await rig.tenant()
    year_s = 365 * 86_400.0
    rig.clock.wall_ahead_s = year_s
    await rig.ownership.heartbeat()

    (published,) = await rig.publisher.publish("acme", [order_created()])

    (row,) = await rig.database.fetch("SELECT extract(epoch FROM now()) * 1000 AS now_ms")
    assert abs(unix_ms_of(published.event_id) - float(row["now_ms"])) < 5_000
    assert not rig.time.is_trusted


async def test_due_time_is_the_database_time_plus_the_first_delay(rig: Rig) -> None:
    tenant_uid = await rig.tenant()
    await rig.subscription(tenant_uid, "http://127.0.0.1:1024/", schedule_s=[90.0, 5.0])

    await rig.publisher.publish("acme", [order_created()])

    (row,) = await rig.database.fetch(
        """SELECT extract(epoch FROM p.due_at)::float8 - extract(epoch FROM now())::float8 AS left_s
           FROM pending_deliveries p"""
    )
    assert 80 < row["left_s"] <= 90


async def test_cancelled_call_does_not_affect_other_calls_of_its_group(
    rig: Rig, receiver: Receiver
) -> None:
    tenant_uid = await rig.tenant()
    await rig.subscription(tenant_uid, receiver.url)
    await _warm(rig, "acme")

    async with rival(rig.url) as other:
        await other.execute(STALL)
        impatient, patient = (
            asyncio.create_task(rig.publisher.publish("acme", [order_created(n)])) for n in (1, 2)
        )
        await until_blocked(rig.database)
        impatient.cancel()
        with pytest.raises(asyncio.CancelledError):
            await impatient
        await other.execute("COMMIT")
        (published,) = await patient

    assert [row["data"] for row in await _events(rig)] == [b'{"id":0}', b'{"id":1}', b'{"id":2}']
    assert published.delivery_count == 1
    await receiver.wait_for(3)


# ------------------------------------------------------------------------- overload and sizes


async def test_too_many_queued_events_are_refused_before_the_commit(database_url: str) -> None:
    limits = Limits(max_queued_publish_events=10)
    async with running(database_url, limits=limits) as rig:
        await rig.tenant()
        await _warm(rig, "acme")
        async with rival(rig.url) as other:
            await other.execute(STALL)
            publishing = [asyncio.create_task(rig.publisher.publish("acme", [order_created(1)]))]
            await until_blocked(rig.database)  # what is being committed is not queued
            publishing.append(
                asyncio.create_task(rig.publisher.publish("acme", [order_created(2)] * 10))
            )
            await asyncio.sleep(0)
            with pytest.raises(ResourceExhaustedError) as refusal:
                await rig.publisher.publish("acme", [order_created(3)])
            await other.execute("COMMIT")
            await asyncio.gather(*publishing)

        assert refusal.value.reason is Reason.OVERLOADED
        assert refusal.value.metadata["limit"] == "HOOKLINE_MAX_QUEUED_PUBLISH_EVENTS"
        assert refusal.value.retry_after_s is not None
        assert b'{"id":3}' not in [row["data"] for row in await _events(rig)]
        await rig.publisher.publish("acme", [order_created(3)])


async def test_too_many_queued_bytes_are_refused(database_url: str) -> None:
    limits = Limits(max_queued_publish_bytes=100)
    async with running(database_url, limits=limits) as rig:
        await rig.tenant()
        await _warm(rig, "acme")
        async with rival(rig.url) as other:
            await other.execute(STALL)
            publishing = [asyncio.create_task(rig.publisher.publish("acme", [order_created(1)]))]
            await until_blocked(rig.database)
            large = order_created(data=b'"%s"' % (b"x" * 90))
            publishing.append(asyncio.create_task(rig.publisher.publish("acme", [large])))
            await asyncio.sleep(0)
            with pytest.raises(ResourceExhaustedError) as refusal:
                await rig.publisher.publish("acme", [order_created(data=b'"%s"' % (b"y" * 8))])
            await other.execute("COMMIT")
            await asyncio.gather(*publishing)

        assert refusal.value.metadata["limit"] == "HOOKLINE_MAX_QUEUED_PUBLISH_BYTES"


async def test_calls_that_wait_for_an_index_are_admitted_together(database_url: str) -> None:
    """Calls of a tenant whose index is not cached count against the limit as a whole."""
    async with running(database_url, limits=Limits(max_queued_publish_events=10)) as rig:
        await rig.tenant()
        results = await asyncio.gather(
            *(rig.publisher.publish("acme", [order_created(n)]) for n in range(30)),
            return_exceptions=True,
        )

    refused = [result for result in results if isinstance(result, ResourceExhaustedError)]
    assert len(refused) == 22, "a tenant alone may have four fifths of the queue"
    assert all(isinstance(r, list | ResourceExhaustedError) for r in results)


@pytest.mark.parametrize(
    "group_limits",
    [
        GroupLimits(max_events=4),
        GroupLimits(max_bytes=4 * len(b'{"id":1}')),
        GroupLimits(max_deliveries=4 * 3),
    ],
    ids=["events", "bytes", "deliveries"],
)
async def test_group_is_closed_before_it_exceeds_a_limit(
    database_url: str, group_limits: GroupLimits
) -> None:
    async with running(database_url, group_limits=group_limits) as rig:
        tenant_uid = await rig.tenant()
        for _ in range(3):
            await rig.subscription(tenant_uid, "http://127.0.0.1:1024/", schedule_s=[90.0])
        await rig.publisher.publish("acme", [order_created(0)])
        results = await asyncio.gather(
            *(rig.publisher.publish("acme", [order_created(n)] * 2) for n in range(1, 5))
        )
        assert rig.publisher.committed_groups == 1 + 2
        assert [[r.delivery_count for r in result] for result in results] == [[3, 3]] * 4

        # One call that is larger than a group is a group of its own.
        await rig.publisher.publish("acme", [order_created(n) for n in range(5, 10)])
        assert rig.publisher.committed_groups == 1 + 2 + 1
        assert len(await _events(rig)) == 1 + 8 + 5
        assert len(await rig.pending()) == 3 * (1 + 8 + 5)


async def test_batch_with_too_many_deliveries_is_refused(database_url: str) -> None:
    """Its single statement would delay every other publish, or exceed its deadline."""
    async with running(database_url, limits=Limits(max_batch_deliveries=5)) as rig:
        tenant_uid = await rig.tenant()
        for _ in range(3):
            await rig.subscription(tenant_uid, "http://127.0.0.1:1024/", schedule_s=[90.0])

        with pytest.raises(InvalidArgumentError) as refusal:
            await rig.publisher.publish("acme", [order_created(1), order_created(2)])
        assert refusal.value.reason is Reason.LIMIT_EXCEEDED
        assert refusal.value.metadata == {
            "limit": "HOOKLINE_MAX_BATCH_DELIVERIES", "maximum": "5",
        }  # fmt: skip
        assert await _events(rig) == []
        (published,) = await rig.publisher.publish("acme", [order_created(1)])
        assert published.delivery_count == 3


# ------------------------------------------------------------------------------------ the stop


async def test_stop_commits_queued_calls_and_refuses_new_ones(rig: Rig) -> None:
    await rig.tenant()
    await _warm(rig, "acme")

    async with rival(rig.url) as other:
        await other.execute(STALL)
        publishing = [asyncio.create_task(rig.publisher.publish("acme", [order_created(1)]))]
        await until_blocked(rig.database)
        publishing.append(asyncio.create_task(rig.publisher.publish("acme", [order_created(2)])))
        await asyncio.sleep(0)
        stopping = asyncio.create_task(rig.publisher.stop())
        await asyncio.sleep(0)
        with pytest.raises(UnavailableError) as refusal:
            await rig.publisher.publish("acme", [order_created(3)])
        await other.execute("COMMIT")
        await asyncio.gather(*publishing, stopping)

    assert refusal.value.reason is Reason.SHUTTING_DOWN
    assert [row["data"] for row in await _events(rig)] == [b'{"id":0}', b'{"id":1}', b'{"id":2}']


async def test_call_that_reads_its_index_during_the_stop_is_refused(rig: Rig) -> None:
    """The call was admitted before the stop, and reaches the queue after the last group."""
    await rig.tenant()

    async with rival(rig.url) as other:
        await other.execute("LOCK TABLE tenants IN ACCESS EXCLUSIVE MODE")
        publishing = asyncio.create_task(rig.publisher.publish("acme", [order_created()]))
        await until_blocked(rig.database, "calls")
        await rig.publisher.stop()
        await other.execute("ROLLBACK")
        with pytest.raises(UnavailableError) as refusal:
            await asyncio.wait_for(publishing, PATIENCE_S)

    assert refusal.value.reason is Reason.SHUTTING_DOWN


async def _warm(rig: Rig, *tenants: str) -> None:
    """Publish once to each tenant, so that its index is cached and calls join a group at once."""
    for tenant in tenants:
        await rig.publisher.publish(tenant, [order_created(0)])


async def _events(rig: Rig) -> list[dict[str, object]]:
    rows = await rig.database.fetch("SELECT * FROM events ORDER BY ordinal")
    return [dict(row) for row in rows]
