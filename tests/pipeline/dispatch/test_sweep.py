"""The sweep of more lanes than it visits in one turn. Rules 15 and 16."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from uuid import UUID

import pytest

from hookline_service.domain.ids import bucket_of
from hookline_service.pipeline.dispatch.lane import UNKNOWN_TENANT
from hookline_service.pipeline.dispatch.sweep import OVERLAP_S
from hookline_service.store.lanes import LaneHead
from tests.pipeline.dispatch.test_refill import insert_pending
from tests.pipeline.rig import Receiver, Rig, order_created, running
from tests.waiting import until

DAY_S = 86_400.0
BUCKET = 7


@pytest.fixture
async def rig(database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    """Run a node that visits one lane of a bucket in each turn; the test takes the turns."""
    monkeypatch.setattr("hookline_service.pipeline.dispatch.sweep.LANES_PER_TURN", 1)
    async with running(database_url) as rig:
        await rig.make_clock_turnable()
        await rig.stop_reading()
        await rig.sweeper.sweep()
        yield rig


def uid_in(rig: Rig) -> UUID:
    """Return a new subscription's uid in `BUCKET`; later uids come later in the walk."""
    while bucket_of(uid := rig.new_uid()) != BUCKET:
        pass
    return uid


async def waiting_lanes(rig: Rig, tenant_uid: UUID, url: str, count: int) -> None:
    """Create lanes of one bucket, each with a retry due tomorrow."""
    for _ in range(count):
        uid = await rig.subscription_as(uid_in(rig), tenant_uid, url, "none")
        await insert_pending(rig, tenant_uid, uid, 1, due_s=DAY_S)
    await rig.database.fetch("UPDATE pending_deliveries SET version = 1")


