"""Calls that wait to be stored: how many may, and whose turn it is.

Theory of operation. Calls of one tenant go in the order in which they came. Tenants share what is
stored by what their calls cost (start-time fair queueing, Goyal, Vin and Cheng, 1996): each line
has a tag, the line with the smallest goes next, and what it takes is added to its tag. A line that
begins anew begins at the tag that was served last, so who asks for little is served at once,
however much others have queued; a line that runs empty keeps its tag until its turn would come.

A tenant may queue `SHARE` times as much as is left free (the dynamic threshold of Choudhury and
Hahne, 1998): alone it has four fifths of the queue, and the more tenants fill it, the less each may
have; something is always left for one more.
"""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush, heapreplace
from typing import TYPE_CHECKING

from service.domain.errors import Reason, ResourceExhaustedError

if TYPE_CHECKING:
    from service.domain.limits import Limits
    from service.pipeline.group import PublishCall

SHARE = 4
_ADVICE_S = 0.5
_BYTES_PER_ROW = 1_024


class _Line:
    """The calls of one tenant."""

    __slots__ = ("calls", "data_bytes", "events", "tenant_id")

    def __init__(self, tenant_id: str) -> None:
        self.tenant_id = tenant_id
        self.calls: deque[PublishCall] = deque()
        self.events = 0
        self.data_bytes = 0


class PublishQueue:
    """One line a tenant, and those that go before all: they had their turn already."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._again: deque[PublishCall] = deque()
        self._lines: dict[str, _Line] = {}
        self._round: list[tuple[int, int, _Line]] = []
        """A heap of each line once, by its tag; of equal tags the older goes first."""
        self._served_tag = 0
        self._joined = 0
        self.calls = 0
        self.events = 0
        self.data_bytes = 0

    def admit(self, tenant_id: str, events: int, data_bytes: int) -> None:
        """Raise `ResourceExhaustedError` where a call of this size may not be queued."""
        limits = self._limits
        free_events = limits.max_queued_publish_events - self.events
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
        """Queue a call behind all others of its tenant's."""
        tenant_id = call.index.tenant_id
        line = self._lines.get(tenant_id)
        if line is None:
            line = self._lines[tenant_id] = _Line(tenant_id)
            self._joined += 1
            heappush(self._round, (self._served_tag, self._joined, line))
        line.calls.append(call)
        line.events += len(call.events)
        line.data_bytes += call.data_bytes
        self._count(call, 1)

    def put_back(self, call: PublishCall) -> None:
        """Queue a call that had its turn before everybody's, those put back before it too."""
        self._again.appendleft(call)
        self._count(call, 1)

    def first(self) -> PublishCall | None:
        """Whose turn it is; the call stays where it is."""
        if self._again:
            return self._again[0]
        while self._round:
            line = self._round[0][2]
            if line.calls:
                return line.calls[0]
            heappop(self._round)
            del self._lines[line.tenant_id]
        return None

    def take(self) -> PublishCall:
        """The call that `first` showed; it leaves the queue."""
        if self._again:
            call = self._again.popleft()
        else:
            tag, number, line = self._round[0]
            call = line.calls.popleft()
            line.events -= len(call.events)
            line.data_bytes -= call.data_bytes
            self._served_tag = tag
            heapreplace(self._round, (tag + _cost_of(call), number, line))
        self._count(call, -1)
        return call

    def _count(self, call: PublishCall, sign: int) -> None:
        self.calls += sign
        self.events += sign * len(call.events)
        self.data_bytes += sign * call.data_bytes


def _cost_of(call: PublishCall) -> int:
    """About the rows that it writes; bytes count as the rows that they would fill."""
    return len(call.events) + call.fan_out + call.data_bytes // _BYTES_PER_ROW


def _overloaded(setting: str, what: str) -> ResourceExhaustedError:
    return ResourceExhaustedError(
        f"{what} to be stored ({setting}); nothing was stored, come back later",
        Reason.OVERLOADED,
        metadata={"limit": setting},
        retry_after_s=_ADVICE_S,
    )
