"""The queue of publish calls that wait to be stored: its bounds, and the order between tenants.

Theory of operation. Calls of one tenant are stored in the order in which they were queued. Tenants
share the group commit by the cost of their calls (start-time fair queueing, Goyal, Vin and Cheng,
1996): each line has a tag, the line with the smallest tag is served next, and the cost of the call
is added to its tag. A new line begins at the tag that was served last, so a tenant with few calls
is served at once, however many calls others have queued. A line that is empty keeps its tag until
its turn would come.

A tenant with rows that another transaction has locked is set apart: its line has no turn in the
group commit. `contended.py` serves such lines, one at a time, until the tenant rejoins.

A tenant may queue `SHARE` times as much as is left free (the dynamic threshold of Choudhury and
Hahne, 1998): alone it has four fifths of the queue, and the more tenants fill it, the less each may
have; something is always left for one more.
"""

from __future__ import annotations

import asyncio
from collections import deque
from heapq import heapify, heappop, heappush, heapreplace

from hookline_service.domain.errors import Reason, ResourceExhaustedError
from hookline_service.domain.limits import Limits
from hookline_service.pipeline.publishing.group import PublishCall

SHARE = 4
_ADVICE_S = 0.5
_BYTES_PER_ROW = 1_024


class _Line:
    """The calls of one tenant."""

    __slots__ = ("apart_since_s", "calls", "data_bytes", "events", "tenant_id")

    def __init__(self, tenant_id: str) -> None:
        self.tenant_id = tenant_id
        self.calls: deque[PublishCall] = deque()
        self.events = 0
        self.data_bytes = 0
        self.apart_since_s: float | None = None
        """When it was set apart, monotonic; None: it has turns in the group commit."""


