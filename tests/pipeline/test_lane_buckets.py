"""Lanes whose bucket goes to another node, and which lanes memory keeps. Rule 13."""

import pytest

from hookline_service.domain.ids import bucket_of
from hookline_service.domain.subscription import SubscriptionState
from hookline_service.pipeline.dispatch.lane import (
    CIRCUIT_BACKOFF_S,
    CIRCUIT_FAILURES,
    LANE_BYTES,
    LaneState,
)
from tests.pipeline.desk import Desk, target_with


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


async def test_lanes_are_evicted_but_those_with_something_to_send_or_a_rate(desk: Desk) -> None:
    idle, waiting, paused, deleted, paced, queued, sent = (
        desk.lane(max_per_second=rate) for rate in (None, None, None, None, 1.0, None, None)
    )
    desk.publish(waiting)
    desk.fail(desk.take_all()[0], delay_s=30)
    desk.lanes.configure(paused, desk.config(version=2, state=SubscriptionState.PAUSED))
    desk.lanes.deleted(deleted)
    desk.lanes.take_wanted()
    desk.publish(paced)
    desk.succeed(desk.take_all()[0])
    desk.publish(sent)
    desk.take_all()
    desk.publish(queued)

    desk.lanes.shrink_to(0)

    assert set(desk.lanes.all()) == {paced, queued, sent}
    assert idle.is_gone
    desk.turn(31)
    assert desk.lanes.shares.bytes == 2, "only what is queued"


async def test_of_an_open_circuit_its_rest_is_kept_when_its_lane_is_evicted(desk: Desk) -> None:
    """Else a dead target were asked again as often as its lane is found anew."""
    lane = desk.lane(max_in_flight=CIRCUIT_FAILURES)
    uid, bucket = lane.subscription_uid, lane.bucket
    desk.publish(lane, CIRCUIT_FAILURES)
    for job in desk.take_all():
        desk.fail(job)
    desk.lanes.shrink_to(0)
    assert lane.is_gone

    desk.lanes.touch(uid, bucket)
    assert desk.lanes.get(uid) is None, "it is not read while it rests"
    desk.turn(CIRCUIT_BACKOFF_S)
    (again,) = desk.lanes.take_wanted()
    assert again.subscription_uid == uid
    desk.lanes.configure(again, desk.config(failing_since_us=1))
    desk.refill(again, [desk.row(again), desk.row(again)])
    (probe,) = desk.take_all()
    desk.fail(probe)

    assert again.circuit_backoff_s == 2 * CIRCUIT_BACKOFF_S, "and its backoff goes on"


async def test_a_lane_that_was_evicted_with_its_failures_begins_with_one_probe(desk: Desk) -> None:
    lane = desk.dirty_lane()
    desk.lanes.configure(lane, desk.config(failing_since_us=1))
    desk.refill(lane, [desk.row(lane) for _ in range(5)], found_all=False)

    (probe,) = desk.take_all()
    assert desk.take_all() == []
    desk.succeed(probe)

    assert len(desk.take_all()) == 2, "success closes the circuit, and widens what may be sent"
    assert not lane.is_circuit_open


async def test_what_rests_is_woken_by_a_change_and_forgotten_with_its_bucket(desk: Desk) -> None:
    lanes = [desk.lane(max_in_flight=CIRCUIT_FAILURES) for _ in range(2)]
    for lane in lanes:
        desk.publish(lane, CIRCUIT_FAILURES)
        for job in desk.take_all():
            desk.fail(job)
    desk.lanes.shrink_to(0)
    changed, lost = lanes

    desk.lanes.changed(changed.subscription_uid, changed.bucket)
    desk.owned.discard(lost.bucket)
    desk.lanes.buckets_lost([lost.bucket])
    asked: list[object] = []
    desk.lanes.on_foreign = lambda uid, _bucket: asked.append(uid)
    desk.turn(CIRCUIT_BACKOFF_S)

    assert [lane.subscription_uid for lane in desk.lanes.take_wanted()] == [
        changed.subscription_uid
    ]
    assert asked == []


async def test_memory_for_lanes_has_a_bound_in_bytes_and_what_is_left_out_is_found_again() -> None:
    desk = Desk(max_lane_bytes=4 * LANE_BYTES)
    left_out: list[int] = []
    desk.lanes.on_left_out = left_out.append
    idle = [desk.lane() for _ in range(4)]
    large = {f"x-{n}": "v" * 1_000 for n in range(5)}
    assert desk.config(target=target_with(large)).memory_bytes > LANE_BYTES + 5_000

    busy = [desk.lane() for _ in range(2)]
    for lane in busy:
        desk.publish(lane)
    assert len(list(desk.lanes.all())) == 4
    assert sum(lane.is_gone for lane in idle) == 2
    desk.lanes.configure(busy[0], desk.config(version=2, target=target_with(large)))
    assert left_out == []

    uid = desk.new_id()
    desk.lanes.touch(uid, bucket_of(uid))

    assert desk.lanes.get(uid) is None
    assert left_out == [bucket_of(uid)]
    assert not any(lane.is_gone for lane in busy)


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
