"""Idle connections by origin. Decides only: what must be closed is returned to the caller.

Takes the warmest connection of an origin first, so that those not needed grow old and expire. Every
operation is O(1): one ordered dict holds all idle connections by age, one dict per origin the same
by origin. Origins without connections are forgotten, so that neither grows with the number of
targets.
"""

from __future__ import annotations

from collections import OrderedDict

from hookline_service.targets.http.connection import Connection
from hookline_service.targets.http.origin import Origin


class IdlePool:
    """Idle connections, bounded for each origin and in all, and in age."""

    def __init__(self, *, per_origin_max: int, total_max: int, idle_timeout_s: float) -> None:
        self._per_origin_max = per_origin_max
        self._total_max = total_max
        self._idle_timeout_s = idle_timeout_s
        self._by_age: OrderedDict[Connection, None] = OrderedDict()
        self._by_origin: dict[Origin, dict[Connection, None]] = {}

    def __len__(self) -> int:
        return len(self._by_age)

    @property
    def origin_count(self) -> int:
        """Origins that are remembered: those with connections, idle or not."""
        return len(self._by_origin)

    def take(self, origin: Origin) -> Connection | None:
        """The most recently used idle connection of an origin, which is then the caller's."""
        idle = self._by_origin.get(origin)
        if not idle:
            return None
        connection, _ = idle.popitem()
        del self._by_age[connection]
        return connection

    def put(self, connection: Connection, now: float) -> Connection | None:
        """Keep a connection that is free from `now` on; returns the one to close for it, if any."""
        idle = self._by_origin.get(connection.origin)
        if idle is None:
            idle = self._by_origin[connection.origin] = {}
        if len(idle) >= self._per_origin_max:
            return connection
        connection.idle_since = now
        idle[connection] = None
        self._by_age[connection] = None
        return self.oldest() if len(self._by_age) > self._total_max else None

    def oldest(self) -> Connection | None:
        """The connection that has been idle longest, if any; it stays until it is discarded."""
        return next(iter(self._by_age), None)

    def discard(self, connection: Connection) -> None:
        """Forget a connection, idle or not, and its origin with the last of its connections."""
        self._by_age.pop(connection, None)
        idle = self._by_origin.get(connection.origin)
        if idle is not None:
            idle.pop(connection, None)
            if not idle:
                del self._by_origin[connection.origin]

    def expired(self, now: float) -> list[Connection]:
        """The connections that have been idle for too long; they stay until they are discarded."""
        expired = []
        for connection in self._by_age:
            if connection.idle_since + self._idle_timeout_s > now:
                break
            expired.append(connection)
        return expired