class PublishQueue:
    """One line for each tenant. Calls that are put back are served before all others."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._lines: dict[str, _Line] = {}
        self._returned: deque[_Line] = deque()
        """The line of each call that was put back, in the order in which they are served."""
        self._round: list[tuple[int, int, _Line]] = []
        """A heap of the lines with turns, each once, by tag; of equal tags the older goes first."""
        self._served_tag = 0
        self._joined = 0
        self._apart_events = 0
        self._apart_turns: dict[str, None] = {}
        """The tenants set apart that have calls, in the order of their turns."""
        self.has_apart = asyncio.Event()
        """Set when a tenant that is set apart may have calls."""
        self.calls = 0
        """The calls that have turns: without those of tenants set apart."""
        self.events = 0
        """The events of these."""
        self.data_bytes = 0
        """The bytes of all calls."""

    def admit(self, tenant_id: str, events: int, data_bytes: int) -> None:
        """Raise `ResourceExhaustedError` if a call of this size may not be queued."""
        limits = self._limits
        free_events = limits.max_queued_publish_events - self.events - self._apart_events
        free_bytes = limits.max_queued_publish_bytes - self.data_bytes
        if events > free_events:
            raise _overloaded("HOOKLINE_MAX_QUEUED_PUBLISH_EVENTS", "too many events wait")
        if data_bytes > free_bytes:
            raise _overloaded("HOOKLINE_MAX_QUEUED_PUBLISH_BYTES", "too many bytes wait")
        line = self._lines.get(tenant_id)
        if line is None or not line.calls:
            return
        if line.events + events > SHARE * free_events:
            setting = "HOOKLINE_MAX_QUEUED_PUBLISH_EVENTS"
            raise _overloaded(setting, "too many events of this tenant's wait")
        if line.data_bytes + data_bytes > SHARE * free_bytes:
            setting = "HOOKLINE_MAX_QUEUED_PUBLISH_BYTES"
            raise _overloaded(setting, "too many bytes of this tenant's wait")

    def append(self, call: PublishCall) -> None:
        """Queue a call behind all others of its tenant."""
        line = self._line_of(call.index.tenant_id)
        line.calls.append(call)
        self._count(line, call, 1)

    def put_back(self, call: PublishCall) -> None:
        """Queue a call that had its turn before all others, also before those put back earlier."""
        line = self._line_of(call.index.tenant_id)
        line.calls.appendleft(call)
        self._count(line, call, 1)
        if line.apart_since_s is None:
            self._returned.appendleft(line)

    def first(self) -> PublishCall | None:
        """Return the call to serve next, which stays in the queue."""
        if self._returned:
            return self._returned[0].calls[0]
        while self._round:
            line = self._round[0][2]
            if line.calls and line.apart_since_s is None:
                return line.calls[0]
            heappop(self._round)
            if line.apart_since_s is None:
                del self._lines[line.tenant_id]
        return None

    def take(self) -> PublishCall:
        """Remove and return the call that `first` returned."""
        if self._returned:
            line = self._returned.popleft()
            call = line.calls.popleft()
        else:
            tag, number, line = self._round[0]
            call = line.calls.popleft()
            self._served_tag = tag
            heapreplace(self._round, (tag + _cost_of(call), number, line))
        self._count(line, call, -1)
        return call

    # ------------------------------------------------------------------------- tenants set apart

    def set_apart(self, tenant_id: str, now_s: float) -> None:
        """Exclude a tenant's calls from the group commit, until `rejoin`."""
        line = self._line_of(tenant_id)
        if line.apart_since_s is not None:
            return
        self._returned = deque([other for other in self._returned if other is not line])
        self.calls -= len(line.calls)
        self.events -= line.events
        self._apart_events += line.events
        line.apart_since_s = now_s
        if line.calls:
            self._add_turn(tenant_id)

    def rejoin(self, tenant_id: str) -> None:
        """Let a tenant's calls take part in the group commit again."""
        line = self._lines[tenant_id]
        self._apart_turns.pop(tenant_id, None)
        line.apart_since_s = None
        self.calls += len(line.calls)
        self.events += line.events
        self._apart_events -= line.events
        self._round = [entry for entry in self._round if entry[2] is not line]
        heapify(self._round)
        self._join(line)

    @property
    def apart_count(self) -> int:
        """The number of tenants set apart that wait for a turn."""
        return len(self._apart_turns)

    def tenants_apart(self) -> list[str]:
        """Return the tenants that are set apart."""
        return [one.tenant_id for one in self._lines.values() if one.apart_since_s is not None]

    def next_apart(self) -> str | None:
        """Return the tenant set apart that has the next turn; None: none has calls.

        It has no further turn until a call of it is queued or put back.
        """
        while self._apart_turns:
            tenant_id = next(iter(self._apart_turns))
            del self._apart_turns[tenant_id]
            if self._lines[tenant_id].calls:
                return tenant_id
        return None

    def first_apart(self, tenant_id: str) -> PublishCall | None:
        """Return the first call of a tenant that is set apart, which stays in the queue."""
        calls = self._lines[tenant_id].calls
        return calls[0] if calls else None

    def take_apart(self, tenant_id: str) -> PublishCall:
        """Remove and return the call that `first_apart` returned."""
        line = self._lines[tenant_id]
        call = line.calls.popleft()
        self._count(line, call, -1)
        return call

    def take_lost(self, tenant_id: str) -> list[PublishCall]:
        """Remove and return the calls with a lost write of a tenant set apart.

        They stand first in its line.
        """
        calls: list[PublishCall] = []
        while (call := self.first_apart(tenant_id)) is not None and call.lost is not None:
            calls.append(self.take_apart(tenant_id))
        return calls

    def apart_since_s(self, tenant_id: str) -> float | None:
        """Return when a tenant was set apart, monotonic; None: it is not."""
        line = self._lines.get(tenant_id)
        return None if line is None else line.apart_since_s

    # ----------------------------------------------------------------------------------- internals

    def _line_of(self, tenant_id: str) -> _Line:
        line = self._lines.get(tenant_id)
        if line is None:
            line = self._lines[tenant_id] = _Line(tenant_id)
            self._join(line)
        return line

    def _join(self, line: _Line) -> None:
        self._joined += 1
        heappush(self._round, (self._served_tag, self._joined, line))

    def _count(self, line: _Line, call: PublishCall, sign: int) -> None:
        events = sign * len(call.events)
        line.events += events
        line.data_bytes += sign * call.data_bytes
        self.data_bytes += sign * call.data_bytes
        if line.apart_since_s is None:
            self.calls += sign
            self.events += events
            return
        self._apart_events += events
        if sign > 0:
            self._add_turn(line.tenant_id)

    def _add_turn(self, tenant_id: str) -> None:
        self._apart_turns[tenant_id] = None
        self.has_apart.set()


def _cost_of(call: PublishCall) -> int:
    """Estimate the rows that a call writes; bytes count as the rows that they would fill."""
    return len(call.events) + call.fan_out + call.data_bytes // _BYTES_PER_ROW


def _overloaded(setting: str, what: str) -> ResourceExhaustedError:
    return ResourceExhaustedError(
        f"{what} to be stored ({setting}); nothing was stored, repeat the call later",
        Reason.OVERLOADED,
        metadata={"limit": setting},
        retry_after_s=_ADVICE_S,
    )
