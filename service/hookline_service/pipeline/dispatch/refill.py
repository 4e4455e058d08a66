"""Refills: lanes are read from the hot table, many in one statement; tenants take turns.

A DIRTY lane that can send is read; one that is paused, disabled, limited or open-circuited is not
read at all, so a dead target with a million pending costs nothing. Which lanes are DIRTY is told by
hand-offs, notifications and, whatever of these was lost, by the sweep (`sweep.py`).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from uuid import UUID

import structlog

from hookline_service.pipeline.dispatch.intake import ROWS_PER_READ, Intake
from hookline_service.pipeline.dispatch.lane import Lane
from hookline_service.pipeline.dispatch.lane_configs import LaneConfigs
from hookline_service.pipeline.dispatch.lanes import Lanes
from hookline_service.pipeline.dispatch.ordered import OrderedReader
from hookline_service.store.database import TRANSIENT
from hookline_service.store.lanes import LaneStore, RefillWish

_log = structlog.get_logger(__name__)

INTERVAL_S = 1.0
"""How soon a lane is looked at again for which there was no room, or whose read failed."""
LANES_PER_READ = 64
CANCEL_BATCH = 500


class Refiller:
    """Keeps memory a true cache of what is due."""

    def __init__(self, store: LaneStore, lanes: Lanes, configs: LaneConfigs) -> None:
        self._store = store
        self._lanes = lanes
        self._configs = configs
        self._shares = lanes.shares
        self._intake = Intake(store, lanes)
        self._ordered = OrderedReader(store, lanes, self._intake)
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.is_failing = False
        """Whether the last read failed, and none has succeeded since."""
        lanes.on_wanted = self._wake.set

    def start(self) -> None:
        """Begin to refill."""
        self._task = asyncio.create_task(self._run(), name="refiller")

    async def stop(self) -> None:
        """End; what memory lacks, Postgres has."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._store.close()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        look_at_s = loop.time() + INTERVAL_S
        while True:
            self._wake.clear()
            if loop.time() >= look_at_s:
                look_at_s = loop.time() + INTERVAL_S
                self._lanes.want_stalled()
            try:
                await self.refill()
                self.is_failing = False
            except TRANSIENT as error:
                _log.warning("refill_failed", error=str(error))
                self._wake.clear()
                self.is_failing = True
            except Exception:  # noqa: BLE001 - logged whole; the next turn goes on
                _log.exception("refill_broken")
                self._wake.clear()
                self.is_failing = True
            try:
                async with asyncio.timeout(max(0.0, look_at_s - loop.time())):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def refill(self) -> None:
        """Read once for all lanes that wait for it now; what comes meanwhile waits in its turn."""
        if self.is_failing:
            await self._store.ping()  # no lane may wait: a node without buckets has none
        if unknown := self._lanes.refills.take_unknown():
            await self._look_up_tenants(unknown)
        left = len(self._lanes.refills)
        while left > 0:
            count = min(left, LANES_PER_READ)
            left -= count
            lanes = self._lanes.take_wanted(count)
            for lane in lanes:
                lane.is_being_read = True
            try:
                await self._refill_some(lanes)
            except BaseException:
                self._lanes.put_back(lanes)
                raise
            finally:
                for lane in lanes:
                    lane.is_being_read = False

    async def _look_up_tenants(self, lanes: Sequence[Lane]) -> None:
        """Queue lanes in the turn of their tenants."""
        try:
            tenants = await self._store.tenants([lane.subscription_uid for lane in lanes])
            for lane in lanes:  # one that has none is alone in its turn, and found to be gone
                lane.tenant_uid = tenants.get(lane.subscription_uid, lane.subscription_uid)
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
        """Cancel some of what is left of a tombstone; the rest in its turn, beside other lanes.

        What commits later, the sweep finds again.
        """
        is_last = False
        self._lanes.begin_refill(lane)
        try:
            cancelled = await self._store.cancel_deleted(
                lane.bucket, lane.subscription_uid, CANCEL_BATCH
            )
            is_last = cancelled < CANCEL_BATCH
        finally:
            self._lanes.end_refill(lane, found_all=is_last)

    async def _read(self, lanes: Sequence[Lane]) -> None:
        most = max(1, ROWS_PER_READ // len(lanes))
        wishes: list[RefillWish] = []
        in_memory: list[UUID] = []
        for lane in lanes:
            wanted = max(1, min(most, self._shares.room(lane)))
            wishes.append(RefillWish(lane.bucket, lane.subscription_uid, lane.tenant_uid, wanted))
            in_memory += lane.known
            self._lanes.begin_refill(lane)
        complete: set[UUID] = set()
        try:
            complete = await self._take_in(lanes, wishes, in_memory)
        finally:
            for lane in lanes:
                self._lanes.end_refill(lane, found_all=lane.subscription_uid in complete)

    async def _take_in(
        self, lanes: Sequence[Lane], wishes: Sequence[RefillWish], in_memory: list[UUID]
    ) -> set[UUID]:
        """Read what is due; the lanes of which memory now holds all of it."""
        rows = await self._store.refill(wishes, in_memory)
        found = Counter(row.subscription_uid for row in rows)
        left_out = await self._intake.take(
            {lane.subscription_uid: lane for lane in lanes},
            {wish.subscription_uid: wish.tenant_uid for wish in wishes},
            rows,
        )
        return {
            wish.subscription_uid
            for wish in wishes
            if found[wish.subscription_uid] < wish.wanted and wish.subscription_uid not in left_out
        }
