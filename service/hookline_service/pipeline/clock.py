"""Time for the data path: durations by this node's clock, instants by the database's.

Ids, due times and history use database time, so that they fall into partitions that exist and nodes
agree. A node learns its offset at every heartbeat; its own clock measures durations only.
"""

from __future__ import annotations

import time
from typing import Protocol

MAX_SKEW_S = 5.0
"""Beyond this, this node's wall clock is no good to anyone, and the node is not ready."""


class Clock(Protocol):
    """What is injected: tests turn it."""

    def boottime_s(self) -> float:
        """Seconds that also count while the machine sleeps."""
        ...

    def wall_s(self) -> float:
        """Unix seconds by this node."""
        ...


class SystemClock:
    """The machine's clocks."""

    # CLOCK_BOOTTIME counts through a suspend, as the lease at the database does; macOS's monotonic
    # clock is the nearest thing there.
    _boottime = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

    def boottime_s(self) -> float:
        """Seconds that also count while the machine sleeps."""
        return time.clock_gettime(self._boottime)

    def wall_s(self) -> float:
        """Unix seconds by this node."""
        return time.time()


class DatabaseTime:
    """The database's clock, as last learned plus what has passed here since."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._offset_s = clock.wall_s() - clock.boottime_s()
        self.skew_s = 0.0
        """How far this node's wall clock is ahead of the database's, in seconds."""

    def learn(self, database_s: float, sent_s: float, received_s: float) -> None:
        """Take the database's Unix seconds, asked for and answered at these boottimes."""
        middle_s = (sent_s + received_s) / 2
        self._offset_s = database_s - middle_s
        self.skew_s = self._clock.wall_s() - self._clock.boottime_s() - self._offset_s

    @property
    def is_trusted(self) -> bool:
        """Whether this node's wall clock is near enough the database's."""
        return abs(self.skew_s) <= MAX_SKEW_S

    def unix_s(self) -> float:
        """Unix seconds, database time."""
        return self._clock.boottime_s() + self._offset_s

    def unix_us(self) -> int:
        """Unix microseconds, database time."""
        return int((self._clock.boottime_s() + self._offset_s) * 1_000_000)

    def unix_ms(self) -> int:
        """Unix milliseconds, database time."""
        return int((self._clock.boottime_s() + self._offset_s) * 1_000)
