"""Leases in the database: dead nodes, takeovers and released buckets. Rule 11."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from uuid import UUID

import pytest

from hookline_service.domain.ids import BUCKET_COUNT
from hookline_service.store.database import Database
from hookline_service.store.ownership import BucketLease, OwnershipStore
from tests.pipeline.rival import rival
from tests.store.hot_rows import HotRows


@pytest.fixture
async def rows(database_url: str) -> AsyncIterator[HotRows]:
    """Rows inserted without the store."""
    written = HotRows(Database(database_url).session("rows"))
    yield written
    await written.session.close()


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[OwnershipStore]:
    """A node's connection for its liveness."""
    opened = OwnershipStore(Database(database_url).session("heartbeat"))
    yield opened
    await opened.close()


async def take_all(store: OwnershipStore, node_id: UUID) -> list[int]:
    survey = await store.survey(node_id)
    overdue = {lease.node_id for lease in survey.leases if lease.is_overdue and lease.node_id}
    return await store.take(node_id, sorted(overdue), survey.leases)


async def test_registered_node_is_alive(store: OwnershipStore, rows: HotRows) -> None:
    node_id = rows.new_id()

    await store.register(node_id, 10.0, "host-1", "1.2.3", "worker-1")

    (row,) = await rows.all("nodes")
    assert (row["node_id"], row["hostname"], row["version"]) == (node_id, "host-1", "1.2.3")
    left_s = row["lease_until"].timestamp() - time.time()
    assert 8 < left_s <= 10.1
    assert (await store.survey(node_id)).sharing_nodes == 1


async def test_renewal_returns_the_time_or_reports_a_missing_row(
    store: OwnershipStore, rows: HotRows
) -> None:
    node_id = await rows.node(0.1)

    database_s = await store.renew(node_id, 30.0)

    assert database_s == pytest.approx(time.time(), abs=2)
    (row,) = await rows.all("nodes")
    assert row["lease_until"].timestamp() > time.time() + 25
    assert await store.renew(rows.new_id(), 30.0) is None


async def test_a_survey_distinguishes_vacant_from_overdue_buckets(
    store: OwnershipStore, rows: HotRows
) -> None:
    alive, dead = await rows.node(), await rows.node(-1)
    for bucket, owner in ((0, alive), (1, dead), (2, rows.new_id())):
        await rows.session.fetch(
            "UPDATE bucket_leases SET node_id = $2, epoch = 9 WHERE bucket = $1", bucket, owner
        )

    survey = await store.survey(alive)

    assert survey.sharing_nodes == 1
    assert len(survey.leases) == BUCKET_COUNT
    by_bucket = {lease.bucket: lease for lease in survey.leases}
    found = [(by_bucket[b].is_overdue, by_bucket[b].is_vacant) for b in range(4)]
    assert found == [(False, False), (True, False), (False, True), (False, True)]
    assert by_bucket[0].epoch == 9


async def test_buckets_are_taken_only_from_dead_nodes(store: OwnershipStore, rows: HotRows) -> None:
    alive, dead, heir = await rows.node(), await rows.node(-1), await rows.node()
    await rows.session.fetch(
        "UPDATE bucket_leases SET node_id = CASE WHEN bucket < 100 THEN $1::uuid ELSE $2 END",
        alive,
        dead,
    )

    taken = await take_all(store, heir)

    assert sorted(taken) == list(range(100, BUCKET_COUNT))
    assert {row["node_id"] for row in await rows.all("nodes")} == {alive, heir}


async def test_a_node_that_renewed_in_time_is_not_expired(
    store: OwnershipStore, rows: HotRows
) -> None:
    late, heir = await rows.node(-1), await rows.node()
    await rows.session.fetch("UPDATE bucket_leases SET node_id = $1", late)
    survey = await store.survey(rows.new_id())
    await store.renew(late, 10.0)

    assert await store.take(heir, [late], survey.leases) == []
    assert len(await rows.all("nodes")) == 2


async def test_a_bucket_that_changed_hands_since_the_survey_is_not_taken(
    store: OwnershipStore, rows: HotRows
) -> None:
    first, second = await rows.node(), await rows.node()
    survey = await store.survey(rows.new_id())
    assert len(await store.take(first, [], survey.leases)) == BUCKET_COUNT
    await store.leave(first)

    assert await store.take(second, [], survey.leases) == []
    assert len(await take_all(store, second)) == BUCKET_COUNT


async def test_takeover_raises_the_epoch(store: OwnershipStore, rows: HotRows) -> None:
    await take_all(store, await rows.node())

    assert {lease.epoch for lease in (await store.survey(rows.new_id())).leases} == {1}


async def test_expiring_does_not_wait_for_a_lock_on_the_row(
    store: OwnershipStore, rows: HotRows, database_url: str
) -> None:
    dead, heir = await rows.node(-1), await rows.node()
    await rows.session.fetch("UPDATE bucket_leases SET node_id = $1", dead)
    async with rival(database_url) as record:
        await record.execute("SELECT FROM nodes WHERE node_id = $1 FOR KEY SHARE", dead)
        assert await take_all(store, heir) == []
    assert len(await take_all(store, heir)) == BUCKET_COUNT


async def test_only_owned_buckets_are_released_and_become_vacant_at_once(
    store: OwnershipStore, rows: HotRows
) -> None:
    ours, other = await rows.node(), await rows.node()
    await rows.session.fetch(
        "UPDATE bucket_leases SET node_id = CASE WHEN bucket < 2 THEN $1::uuid ELSE $2 END",
        ours,
        other,
    )

    assert await store.give(ours, [0, 5]) == [0]

    vacant = [lease for lease in (await store.survey(rows.new_id())).leases if lease.is_vacant]
    assert vacant == [BucketLease(0, None, 1, is_overdue=False, is_vacant=True)]


async def test_deregistration_releases_all_buckets_at_once(
    store: OwnershipStore, rows: HotRows
) -> None:
    node_id = await rows.node()
    await take_all(store, node_id)

    await store.leave(node_id)

    survey = await store.survey(rows.new_id())
    assert survey.sharing_nodes == 0
    assert all(lease.is_vacant for lease in survey.leases)


async def test_expire_all_removes_every_node(store: OwnershipStore, rows: HotRows) -> None:
    await take_all(store, await rows.node())

    await store.expire_all()

    assert await rows.all("nodes") == []
    assert all(lease.is_vacant for lease in (await store.survey(rows.new_id())).leases)
