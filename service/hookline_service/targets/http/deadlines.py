"""The deadlines of all exchanges of a transport, kept by one timer instead of one for each request.

Theory. Time is cut into ticks; a connection waits in the slot of the first tick after its deadline,
so it expires never early and, on an idle loop, at most two ticks late. Adding and removing are a
dict and a set operation. The timer runs only while there is something to wait for.

A tick that comes late tells that the loop was held up (or the process frozen), and answers may lie
unread in the sockets. It expires nothing; the next one does, late or not, after they have been
read: a stall of ours must not look like a silent target.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from hookline_service.targets.http.connection import Connection


class Deadlines:
    """Connections by deadline; calls `expire` on those whose deadline has passed."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        tick_s: float,
        on_tick: Callable[[float], bool],
    ) -> None:
        """`on_tick` gets the loop's time at each tick; the timer goes on while it returns True."""
        self._loop = loop
        self._tick_s = tick_s
        self._on_tick = on_tick
        self._slots: dict[int, set[Connection]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._expected_at = 0.0
        self._spared_last = False

    def add(self, connection: Connection, deadline: float) -> None:
        """Expire the connection once the loop's clock has passed `deadline`."""
        number = int(deadline / self._tick_s) + 1
        connection.watched_slot = number
        slot = self._slots.get(number)
        if slot is None:
            slot = self._slots[number] = set()
            self.wake()
        slot.add(connection)

    def discard(self, connection: Connection) -> None:
        """The connection's exchange is over."""
        slot = self._slots.get(connection.watched_slot)
        if slot is not None:
            slot.discard(connection)

    def wake(self) -> None:
        """Start the timer, if it does not run."""
        if self._timer is None:
            self._expected_at = self._loop.time() + self._tick_s
            self._timer = self._loop.call_later(self._tick_s, self._tick)

    def stop(self) -> None:
        """Stop the timer for good."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self) -> None:
        now = self._loop.time()
        is_late = now > self._expected_at + self._tick_s
        self._spared_last = is_late and not self._spared_last
        self._timer = None
        if not self._spared_last:
            current = int(now / self._tick_s)
            for number in [number for number in self._slots if number <= current]:
                for connection in tuple(self._slots.pop(number)):
                    connection.expire()
        if self._on_tick(now) or self._slots:
            self.wake()
