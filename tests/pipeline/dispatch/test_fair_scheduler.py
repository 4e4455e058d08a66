"""Whose turn it is: tenants one after the other, and the lanes of each among themselves."""

from collections import Counter
from itertools import pairwise
from uuid import UUID

import pytest

from hookline_service.pipeline.dispatch.fair_scheduler import Turns
from tests.pipeline.desk import Desk


@pytest.fixture
async def desk() -> Desk:
    """Inside the event loop, which the timers need."""
    return Desk()


async def test_lanes_of_a_tenant_take_turns(desk: Desk) -> None:
    tenant = desk.new_id()
    lanes = [desk.lane(tenant_uid=tenant) for _ in range(3)]
    for lane in lanes:
        desk.publish(lane, 4)

    order = [job.lane for job in desk.take_all()]

    assert order == lanes * 4


async def test_a_tenant_with_many_lanes_has_one_turn_as_one_with_one(desk: Desk) -> None:
    big, small = desk.new_id(), desk.new_id()
    for _ in range(50):
        desk.publish(desk.lane(tenant_uid=big), 4)
    desk.publish(desk.lane(tenant_uid=small), 20)

    first = [desk.sending.take(2_000) for _ in range(40)]

    assert Counter(job.lane.tenant_uid for job in first if job) == {big: 20, small: 20}


async def test_a_backlog_does_not_keep_a_newcomer_waiting(desk: Desk) -> None:
    desk.publish(desk.lane(max_in_flight=1_000), 1_000)
    for _ in range(10):
        desk.sending.take(2_000)
    newcomer = desk.lane()
    desk.publish(newcomer)

    taken = [desk.sending.take(2_000) for _ in range(2)]

    assert newcomer in [job.lane for job in taken if job]


async def test_no_tenant_has_two_turns_in_a_row_while_another_waits(desk: Desk) -> None:
    for tenant in (desk.new_id(), desk.new_id(), desk.new_id()):
        for _ in range(3):
            desk.publish(desk.lane(tenant_uid=tenant), 3)

    tenants = [job.lane.tenant_uid for job in desk.take_all()]

    assert len(tenants) == 27
    assert all(earlier != later for earlier, later in pairwise(tenants))


async def test_a_lane_stands_in_the_round_once(desk: Desk) -> None:
    turns, lane = Turns(), desk.lane()
    tenant = lane.tenant_uid

    turns.join(lane, tenant)
    turns.join(lane, tenant)

    assert turns.next(anyone) is lane
    assert turns.next(anyone) is None
    turns.join(lane, tenant)
    assert turns.next(anyone) is lane


async def test_a_tenant_that_may_not_is_passed_over_and_keeps_its_place(desk: Desk) -> None:
    turns, barred, other = Turns(), desk.lane(), desk.lane()
    turns.join(barred, barred.tenant_uid)
    turns.join(other, other.tenant_uid)

    assert turns.next(lambda tenant_uid: tenant_uid != barred.tenant_uid) is other
    assert turns.next(lambda tenant_uid: tenant_uid != barred.tenant_uid) is None
    assert turns
    assert turns.next(anyone) is barred
    assert not turns


async def test_a_tenant_whose_targets_hang_leaves_slots_for_the_others(desk: Desk) -> None:
    """It may have four times what is left; each further tenant that does the same, less."""
    slots, taken = 1_000, Counter[UUID]()

    def take() -> bool:
        free = slots - taken.total()
        job = desk.sending.take(free) if free else None
        taken.update([job.lane.tenant_uid] if job else [])
        return job is not None

    tenants = [desk.new_id() for _ in range(3)]
    for tenant in tenants:
        for _ in range(4):
            desk.publish(desk.lane(tenant_uid=tenant, max_in_flight=250), 250)
        while take():
            pass

    assert taken == {tenants[0]: 800, tenants[1]: 160, tenants[2]: 32}
    assert desk.sending.has_ready()


async def test_what_is_recorded_gives_a_tenant_its_share_again(desk: Desk) -> None:
    lane = desk.lane()
    desk.publish(lane, 5)
    (job, *_) = [desk.sending.take(1) for _ in range(4)]
    assert desk.sending.take(1) is None
    assert job is not None

    desk.answer(job, 200)
    assert desk.sending.take(1) is None
    desk.lanes.finished(job)

    assert desk.sending.take(1) is not None


def anyone(tenant_uid: UUID) -> bool:
    """Every tenant may have its turn."""
    return bool(tenant_uid)
