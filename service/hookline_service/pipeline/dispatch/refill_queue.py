"""The queue of lanes that are to be read from the hot table; tenants take turns.

A tenant with thirty thousand lanes that came due together gets one turn in a round, like a tenant
with one. The tenant of a lane that another node's notification created is unknown: it is looked up
before the lane takes its turn.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from uuid import UUID

from hookline_service.pipeline.dispatch.lane import LANE_BYTES, UNKNOWN_TENANT, Lane

TENANT_SHARE = 4
"""A tenant may queue this many times the free places for new lanes (ADR 10)."""


class RefillQueue:
    """A round of tenants, and the lanes of each in the order in which they came."""

    def __init__(self, max_lane_bytes: int) -> None:
        """`max_lane_bytes`: memory that all lanes may take; queued new lanes take half of it."""
        self._max_new = max(1, max_lane_bytes // (2 * LANE_BYTES))
        self._round: deque[UUID] = deque()
        self._lanes: dict[UUID, deque[Lane]] = {}
        self._queued: set[Lane] = set()
        self._reading: set[Lane] = set()
        """Lanes that were taken and are being read."""
        self.joined = asyncio.Event()
        """Set when a lane joins; the refiller clears it."""

    def __len__(self) -> int:
        return len(self._queued)

    def __contains__(self, lane: Lane) -> bool:
        """Whether a lane is queued or being read."""
        return lane in self._queued or lane in self._reading

    @property
    def is_low(self) -> bool:
        """Whether there are places for what a walk through many lanes may find."""
        return len(self._queued) <= self._max_new // 2

    def allows(self, tenant_uid: UUID) -> bool:
        """Whether one more lane of a tenant may be created and queued."""
        lanes = self._lanes.get(tenant_uid, ())
        return len(lanes) < TENANT_SHARE * (self._max_new - len(self._queued))

    def join(self, lane: Lane) -> None:
        """Queue a lane behind the others of its tenant.

        No effect where it is queued already, memory dropped it, or it needs no reading.
        """
        if not lane.needs_reading() or lane.is_gone or lane in self._queued:
            return
        self._queued.add(lane)
        lanes = self._lanes.get(lane.tenant_uid)
        if lanes is None:
            lanes = self._lanes[lane.tenant_uid] = deque()
            self._round.append(lane.tenant_uid)
        lanes.append(lane)
        self.joined.set()

    def take_unknown(self) -> list[Lane]:
        """Take all lanes whose tenant is unknown."""
        lanes = self._lanes.pop(UNKNOWN_TENANT, None)
        if lanes is None:
            return []
        self._round.remove(UNKNOWN_TENANT)
        self._queued.difference_update(lanes)
        return list(lanes)

    def take(self, most: int) -> list[Lane]:
        """Take up to `most` lanes, one of each tenant in turn."""
        taken: list[Lane] = []
        while self._round and len(taken) < most:
            tenant_uid = self._round.popleft()
            lanes = self._lanes[tenant_uid]
            taken.append(lanes.popleft())
            if lanes:
                self._round.append(tenant_uid)
            else:
                del self._lanes[tenant_uid]
        self._queued.difference_update(taken)
        return taken

    def begin_read(self, lanes: Iterable[Lane]) -> None:
        """Keep lanes that were taken from being evicted while they are read."""
        self._reading.update(lanes)

    def end_read(self, lanes: Iterable[Lane]) -> None:
        """End that, whether the read succeeded or not."""
        self._reading.difference_update(lanes)
