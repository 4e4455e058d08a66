"""What time does to rows: expiry, sweeps, days that go; and what keeps them. Rule 24."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from service.store.database import Database
from service.store.partitions import first_id_of_day, partition_name
from service.store.upkeep import UpkeepStore
from tests.store.hot_rows import HotRows

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import date


@pytest.fixture
async def rows(database_url: str) -> AsyncIterator[HotRows]:
    """Rows written beside the store."""
    written = HotRows(Database(database_url).session("rows"))
    yield written
    await written.session.close()


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[UpkeepStore]:
    """The chores, on a connection of their own."""
    opened = UpkeepStore(Database(database_url).session("upkeep"))
    yield opened
    await opened.close()


async def make_day(rows: HotRows, days_ago: int) -> date:
    """Partitions of a day long ago."""
    day = (datetime.now(UTC) - timedelta(days=days_ago)).date()
    first, end = first_id_of_day(day), first_id_of_day(day + timedelta(days=1))
    for parent in ("events", "deliveries", "attempts"):
        await rows.session.fetch(
            f"CREATE TABLE {partition_name(parent, day)} PARTITION OF {parent}"
            f" FOR VALUES FROM ('{first}') TO ('{end}')"
        )
    return day


async def test_the_chores_are_one_nodes_at_a_time(
    store: UpkeepStore, rows: HotRows, database_url: str
) -> None:
    other = UpkeepStore(Database(database_url).session("upkeep"))
    assert await store.try_lock()
    assert not await other.try_lock()

    await store.unlock()
    assert await other.try_lock()
    assert not await store.try_lock()
    await other.close()  # as a process does that dies

    (released,) = await rows.session.fetch(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database ="
        " (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    assert released[0] <= 1  # the server may still be closing it
    (now,) = await rows.session.fetch("SELECT hookline_now() AS now")
    assert now["now"].timestamp() == pytest.approx(time.time(), abs=5)


async def test_pending_work_past_its_retention_expires_in_every_bucket(
    store: UpkeepStore, rows: HotRows
) -> None:
    uids = [await rows.subscription() for _ in range(20)]
    await make_day(rows, 40)
    old = [await rows.pending(uid, days_ago=40) for uid in uids]
    young = [await rows.pending(uid) for uid in uids]

    expired = await store.expire_pending(datetime.now(UTC) - timedelta(days=30), 2)

    assert expired == 20
    assert {row["delivery_id"] for row in await rows.all("pending_deliveries")} == set(young)
    history = await rows.all("deliveries")
    assert {row["delivery_id"] for row in history} == set(old)
    assert {(row["state"], row["state_reason"], row["version"]) for row in history} == {
        ("EXPIRED", "RETENTION", 1)
    }
    changes = await rows.all("change_log")
    assert sorted((row["kind"], row["subscription_uid"]) for row in changes) == [
        ("LANE", uid) for uid in sorted(uids)
    ]


async def test_batches_go_on_until_nothing_is_left(store: UpkeepStore, rows: HotRows) -> None:
    uid = await rows.subscription()
    await make_day(rows, 40)
    for _ in range(7):
        await rows.pending(uid, days_ago=40)

    assert await store.expire_pending(datetime.now(UTC) - timedelta(days=30), 3) == 7


async def test_old_changes_are_swept_and_new_ones_kept(store: UpkeepStore, rows: HotRows) -> None:
    await rows.session.fetch(
        """INSERT INTO change_log (kind, create_time)
           VALUES ('EVENT_TYPE', now() - interval '2 hours'), ('EVENT_TYPE', now())"""
    )

    assert await store.sweep_changes(3_600.0) == 1
    assert len(await rows.all("change_log")) == 1


async def test_days_are_dropped_oldest_first(store: UpkeepStore, rows: HotRows) -> None:
    days = [await make_day(rows, ago) for ago in (40, 35, 31)]
    today = (await store.now()).date()

    assert await store.drop_days_before(today - timedelta(days=33)) == (days[:2], [])
    assert await store.drop_days_before(today - timedelta(days=30)) == (days[2:], [])
    assert await store.drop_days_before(today - timedelta(days=30)) == ([], [])


async def test_a_day_is_kept_while_anything_of_it_or_older_is_pending(
    store: UpkeepStore, rows: HotRows
) -> None:
    uid = await rows.subscription()
    days = [await make_day(rows, ago) for ago in (50, 40, 35)]
    await rows.pending(uid, days_ago=40)
    today = (await store.now()).date()

    dropped, kept = await store.drop_days_before(today)
    assert (dropped, kept[:2]) == (days[:1], days[1:])

    await rows.session.fetch("DELETE FROM pending_deliveries")
    assert (await store.drop_days_before(today - timedelta(days=30))) == (days[1:], [])


@pytest.mark.parametrize("column", ["event_id", "delivery_id"])
async def test_either_id_of_a_pending_row_keeps_a_day(
    store: UpkeepStore, rows: HotRows, column: str
) -> None:
    """A replayed delivery is younger than its event."""
    await make_day(rows, 40)
    await rows.pending(await rows.subscription())
    await rows.session.fetch(
        f"UPDATE pending_deliveries SET {column} = $1",  # noqa: S608 - one of two columns
        rows.new_id(days_ago=40),
    )

    dropped, kept = await store.drop_days_before((await store.now()).date() - timedelta(days=30))

    assert dropped == []
    assert len(kept) == 1
