"""What time does: days that come and go, work that waited too long, one node at a time."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from hookline_service.pipeline.upkeep.chores import BATCH, Upkeep
from hookline_service.store.partitions import DAYS_AHEAD, PARENTS, day_of, partition_name
from hookline_service.store.upkeep import UpkeepStore
from hookline_service.telemetry.meters import Meters
from tests.pipeline.rig import Receiver, Rig, order_created, running
from tests.pipeline.rival import rival
from tests.waiting import until

DAY_S = 86_400.0


async def days_of(rig: Rig, parent: str = "events") -> list[date]:
    """The days of which a table has a partition."""
    rows = await rig.database.fetch(
        """SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
           WHERE i.inhparent = $1::regclass ORDER BY c.relname""",
        parent,
    )
    return [day_of(row["relname"]) for row in rows]


async def today_of(rig: Rig) -> date:
    """The day of an id that is made now, by the database's clock."""
    await rig.ownership.heartbeat()
    return datetime.fromtimestamp(rig.time.unix_s(), UTC).date()


async def _delivered(rig: Rig, receiver: Receiver) -> None:
    """An event of today that has reached its target, after a failure: each table has a row."""
    await rig.subscription(await rig.tenant(), receiver.url, schedule_s=[0.0, 30.0])
    receiver.answers = 500
    await rig.publisher.publish("acme", [order_created()])
    await until(lambda: rig.recorder.recorded == 1, "the failure is recorded")
    receiver.answers = 200
    await rig.turn(31)
    await until(lambda: rig.recorder.recorded == 2, "the success is recorded")


async def _held(rig: Rig, receiver: Receiver) -> None:
    """An event of today whose delivery is held."""
    uid = await rig.subscription(await rig.tenant(), receiver.url)
    await rig.set_state(uid, "PAUSED")
    await rig.publisher.publish("acme", [order_created()])
    assert len(await rig.pending()) == 1


def keeper(rig: Rig, *, pending_retention_days: int) -> Upkeep:
    """Chores that keep history for 30 days, and pending work for so many."""
    return Upkeep(
        UpkeepStore(rig.database.session("upkeep")),
        retention_days=30,
        pending_retention_days=pending_retention_days,
    )


# ---------------------------------------------------------------------------------------- days


async def test_a_missing_day_is_made_at_the_next_chores(rig: Rig) -> None:
    before = await days_of(rig)
    await rig.database.fetch(f"DROP TABLE {partition_name('events', before[-1])}")
    assert await rig.upkeep.do_chores()
    assert await days_of(rig) == before


async def test_a_day_past_its_retention_goes_with_all_its_history(
    rig: Rig, receiver: Receiver
) -> None:
    await _delivered(rig, receiver)
    today = await today_of(rig)
    await rig.turn(32 * DAY_S)
    assert await rig.upkeep.do_chores()
    for parent in PARENTS:
        assert today not in await days_of(rig, parent)
    assert await rig.finished() == []
    assert await rig.database.fetch("SELECT FROM attempts UNION ALL SELECT FROM events") == []


async def test_a_day_within_its_retention_stays(rig: Rig, receiver: Receiver) -> None:
    await _delivered(rig, receiver)
    today = await today_of(rig)
    await rig.turn(30 * DAY_S)
    assert await rig.upkeep.do_chores()
    assert today in await days_of(rig)
    assert len(await rig.finished()) == 1


async def test_a_day_on_which_something_is_pending_stays_and_so_do_those_after_it(
    rig: Rig, receiver: Receiver
) -> None:
    await _held(rig, receiver)
    today = await today_of(rig)
    patient = keeper(rig, pending_retention_days=3_650)
    await rig.turn(35 * DAY_S)
    assert await patient.do_chores()
    await patient.stop()
    for parent in PARENTS:
        days = await days_of(rig, parent)
        assert days == [today + timedelta(n) for n in range(DAYS_AHEAD + 1)]
    assert len(await rig.database.fetch("SELECT FROM events")) == 1


