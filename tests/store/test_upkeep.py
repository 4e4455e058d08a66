"""Upkeep: expiry of deliveries, sweeps, dropping of days, and what prevents it. Rule 24."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from uuid import UUID

import asyncpg
import pytest

from hookline_service.store.database import Database, Session
from hookline_service.store.partitions import first_id_of_day, locks_of_one_day, partition_name
from hookline_service.store.upkeep import RetentionError, UpkeepStore
from tests.pipeline.rival import rival
from tests.store.hot_rows import HotRows


@pytest.fixture
async def rows(database_url: str) -> AsyncIterator[HotRows]:
    """Rows inserted without the store."""
    written = HotRows(Database(database_url).session("rows"))
    yield written
    await written.session.close()


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[UpkeepStore]:
    """The store of the chores, with its own connection."""
    opened = UpkeepStore(Database(database_url).session("upkeep"))
    yield opened
    await opened.close()


async def make_day(rows: HotRows, days_ago: int) -> date:
    """Create partitions of an old day."""
    day = (datetime.now(UTC) - timedelta(days=days_ago)).date()
    first, end = first_id_of_day(day), first_id_of_day(day + timedelta(days=1))
    for parent in ("events", "deliveries", "attempts"):
        await rows.session.fetch(
            f"CREATE TABLE {partition_name(parent, day)} PARTITION OF {parent}"
            f" FOR VALUES FROM ('{first}') TO ('{end}')"
        )
    return day


async def test_one_node_at_a_time_runs_a_chore(
    store: UpkeepStore, rows: HotRows, database_url: str
) -> None:
    other = UpkeepStore(Database(database_url).session("upkeep"))
    assert await store.try_lock("drop_days")
    assert not await other.try_lock("drop_days")
    assert await other.try_lock("expire_pending"), "each has a lock of its own"

    await store.unlock("drop_days")
    assert await other.try_lock("drop_days")
    assert not await store.try_lock("drop_days")
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

    before = datetime.now(UTC) - timedelta(days=30)

    batches = [await store.expire_pending(before, 7) for _ in range(4)]

    assert batches == [7, 7, 6, 0]
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


async def test_old_changes_are_swept_and_new_ones_kept(store: UpkeepStore, rows: HotRows) -> None:
    await rows.session.fetch(
        """INSERT INTO change_log (kind, create_time)
           VALUES ('EVENT_TYPE', now() - interval '2 hours'), ('EVENT_TYPE', now())"""
    )

    assert await store.sweep_changes(3_600.0, 10) == 1
    assert len(await rows.all("change_log")) == 1


async def test_changes_are_swept_in_order_of_their_number(
    store: UpkeepStore, rows: HotRows
) -> None:
    await rows.session.fetch(
        """INSERT INTO change_log (kind, create_time)
           SELECT 'EVENT_TYPE', now() - make_interval(mins => age)
           FROM unnest(ARRAY[70, 61, 59, 62, 1]) WITH ORDINALITY AS w (age, n) ORDER BY n"""
    )

    assert await store.sweep_changes(3_600.0, 2) == 2
    assert await store.sweep_changes(3_600.0, 2) == 1
    await rows.session.fetch("UPDATE change_log SET create_time = create_time - interval '5 min'")

    assert await store.sweep_changes(3_600.0, 2) == 1
    (left,) = await rows.all("change_log")
    assert left["change_id"] == 5


async def test_check_of_a_day_does_not_read_all_pending_deliveries(
    rows: HotRows, database_url: str
) -> None:
    """A day without pending deliveries: the check reads only the first index entries."""
    uid = await rows.subscription()
    day = await make_day(rows, 40)
    await rows.session.fetch(
        """INSERT INTO pending_deliveries (bucket, due_at, ordinal, delivery_id, subscription_uid,
                                           event_id)
           SELECT n % 256, now(), n, id, $1, id
           FROM (SELECT n, md5(n::text)::uuid AS id FROM generate_series(1, 30000) n) w
           WHERE id > $2""",
        uid,
        first_id_of_day(day + timedelta(days=1)),
    )
    session = Weighed(Database(database_url), "upkeep", 10.0)
    store = UpkeepStore(session)

    assert (await store.drop_days_before(day + timedelta(days=1))) == ([day], [])
    await store.close()

    assert session.blocks <= 3 * 256 + 20


class Weighed(Session):
    """A session that counts the blocks each statement reads, in a run that it rolls back."""

    blocks = 0

    async def fetch(
        self, statement: str, *args: object, history_id: UUID | None = None
    ) -> list[asyncpg.Record]:
        """Count the statement's blocks, then run it."""
        explain = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}"
        with suppress(ZeroDivisionError):
            async with self.transaction() as connection:
                plan = json.loads(await connection.fetchval(explain, *args))[0]["Plan"]
                self.blocks = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
                raise ZeroDivisionError  # undoes it
        return await super().fetch(statement, *args, history_id=history_id)


