"""Which buckets this node owns, and until when it may act on that.

Theory of operation. Liveness is one row, renewed every third of the lease; owning a bucket is
another row that changes only when ownership does. The local lease counts from before the renewal
was sent, less a second for drift, so it ends before the database's does: a node that was frozen
sends nothing more, even before it reads that it was expired. A node whose row is gone drops
everything and registers again under another id.

    heartbeat: renew ─▶ survey ─▶ expire overdue nodes, take vacant buckets (up to the fair share)
                     │        └─▶ a surplus accepts no new work; each bucket is given once drained
                     └▶ row gone: lose everything, register again

A node that cannot do the work of a bucket gives its buckets up: if its records or its refills have
failed for a whole lease although its heartbeats succeeded, another node may do better. If there is
no other node, it keeps them. If the database is another copy of itself (a failover), the node owned
its buckets on the previous copy: it registers again, and for one lease expires no other node,
because their leases may have been renewed on the copy that is gone. The same holds for a node whose
own lease ended while its row stayed: the database was unreachable, perhaps from all nodes, and the
first node to return must leave the others time to renew.

A heartbeat is sent every third of the lease, and at once when there is a reason: the lease of
another node ends, a node joined or left (`notifications.py`), a bucket that is to be given is
drained. A node that is about to stop has no share: it gives everything, and buckets with a slow
target in flight last.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Collection, Iterable, Sequence
from random import Random
from typing import Protocol
from uuid import UUID

import structlog

from hookline_service.domain.ids import BUCKET_COUNT, make_uuid7
from hookline_service.pipeline.clock import Clock, DatabaseTime
from hookline_service.store.database import TRANSIENT
from hookline_service.store.ownership import BucketLease, OwnershipStore, Survey

DRIFT_S = 1.0
BURST_S = 0.05
"""Least time between two heartbeats, because their causes come in bursts."""
SLOW_S = 1.0
"""A surplus bucket that is not drained after this time is kept, and another one given."""

LOOK_AGAIN_S = 0.5
"""When to try again to expire an overdue node whose row was locked by a record batch of its own, or
that another node expired first."""

_log = structlog.get_logger(__name__)


class BucketHolder(Protocol):
    """The holder of work by bucket (the lanes)."""

    def buckets_gained(self, buckets: Iterable[int]) -> None:
        """Begin to look for the pending rows of buckets that this node owns from now on."""
        ...

    def buckets_lost(self, buckets: Iterable[int]) -> None:
        """Drop everything of buckets that this node owns no longer, at once."""
        ...

    def quiet_buckets(self, buckets: Iterable[int]) -> set[int]:
        """Stop new work of these buckets, and of no others; return those with nothing in flight."""
        ...


class Worker(Protocol):
    """A loop that does part of the work of a bucket, on a connection of its own."""

    @property
    def is_failing(self) -> bool:
        """Whether its last statement failed because of the database."""
        ...


class Ownership:
    """The row of this node, and its buckets."""

    def __init__(  # noqa: PLR0913 - its parts, and settings by name
        self,
        store: OwnershipStore,
        holder: BucketHolder,
        time: DatabaseTime,
        clock: Clock,
        random: Random,
        *,
        version: str,
        lease_s: float = 10.0,
        on_moved: Callable[[], None],
        is_alone: bool = False,
        worker_name: str = "",
    ) -> None:
        """Construct a node that owns nothing yet.

        `on_moved` is called when this node joined, took or gave buckets, or left. `is_alone`: no
        other node can run on this database (`hookline dev` holds the lock of its directory), so all
        registered nodes are dead and are expired without waiting for their leases. `worker_name` is
        the supervisor's name of this process; a node with the same name has ended. Empty: none.
        """
        self._store = store
        self._holder = holder
        self._time = time
        self._clock = clock
        self._random = random
        self._version = version
        self._lease_s = lease_s
        self._is_alone = is_alone
        self._on_moved = on_moved
        self._worker_name = worker_name
        self.workers: Sequence[Worker] = ()
        """Without them this node cannot do the work of a bucket."""
        self._failing_since_s: float | None = None
        """Since when a worker has failed at each heartbeat."""
        self._is_unable = False
        self._must_register = False
        self._no_expiry_until_s = 0.0
        self._address = ""
        self._is_leaving = False
        self._lease_until_s = 0.0
        self._buckets: set[int] = set()
        self._owner_of: dict[int, UUID] = {}
        self._draining_since_s: dict[int, float] = {}
        self._next_end_s: float | None = None
        self._wake = asyncio.Event()
        self._one_at_a_time = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self.node_id = UUID(int=0)

    @property
    def buckets(self) -> frozenset[int]:
        """The buckets that this node owns."""
        return frozenset(self._buckets)

    def owns(self, bucket: int) -> bool:
        """Return whether this node sends the deliveries of a bucket."""
        return bucket in self._buckets

    def owner_of(self, bucket: int) -> UUID | None:
        """Return the owner of a bucket as of the last survey; None: no live node."""
        return self.node_id if bucket in self._buckets else self._owner_of.get(bucket)

    def may_send(self) -> bool:
        """Return whether the lease surely holds; checked just before a request is written."""
        return self._clock.boottime_s() < self._lease_until_s

    async def start(self) -> None:
        """Register, take vacant buckets, start the heartbeat. Raises if the database is away."""
        if self._is_alone:
            await self._store.expire_all()
        elif self._worker_name:
            await self._store.expire_predecessor(self._worker_name)
        await self._register()
        await self._rebalance()
        self._task = asyncio.create_task(self._run(), name="heartbeat")

    def serve_at(self, address: str) -> None:
        """Publish the address of this node with a heartbeat that is sent at once."""
        self._address = address
        self.poke()

    def poke(self) -> None:
        """Send a heartbeat now: membership changed, or a bucket to be given is drained."""
        self._wake.set()

    def begin_leaving(self) -> None:
        """Begin a graceful shutdown: give each bucket as soon as nothing of it is in flight."""
        self._is_leaving = True
        self.poke()

    def history_changed(self) -> None:
        """Drop all ownership: the database is another copy, on which others may own everything."""
        now_s = self._clock.boottime_s()
        self._lease_until_s = 0.0
        self._no_expiry_until_s = now_s + self._lease_s
        self._must_register = True
        self._lose(set(self._buckets))
        self._owner_of.clear()
        self.poke()

    async def stop(self) -> None:
        """Deregister, so that the buckets are vacant at once. Call with nothing in flight."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._lease_until_s = 0.0
        try:
            await self._store.leave(self.node_id)
        except TRANSIENT:
            _log.warning("node_deregistration_failed", node_id=str(self.node_id))
        self._on_moved()
        await self._store.close()

    async def _register(self) -> None:
        self._lose(set(self._buckets))
        if self._must_register:
            await self._store.open()
            await self._store.leave(self.node_id)  # the row of before the failover
            self._must_register = False
        self.node_id = make_uuid7(self._time.unix_ms(), self._random.getrandbits(74))
        await self._store.register(
            self.node_id, self._lease_s, socket.gethostname(), self._version, self._worker_name
        )
        await self._renew()
        self._on_moved()

    async def _renew(self) -> bool:
        sent_s = self._clock.boottime_s()
        database_s = await self._store.renew(
            self.node_id,
            self._lease_s,
            self._address,
            is_leaving=self._is_leaving or self._is_unable,
        )
        if database_s is None or self._must_register:
            return False
        self._time.measure(database_s, sent_s, self._clock.boottime_s())
        if 0 < self._lease_until_s < sent_s - DRIFT_S:
            # No other node expired this one, so the database was unreachable from all of them.
            self._no_expiry_until_s = sent_s + self._lease_s
        self._lease_until_s = sent_s + self._lease_s - DRIFT_S
        return True

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        while True:
            # Measured from start to start, so that a slow heartbeat does not delay the next one.
            await self._wait(began_s)
            began_s = loop.time()
            try:
                await self.heartbeat()
            except TRANSIENT as error:
                _log.warning("heartbeat_failed", error=str(error))
            except Exception:  # noqa: BLE001 - logged whole; the next turn goes on
                _log.exception("heartbeat_broken")

    async def _wait(self, began_s: float) -> None:
        """Wait until the next heartbeat after the one that began then."""
        pause_s = self._lease_s / 3
        if self._next_end_s is not None:
            pause_s = min(pause_s, self._next_end_s + BURST_S)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(began_s + pause_s):
                await self._wake.wait()
                await asyncio.sleep(began_s + BURST_S - loop.time())
        except TimeoutError:
            pass
        self._wake.clear()

    async def heartbeat(self) -> None:
        """Renew the lease, or register again if the row is gone; then take or give buckets."""
        async with self._one_at_a_time:
            try:
                if self._must_register or not await self._renew():
                    _log.warning("lease_lost", node_id=str(self.node_id))
                    self._lease_until_s = 0.0
                    await self._register()
            except BaseException:
                self._failing_since_s = None  # the database is away from all nodes
                raise
            self._check_workers()
            await self._rebalance()

    def _check_workers(self) -> None:
        """Set whether this node can do the work of its buckets."""
        if not any(worker.is_failing for worker in self.workers):
            self._failing_since_s, self._is_unable = None, False
            return
        now_s = self._clock.boottime_s()
        if self._failing_since_s is None:
            self._failing_since_s = now_s
        elif not self._is_unable and now_s - self._failing_since_s >= self._lease_s:
            self._is_unable = True
            self.poke()  # so that others see at once that this node takes no share

    async def _rebalance(self) -> None:
        survey = await self._store.survey(self.node_id)
        self._next_end_s = survey.next_end_s
        self._owner_of = {
            lease.bucket: lease.node_id
            for lease in survey.leases
            if lease.node_id is not None and not lease.is_vacant and not lease.is_overdue
        }
        ours = {lease.bucket for lease in survey.leases if lease.node_id == self.node_id}
        self._lose(self._buckets - ours)
        # A `take` may have committed although its answer was lost.
        self._gain(ours - self._buckets)
        if self._is_unable and survey.others:
            await self._give_up(ours)
            return
        share = 0 if self._is_leaving else -(-BUCKET_COUNT // max(survey.sharing_nodes, 1))
        await self._give(ours, len(ours) - share)
        if len(ours) < share:
            await self._take(survey, share - len(ours))

    async def _take(self, survey: Survey, count: int) -> None:
        no_expiry_s = self._no_expiry_until_s - self._clock.boottime_s()
        if no_expiry_s > 0:
            self._next_end_s = min(no_expiry_s, self._next_end_s or no_expiry_s)
        free = [
            lease
            for lease in survey.leases
            if (lease.is_vacant or (lease.is_overdue and no_expiry_s <= 0))
            and lease.node_id != self.node_id
        ]
        self._random.shuffle(free)
        wanted: list[BucketLease] = free[:count]
        if wanted:
            overdue = {lease.node_id for lease in wanted if lease.is_overdue and lease.node_id}
            taken = set(await self._store.take(self.node_id, list(overdue), wanted))
            if any(lease.is_overdue and lease.bucket not in taken for lease in wanted):
                self._next_end_s = LOOK_AGAIN_S
            self._gain(taken)
            if taken:
                self._on_moved()

    def _gain(self, buckets: set[int]) -> None:
        if buckets:
            self._buckets |= buckets
            _log.info("buckets_taken", count=len(buckets), owned=len(self._buckets))
            self._holder.buckets_gained(buckets)

    async def _give(self, ours: Collection[int], count: int) -> None:
        """Stop new work of a surplus of so many buckets, and give those that are drained."""
        surplus = self._surplus(ours, count) if count > 0 else []
        quiet = self._holder.quiet_buckets(surplus)
        now_s = self._clock.boottime_s()
        self._draining_since_s = {
            bucket: self._draining_since_s.get(bucket, now_s)
            for bucket in surplus
            if bucket not in quiet
        }
        if not quiet:
            return
        given = await self._store.give(self.node_id, sorted(quiet))
        _log.info("buckets_handed_over", count=len(given))
        self._lose(quiet)
        self._on_moved()

    async def _give_up(self, ours: set[int]) -> None:
        """Give everything, also what is in flight: outcomes could not be recorded anyway."""
        self._lose(set(self._buckets))
        if ours:
            await self._store.give(self.node_id, sorted(ours))
            _log.error("buckets_released", count=len(ours))
            self._on_moved()

    def _surplus(self, ours: Collection[int], count: int) -> list[int]:
        """Return the buckets to give: first those that drain already, unless a slow target blocks.

        Load and number of subscriptions do not count: a new node gets a fair mixture of both.
        """
        now_s = self._clock.boottime_s()
        since_s = self._draining_since_s

        def order(bucket: int) -> tuple[bool, bool, int]:
            is_slow = now_s - since_s.get(bucket, now_s) > SLOW_S
            return is_slow, bucket not in since_s, -bucket

        return sorted(ours, key=order)[:count]

    def _lose(self, buckets: set[int]) -> None:
        if buckets:
            self._buckets -= buckets
            self._holder.buckets_lost(buckets)
