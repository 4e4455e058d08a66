"""Refills: due deliveries are read from the hot table into lanes, many lanes in one statement.

A DIRTY lane that may send is read. A lane that is paused, disabled, rate limited or whose circuit
is open is not read at all, so a dead target with a million pending deliveries costs nothing. Lanes
become DIRTY by hand-offs that were dropped, by notifications, and by the sweep (`sweep.py`), which
finds whatever the others missed. Tenants take turns (`refill_queue.py`).

Of an ordered lane, the earliest pending delivery of each key is read, and taken only if it is due.
Keys that may have a new earliest delivery are read by their hashes; a DIRTY lane is also walked
through, a page of keys at a time (`key_order.py`).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from time import perf_counter
from uuid import UUID

import structlog

from hookline_service.domain.ids import EVENT_ID, format_type_id
from hookline_service.pipeline.dispatch.dispatcher import QueueBudget
from hookline_service.pipeline.dispatch.key_order import KeyOrder
from hookline_service.pipeline.dispatch.lane import Lane, LaneState
from hookline_service.pipeline.dispatch.lane_configs import LaneConfigs
from hookline_service.pipeline.dispatch.lanes import Lanes
from hookline_service.store.database import TRANSIENT
from hookline_service.store.lanes import (
    KeyRequest,
    LaneStore,
    PageRequest,
    PendingRow,
    RefillRequest,
)
from hookline_service.targets.payload import Message

_log = structlog.get_logger(__name__)

INTERVAL_S = 1.0
"""How soon a lane is read again for which the budget had no space, or whose read failed."""
LANES_PER_READ = 64
ROWS_PER_READ = 2_000
"""Deliveries that one statement reads for all its lanes."""
CANCEL_BATCH = 500
PAUSE_PER_PAGE = 4
"""A walk that finds nothing takes at most a fifth of the time, however slow its pages are."""
WALK_PAUSE_MAX_S = 1.0


class Refiller:
    """Reads the lanes that the refill queue holds."""

    def __init__(self, store: LaneStore, lanes: Lanes, configs: LaneConfigs) -> None:
        self._store = store
        self._lanes = lanes
        self._queue = lanes.refill_queue
        self._configs = configs
        self._ordered = OrderedReader(store, lanes)
        self._task: asyncio.Task[None] | None = None
        self.is_failing = False
        """Whether the last read failed, and none has succeeded since."""

    def start(self) -> None:
        """Start the task that refills."""
        self._task = asyncio.create_task(self._run(), name="refiller")

    async def stop(self) -> None:
        """Stop it, and close its session."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._store.close()

    async def _run(self) -> None:
        loop, joined = asyncio.get_running_loop(), self._queue.joined
        stalled_at_s = loop.time() + INTERVAL_S
        while True:
            joined.clear()
            if loop.time() >= stalled_at_s:
                stalled_at_s = loop.time() + INTERVAL_S
                self._lanes.queue_stalled()
            try:
                await self.refill()
                self.is_failing = False
            except TRANSIENT as error:
                _log.warning("refill_failed", error=str(error))
                joined.clear()
                self.is_failing = True
            except Exception:  # noqa: BLE001 - logged with its traceback; the next read goes on
                _log.exception("refill_broken")
                joined.clear()
                self.is_failing = True
            try:
                async with asyncio.timeout(max(0.0, stalled_at_s - loop.time())):
                    await joined.wait()
            except TimeoutError:
                continue

    async def refill(self) -> None:
        """Read once for all lanes that are queued now; lanes that join meanwhile wait."""
        if self.is_failing:
            await self._store.ping()  # no lane may be queued: a node without buckets has none
        if unknown := self._queue.take_unknown():
            await self._look_up_tenants(unknown)
        left = len(self._queue)
        while left > 0:
            count = min(left, LANES_PER_READ)
            left -= count
            lanes = self._lanes.take_wanted(count)
            self._queue.begin_read(lanes)
            try:
                await self._refill_some(lanes)
            except BaseException:
                self._lanes.put_back(lanes)
                raise
            finally:
                self._queue.end_read(lanes)

    async def _look_up_tenants(self, lanes: Sequence[Lane]) -> None:
        """Queue lanes again, in the turn of their tenants.

        A lane without a tenant is alone in its turn; its subscription is found to be gone then.
        """
        try:
            tenants = await self._store.tenants([lane.subscription_uid for lane in lanes])
            for lane in lanes:
                lane.assign_tenant(tenants.get(lane.subscription_uid, lane.subscription_uid))
        finally:
            self._lanes.put_back(lanes)

    async def _refill_some(self, lanes: Sequence[Lane]) -> None:
        unknown = [
            lane
            for lane in lanes
            if (lane.config is None or lane.is_outdated or lane.fault) and not lane.is_deleted
        ]
        await self._configs.configure(unknown)
        for lane in lanes:
            if lane.is_deleted:
                await self._cancel_deleted(lane)
        readable = [lane for lane in lanes if lane.sends() and self._lanes.wants_refill(lane)]
        if plain := [lane for lane in readable if lane.order is None]:
            await self._read(plain)
        if ordered := [(lane, lane.order) for lane in readable if lane.order is not None]:
            await self._ordered.read(ordered)

    async def _cancel_deleted(self, lane: Lane) -> None:
        """Cancel a batch of a tombstone's deliveries; the lane joins again where more are left.

        The sweep finds deliveries that are committed later.
        """
        is_last = False
        lane.begin_refill()
        try:
            cancelled = await self._store.cancel_deleted(
                lane.bucket, lane.subscription_uid, CANCEL_BATCH
            )
            is_last = cancelled < CANCEL_BATCH
        finally:
            self._lanes.end_refill(lane, found_all=is_last)

    async def _read(self, lanes: Sequence[Lane]) -> None:
        most = max(1, ROWS_PER_READ // len(lanes))
        requests: list[RefillRequest] = []
        in_memory: list[UUID] = []
        for lane in lanes:
            limit = max(1, min(most, self._lanes.budget.free_jobs(lane)))
            requests.append(
                RefillRequest(lane.bucket, lane.subscription_uid, lane.tenant_uid, limit)
            )
            in_memory += lane.known
            lane.begin_refill()
        complete: set[UUID] = set()
        try:
            complete = await self._take_due(lanes, requests, in_memory)
        finally:
            for lane in lanes:
                self._lanes.end_refill(lane, found_all=lane.subscription_uid in complete)

    async def _take_due(
        self, lanes: Sequence[Lane], requests: Sequence[RefillRequest], in_memory: list[UUID]
    ) -> set[UUID]:
        """Read due deliveries; return the lanes of which memory now holds all of them."""
        rows = await self._store.refill(requests, in_memory)
        found = Counter(row.subscription_uid for row in rows)
        incomplete = await _take_rows(
            self._store,
            self._lanes,
            {lane.subscription_uid: lane for lane in lanes},
            {request.subscription_uid: request.tenant_uid for request in requests},
            rows,
        )
        return {
            request.subscription_uid
            for request in requests
            if found[request.subscription_uid] < request.limit
            and request.subscription_uid not in incomplete
        }


class OrderedReader:
    """Reads ordered lanes, many in one statement."""

    def __init__(self, store: LaneStore, lanes: Lanes) -> None:
        self._store = store
        self._lanes = lanes

    async def read(self, lanes: Sequence[tuple[Lane, KeyOrder]]) -> None:
        """Read the keys that each lane names, and a page of each lane that may be walked."""
        most = max(1, ROWS_PER_READ // len(lanes))
        keys: list[KeyRequest] = []
        pages: list[PageRequest] = []
        reading = _OrderedRead({lane.subscription_uid: (lane, order) for lane, order in lanes})
        for lane, order in lanes:
            ids = (lane.bucket, lane.subscription_uid, lane.tenant_uid)
            limit = max(1, min(most, self._lanes.budget.free_jobs(lane)))
            touched = order.take_touched(limit)
            keys += [KeyRequest(*ids, key_hash) for key_hash in touched]
            if self._lanes.may_walk(lane):
                order.begin_page(is_disturbed=lane.dirty_since_read)
                pages.append(PageRequest(*ids, max(1, limit - len(touched)), order.from_hash))
            elif lane.state is LaneState.DIRTY:
                order.pass_over(is_disturbed=lane.dirty_since_read)
                reading.incomplete.add(lane.subscription_uid)
            lane.begin_refill()
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
                    order.end_page(None)  # the touched keys are lost: all keys are walked
                self._lanes.end_refill(
                    lane,
                    found_all=is_read and uid not in reading.incomplete,
                    walk_pause_s=reading.walk_pause_s if uid in reading.fruitless else 0.0,
                )

    async def _read_keys(self, reading: _OrderedRead, requests: Sequence[KeyRequest]) -> None:
        due = []
        for head in await self._store.first_of_keys(requests):
            lane, _ = reading.lanes[head.row.subscription_uid]
            if head.due_in_s <= 0:
                due.append(head.row)
            else:
                then = self._lanes.next_of_key
                self._lanes.delay_queue.keep_key(lane, head.key_hash, head.due_in_s, then)
        reading.incomplete |= await self._take(reading, requests, due)

    async def _read_pages(self, reading: _OrderedRead, requests: Sequence[PageRequest]) -> None:
        in_memory = [
            (request.subscription_uid, key_hash)
            for request in requests
            for key_hash in reading.lanes[request.subscription_uid][1].busy
        ]
        began_s = perf_counter()
        pages = await self._store.first_of_lanes(requests, in_memory)
        reading.walk_pause_s = min(WALK_PAUSE_MAX_S, PAUSE_PER_PAGE * (perf_counter() - began_s))
        rows = [row for page in pages.values() for row in page.rows]
        incomplete = await self._take(reading, requests, rows)
        for uid, page in pages.items():
            _, order = reading.lanes[uid]
            if uid in incomplete:
                order.miss()
            if not order.end_page(page.next_hash):
                reading.incomplete.add(uid)
            if page.next_hash is not None and not page.rows:
                reading.fruitless.add(uid)

    async def _take(
        self,
        reading: _OrderedRead,
        requests: Sequence[KeyRequest | PageRequest],
        rows: Sequence[PendingRow],
    ) -> set[UUID]:
        tenants = {request.subscription_uid: request.tenant_uid for request in requests}
        return await _take_rows(self._store, self._lanes, reading.lane_of, tenants, rows)


class _OrderedRead:
    """One read of some ordered lanes, and its results, by subscription."""

    def __init__(self, lanes: dict[UUID, tuple[Lane, KeyOrder]]) -> None:
        self.lanes = lanes
        self.lane_of = {uid: lane for uid, (lane, _) in lanes.items()}
        self.incomplete: set[UUID] = set()
        """Lanes that lack due deliveries in memory."""
        self.fruitless: set[UUID] = set()
        """Lanes of which a whole page had no delivery that may be sent."""
        self.walk_pause_s = 0.0
        """How long the walks of the fruitless lanes pause."""


async def _take_rows(
    store: LaneStore,
    lanes: Lanes,
    lane_of: Mapping[UUID, Lane],
    tenant_of: Mapping[UUID, UUID],
    rows: Sequence[PendingRow],
) -> set[UUID]:
    """Queue the rows that fit their lane's budget; return the subscriptions of the others.

    Events that were not read with their rows are read here. The tenants are arguments, since a lane
    may be dropped, with its tenant, during the read.
    """
    kept, incomplete = _within_budget(lanes.budget, lane_of, rows)
    events = {row.event_id: row.event for row in kept if row.event is not None}
    if keys := {
        (tenant_of[row.subscription_uid], row.event_id) for row in kept if row.event is None
    }:
        events |= await store.events(list(keys))
    messages = {
        event_id: Message(event, format_type_id(EVENT_ID, event_id))
        for event_id, event in events.items()
    }
    for row in kept:
        lanes.accept(lane_of[row.subscription_uid], row, messages[row.event_id])
    return incomplete


def _within_budget(
    budget: QueueBudget, lane_of: Mapping[UUID, Lane], rows: Sequence[PendingRow]
) -> tuple[list[PendingRow], set[UUID]]:
    """Return the first rows of each lane that fit, and the subscriptions of the others."""
    kept: list[PendingRow] = []
    incomplete: set[UUID] = set()
    reserved: Counter[UUID] = Counter()
    total = 0
    for row in rows:
        uid = row.subscription_uid
        if uid in incomplete:
            continue
        held_bytes = lane_of[uid].bytes_held + reserved[uid]
        if not budget.allows(held_bytes, row.data_bytes, total):
            incomplete.add(uid)
            continue
        reserved[uid] += row.data_bytes
        total += row.data_bytes
        kept.append(row)
    return kept, incomplete