async def test_a_tombstone_goes_after_the_history_that_names_it(
    rig: Rig, receiver: Receiver
) -> None:
    await _delivered(rig, receiver)
    await rig.database.fetch("UPDATE subscriptions SET deleted_at = hookline_now()")
    await rig.turn(30 * DAY_S)
    assert await rig.upkeep.do_chores()
    assert len(await rig.database.fetch("SELECT FROM subscriptions")) == 1
    await rig.turn(2 * DAY_S)
    assert await rig.upkeep.do_chores()
    assert await rig.database.fetch("SELECT FROM subscriptions") == []


# ------------------------------------------------------------------- expiry, and one node at a time


async def test_work_that_waited_too_long_expires_however_it_was_held(
    rig: Rig, receiver: Receiver
) -> None:
    await _held(rig, receiver)
    impatient = keeper(rig, pending_retention_days=10)
    await rig.turn(10 * DAY_S + 1)
    assert await impatient.do_chores()
    await impatient.stop()
    assert await rig.pending() == []
    (row,) = await rig.finished()
    assert (row["state"], row["state_reason"]) == ("EXPIRED", "RETENTION")
    assert receiver.requests == []


async def test_work_that_has_not_waited_too_long_stays(rig: Rig, receiver: Receiver) -> None:
    await _held(rig, receiver)
    await rig.turn(29 * DAY_S)
    assert await rig.upkeep.do_chores()
    assert len(await rig.pending()) == 1


async def test_the_owner_reads_that_deliveries_expired(rig: Rig, receiver: Receiver) -> None:
    await rig.subscription(await rig.tenant(), receiver.url, schedule_s=[0.0, 30.0])
    receiver.answers = 500
    await rig.publisher.publish("acme", [order_created()])
    await until(lambda: rig.recorder.recorded == 1, "the failure is recorded")
    (lane,) = rig.lanes.all()
    await until(lambda: len(lane.known) == 1, "its retry waits in memory")
    await rig.database.fetch("UPDATE test_clock SET ahead = '31 days'")
    assert await rig.upkeep.do_chores()
    await rig.changes.read()
    assert lane.known == {}


async def test_one_node_at_a_time_does_a_chore(rig: Rig) -> None:
    await rig.database.fetch(
        "INSERT INTO change_log (kind, create_time) VALUES ('EVENT_TYPE', now() - interval '2 h')"
    )
    async with running(rig.url) as other:
        assert await other.upkeep_store.try_lock("expire_pending")
        assert not await rig.upkeep.do_chores()
        assert await rig.database.fetch("SELECT FROM change_log") == [], "the others are done"
        await other.upkeep_store.unlock("expire_pending")
        assert await rig.upkeep.do_chores()


async def test_the_chores_are_free_again_once_their_node_is_gone(rig: Rig) -> None:
    async with running(rig.url) as other:
        assert await other.upkeep_store.try_lock("drop_days")
    await until(rig.upkeep.do_chores, "the lock went with its connection")


async def _given_up(rig: Rig) -> UUID:
    """A delivery of ten days ago that used up its attempts."""
    await rig.database.fetch("UPDATE subscriptions SET schedule_s = '{0}'")
    await rig.publisher.publish("acme", [order_created()])
    await until(lambda: rig.recorder.recorded == 1, "it is exhausted")
    (row,) = await rig.finished()
    await rig.turn(10 * DAY_S + 1)
    return UUID(str(row["delivery_id"]))


async def _waiting(rig: Rig, *, due_s: float) -> UUID:
    """A delivery of ten days ago that waits for its second attempt, in so many seconds."""
    await rig.publisher.publish("acme", [order_created()])
    await until(lambda: rig.recorder.recorded == 1, "the failure is recorded")
    await rig.stop_reading()
    await rig.turn(10 * DAY_S + 1)
    (row,) = await rig.database.fetch(
        """UPDATE pending_deliveries SET due_at = hookline_now() + make_interval(secs => $1)
           RETURNING delivery_id""",
        due_s,
    )
    return UUID(str(row["delivery_id"]))


