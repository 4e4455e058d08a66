"""Tombstones are pruned once unreferenced, and no index keeps a pruned subscription."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from random import Random
from uuid import UUID

import pytest

from hookline_service.domain.ids import bucket_of
from hookline_service.domain.subscription import Subscription
from hookline_service.pipeline.publishing.matching import Matcher
from hookline_service.store.upkeep import UpkeepStore
from tests.store.control_plane import ControlPlane, control_plane

PENDING = """INSERT INTO pending_deliveries (bucket, due_at, ordinal, delivery_id, subscription_uid,
                 event_id) VALUES ($1, now(), 1, $2, $3, $2)"""
FINISHED = """INSERT INTO deliveries (tenant_uid, delivery_id, subscription_uid, event_id,
                  finish_time, version, attempt_count, state)
              SELECT tenant_uid, $2, subscription_uid, $2, now(), 1, 1, 'CANCELLED'
              FROM subscriptions WHERE subscription_uid = $1"""
EVENT = """INSERT INTO events (tenant_uid, event_id, ordinal, is_json, type, data)
           SELECT tenant_uid, $2, 1, true, 'order.created', '{}'
           FROM tenants WHERE tenant_id = $1"""
KEY = """INSERT INTO idempotency_keys (tenant_uid, event_id, expires_at, delivery_count, key,
             fingerprint)
         SELECT tenant_uid, $2, now(), 0, 'k', '' FROM tenants WHERE tenant_id = $1"""
API_KEY = """INSERT INTO api_keys (key_id, digest, tenant_uid, scopes, create_time)
             SELECT 'key', sha256(''), tenant_uid, '{PUBLISH}', now()
             FROM tenants WHERE tenant_id = $1"""


@pytest.fixture
async def plane(database_url: str) -> AsyncIterator[ControlPlane]:
    async with control_plane(database_url) as plane:
        yield plane


@pytest.fixture
async def store(plane: ControlPlane) -> AsyncIterator[UpkeepStore]:
    opened = UpkeepStore(plane.database.session("upkeep"))
    yield opened
    await opened.close()


def later() -> datetime:
    """Return a time after every deletion."""
    return datetime.now(UTC) + timedelta(minutes=1)


def id_of_today(number: int) -> UUID:
    """Return an id in today's partition."""
    return UUID(int=int(datetime.now(UTC).timestamp() * 1_000) << 80 | 0x7 << 76 | number)


async def delete(plane: ControlPlane, *subscription_ids: str) -> list[Subscription]:
    gone = [await plane.create(one) for one in subscription_ids]
    for one in subscription_ids:
        await plane.subscriptions.delete("acme", one)
    return gone


async def names(plane: ControlPlane) -> set[str]:
    """Return the ids of all subscriptions that have a row."""
    return {row[0] for row in await plane.rows("SELECT subscription_id FROM subscriptions")}


async def test_only_subscriptions_deleted_before_the_given_time_are_pruned(
    plane: ControlPlane, store: UpkeepStore
) -> None:
    await plane.create("live")
    await delete(plane, "old")
    between = await plane.value("SELECT clock_timestamp()")
    await delete(plane, "young")

    assert await store.prune_subscriptions(between, 10) == (1, False)
    assert await names(plane) == {"live", "young"}
    assert await store.prune_subscriptions(later(), 10) == (1, False)
    assert await names(plane) == {"live"}


async def test_subscriptions_referenced_by_deliveries_are_not_pruned(
    plane: ControlPlane, store: UpkeepStore
) -> None:
    pending, finished, _ = await delete(plane, "pending", "finished", "unnamed")
    await plane.rows(PENDING, bucket_of(pending.uid), id_of_today(1), pending.uid)
    await plane.rows(FINISHED, finished.uid, id_of_today(2))

    assert await store.prune_subscriptions(later(), 10) == (1, False)
    assert await names(plane) == {"pending", "finished"}

    await plane.rows("DELETE FROM pending_deliveries")
    await plane.rows("DELETE FROM deliveries")
    assert await store.prune_subscriptions(later(), 10) == (2, False)


async def test_batches_skip_subscriptions_that_stay(
    plane: ControlPlane, store: UpkeepStore
) -> None:
    """The subscriptions that stay come first and exceed one batch."""
    kept = await delete(plane, *(f"kept-{n}" for n in range(4)))
    await delete(plane, *(f"gone-{n}" for n in range(3)))
    for n, one in enumerate(kept):
        await plane.rows(FINISHED, one.uid, id_of_today(n))

    batches = [await store.prune_subscriptions(later(), 3) for _ in range(3)]

    assert batches == [(0, True), (2, True), (1, False)]
    assert await names(plane) == {f"kept-{n}" for n in range(4)}
    assert await store.prune_subscriptions(later(), 10) == (0, False), "it begins anew"


async def test_index_older_than_a_pruned_deletion_is_fully_reloaded(
    plane: ControlPlane, store: UpkeepStore
) -> None:
    """Without the whole load, events would go to a subscription that has no row."""
    old = Matcher(plane.database, random=Random(1))
    new = Matcher(plane.database, random=Random(1))
    gone, kept = await plane.create("gone"), await plane.create("kept")
    for matcher in (old, new):
        assert (await matcher.index("acme")).subscription_count == 2
    await plane.subscriptions.delete("acme", "gone")
    await new.reload("acme")
    assert await store.prune_subscriptions(later(), 10) == (1, False)
    have = await plane.index()
    await plane.create("later")

    index = await old.reload("acme")
    uids = {row.subscription_uid for row in index.match("order.created")}
    assert kept.uid in uids
    assert gone.uid not in uids
    assert index.subscription_count == 2
    assert index.epoch == await plane.epoch()
    part = await plane.index("acme", have.epoch, have.tenant_uid)
    assert (part.is_whole, len(part.changed)) == (False, 1), (
        "an index that has it is loaded in part"
    )


async def test_pruning_does_not_change_the_epoch(plane: ControlPlane, store: UpkeepStore) -> None:
    await delete(plane, "gone")
    epoch = await plane.epoch()
    await store.prune_subscriptions(later(), 10)
    assert await plane.epoch() == epoch
    assert await plane.value("SELECT pruned_epoch FROM tenants WHERE tenant_id = 'acme'") == epoch


@pytest.mark.parametrize("left", [EVENT, KEY])
async def test_tenant_is_pruned_after_everything_it_owns(
    plane: ControlPlane, store: UpkeepStore, left: str
) -> None:
    await plane.rows(left, "acme", id_of_today(1))
    await plane.rows(API_KEY, "acme")
    await delete(plane, "gone")
    await plane.tenants.delete("acme")

    assert await store.prune_tenants(later(), 10) == (0, False), "its subscription has a row"
    assert await store.prune_subscriptions(later(), 10) == (1, False)
    assert await store.prune_tenants(later(), 10) == (0, False), "an event or a key names it"
    await plane.rows("DELETE FROM events")
    await plane.rows("DELETE FROM idempotency_keys")
    assert await store.prune_tenants(later(), 10) == (1, False)

    for table in ("tenants", "subscriptions", "signing_keys", "data_keys", "api_keys"):
        assert await plane.rows(f"SELECT FROM {table}") == []


async def test_live_tenant_without_subscriptions_is_not_pruned(
    plane: ControlPlane, store: UpkeepStore
) -> None:
    assert await store.prune_tenants(later(), 10) == (0, False)
    assert (await plane.tenants.get("acme")).tenant_id == "acme"
