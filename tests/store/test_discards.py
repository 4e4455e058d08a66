"""Resume with `discard_before`: only pending deliveries of older events are cancelled."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from hookline_service.domain.ids import bucket_of, delivery_id_of, first_uuid_of, unix_ms_of
from hookline_service.domain.subscription import SubscriptionState
from tests.store.control_plane import ControlPlane, control_plane
from tests.store.rows import Place, Rows, rows_in


@pytest.fixture
async def plane(database_url: str) -> AsyncIterator[ControlPlane]:
    async with control_plane(database_url) as plane:
        yield plane


@pytest.fixture
async def rows(database_url: str) -> AsyncIterator[Rows]:
    async with rows_in(database_url) as rows:
        yield rows


async def place_of(plane: ControlPlane, subscription_id: str) -> Place:
    tenant = await plane.tenants.get("acme")
    return Place(tenant.uid, (await plane.subscriptions.get("acme", subscription_id)).uid)


def just_after(unix_ms: int) -> datetime:
    return datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=unix_ms, microseconds=1)


async def test_discard_cancels_only_deliveries_of_older_events(
    plane: ControlPlane, rows: Rows
) -> None:
    await plane.create()
    await plane.create("bystander")
    place, bystander = await place_of(plane, "orders"), await place_of(plane, "bystander")
    events = [await rows.event(place.tenant_uid) for _ in range(5)]
    deliveries = [await rows.pending(place, event, attempt_count=3) for event in events]
    untouched = [await rows.pending(bystander, event) for event in events]
    await plane.subscriptions.pause("acme", "orders")
    resumed = await plane.subscriptions.resume(
        "acme", "orders", discard_before=just_after(unix_ms_of(events[2]))
    )
    assert resumed.state is SubscriptionState.ACTIVE
    pending = await plane.rows("SELECT delivery_id FROM pending_deliveries ORDER BY delivery_id")
    assert sorted(row[0] for row in pending) == sorted([*deliveries[3:], *untouched])
    ended = await plane.rows("SELECT * FROM deliveries ORDER BY delivery_id")
    assert [row["delivery_id"] for row in ended] == deliveries[:3]
    logged = await plane.rows("SELECT subscription_uid FROM change_log WHERE kind = 'LANE'")
    assert [row[0] for row in logged] == [place.uid], "one change for the whole batch"
    for row in ended:
        assert (row["state"], row["state_reason"]) == ("CANCELLED", "OPERATOR")
        assert (row["attempt_count"], row["version"]) == (3, 1)
        assert (row["tenant_uid"], row["subscription_uid"]) == (place.tenant_uid, place.uid)


async def test_discard_excludes_events_of_the_given_millisecond(
    plane: ControlPlane, rows: Rows
) -> None:
    await plane.create()
    place = await place_of(plane, "orders")
    first, second = [await rows.event(place.tenant_uid) for _ in range(2)]
    assert unix_ms_of(second) == unix_ms_of(first) + 1
    for event in (first, second):
        await rows.pending(place, event)
    before = just_after(unix_ms_of(second)) - timedelta(microseconds=1)
    await plane.subscriptions.resume("acme", "orders", discard_before=before)
    assert [row["event_id"] for row in await plane.rows("SELECT * FROM deliveries")] == [first]
    assert [row["event_id"] for row in await plane.rows("SELECT * FROM pending_deliveries")] == [
        second
    ]


async def test_discard_of_several_batches_takes_one_call(plane: ControlPlane, rows: Rows) -> None:
    await plane.create()
    place = await place_of(plane, "orders")
    old, new = [await rows.event(place.tenant_uid) for _ in range(2)]
    bucket = bucket_of(place.uid)
    many = [
        (bucket, delivery_id_of(event, index, bucket), place.uid, event, rows.now)
        for event in (old, new)
        for index in range(1_200)
    ]
    await rows.connection.executemany(
        """INSERT INTO pending_deliveries (bucket, delivery_id, subscription_uid, event_id, due_at,
               ordinal) VALUES ($1, $2, $3, $4, $5, 1)""",
        many,
    )
    moment = just_after(unix_ms_of(old))
    assert first_uuid_of(unix_ms_of(new)) > old
    await plane.subscriptions.resume("acme", "orders", discard_before=moment)
    statement = "SELECT count(*), count(*) FILTER (WHERE event_id = $1) FROM "
    ((pending, pending_of_new),) = await plane.rows(statement + "pending_deliveries", new)
    ((ended, ended_of_new),) = await plane.rows(statement + "deliveries", new)
    assert (pending, pending_of_new, ended, ended_of_new) == (1_200, 1_200, 1_200, 0)


async def test_active_subscription_can_discard_and_logs_the_change(
    plane: ControlPlane, rows: Rows
) -> None:
    made = await plane.create()
    place = await place_of(plane, "orders")
    await rows.pending(place, await rows.event(place.tenant_uid))
    resumed = await plane.subscriptions.resume(
        "acme", "orders", discard_before=rows.now + timedelta(hours=1)
    )
    assert resumed.etag != made.etag
    assert await plane.changes() == [made.uid, made.uid]
    assert await plane.value("SELECT count(*) FROM pending_deliveries") == 0
    again = await plane.subscriptions.resume("acme", "orders", discard_before=rows.now)
    assert again == resumed