async def test_sweep_starts_where_the_previous_batch_ended(
    rows: HotRows, database_url: str
) -> None:
    """An open transaction keeps deleted entries in the index: no batch may read them again."""
    await rows.session.fetch(
        """INSERT INTO change_log (kind, create_time)
           SELECT 'EVENT_TYPE', now() - interval '2 hours' FROM generate_series(1, 20000)"""
    )
    await rows.session.fetch(
        """INSERT INTO idempotency_keys (tenant_uid, key, event_id, expires_at, delivery_count,
                                         fingerprint)
           SELECT gen_random_uuid(), n::text, gen_random_uuid(), now() - make_interval(secs => n),
                  1, '' FROM generate_series(1, 20000) n"""
    )
    session = Weighed(Database(database_url), "upkeep", 10.0)
    store = UpkeepStore(session)
    async with rival(database_url) as open_one:
        await open_one.execute("SELECT pg_current_xact_id(), count(*) FROM change_log")
        weights: dict[str, list[int]] = {"changes": [], "keys": []}
        for limit in (10, 9_000, 9_000, 10):
            assert await store.sweep_changes(3_600.0, limit) == limit
            weights["changes"].append(session.blocks)
            assert await store.sweep_keys(limit) == limit
            weights["keys"].append(session.blocks)
    await store.close()

    for name, weight in weights.items():
        assert weight[-1] <= weight[0] + 20, (name, weight)


async def test_days_are_dropped_oldest_first(store: UpkeepStore, rows: HotRows) -> None:
    days = [await make_day(rows, ago) for ago in (40, 35, 31)]
    today = (await store.now()).date()

    assert await store.drop_days_before(today - timedelta(days=33)) == (days[:2], [])
    assert await store.drop_days_before(today - timedelta(days=30)) == (days[2:], [])
    assert await store.drop_days_before(today - timedelta(days=30)) == ([], [])


async def test_day_is_kept_while_it_or_an_older_day_has_pending_deliveries(
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
async def test_event_id_or_delivery_id_of_a_pending_row_keeps_its_day(
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


async def test_a_retention_that_exceeds_the_lock_table_is_rejected(
    store: UpkeepStore, rows: HotRows
) -> None:
    (row,) = await rows.session.fetch(
        """SELECT current_setting('max_locks_per_transaction')::int
                  * (current_setting('max_connections')::int
                     + current_setting('max_prepared_transactions')::int) AS capacity"""
    )
    each = 6  # deliveries: the table and five indexes
    most = row["capacity"] // (each * 8) - 16

    await store.check_locks(most, 8)
    with pytest.raises(RetentionError) as caught:
        await store.check_locks(most + 1, 8)

    for word in ("HOOKLINE_RETENTION_DAYS", "max_locks_per_transaction", f"at most {most} days"):
        assert word in str(caught.value)


async def test_read_of_all_days_takes_the_calculated_number_of_locks(
    rows: HotRows,
) -> None:
    await make_day(rows, 40)
    async with rows.session.transaction() as connection:
        before = await connection.fetchval(
            "SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid()"
        )
        await connection.fetch("SELECT FROM deliveries WHERE state <> 'SUCCEEDED'")
        locks = await connection.fetchval(
            "SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid()"
        )
        days = await connection.fetchval(
            "SELECT count(*) FROM pg_inherits WHERE inhparent = 'deliveries'::regclass"
        )
        each = await locks_of_one_day(connection)
    assert locks - before == each * days + each, "those of the parent are as many"


async def test_insert_vacuum_freezes_the_partitions_of_history(rows: HotRows) -> None:
    found = await rows.session.fetch(
        """SELECT c.relname, c.reloptions
           FROM pg_class c LEFT JOIN pg_inherits i ON i.inhrelid = c.oid
           WHERE i.inhparent IN ('events'::regclass, 'deliveries'::regclass, 'attempts'::regclass)
             AND c.relkind = 'r'"""
    )
    assert len(found) > 30
    for row in found:
        assert "autovacuum_freeze_min_age=0" in (row["reloptions"] or []), row["relname"]
