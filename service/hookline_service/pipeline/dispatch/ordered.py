"""Refills of ordered lanes: of each key the earliest pending delivery, and only if it is due.

Keys that are known by name are looked at by name; a DIRTY lane is walked through besides, a page at
a time (`key_order.py` says when which). Must not know what a row's key is: it has its hash.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from uuid import UUID

from hookline_service.pipeline.dispatch.intake import ROWS_PER_READ, Intake
from hookline_service.pipeline.dispatch.key_order import KeyOrder
from hookline_service.pipeline.dispatch.lane import Lane, LaneState
from hookline_service.pipeline.dispatch.lanes import Lanes
from hookline_service.store.lanes import KeyWish, LaneStore, PageWish

REST_PER_PAGE = 4
"""A walk that finds nothing takes a fifth of the time at most, however slow its pages are."""
REST_MAX_S = 1.0


class OrderedReader:
    """Reads for ordered lanes, many in one statement."""

    def __init__(self, store: LaneStore, lanes: Lanes, intake: Intake) -> None:
        self._store = store
        self._lanes = lanes
        self._intake = intake

    async def read(self, lanes: Sequence[tuple[Lane, KeyOrder]]) -> None:
        """Look at what each lane wants looked at."""
        most = max(1, ROWS_PER_READ // len(lanes))
        keys: list[KeyWish] = []
        pages: list[PageWish] = []
        reading = _Reading({lane.subscription_uid: (lane, order) for lane, order in lanes})
        for lane, order in lanes:
            place = (lane.bucket, lane.subscription_uid, lane.tenant_uid)
            wanted = max(1, min(most, self._lanes.shares.room(lane)))
            touched = order.take_touched(wanted)
            keys += [KeyWish(*place, key_hash) for key_hash in touched]
            if self._lanes.may_walk(lane):
                order.begin_page(is_disturbed=lane.dirty_since_read)
                pages.append(PageWish(*place, max(1, wanted - len(touched)), order.from_hash))
            elif lane.state is LaneState.DIRTY:
                order.pass_over(is_disturbed=lane.dirty_since_read)
                reading.unfinished.add(lane.subscription_uid)
            self._lanes.begin_refill(lane)
        is_read = False
        try:
            if keys:
                await self._read_keys(reading, keys)
            if pages:
                await self._read_pages(reading, pages)
            is_read = True
        finally:
            for lane, order in lanes:
                uid = lane.subscription_uid
                if not is_read:
                    order.end_page(None)  # what was touched is forgotten: all of it is walked
                found_all = is_read and uid not in reading.unfinished
                rests_s = reading.rests_s if uid in reading.fruitless else 0.0
                self._lanes.end_refill(lane, found_all=found_all, rests_s=rests_s)

    async def _read_keys(self, reading: _Reading, wishes: Sequence[KeyWish]) -> None:
        due = []
        for head in await self._store.first_of_keys(wishes):
            lane, _ = reading.lanes[head.row.subscription_uid]
            if head.due_in_s <= 0:
                due.append(head.row)
            else:
                then = self._lanes.next_of_key
                self._lanes.waiting.keep_key(lane, head.key_hash, head.due_in_s, then)
        reading.unfinished |= await self._intake.take(reading.lane_of, _tenants_of(wishes), due)

    async def _read_pages(self, reading: _Reading, wishes: Sequence[PageWish]) -> None:
        in_memory = [
            (wish.subscription_uid, key_hash)
            for wish in wishes
            for key_hash in reading.lanes[wish.subscription_uid][1].busy
        ]
        began_s = perf_counter()
        pages = await self._store.first_of_lanes(wishes, in_memory)
        reading.rests_s = min(REST_MAX_S, REST_PER_PAGE * (perf_counter() - began_s))
        rows = [row for page in pages.values() for row in page.rows]
        left_out = await self._intake.take(reading.lane_of, _tenants_of(wishes), rows)
        for uid, page in pages.items():
            _, order = reading.lanes[uid]
            order.is_missed = order.is_missed or uid in left_out
            if not order.end_page(page.next_hash):
                reading.unfinished.add(uid)
            if page.next_hash is not None and not page.rows:
                reading.fruitless.add(uid)


class _Reading:
    """One read of some lanes, and what it comes to."""

    def __init__(self, lanes: dict[UUID, tuple[Lane, KeyOrder]]) -> None:
        self.lanes = lanes
        self.lane_of = {uid: lane for uid, (lane, _) in lanes.items()}
        self.unfinished: set[UUID] = set()
        """Of these memory lacks something that is due."""
        self.fruitless: set[UUID] = set()
        """Of these nothing of a whole page can be sent."""
        self.rests_s = 0.0
        """How long their walks rest before the next one."""


def _tenants_of(wishes: Sequence[KeyWish | PageWish]) -> dict[UUID, UUID]:
    return {wish.subscription_uid: wish.tenant_uid for wish in wishes}
