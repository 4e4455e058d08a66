"""Which lanes are read next, and how many may be created to wait for that. Rule 16."""

from __future__ import annotations

from random import Random
from uuid import UUID

from hookline_service.pipeline.dispatch.lane import LANE_BYTES, Lane
from hookline_service.pipeline.dispatch.refill_queue import RefillQueue

_RANDOM = Random(4)


def queue_of(max_new: int) -> RefillQueue:
    """Create a queue behind which `max_new` new lanes may wait."""
    return RefillQueue(2 * LANE_BYTES * max_new)


def new_uid() -> UUID:
    return UUID(int=_RANDOM.getrandbits(128))


def lanes_of(tenant_uid: UUID, count: int) -> list[Lane]:
    return [Lane(new_uid(), 0, tenant_uid) for _ in range(count)]


def test_a_tenant_gets_one_turn_however_many_lanes_it_has() -> None:
    queue = queue_of(10_000)
    many, one = lanes_of(new_uid(), 1_000), lanes_of(new_uid(), 1)
    for lane in [*many, *one]:
        queue.join(lane)

    assert queue.take(3) == [many[0], one[0], many[1]]
    assert len(queue) == 998


def test_a_lane_is_queued_once() -> None:
    queue = queue_of(10_000)
    (lane,) = lanes_of(new_uid(), 1)
    queue.join(lane)
    queue.join(lane)
    assert queue.take(5) == [lane]
    assert queue.take(5) == []
    queue.join(lane)
    assert queue.take(5) == [lane]


def test_a_tenant_leaves_places_for_other_tenants() -> None:
    queue = queue_of(100)
    large, small = new_uid(), new_uid()
    created = 0
    for lane in lanes_of(large, 100):
        if queue.allows(large):
            queue.join(lane)
            created += 1

    assert created == 80, "four times the free places"
    assert queue.allows(small)
    assert not queue.is_low
    queue.take(40)
    assert queue.is_low


def test_lanes_of_unknown_tenants_are_taken_separately() -> None:
    queue = queue_of(100)
    known, unknown = lanes_of(new_uid(), 2), [Lane(new_uid(), 0) for _ in range(3)]
    for lane in [*unknown, *known]:
        queue.join(lane)

    assert queue.take_unknown() == unknown
    assert queue.take_unknown() == []
    assert len(queue) == 2
    assert queue.take(5) == known
