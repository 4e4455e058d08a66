"""What fills the lanes from the hot table: the sweep that is the truth, and refills.

Every second each owned bucket is asked for the earliest due row of each of its lanes; one that is
not in memory makes its lane DIRTY. Hand-offs and notifications only hasten that. A DIRTY lane that
can send is read, many lanes in one statement; one that is paused, disabled, limited or
open-circuited is not read at all, so a dead target with a million pending costs nothing.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

import structlog

from service.pipeline.intake import ROWS_PER_READ, Intake
from service.pipeline.ordered import OrderedReader
from service.store.database import TRANSIENT
from service.store.lanes import RefillWish

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from service.pipeline.lane import Lane
    from service.pipeline.lanes import Lanes
    from service.pipeline.ownership import Ownership
    from service.pipeline.targets import LaneConfigs
    from service.store.lanes import LaneStore

_log = structlog.get_logger(__name__)

SWEEP_INTERVAL_S = 1.0
LANES_PER_READ = 64
CANCEL_BATCH = 500
MAX_IDLE_LANES = 20_000


class Refiller:
    """Keeps memory a true cache of what is due."""

    def __init__(
        self, store: LaneStore, lanes: Lanes, ownership: Ownership, configs: LaneConfigs
    ) -> None:
        self._store = store
        self._lanes = lanes
        self._ownership = ownership
        self._configs = configs
        self._shares = lanes.shares
        self._intake = Intake(store, lanes)
        self._ordered = OrderedReader(store, lanes, self._intake)
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._sweep_at_s = 0.0
        self.is_failing = False
        """Whether the last read failed."""
        lanes.on_wanted = self._wake.set
        lanes.on_gained = self.sweep_soon

    def start(self) -> None:
        """Begin to sweep and to refill."""
        self._task = asyncio.create_task(self._run(), name="refiller")

    async def stop(self) -> None:
        """End; what memory lacks, Postgres has."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._store.close()

    def sweep_soon(self) -> None:
        """Sweep at the next turn, without waiting for the second to pass."""
        self._sweep_at_s = 0.0
        self._wake.set()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                self._wake.clear()
                if loop.time() >= self._sweep_at_s:
                    self._sweep_at_s = loop.time() + SWEEP_INTERVAL_S
                    await self.sweep()
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
                async with asyncio.timeout(max(0.0, self._sweep_at_s - loop.time())):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def sweep(self) -> None:
        """Make every lane DIRTY whose earliest due row is not in memory, or that is ordered.

        In an ordered one that row tells nothing of the others: it may wait behind another of its
        key, or be of a key that is always busy.
        """
        for head in await self._store.heads(self._ownership.buckets):
            lane = self._lanes.get(head.subscription_uid)
            if lane is None or lane.order is not None or not lane.holds(head.delivery_id):
                self._lanes.touch(head.subscription_uid, head.bucket)
        self._lanes.evict_idle(MAX_IDLE_LANES)

    async def refill(self) -> None:
        """Read for all lanes that want it, until none does or none has room."""
        lanes = self._lanes.take_wanted()
        for begin in range(0, len(lanes), LANES_PER_READ):
            await self._refill_some(lanes[begin : begin + LANES_PER_READ])

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