@pytest.mark.parametrize("state", ["finished", "waiting", "due"])
async def test_the_retention_of_a_retried_delivery_counts_from_the_retry(
    rig: Rig, receiver: Receiver, state: str
) -> None:
    """Else an operator's retry of what is old would end EXPIRED before its second attempt."""
    await rig.subscription(await rig.tenant(), receiver.url, schedule_s=[0.0, 20 * DAY_S])
    receiver.answers = 500
    if state == "finished":
        delivery_id = await _given_up(rig)
        await rig.database.fetch("UPDATE subscriptions SET schedule_s = '{0, 864000}'")
    else:
        delivery_id = await _waiting(rig, due_s=60.0 if state == "waiting" else -60.0)
    impatient = keeper(rig, pending_retention_days=10)

    await rig.delivery_actions.retry("acme", delivery_id)

    assert await impatient.do_chores()
    assert len(await rig.pending()) == 1, "its ten days begin with the retry"
    await rig.turn(10 * DAY_S + 1)
    assert await impatient.do_chores()
    await impatient.stop()
    assert await rig.pending() == []
    assert [row["state"] for row in await rig.finished()] == ["EXPIRED"]


# ------------------------------------------------------------- chores that fail, or have much to do


async def test_a_failing_chore_is_logged_and_stops_no_other(rig: Rig, receiver: Receiver) -> None:
    """A statement that times out loses its connection; its backend keeps the chore's lock."""
    await _held(rig, receiver)
    await rig.turn(31 * DAY_S)
    await rig.database.fetch(
        "INSERT INTO change_log (kind, create_time) VALUES ('EVENT_TYPE', now() - interval '2 h')"
    )
    missing = (await days_of(rig))[-1]
    await rig.database.fetch(f"DROP TABLE {partition_name('events', missing)}")
    meters = Meters()
    upkeep = Upkeep(UpkeepStore(rig.database.session("upkeep", timeout_s=0.5)), meters=meters)
    async with rival(rig.url) as holder:
        await holder.execute("SELECT FROM pending_deliveries FOR UPDATE")
        with capture_logs() as logs:
            assert await upkeep.do_chores()
    await upkeep.stop()

    assert missing in await days_of(rig), "the chore before was done"
    assert await rig.database.fetch("SELECT FROM change_log WHERE kind = 'EVENT_TYPE'") == []
    (logged,) = [line for line in logs if line["event"] == "upkeep_chore_failed"]
    assert logged["chore"] == "expire_pending"
    counted = {
        (labels[0][1], labels[1][1]): count for labels, count in meters.chores.values.items()
    }
    assert (counted["expire_pending", "failed"], counted["expire_pending", "done"]) == (1, 0)
    assert (counted["sweep_change_log", "failed"], counted["sweep_change_log", "done"]) == (0, 1)


async def test_a_chore_with_much_to_do_gives_way_and_goes_on_at_once(rig: Rig) -> None:
    """Each round does a batch of it here, and all the others; no round waits for the minute."""
    await rig.database.fetch(
        """INSERT INTO change_log (kind, create_time)
           SELECT 'EVENT_TYPE', now() - interval '2 h' FROM generate_series(1, $1)""",
        2 * BATCH + 1,
    )
    hurried = Upkeep(rig.upkeep_store, slice_s=0.0)

    async def left() -> int:
        (row,) = await rig.database.fetch("SELECT count(*) FROM change_log")
        count: int = row[0]
        return count

    assert await hurried.do_chores()
    assert (await left(), hurried.is_behind) == (BATCH + 1, True)
    hurried.start()

    async def is_done() -> bool:
        return await left() == 0

    await until(is_done, "two more rounds followed at once")
    await hurried.stop()
