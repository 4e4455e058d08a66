"""Lanes whose bucket goes to another node, and which lanes memory keeps. Rule 13."""

import pytest

from service.domain.subscription import SubscriptionState
from service.pipeline.lane import LaneState
from tests.pipeline.desk import Desk


@pytest.fixture
async def desk() -> Desk:
    """Inside the event loop, which the timers need."""
    return Desk()


async def test_a_lost_bucket_is_forgotten_whole(desk: Desk) -> None:
    lane = desk.lane()
    desk.publish(lane, 3)
    job = desk.sending.take(2_000)
    assert job is not None

    desk.lanes.buckets_lost([lane.bucket])

    assert desk.lanes.get(lane.subscription_uid) is None
    assert desk.take_all() == []
    assert (desk.lanes.shares.jobs, desk.lanes.shares.bytes) == (0, 0)
    desk.answer(job, 500)
    desk.lanes.mismatched(job)
    assert desk.lanes.take_wanted() == []


async def test_a_lane_that_was_lost_disturbs_not_the_one_in_its_place(desk: Desk) -> None:
    """Its late records want no read, and a read of its own brings nothing into the new lane."""
    old = desk.lane()
    (delivery_id,) = desk.publish(old)
    (job,) = desk.take_all()
    desk.lanes.begin_refill(old)
    desk.lanes.buckets_lost([old.bucket])
    desk.lanes.touch(old.subscription_uid, old.bucket)
    new = desk.lanes.get(old.subscription_uid)
    assert new is not None
    desk.lanes.configure(new, desk.config())
    desk.refill(new, [desk.row(new, delivery_id)])
    (again,) = desk.take_all()
    desk.succeed(again)

    desk.lanes.accept(old, desk.row(old, delivery_id), desk.message())
    desk.lanes.end_refill(old, found_all=False)
    desk.lanes.mismatched(job)

    assert desk.take_all() == []
    assert desk.lanes.take_wanted() == []
    assert new.state is LaneState.COMPLETE


async def test_buckets_of_others_make_no_lanes(desk: Desk) -> None:
    desk.owned.clear()
    uid = desk.new_id()

    desk.lanes.touch(uid, 7)

    assert desk.lanes.get(uid) is None


async def test_a_bucket_is_quiet_once_all_that_was_sent_is_recorded(desk: Desk) -> None:
    lane = desk.lane()
    desk.publish(lane, 2)
    job = desk.sending.take(2_000)
    assert job is not None

    assert desk.lanes.quiet_buckets([lane.bucket]) == set()
    assert desk.take_all() == []
    desk.answer(job, 500)
    assert desk.lanes.quiet_buckets([lane.bucket]) == set()
    desk.lanes.rescheduled(job, 30)
    assert desk.lanes.quiet_buckets([lane.bucket]) == {lane.bucket}


async def test_a_forgotten_retry_hides_nothing_that_is_on_the_wire(desk: Desk) -> None:
    lane = desk.lane()
    first, _ = desk.publish(lane, 2)
    job = desk.sending.take(2_000)
    assert job is not None
    desk.fail(job, delay_s=30)
    desk.take_all()

    desk.lanes.forget(lane, first)

    assert desk.lanes.quiet_buckets([lane.bucket]) == set()


async def test_a_bucket_that_is_no_surplus_any_more_sends_again(desk: Desk) -> None:
    lane = desk.lane()
    desk.publish(lane, 2)
    busy = desk.sending.take(2_000)
    desk.lanes.quiet_buckets([lane.bucket])
    assert busy is not None
    assert desk.take_all() == []

    desk.lanes.quiet_buckets([])

    assert len(desk.take_all()) == 1


async def test_idle_lanes_are_forgotten_but_none_that_remembers_something(desk: Desk) -> None:
    idle, failing, deleted, paced, busy = (
        desk.lane(max_per_second=rate) for rate in (None, None, None, 1.0, None)
    )
    for lane in (failing, deleted):
        desk.publish(lane)
        desk.fail(desk.take_all()[0])
    desk.lanes.deleted(deleted)
    desk.publish(paced)
    desk.succeed(desk.take_all()[0])
    desk.publish(busy)

    desk.lanes.evict_idle(0)

    assert set(desk.lanes.all()) == {failing, paced, busy}
    assert idle.is_gone
    assert deleted.is_gone, "what its target did is nobody's any more"


async def test_operators_see_how_the_lanes_stand(desk: Desk) -> None:
    ready, limited, held = desk.lane(name="a"), desk.lane(name="b", max_in_flight=1), desk.lane()
    desk.publish(limited, 3)
    desk.take_all()
    desk.publish(ready, 2)
    desk.lanes.configure(held, desk.config(version=2, state=SubscriptionState.PAUSED))

    counts = desk.lanes.counts()

    assert (counts.total, counts.open, counts.limited, counts.held) == (3, 0, 1, 1)
    first, second = desk.lanes.top(2)
    assert (first.subscription, first.state, first.queued, first.in_flight) == (
        "b",
        "LIMITED",
        2,
        1,
    )
    assert (second.subscription, second.state, second.queued) == ("a", "READY", 2)
