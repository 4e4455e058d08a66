"""Timers: due actions run in order, on a manual clock or by the event loop."""

import asyncio

from hookline_service.pipeline.clock import SystemClock
from hookline_service.pipeline.timers import Timers
from tests.pipeline.lane_harness import ManualClock
from tests.waiting import PATIENCE_S


async def test_due_actions_run_in_order_of_time() -> None:
    clock, ran = ManualClock(), list[str]()
    timers = Timers(clock)
    timers.add(clock.now_s + 3, lambda: ran.append("third"))
    timers.add(clock.now_s + 1, lambda: ran.append("first"))
    timers.add(clock.now_s + 1, lambda: ran.append("second"))
    timers.add(clock.now_s + 9, lambda: ran.append("later"))

    clock.now_s += 3
    timers.poke()

    assert ran == ["first", "second", "third"]
    assert len(timers) == 1
    timers.clear()


async def test_the_event_loop_runs_the_earliest_action() -> None:
    clock, woken = SystemClock(), asyncio.Event()
    timers = Timers(clock)
    timers.add(clock.boottime_s() + 60, lambda: None)
    timers.add(clock.boottime_s() + 0.01, woken.set)

    async with asyncio.timeout(PATIENCE_S):
        await woken.wait()

    timers.clear()


async def test_an_action_may_add_another() -> None:
    clock, ran = ManualClock(), list[int]()
    timers = Timers(clock)

    def again() -> None:
        ran.append(len(ran))
        if len(ran) < 3:
            timers.add(clock.now_s, again)

    timers.add(clock.now_s, again)
    timers.poke()

    assert ran == [0, 1, 2]


async def test_a_failed_action_does_not_stop_later_ones() -> None:
    clock, woken, failed = SystemClock(), asyncio.Event(), asyncio.Event()
    timers = Timers(clock)

    def fail() -> None:
        raise ZeroDivisionError

    asyncio.get_running_loop().set_exception_handler(lambda *_: failed.set())
    timers.add(clock.boottime_s(), fail)
    async with asyncio.timeout(PATIENCE_S):
        await failed.wait()

    timers.add(clock.boottime_s() + 0.01, woken.set)

    async with asyncio.timeout(PATIENCE_S):
        await woken.wait()


async def test_cleared_timers_do_not_run() -> None:
    clock, ran = ManualClock(), list[str]()
    timers = Timers(clock)
    timers.add(clock.now_s, lambda: ran.append("x"))

    timers.clear()
    timers.poke()

    assert ran == []
