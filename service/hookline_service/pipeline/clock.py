"""Time for the data path: durations by this node's clock, instants by the database's.

Ids, due times and history use database time, so that they fall into partitions that exist and nodes
agree. A node measures its offset at every heartbeat; its own clock measures durations only.
"""

from __future__ import annotations

import time
from typing import Protocol

MAX_SKEW_S = 5.0
"""A node whose wall clock differs by more from the database's is not ready."""


class Clock(Protocol):
    """A source of time; tests inject one that they advance."""

    def boottime_s(self) -> float:
        """Return seconds since boot, including time in suspend."""
        ...

    def wall_s(self) -> float:
        """Return Unix seconds by this node."""
        ...


class SystemClock:
    """The clocks of the machine."""

    # CLOCK_BOOTTIME counts during a suspend, as the lease in the database does. macOS has none; its
    # monotonic clock comes closest.
    _boottime = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

    def boottime_s(self) -> float:
        """Return seconds since boot, including time in suspend."""
        return time.clock_gettime(self._boottime)

    def wall_s(self) -> float:
        """Return Unix seconds by this node."""
        return time.time()


class DatabaseTime:
    """The database's clock: its time at the last measurement plus the time passed here since."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._offset_s = clock.wall_s() - clock.boottime_s()
        self.skew_s = 0.0
        """How far this node's wall clock is ahead of the database's, in seconds."""

    def measure(self, database_s: float, sent_s: float, received_s: float) -> None:
        """Set the offset: the database's Unix seconds, and when they were requested and received.

        `sent_s` and `received_s` are boottimes; the database is assumed to have read its clock in
        the middle of the two.
        """
        middle_s = (sent_s + received_s) / 2
        self._offset_s = database_s - middle_s
        self.skew_s = self._clock.wall_s() - self._clock.boottime_s() - self._offset_s

    @property
    def is_trusted(self) -> bool:
        """Whether this node's wall clock differs from the database's by `MAX_SKEW_S` at most."""
        return abs(self.skew_s) <= MAX_SKEW_S

    def unix_s(self) -> float:
        """Return Unix seconds, database time."""
        return self._clock.boottime_s() + self._offset_s

    def unix_us(self) -> int:
        """Return Unix microseconds, database time."""
        return int((self._clock.boottime_s() + self._offset_s) * 1_000_000)

    def unix_ms(self) -> int:
        """Return Unix milliseconds, database time."""
        return int((self._clock.boottime_s() + self._offset_s) * 1_000)
