"""Whose turn it is: tenants one after the other, and the lanes of each among themselves."""

from collections import Counter
from itertools import pairwise

import pytest

from service.pipeline.turns import Turns
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

    first = [desk.sending.take() for _ in range(40)]

    assert Counter(job.lane.tenant_uid for job in first if job) == {big: 20, small: 20}


async def test_a_backlog_does_not_keep_a_newcomer_waiting(desk: Desk) -> None:
    desk.publish(desk.lane(max_in_flight=1_000), 1_000)
    for _ in range(10):
        desk.sending.take()
    newcomer = desk.lane()
    desk.publish(newcomer)

    taken = [desk.sending.take() for _ in range(2)]

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

    assert turns.next() is lane
    assert turns.next() is None
    turns.join(lane, tenant)
    assert turns.next() is lane
