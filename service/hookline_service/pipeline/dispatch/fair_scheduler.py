"""Who is next: lanes take turns within their tenant, and tenants between them.

A tenant stands in the round exactly while one of its lanes does, and a lane at most once; so a
tenant with a thousand busy lanes has one turn in the round, as has a tenant with one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from uuid import UUID

from hookline_service.pipeline.dispatch.lane import Lane


class FairScheduler:
    """The round of lanes that may send."""

    def __init__(self) -> None:
        self._round: deque[UUID] = deque()
        self._lanes: dict[UUID, deque[Lane]] = {}

    def join(self, lane: Lane, tenant_uid: UUID) -> None:
        """Stand behind the tenant's other lanes; no effect where the lane stands already."""
        if lane.has_turn:
            return
        lane.has_turn = True
        lanes = self._lanes.get(tenant_uid)
        if lanes is None:
            lanes = self._lanes[tenant_uid] = deque()
            self._round.append(tenant_uid)
        lanes.append(lane)

    def __bool__(self) -> bool:
        """Whether any lane stands in the round."""
        return bool(self._round)

    def next(self, may_have: Callable[[UUID], bool]) -> Lane | None:
        """The lane whose turn it is; it leaves the round, and joins again where it has more.

        A tenant that may not have its turn now is passed over, and stays in the round.
        """
        for _ in range(len(self._round)):
            tenant_uid = self._round.popleft()
            if may_have(tenant_uid):
                return self._first_of(tenant_uid)
            self._round.append(tenant_uid)
        return None

    def _first_of(self, tenant_uid: UUID) -> Lane:
        lanes = self._lanes[tenant_uid]
        lane = lanes.popleft()
        lane.has_turn = False
        if lanes:
            self._round.append(tenant_uid)
        else:
            del self._lanes[tenant_uid]
        return lane
