"""Database time as a node measures it, and the clocks behind it. Rule 4."""

import pytest

from hookline_service.pipeline.clock import MAX_SKEW_S, DatabaseTime, SystemClock
from tests.pipeline.lane_harness import ManualClock
from tests.pipeline.rig import Receiver, Rig, order_created
from tests.waiting import until


class TwoClocks(ManualClock):
    """A boottime and a wall clock that are set independently."""

    def __init__(self) -> None:
        super().__init__()
        self.wall = 1_800_000_000.0

    def wall_s(self) -> float:
        return self.wall


def test_database_time_is_measured_at_the_middle_of_the_round_trip() -> None:
    clock = TwoClocks()
    time = DatabaseTime(clock)

    time.measure(1_800_000_100.0, sent_s=clock.now_s - 0.4, received_s=clock.now_s)

    assert time.unix_s() == pytest.approx(1_800_000_100.2)
    clock.now_s += 10
    assert time.unix_s() == pytest.approx(1_800_000_110.2)
    assert time.unix_ms() == pytest.approx(1_800_000_110_200, abs=1)
    assert time.unix_us() == pytest.approx(1_800_000_110_200_000, abs=1_000)


@pytest.mark.parametrize("ahead_s,is_trusted", [(4.9, 1), (-4.9, 1), (5.1, 0), (-6, 0)])
def test_a_wall_clock_with_too_much_skew_is_not_trusted(ahead_s: float, is_trusted: int) -> None:
    clock = TwoClocks()
    time = DatabaseTime(clock)

    time.measure(clock.wall - ahead_s, clock.now_s, clock.now_s)

    assert time.is_trusted == is_trusted
    assert time.skew_s == pytest.approx(ahead_s)
    assert MAX_SKEW_S == 5


def test_a_step_of_the_wall_clock_does_not_change_database_time() -> None:
    clock = TwoClocks()
    time = DatabaseTime(clock)
    time.measure(clock.wall, clock.now_s, clock.now_s)

    clock.wall += 3_600

    assert time.unix_s() == pytest.approx(1_800_000_000.0)


def test_the_system_clock_is_monotonic_and_has_unix_time() -> None:
    clock = SystemClock()

    assert clock.boottime_s() <= clock.boottime_s()
    assert clock.wall_s() > 1_700_000_000


async def test_every_heartbeat_measures_database_time(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rig.turn(3_600)
    row = await rig.database.fetchrow("SELECT extract(epoch FROM hookline_now())::float8 AS now_s")
    assert row is not None
    assert rig.time.unix_s() == pytest.approx(row["now_s"], abs=1)

    wall_s = rig.clock.wall_s
    monkeypatch.setattr(rig.clock, "wall_s", lambda: wall_s() + 60)
    await rig.ownership.heartbeat()
    assert not rig.time.is_trusted
    monkeypatch.undo()
    await rig.ownership.heartbeat()
    assert rig.time.is_trusted


@pytest.mark.parametrize("step_s", [3_600, -3_600])
@pytest.mark.parametrize("is_ordered", [False, True])
async def test_a_step_of_the_wall_clock_loses_doubles_and_delays_no_delivery(
    rig: Rig, receiver: Receiver, step_s: float, *, is_ordered: bool
) -> None:
    """Lease, retries, ids, signatures and history do not depend on the wall clock."""
    await rig.subscription(
        await rig.tenant(), receiver.url, ordered=is_ordered, schedule_s=[0.0, 40.0]
    )
    await rig.publisher.publish("acme", [order_created()])
    await until(lambda: rig.recorder.recorded == 1, "the first is delivered")
    receiver.answers = lambda _: 500 if len(receiver.ids) == 2 else 200

    rig.clock.wall_ahead_s = step_s
    await rig.ownership.heartbeat()
    await rig.publisher.publish("acme", [order_created(2, ordering_key="k")])
    await until(lambda: rig.recorder.recorded == 2, "the second fails")
    await rig.publisher.publish("acme", [order_created(3, ordering_key="k")])
    (row, *_) = await rig.database.fetch(
        "SELECT extract(epoch FROM due_at - hookline_now())::float8 AS in_s"
        " FROM pending_deliveries WHERE attempt_count = 1"
    )
    assert 0 < row["in_s"] <= 40
    await rig.turn(41)
    await until(lambda: rig.recorder.recorded == 4, "both are delivered")

    assert not rig.time.is_trusted, "the skew is reported, and the node goes on"
    assert rig.ownership.may_send()
    assert len(receiver.ids) == 4
    now_s = rig.time.unix_s()
    sent_s = [float(headers["webhook-timestamp"]) for headers, _ in receiver.requests]
    sent_s += [row["start_time"].timestamp() for row in await rig.attempts()]
    assert all(abs(instant_s - now_s) < 300 for instant_s in sent_s)
