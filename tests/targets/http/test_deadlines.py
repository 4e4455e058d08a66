"""Deadlines: they never expire early, and are spared once when the event loop was late."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from hookline_service.targets.http.connection import Connection
from hookline_service.targets.http.transport import Deadlines

TICK_S = 0.1


class TurnedLoop:
    """An event loop whose clock the test advances; due timers run in order."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return self.now

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        entry = (self.now + delay_s, callback)
        self.timers.append(entry)
        return cast("asyncio.TimerHandle", CancelsEntry(self.timers, entry))

    def turn(self, seconds: float, *, held_up: bool = False) -> None:
        """Advance the clock; a blocked loop runs its timers only afterwards."""
        until = self.now + seconds
        if held_up:
            self.now = until
        while due := [timer for timer in self.timers if timer[0] <= until]:
            timer = min(due)
            self.timers.remove(timer)
            self.now = max(self.now, timer[0])
            timer[1]()
        self.now = until


class CancelsEntry:
    """A handle that cancels a timer of a `TurnedLoop`."""

    def __init__(self, timers: list[tuple[float, Callable[[], None]]], entry: object) -> None:
        self.timers = timers
        self.entry = entry

    def cancel(self) -> None:
        self.timers[:] = [timer for timer in self.timers if timer is not self.entry]


class Expiring:
    """The part of a connection that `Deadlines` uses."""

    watched_slot = 0

    def __init__(self, loop: TurnedLoop) -> None:
        self.loop = loop
        self.expired_at: list[float] = []

    def expire(self) -> None:
        self.expired_at.append(self.loop.now)


def watched(*offsets_s: float) -> tuple[TurnedLoop, Deadlines, list[Expiring]]:
    """Register connections with deadlines this many seconds from now."""
    loop = TurnedLoop()
    deadlines = Deadlines(
        cast("asyncio.AbstractEventLoop", loop), tick_s=TICK_S, on_tick=lambda _: False
    )
    connections = [Expiring(loop) for _ in offsets_s]
    for connection, offset_s in zip(connections, offsets_s, strict=True):
        deadlines.add(cast("Connection", connection), loop.now + offset_s)
    return loop, deadlines, connections


def test_exchange_expires_after_its_deadline_and_within_two_ticks() -> None:
    offsets_s = [0.0, 0.05, 0.1, 0.11, 1.0, 15.0, 29.999]
    loop, _, connections = watched(*offsets_s)
    start = loop.now
    loop.turn(40.0)
    for connection, offset_s in zip(connections, offsets_s, strict=True):
        [expired_at] = connection.expired_at
        assert start + offset_s <= expired_at <= start + offset_s + 2 * TICK_S + 1e-9


def test_ended_exchange_never_expires() -> None:
    loop, deadlines, connections = watched(1.0, 1.0)
    deadlines.discard(cast("Connection", connections[0]))
    loop.turn(5.0)
    assert [len(connection.expired_at) for connection in connections] == [0, 1]


def test_timer_stops_without_exchanges_and_restarts_with_the_next() -> None:
    loop, deadlines, connections = watched(0.5)
    loop.turn(5.0)
    assert loop.timers == []
    deadlines.add(cast("Connection", connections[0]), loop.now + 0.5)
    loop.turn(5.0)
    assert len(connections[0].expired_at) == 2


def test_stopped_timer_expires_no_exchange() -> None:
    loop, deadlines, connections = watched(0.5)
    deadlines.stop()
    loop.turn(5.0)
    assert connections[0].expired_at == []


def test_late_tick_expires_no_exchange() -> None:
    """Responses that arrived during the delay are read before any exchange times out."""
    loop, _, connections = watched(1.0)
    loop.turn(3.0, held_up=True)
    assert connections[0].expired_at == []
    loop.turn(2 * TICK_S)
    assert len(connections[0].expired_at) == 1


def test_second_late_tick_expires_exchanges() -> None:
    loop, _, connections = watched(1.0)
    for _ in range(4):
        loop.turn(3.0, held_up=True)
    assert len(connections[0].expired_at) == 1
