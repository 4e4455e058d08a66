"""The lanes that wait to be read from the hot table; tenants take turns.

A tenant with thirty thousand lanes that all became due at once has one turn in the round, as has a
tenant with one. Of a lane that another node's notification named the tenant is not known: it is
looked up before the lane takes its turn.
"""

from __future__ import annotations

from collections import deque
from uuid import UUID

from hookline_service.pipeline.dispatch.lane import UNKNOWN_TENANT, Lane

TENANT_SHARE = 4
"""A tenant may have so many times what is free of the places for new lanes (ADR 10)."""


class RefillQueue:
    """A round of tenants, and the lanes of each in the order in which they came."""

    def __init__(self, max_new: int) -> None:
        """`max_new`: no lane is created to wait behind so many others."""
        self._max_new = max_new
        self._round: deque[UUID] = deque()
        self._lanes: dict[UUID, deque[Lane]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def is_low(self) -> bool:
        """Whether there is room for what a walk through many lanes may find."""
        return self._count <= self._max_new // 2

    def allows(self, tenant_uid: UUID) -> bool:
        """Whether one more lane of a tenant may be created to wait here."""
        lanes = self._lanes.get(tenant_uid, ())
        return len(lanes) < TENANT_SHARE * (self._max_new - self._count)

    def join(self, lane: Lane) -> bool:
        """Put a lane behind the others of its tenant; False where it waits already."""
        if lane.waits_for_refill:
            return False
        lane.waits_for_refill = True
        tenant_uid = lane.tenant_uid
        lanes = self._lanes.get(tenant_uid)
        if lanes is None:
            lanes = self._lanes[tenant_uid] = deque()
            self._round.append(tenant_uid)
        lanes.append(lane)
        self._count += 1
        return True

    def take_unknown(self) -> list[Lane]:
        """Take all lanes of which the tenant is not known."""
        lanes = self._lanes.pop(UNKNOWN_TENANT, None)
        if lanes is None:
            return []
        self._round.remove(UNKNOWN_TENANT)
        self._count -= len(lanes)
        for lane in lanes:
            lane.waits_for_refill = False
        return list(lanes)

    def take(self, most: int) -> list[Lane]:
        """Take up to so many lanes, one of each tenant in turn."""
        taken: list[Lane] = []
        while self._round and len(taken) < most:
            tenant_uid = self._round.popleft()
            lanes = self._lanes[tenant_uid]
            lane = lanes.popleft()
            lane.waits_for_refill = False
            taken.append(lane)
            if lanes:
                self._round.append(tenant_uid)
            else:
                del self._lanes[tenant_uid]
        self._count -= len(taken)
        return taken
