"""The sweep: finds due deliveries that memory lacks, whatever hand-off or notification was lost.

Theory of operation. A round visits every lane with pending deliveries, one index descent each, and
marks a lane DIRTY where memory lacks its earliest due row. A turn is taken every second and visits
up to `LANES_PER_TURN` lanes. So a node with few such lanes visits all of them every second. On a
node with a million lanes a round takes minutes; each turn that did not visit every lane then also
looks at the arrivals since the last look:

    rows published since                    by the primary key: a delivery's id begins with its time
    rows with a later due time, now due     by `pending_later`, an index of these rows alone

Neither look reads rows that are due tomorrow, or that have been due for long. The round finds what
both miss, such as a row whose commit took longer than `OVERLAP_S`.

Some buckets are visited before all others: those that were gained, those with more arrivals than a
look may return, and those of a lane for which memory had no space. While there are any, turns
follow one another as long as few lanes are queued for a refill; each pauses for as long as the one
before took.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from uuid import UUID

import structlog

from hookline_service.pipeline.clock import Clock, DatabaseTime
from hookline_service.pipeline.dispatch.lanes import Lanes
from hookline_service.pipeline.membership.ownership import Ownership
from hookline_service.store.database import TRANSIENT
from hookline_service.store.lanes import LaneHead, LaneStore

_log = structlog.get_logger(__name__)

INTERVAL_S = 1.0
LANES_PER_TURN = 1_024
"""5 to 10 ms of the database's CPU."""
ARRIVALS_PER_BUCKET = 500
OVERLAP_S = 5.0
"""The next look still sees the rows of a commit that took up to this long."""
_FIRST = UUID(int=0)


class Sweeper:
    """Walks through the lanes of the owned buckets, and looks at arrivals."""

    def __init__(
        self,
        store: LaneStore,
        lanes: Lanes,
        ownership: Ownership,
        time: DatabaseTime,
        clock: Clock,
    ) -> None:
        self._store = store
        self._lanes = lanes
        self._ownership = ownership
        self._time = time
        self._clock = clock
        self._round: dict[int, UUID] = {}
        """The buckets that the round has yet to visit, each with the last lane visited."""
        self._urgent: dict[int, UUID] = {}
        """The same, of buckets that are visited before all others."""
        self._again: set[int] = set()
        """Urgent buckets that are visited once more, since the visit may have missed something."""
        self._since_ms: int | None = None
        """Arrivals before this were looked at."""
        self._look_at_s = 0.0
        self.is_failing = False
        """Whether the last turn could neither visit nor look."""
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the task that sweeps."""
        self._task = asyncio.create_task(self._run(), name="sweeper")

    async def stop(self) -> None:
        """Stop it, and close its session."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._store.close()

    def sweep_soon(self) -> None:
        """Take the next turn now."""
        self._look_at_s = 0.0
        self._wake.set()

    def visit_soon(self, buckets: Iterable[int]) -> None:
        """Visit every lane of these buckets as soon as the refill queue has places."""
        was_urgent = bool(self._urgent)
        for bucket in buckets:
            if bucket in self._urgent:
                self._again.add(bucket)
            else:
                self._urgent[bucket] = _FIRST
        if not was_urgent:
            self._wake.set()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            began_s, is_failed = loop.time(), True
            try:
                await self.sweep()
                is_failed = False
            except TRANSIENT as error:
                _log.warning("sweep_failed", error=str(error))
            except Exception:  # noqa: BLE001 - logged with its traceback; the next turn goes on
                _log.exception("sweep_broken")
            took_s = loop.time() - began_s
            is_urgent = self._urgent and self._lanes.refill_queue.is_low and not is_failed
            pause_s = took_s if is_urgent else max(INTERVAL_S - took_s, min(took_s, INTERVAL_S))
            try:
                async with asyncio.timeout(pause_s):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def sweep(self) -> None:
        """Take one turn: visit some lanes, and look at arrivals unless that was every lane."""
        if self.is_failing:
            await self._store.ping()  # a node without buckets visits nothing
        now_ms = self._time.unix_ms()
        try:
            is_whole = await self._visit()
        except Exception:
            self.is_failing = True
            await self._look(now_ms)  # it does not depend on the walk
            self.is_failing = False
            raise
        self.is_failing = False
        if is_whole:
            self._since_ms = now_ms
        elif self._clock.boottime_s() >= self._look_at_s:
            await self._look(now_ms)

    async def _visit(self) -> bool:
        """Visit the next lanes; True where these were all lanes of all buckets."""
        owned = self._ownership.buckets
        if not self._urgent and not self._round:
            self._round = dict.fromkeys(owned, _FIRST)
        walk = self._urgent or self._round
        for bucket in walk.keys() - owned:
            del walk[bucket]
        after = dict(walk)
        if not after:
            return not owned
        heads = await self._store.heads(after, max(1, LANES_PER_TURN // len(after)))
        last_of = {head.bucket: head.subscription_uid for head in heads if head.is_last}
        for bucket in after:
            if bucket in last_of:
                walk[bucket] = last_of[bucket]
            elif bucket in self._again and walk is self._urgent:
                self._again.discard(bucket)
                walk[bucket] = _FIRST
            else:
                del walk[bucket]
        self._mark_dirty(heads)
        return not last_of and len(after) == len(owned) and set(after.values()) == {_FIRST}

    async def _look(self, now_ms: int) -> None:
        since_ms = now_ms if self._since_ms is None else self._since_ms
        heads = await self._store.arrivals(
            self._ownership.buckets, since_ms - int(OVERLAP_S * 1_000), ARRIVALS_PER_BUCKET
        )
        self._since_ms = now_ms
        self._look_at_s = self._clock.boottime_s() + INTERVAL_S
        if full := {head.bucket for head in heads if head.is_last}:
            self.visit_soon(full)
        self._mark_dirty(heads)

    def _mark_dirty(self, heads: Iterable[LaneHead]) -> None:
        """Mark every lane DIRTY that is ordered, or that lacks the row in memory.

        The earliest row of an ordered lane says nothing about the other rows: it may wait behind
        another delivery of its key, or belong to a key that is always busy.
        """
        lanes = self._lanes
        for head in heads:
            if head.tenant_uid is None:
                continue
            lane = lanes.get(head.subscription_uid)
            if lane is None or lane.order is not None or not lane.holds(head.delivery_id):
                lanes.touch(head.subscription_uid, head.bucket, tenant_uid=head.tenant_uid)
