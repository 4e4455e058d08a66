"""Ordered lanes with more keys than one statement reads are walked by pages. Rule 17."""

from __future__ import annotations

import pytest

from tests.pipeline.dispatch.ordering import arrivals, keyed
from tests.pipeline.dispatch.test_ordered import ordered, publish, recorded
from tests.pipeline.rig import Receiver, Rig
from tests.waiting import until


def pages_of(keys: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a statement read so many keys of a lane."""
    monkeypatch.setattr("hookline_service.store.lanes.KEYS_PER_PAGE", keys)
    monkeypatch.setattr("hookline_service.store.lanes.KEYS_PER_PAGE_MIN", keys)


async def test_a_lane_with_more_keys_than_a_page_is_walked_by_pages(
    rig: Rig, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most keys wait for a retry; rows of another node are somewhere among them."""
    pages_of(3, monkeypatch)
    await ordered(rig, receiver, schedule_s=[0.0, 3_600.0])
    await rig.matcher.index("acme")
    for five in range(4):  # fewer consecutive failures than open the circuit
        receiver.answers = 500
        await publish(rig, *[keyed(f"k{five}{n}", number) for number in (0, 1) for n in range(5)])
        await recorded(rig, 6 * five + 5)
        receiver.answers = 200
        await publish(rig, keyed("good", five))
        await recorded(rig, 6 * five + 6)
    monkeypatch.setattr(rig.builder, "hand_over", lambda group, _: rig.builder.withdraw(group))

    await publish(rig, *[keyed(f"new{n}", 0) for n in range(10)])

    def is_found() -> bool:
        rig.sweeper.sweep_soon()
        return rig.recorder.recorded == 34

    await until(is_found, "all pages are read")
    assert sorted(arrivals(receiver)[24:]) == [(f"new{n}", 0) for n in range(10)]


async def test_a_walk_continues_without_a_sweep_past_pages_of_waiting_keys(
    rig: Rig, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sweep is enough, however many pages of keys wait for a retry."""
    pages_of(1, monkeypatch)
    await ordered(rig, receiver, schedule_s=[0.0, 3_600.0])
    await rig.matcher.index("acme")
    receiver.answers = 500
    await publish(rig, *[keyed(f"k{n}", 0) for n in range(9)])
    await recorded(rig, 9)
    receiver.answers = 200
    await rig.stop_reading()
    monkeypatch.setattr("hookline_service.pipeline.dispatch.sweep.INTERVAL_S", 3_600.0)
    monkeypatch.setattr(rig.builder, "hand_over", lambda group, _: rig.builder.withdraw(group))
    await publish(rig, *[keyed(f"new{n}", 0) for n in range(9)])

    await rig.sweeper.sweep()
    rig.refiller.start()

    await recorded(rig, 18)
    assert sorted(arrivals(receiver)[9:]) == [(f"new{n}", 0) for n in range(9)]