def touched(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> list[UUID]:
    """Return a list of the subscriptions whose lanes are marked DIRTY from now on."""
    found: list[UUID] = []
    monkeypatch.setattr(rig.lanes, "touch", lambda uid, _bucket, **_: found.append(uid))
    return found


async def test_arrivals_behind_many_waiting_lanes_are_found_in_one_turn(
    rig: Rig, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant_uid = await rig.tenant()
    await waiting_lanes(rig, tenant_uid, receiver.url, 5)
    uid = await rig.subscription_as(uid_in(rig), tenant_uid, receiver.url)
    await insert_pending(rig, tenant_uid, uid, 2)
    found = touched(rig, monkeypatch)

    await rig.sweeper.sweep()

    assert found == [uid]


@pytest.mark.parametrize("what", ["retry", "first attempt"])
async def test_rows_coming_due_behind_many_waiting_lanes_are_found_in_one_turn(
    rig: Rig, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    tenant_uid = await rig.tenant()
    await waiting_lanes(rig, tenant_uid, receiver.url, 5)
    delays_s = [0.0, 600.0] if what == "retry" else [600.0]
    uid = await rig.subscription_as(uid_in(rig), tenant_uid, receiver.url, schedule_s=delays_s)
    receiver.answers = 500
    await rig.publisher.publish("acme", [order_created()])
    if what == "retry":
        await rig.refiller.refill()
        await until(lambda: rig.recorder.recorded == 1, "the failure is recorded")
    found = touched(rig, monkeypatch)
    for _ in range(3):
        await rig.sweeper.sweep()
        await rig.turn(2 * OVERLAP_S)
    assert found == [], "it is not due"

    await rig.turn(600)
    await rig.sweeper.sweep()

    assert found == [uid]


async def test_the_round_finds_rows_that_no_look_returns(
    rig: Rig, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that became visible long after its id was created, such as by a slow commit."""
    tenant_uid = await rig.tenant()
    await waiting_lanes(rig, tenant_uid, receiver.url, 5)
    uid = await rig.subscription_as(uid_in(rig), tenant_uid, receiver.url)
    await insert_pending(rig, tenant_uid, uid, 1)
    await rig.turn(10 * OVERLAP_S)
    await rig.sweeper._look(rig.time.unix_ms())  # noqa: SLF001 - as if it was not visible yet
    found = touched(rig, monkeypatch)

    for _ in range(12):
        await rig.turn(2 * OVERLAP_S)
        await rig.sweeper.sweep()

    assert uid in found
    assert len(found) <= 2, "once a round"


async def test_a_turn_that_visits_all_lanes_does_not_look_at_arrivals(
    rig: Rig, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant_uid = await rig.tenant()
    monkeypatch.setattr("hookline_service.pipeline.dispatch.sweep.LANES_PER_TURN", 2_048)
    await waiting_lanes(rig, tenant_uid, receiver.url, 5)
    while rig.sweeper._round:  # noqa: SLF001 - to the end of the round
        await rig.sweeper.sweep()
    monkeypatch.setattr(rig.sweep_store, "arrivals", None)

    await rig.turn(2)
    await rig.sweeper.sweep()


async def test_heads_leave_out_held_subscriptions_and_return_deleted_ones(
    rig: Rig, receiver: Receiver
) -> None:
    tenant_uid = await rig.tenant()
    uids = [await rig.subscription_as(uid_in(rig), tenant_uid, receiver.url) for _ in range(4)]
    paused, disabled, deleted, active = uids
    for uid in uids:
        await insert_pending(rig, tenant_uid, uid, 1)
    await rig.set_state(paused, "PAUSED")
    await rig.set_state(disabled, "DISABLED")
    await rig.set_state(deleted, "PAUSED")  # its deliveries must be cancelled even so
    await rig.database.fetch(
        "UPDATE subscriptions SET deleted_at = now() WHERE subscription_uid = $1", deleted
    )
    since_ms = rig.time.unix_ms() - 60_000

    heads = await rig.sweep_store.heads({BUCKET: UUID(int=0)}, 100)
    arrivals = await rig.sweep_store.arrivals([BUCKET], since_ms, 100)

    for found in (heads, arrivals):
        assert {head.subscription_uid for head in found} == {deleted, active}
        assert {head.tenant_uid for head in found} == {tenant_uid}
        assert not any(head.is_last for head in found)


async def test_buckets_with_more_arrivals_than_a_look_returns_are_visited_at_once(
    rig: Rig, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hookline_service.pipeline.dispatch.sweep.ARRIVALS_PER_BUCKET", 2)
    tenant_uid = await rig.tenant()
    await waiting_lanes(rig, tenant_uid, receiver.url, 3)
    uids = [await rig.subscription_as(uid_in(rig), tenant_uid, receiver.url) for _ in range(4)]
    for uid in uids:
        await insert_pending(rig, tenant_uid, uid, 1)
    found = touched(rig, monkeypatch)
    monkeypatch.setattr("hookline_service.pipeline.dispatch.sweep.INTERVAL_S", 3_600.0)

    rig.sweeper.start()

    await until(lambda: set(found) == set(uids), "all are found in turns without a pause")


async def test_a_lane_without_space_is_created_when_there_is_space(
    database_url: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event for more subscriptions than fit into memory reaches all of them."""
    monkeypatch.setattr("hookline_service.pipeline.dispatch.sweep.LANES_PER_TURN", 256)
    monkeypatch.setattr("hookline_service.pipeline.dispatch.sweep.INTERVAL_S", 0.05)
    async with running(database_url, max_lane_bytes=20_000) as rig:
        tenant_uid = await rig.tenant()
        for _ in range(40):
            await rig.subscription(tenant_uid, receiver.url)
        await rig.publisher.publish("acme", [order_created()])

        await until(lambda: rig.recorder.recorded == 40, "all are recorded")
        assert len(list(rig.lanes.all())) <= 6


async def test_the_bucket_of_a_lane_without_space_is_visited_first(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    visited: list[list[int]] = []
    heads = rig.sweep_store.heads

    async def watched(after: Mapping[int, UUID], most: int) -> list[LaneHead]:
        visited.append(list(after))
        return await heads(after, most)

    monkeypatch.setattr(rig.sweep_store, "heads", watched)
    monkeypatch.setattr(rig.lanes, "_max_lane_bytes", 0)
    rig.lanes.touch(uid_in(rig), BUCKET)

    await rig.sweeper.sweep()
    await rig.sweeper.sweep()

    assert visited == [[BUCKET], list(rig.ownership.buckets)]


async def test_a_failed_walk_stops_neither_refills_nor_looks(
    rig: Rig, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an earlier version a walk that timed out stopped all reads of the node."""

    async def time_out(_after: Mapping[int, UUID], _most: int) -> list[LaneHead]:
        raise TimeoutError

    monkeypatch.setattr(rig.sweep_store, "heads", time_out)
    tenant_uid = await rig.tenant()
    uid = await rig.subscription(tenant_uid, receiver.url)
    rig.sweeper.start()
    rig.refiller.start()
    await insert_pending(rig, tenant_uid, uid, 1)

    await receiver.wait_for(1)


async def test_the_tenant_of_a_notified_lane_is_looked_up(rig: Rig, receiver: Receiver) -> None:
    tenant_uid = await rig.tenant()
    uid = await rig.subscription(tenant_uid, receiver.url)
    await insert_pending(rig, tenant_uid, uid, 1)
    rig.lanes.touch(uid, bucket_of(uid), from_peer=True)
    lane = rig.lanes.get(uid)
    assert lane is not None
    assert lane.tenant_uid == UNKNOWN_TENANT

    await rig.refiller.refill()

    assert lane.tenant_uid == tenant_uid
    await receiver.wait_for(1)


async def test_a_lane_whose_refill_failed_is_read_again(
    rig: Rig, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant_uid = await rig.tenant()
    uid = await rig.subscription(tenant_uid, receiver.url)
    await insert_pending(rig, tenant_uid, uid, 1)
    configure, failures = rig.configs.configure, [TimeoutError(), TimeoutError()]

    async def fail_twice(lanes: list[object]) -> None:
        if failures:
            raise failures.pop()
        await configure(lanes)  # type: ignore[arg-type]  # lanes

    monkeypatch.setattr(rig.configs, "configure", fail_twice)
    monkeypatch.setattr("hookline_service.pipeline.dispatch.refill.INTERVAL_S", 0.01)
    rig.lanes.touch(uid, bucket_of(uid), tenant_uid=tenant_uid)

    rig.refiller.start()

    await receiver.wait_for(1)
    assert not failures


async def test_a_resume_takes_effect_without_a_lane(rig: Rig, receiver: Receiver) -> None:
    tenant_uid = await rig.tenant()
    uid = await rig.subscription(tenant_uid, receiver.url)
    await rig.set_state(uid, "PAUSED")
    await insert_pending(rig, tenant_uid, uid, 1)
    await until(lambda: rig.lanes.get(uid) is not None, "the pause was read")
    await rig.refiller.refill()
    rig.lanes.shrink_to(0)
    assert rig.lanes.get(uid) is None
    rig.refiller.start()

    await rig.set_state(uid, "ACTIVE")

    await receiver.wait_for(1)
