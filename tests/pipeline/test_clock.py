"""Database time, as a node knows it; and the clocks that it is made of. Rule 4."""

import pytest

from service.pipeline.clock import MAX_SKEW_S, DatabaseTime, SystemClock
from tests.pipeline.desk import HandClock
from tests.pipeline.rig import Rig


class TwoClocks(HandClock):
    """A boottime and a wall clock that go apart."""

    def __init__(self) -> None:
        super().__init__()
        self.wall = 1_800_000_000.0

    def wall_s(self) -> float:
        return self.wall


def test_the_databases_time_is_learned_from_the_middle_of_the_round_trip() -> None:
    clock = TwoClocks()
    time = DatabaseTime(clock)

    time.learn(1_800_000_100.0, sent_s=clock.now_s - 0.4, received_s=clock.now_s)

    assert time.unix_s() == pytest.approx(1_800_000_100.2)
    clock.now_s += 10
    assert time.unix_s() == pytest.approx(1_800_000_110.2)
    assert time.unix_ms() == pytest.approx(1_800_000_110_200, abs=1)
    assert time.unix_us() == pytest.approx(1_800_000_110_200_000, abs=1_000)


@pytest.mark.parametrize("ahead_s,is_trusted", [(4.9, 1), (-4.9, 1), (5.1, 0), (-6, 0)])
def test_a_node_whose_wall_clock_is_far_off_is_not_trusted(ahead_s: float, is_trusted: int) -> None:
    clock = TwoClocks()
    time = DatabaseTime(clock)

    time.learn(clock.wall - ahead_s, clock.now_s, clock.now_s)

    assert time.is_trusted == is_trusted
    assert time.skew_s == pytest.approx(ahead_s)
    assert MAX_SKEW_S == 5


def test_a_step_of_the_wall_clock_moves_no_instant() -> None:
    clock = TwoClocks()
    time = DatabaseTime(clock)
    time.learn(clock.wall, clock.now_s, clock.now_s)

    clock.wall += 3_600

    assert time.unix_s() == pytest.approx(1_800_000_000.0)


def test_the_machines_clock_counts_a_suspend() -> None:
    clock = SystemClock()

    assert clock.boottime_s() <= clock.boottime_s()
    assert clock.wall_s() > 1_700_000_000


async def test_every_heartbeat_teaches_the_databases_time(
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
