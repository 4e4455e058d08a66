"""Timers: everything on a node that waits for a time within the next minute."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from itertools import count

from hookline_service.pipeline.clock import Clock


class Timers:
    """A heap of actions by time, and one timer of the event loop for the earliest.

    Callers bound its size: each lane has a quota. Where a test advances the clock, `poke` runs what
    is due.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._handle: asyncio.TimerHandle | None = None
        self._armed_for_s = 0.0

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, at_s: float, action: Callable[[], None]) -> None:
        """Call `action` once the clock's boottime reaches `at_s`."""
        heapq.heappush(self._heap, (at_s, next(self._order), action))
        if self._handle is None or at_s < self._armed_for_s:
            self._arm()

    def poke(self) -> None:
        """Run the actions that are due."""
        now_s = self._clock.boottime_s()
        try:
            while self._heap and self._heap[0][0] <= now_s:
                heapq.heappop(self._heap)[2]()
        finally:
            self._arm()  # an action that fails does not stop the others

    def clear(self) -> None:
        """Drop all actions."""
        self._heap.clear()
        self._arm()

    def _arm(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        if self._heap:
            self._armed_for_s = self._heap[0][0]
            delay_s = max(0.0, self._armed_for_s - self._clock.boottime_s())
            self._handle = asyncio.get_running_loop().call_later(delay_s, self.poke)
