"""Turns: tenants take turns, and so do the lanes of each tenant."""

from collections import Counter
from itertools import pairwise
from uuid import UUID

import pytest

from hookline_service.pipeline.dispatch.dispatcher import FairScheduler
from tests.pipeline.lane_harness import LaneHarness


@pytest.fixture
async def harness() -> LaneHarness:
    """Create a harness inside the event loop, which the timers need."""
    return LaneHarness()


async def test_lanes_of_a_tenant_take_turns(harness: LaneHarness) -> None:
    tenant = harness.new_id()
    lanes = [harness.lane(tenant_uid=tenant) for _ in range(3)]
    for lane in lanes:
        harness.publish(lane, 4)

    order = [job.lane for job in harness.take_all()]

    assert order == lanes * 4


async def test_a_tenant_gets_one_turn_however_many_lanes_it_has(harness: LaneHarness) -> None:
    big, small = harness.new_id(), harness.new_id()
    for _ in range(50):
        harness.publish(harness.lane(tenant_uid=big), 4)
    harness.publish(harness.lane(tenant_uid=small), 20)

    first = [harness.dispatcher.take(2_000) for _ in range(40)]

    assert Counter(job.lane.tenant_uid for job in first if job) == {big: 20, small: 20}


async def test_a_backlog_does_not_delay_a_new_lane(harness: LaneHarness) -> None:
    harness.publish(harness.lane(max_in_flight=1_000), 1_000)
    for _ in range(10):
        harness.dispatcher.take(2_000)
    new_lane = harness.lane()
    harness.publish(new_lane)

    taken = [harness.dispatcher.take(2_000) for _ in range(2)]

    assert new_lane in [job.lane for job in taken if job]


async def test_no_tenant_gets_two_turns_in_a_row_while_another_waits(harness: LaneHarness) -> None:
    for tenant in (harness.new_id(), harness.new_id(), harness.new_id()):
        for _ in range(3):
            harness.publish(harness.lane(tenant_uid=tenant), 3)

    tenants = [job.lane.tenant_uid for job in harness.take_all()]

    assert len(tenants) == 27
    assert all(earlier != later for earlier, later in pairwise(tenants))


async def test_a_lane_is_scheduled_once(harness: LaneHarness) -> None:
    scheduler, lane = FairScheduler(), harness.lane()
    tenant = lane.tenant_uid

    scheduler.join(lane, tenant)
    scheduler.join(lane, tenant)

    assert scheduler.next(any_tenant) is lane
    assert scheduler.next(any_tenant) is None
    scheduler.join(lane, tenant)
    assert scheduler.next(any_tenant) is lane


async def test_a_tenant_that_may_not_send_keeps_its_place(
    harness: LaneHarness,
) -> None:
    scheduler, barred, other = FairScheduler(), harness.lane(), harness.lane()
    scheduler.join(barred, barred.tenant_uid)
    scheduler.join(other, other.tenant_uid)

    assert scheduler.next(lambda tenant_uid: tenant_uid != barred.tenant_uid) is other
    assert scheduler.next(lambda tenant_uid: tenant_uid != barred.tenant_uid) is None
    assert scheduler
    assert scheduler.next(any_tenant) is barred
    assert not scheduler


async def test_a_tenant_whose_targets_hang_leaves_slots_for_others(
    harness: LaneHarness,
) -> None:
    """It may use four times the free slots; the next such tenant gets fewer."""
    slots, taken = 1_000, Counter[UUID]()

    def take() -> bool:
        free = slots - taken.total()
        job = harness.dispatcher.take(free) if free else None
        taken.update([job.lane.tenant_uid] if job else [])
        return job is not None

    tenants = [harness.new_id() for _ in range(3)]
    for tenant in tenants:
        for _ in range(4):
            harness.publish(harness.lane(tenant_uid=tenant, max_in_flight=250), 250)
        while take():
            pass

    assert taken == {tenants[0]: 800, tenants[1]: 160, tenants[2]: 32}
    assert harness.dispatcher.has_ready()


async def test_a_record_frees_the_tenants_share(harness: LaneHarness) -> None:
    lane = harness.lane()
    harness.publish(lane, 5)
    (job, *_) = [harness.dispatcher.take(1) for _ in range(4)]
    assert harness.dispatcher.take(1) is None
    assert job is not None

    harness.answer(job, 200)
    assert harness.dispatcher.take(1) is None
    harness.lanes.finished(job)

    assert harness.dispatcher.take(1) is not None


def any_tenant(tenant_uid: UUID) -> bool:
    """Allow every tenant."""
    return bool(tenant_uid)
