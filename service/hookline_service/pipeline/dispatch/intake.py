"""How rows that were read come into memory: as many as fit their lane's share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from uuid import UUID

from hookline_service.domain.ids import EVENT_ID, format_type_id
from hookline_service.pipeline.dispatch.lane import Lane, Message
from hookline_service.pipeline.dispatch.lanes import Lanes
from hookline_service.pipeline.dispatch.queue_budget import QueueBudget
from hookline_service.store.lanes import LaneStore, PendingRow

ROWS_PER_READ = 2_000
"""Deliveries that one statement reads for all its lanes."""


class Intake:
    """Takes rows into the lanes."""

    def __init__(self, store: LaneStore, lanes: Lanes) -> None:
        self._store = store
        self._lanes = lanes

    async def take(
        self,
        lane_of: Mapping[UUID, Lane],
        tenant_of: Mapping[UUID, UUID],
        rows: Sequence[PendingRow],
    ) -> set[UUID]:
        """Read the events of what fits, and take it in; the subscriptions of which some did not.

        The tenants are given, not asked of the lanes: a lane may be lost meanwhile.
        """
        kept, left_out = _within(self._lanes.shares, lane_of, rows)
        events = {row.event_id: row.event for row in kept if row.event is not None}
        if keys := {
            (tenant_of[row.subscription_uid], row.event_id) for row in kept if row.event is None
        }:
            events |= await self._store.events(list(keys))
        messages = {
            event_id: Message(event, format_type_id(EVENT_ID, event_id))
            for event_id, event in events.items()
        }
        for row in kept:
            self._lanes.accept(lane_of[row.subscription_uid], row, messages[row.event_id])
        return left_out


def _within(
    shares: QueueBudget, lane_of: Mapping[UUID, Lane], rows: Sequence[PendingRow]
) -> tuple[list[PendingRow], set[UUID]]:
    """The first rows of each lane that fit its share, and the lanes that lack some."""
    kept: list[PendingRow] = []
    left_out: set[UUID] = set()
    coming: Counter[UUID] = Counter()
    total = 0
    for row in rows:
        uid = row.subscription_uid
        if uid in left_out:
            continue
        held = lane_of[uid].bytes_held + coming[uid]
        if not shares.allows(held, row.data_bytes, total):
            left_out.add(uid)
            continue
        coming[uid] += row.data_bytes
        total += row.data_bytes
        kept.append(row)
    return kept, left_out
