"""An open transaction on a tenant: it blocks that tenant's publishes, and no other tenant's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID

import pytest

from hookline_service.domain.errors import Reason, UnavailableError
from hookline_service.pipeline.publishing.commit import GroupLimits
from tests.pipeline.rig import Rig, order_created, running
from tests.pipeline.rival import BUMP, copy_subscription, rival, take_key, until_blocked

TARGET = "http://127.0.0.1:9/"


@pytest.fixture
async def rig(database_url: str) -> AsyncIterator[Rig]:
    """A node whose calls wait 0.4 s for a lock; acme has a subscription, both are in memory."""
    limits = GroupLimits(lock_wait_s=0.4)
    async with running(database_url, group_limits=limits, lock_timeout_s=0.05) as node:
        acme = await node.tenant("acme")
        await node.tenant("globex")
        await node.subscription(acme, TARGET, schedule_s=[90.0])
        for tenant_id in ("acme", "globex"):
            await node.publisher.publish(tenant_id, [order_created(0)])
        yield node


async def uid_of(rig: Rig, tenant_id: str) -> UUID:
    (row,) = await rig.database.fetch(
        "SELECT tenant_uid FROM tenants WHERE tenant_id = $1", tenant_id
    )
    uid: UUID = row[0]
    return uid


async def test_locked_tenant_row_blocks_no_publish(rig: Rig) -> None:
    async with rival(rig.url) as other:
        await other.execute("SELECT FROM tenants FOR UPDATE")
        for tenant_id in ("acme", "globex"):
            await rig.publisher.publish(tenant_id, [order_created(1)])


async def test_open_transaction_of_a_change_blocks_no_other_tenant(rig: Rig) -> None:
    (subscription,) = await rig.database.fetch("SELECT subscription_uid FROM subscriptions")
    async with rival(rig.url) as other:
        await copy_subscription(other, subscription[0], rig.new_uid())
        waiting = asyncio.create_task(rig.publisher.publish("acme", [order_created(1)]))
        await until_blocked(rig.database, "contended")
        for number in range(5):
            await rig.publisher.publish("globex", [order_created(number)])
        with pytest.raises(UnavailableError) as refusal:
            await waiting
        assert refusal.value.reason is Reason.CONCURRENT_CHANGE
        assert refusal.value.retry_after_s is not None
        assert "HOOKLINE_PUBLISH_LOCK_WAIT_S" in refusal.value.message
        assert "tenants/acme" in refusal.value.message
        # The next call does not try the group commit first, and gets through with the change.
        waiting = asyncio.create_task(rig.publisher.publish("acme", [order_created(2)]))
        await until_blocked(rig.database, "contended")
        await other.execute("COMMIT")
        (published,) = await waiting

    assert published.delivery_count == 2
    rows = await rig.database.fetch("SELECT data FROM events WHERE data = $1", b'{"id":1}')
    assert [row["data"] for row in rows] == [b'{"id":1}'], "globex's: nothing of acme's was stored"
    groups = rig.publisher.committed_groups
    await rig.publisher.publish("acme", [order_created(3)])
    assert rig.publisher.committed_groups == groups + 1


async def test_locked_idempotency_key_blocks_no_other_tenant(rig: Rig) -> None:
    acme = await uid_of(rig, "acme")
    async with rival(rig.url) as other:
        await take_key(other, acme, "k")
        results = await asyncio.gather(
            rig.publisher.publish("acme", [order_created(1, idempotency_key="k")]),
            *[rig.publisher.publish("globex", [order_created(number)]) for number in range(2, 8)],
            return_exceptions=True,
        )
        await other.execute("ROLLBACK")

    assert isinstance(results[0], UnavailableError)
    assert results[0].reason is Reason.CONCURRENT_CHANGE
    assert [isinstance(result, list) for result in results[1:]] == [True] * 6
    (published,) = await rig.publisher.publish("acme", [order_created(1, idempotency_key="k")])
    assert not published.deduplicated


async def test_epoch_is_read_after_its_lock_is_acquired(rig: Rig) -> None:
    """The snapshot of the statement may be older than a change that has released the lock since."""
    acme = await uid_of(rig, "acme")
    (row,) = await rig.database.fetch("SELECT epoch FROM tenants WHERE tenant_uid = $1", acme)
    async with rival(rig.url) as other:
        await other.execute("SELECT pg_advisory_xact_lock(42)")
        checking = asyncio.create_task(
            rig.database.fetch(
                """WITH waited AS MATERIALIZED (SELECT pg_advisory_xact_lock_shared(42))
                   SELECT hookline_check_epochs($1, $2, 0) AS passed FROM waited""",
                [acme],
                [row["epoch"]],
            )
        )
        await until_blocked(rig.database, "calls")
        await other.fetchval(BUMP, acme)
        await other.execute("COMMIT")
        (checked,) = await checking
    assert checked["passed"] == [False]


async def test_the_check_of_an_epoch_does_not_wait_for_a_change(rig: Rig) -> None:
    acme = await uid_of(rig, "acme")
    (row,) = await rig.database.fetch("SELECT epoch FROM tenants WHERE tenant_uid = $1", acme)
    async with rival(rig.url) as other:
        await other.fetchval(BUMP, acme)
        (checked,) = await rig.database.fetch(
            "SELECT hookline_check_epochs($1, $2, 1) AS passed", [acme], [row["epoch"]]
        )
        await other.execute("ROLLBACK")
    assert checked["passed"] == [False]


async def test_calls_of_a_contended_tenant_keep_their_order(database_url: str) -> None:
    limits = GroupLimits(lock_wait_s=60.0, max_events=2)
    async with running(database_url, group_limits=limits) as rig:
        acme = await rig.tenant("acme")
        await rig.publisher.publish("acme", [order_created(0)])
        stream = object()
        async with rival(rig.url) as other:
            await other.fetchval(BUMP, acme)
            calls = [
                await rig.publisher.submit("acme", [order_created(number)], stream)
                for number in range(1, 5)
            ]
            await until_blocked(rig.database, "contended")
            calls += [
                await rig.publisher.submit("acme", [order_created(number)], stream)
                for number in range(5, 9)
            ]
            await other.execute("COMMIT")
            await asyncio.gather(*calls)
        rows = await rig.database.fetch("SELECT data FROM events ORDER BY ordinal")
    assert [row["data"] for row in rows] == [b'{"id":%d}' % number for number in range(9)]


async def test_stop_answers_the_calls_of_a_contended_tenant(database_url: str) -> None:
    limits = GroupLimits(lock_wait_s=0.4)
    async with rival(database_url) as other:
        async with running(database_url, group_limits=limits) as rig:
            acme = await rig.tenant("acme")
            await rig.publisher.publish("acme", [order_created(0)])
            await other.fetchval(BUMP, acme)
            waiting = asyncio.create_task(rig.publisher.publish("acme", [order_created(1)]))
            await until_blocked(rig.database, "contended")
        with pytest.raises(UnavailableError):
            await waiting


async def test_concurrent_publishes_of_several_nodes_create_no_multixact(rig: Rig) -> None:
    """Row locks would create one, with a member for each node that locks the tenant."""
    acme, globex = await uid_of(rig, "acme"), await uid_of(rig, "globex")
    next_multixact = "SELECT mxid_age('1'::xid)"
    async with running(rig.url, seed=2) as second, rival(rig.url) as other:
        for tenant_id in ("acme", "globex"):
            await second.publisher.publish(tenant_id, [order_created(0)])
        (before,) = await rig.database.fetch(next_multixact)
        await take_key(other, globex, "k")
        waiting = [
            asyncio.create_task(second.publisher.publish("acme", [order_created(1)])),
            asyncio.create_task(
                second.publisher.publish("globex", [order_created(1, idempotency_key="k")])
            ),
        ]
        await until_blocked(rig.database)
        locks = await rig.database.fetch(
            """SELECT FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ShareLock'
               AND (classid::bigint << 32) + objid::bigint = hookline_epoch_lock($1)""",
            acme,
        )
        assert len(locks) == 1, "the second node is committing for acme"
        await rig.publisher.publish("acme", [order_created(2)])
        await other.execute("ROLLBACK")
        await asyncio.gather(*waiting)
        (after,) = await rig.database.fetch(next_multixact)
    assert after[0] == before[0]
