"""Which buckets this node owns, and until when it may act on that.

Theory of operation. Liveness is one row, renewed every third of the lease; owning a bucket is
another row that changes only when ownership does. The local lease counts from before the renewal
was sent, less a second for drift, so it ends before the database's does: a node that was frozen
sends nothing more, even before it learns that it was expired. A node whose row is gone drops
everything and registers anew under another id.

    heartbeat: renew ─▶ survey ─▶ expire who is overdue, take what is vacant (up to the fair share)
                     │        └─▶ a surplus rests; each bucket of it is given as it falls quiet
                     └▶ row gone: lose everything, register anew

A node that cannot do what owning a bucket asks for gives its buckets up: where its records or its
reads of what is due have failed for a lease, although its heartbeats came through, another node may
do better; where there is none, it keeps them. Where the database is another copy of itself (a
failover), what this node owned it owned on the one before: it registers anew, and for a lease
expires no other node, whose lease may have been renewed on the copy that is gone. Nor does a node
whose own lease ended while its row stayed: the database was away, perhaps from all nodes, and the
first one back must leave the others time.

A beat comes every third of the lease, and at once when there is something to see: another node's
lease ends, one has come or gone (`notify.py` carries the word), a bucket that rests falls quiet. A
node that is about to stop has no share: it gives everything, and what hangs on a slow target goes
last.
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
"""What wakes the heartbeat comes in bursts: two beats are at least so far apart."""
SLOW_S = 1.0
"""A surplus bucket that has rested for so long without falling quiet is kept, and another given."""

LOOK_AGAIN_S = 0.5
"""When to look again at who is overdue and could not be expired: a record of its was being written,
or somebody else was faster."""

_log = structlog.get_logger(__name__)


class BucketHolder(Protocol):
    """Who holds work by bucket: told what was gained and lost, asked what is quiet."""

    def buckets_gained(self, buckets: Iterable[int]) -> None:
        """These are ours now; their pending rows are to be found."""
        ...

    def buckets_lost(self, buckets: Iterable[int]) -> None:
        """These are ours no longer: forget everything of them, at once."""
        ...

    def quiet_buckets(self, buckets: Iterable[int]) -> set[int]:
        """Those of which nothing is in flight. They take no new work from now on; all others do."""
        ...


class Worker(Protocol):
    """What does a part of the work of a bucket on a connection of its own."""

    @property
    def is_failing(self) -> bool:
        """Whether its last statement failed by the database's doing."""
        ...


class Ownership:
    """The row of this node, and its buckets."""

    def __init__(  # noqa: PLR0913 - its parts, and what it says of itself by name
        self,
        store: OwnershipStore,
        holder: BucketHolder,
        time: DatabaseTime,
        clock: Clock,
        random: Random,
        *,
        version: str,
        lease_s: float = 10.0,
        is_alone: bool = False,
        place: str = "",
    ) -> None:
        """Take what it is made of.

        `is_alone`: no other node can live on this database (`hookline dev` holds its directory's
        lock), so whoever is registered is dead and waits for no lease to end. `place`: the
        supervisor's name for this process; whoever had it before is dead for sure. Empty: none.
        """
        self._store = store
        self._holder = holder
        self._time = time
        self._clock = clock
        self._random = random
        self._version = version
        self._lease_s = lease_s
        self._is_alone = is_alone
        self._place = place
        self.workers: Sequence[Worker] = ()
        """Without them this node cannot do the work of a bucket."""
        self._failing_since_s: float | None = None
        """Since when a worker has failed at each heartbeat."""
        self._is_unable = False
        self._must_register = False
        self._expires_nobody_until_s = 0.0
        self._address = ""
        self._is_leaving = False
        self._lease_until_s = 0.0
        self._buckets: set[int] = set()
        self._owner_of: dict[int, UUID] = {}
        self._rests_since_s: dict[int, float] = {}
        self._next_end_s: float | None = None
        self._wake = asyncio.Event()
        self._one_at_a_time = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self.on_moved: Callable[[], None] = lambda: None
        """Called when others should look at who owns what: this node came, took, gave or left."""
        self.node_id = UUID(int=0)
        self.lease_changes = 0

    @property
    def buckets(self) -> frozenset[int]:
        """What this node owns."""
        return frozenset(self._buckets)

    def owns(self, bucket: int) -> bool:
        """Whether deliveries of a bucket are this node's to send."""
        return bucket in self._buckets

    def owner_of(self, bucket: int) -> UUID | None:
        """Who owns a bucket, as the last survey saw it; None: nobody that lives."""
        return self.node_id if bucket in self._buckets else self._owner_of.get(bucket)

    def may_send(self) -> bool:
        """Whether the lease surely holds now; asked just before a request's bytes go out."""
        return self._clock.boottime_s() < self._lease_until_s

    async def start(self) -> None:
        """Register and take what is free, then keep renewing. Raises where the database is away."""
        if self._is_alone:
            await self._store.expire_all()
        elif self._place:
            await self._store.expire_predecessor(self._place)
        await self._register()
        await self._rebalance()
        self._task = asyncio.create_task(self._beat(), name="heartbeat")

    def serve_at(self, address: str) -> None:
        """Where this node serves, for others to see from the next beat on, which comes at once."""
        self._address = address
        self.poke()

    def poke(self) -> None:
        """Beat now: somebody came or left, or a bucket that is to be given has fallen quiet."""
        self._wake.set()

    def begin_leaving(self) -> None:
        """Send nothing more, and give each bucket as soon as nothing of it is in flight."""
        self._is_leaving = True
        self.poke()

    def history_changed(self) -> None:
        """Own nothing any more: the database is another copy, on which another may own it all."""
        now_s = self._clock.boottime_s()
        self._lease_until_s = 0.0
        self._expires_nobody_until_s = now_s + self._lease_s
        self._must_register = True
        self._lose(set(self._buckets))
        self._owner_of.clear()
        self.poke()

    async def stop(self) -> None:
        """Leave: the buckets are vacant at once. Call when nothing is in flight any more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._lease_until_s = 0.0
        try:
            await self._store.leave(self.node_id)
        except TRANSIENT:
            _log.warning("node_deregistration_failed", node_id=str(self.node_id))
        self.on_moved()
        await self._store.close()

    async def _register(self) -> None:
        self._lose(set(self._buckets))
        if self._must_register:
            await self._store.open()
            await self._store.leave(self.node_id)  # of before the failover; nobody waits for it
            self._must_register = False
        self.node_id = make_uuid7(self._time.unix_ms(), self._random.getrandbits(74))
        await self._store.register(
            self.node_id, self._lease_s, socket.gethostname(), self._version, self._place
        )
        await self._renew()
        self.on_moved()

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
            # No other node expired this one: the database was away from all of them.
            self._expires_nobody_until_s = sent_s + self._lease_s
        self._lease_until_s = sent_s + self._lease_s - DRIFT_S
        return True

    async def _beat(self) -> None:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        while True:
            # From beat to beat: one that waited for others does not delay the next.
            await self._wait(began_s)
            began_s = loop.time()
            try:
                await self.heartbeat()
            except TRANSIENT as error:
                _log.warning("heartbeat_failed", error=str(error))
            except Exception:  # noqa: BLE001 - logged whole; the next turn goes on
                _log.exception("heartbeat_broken")

    async def _wait(self, began_s: float) -> None:
        """Until the next beat after the one that began then."""
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
        """One beat: renew, or register anew where the row is gone; then see to the fair share."""
        async with self._one_at_a_time:
            try:
                if self._must_register or not await self._renew():
                    _log.warning("lease_lost", node_id=str(self.node_id))
                    self._lease_until_s = 0.0
                    await self._register()
            except BaseException:
                self._failing_since_s = None  # all are away, and no other node may do better
                raise
            self._check_workers()
            await self._rebalance()

    def _check_workers(self) -> None:
        """Find out whether this node can do what owning a bucket asks for."""
        if not any(worker.is_failing for worker in self.workers):
            self._failing_since_s, self._is_unable = None, False
            return
        now_s = self._clock.boottime_s()
        if self._failing_since_s is None:
            self._failing_since_s = now_s
        elif not self._is_unable and now_s - self._failing_since_s >= self._lease_s:
            self._is_unable = True
            self.poke()  # so that the others see at once that this node counts out

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

    async def _take(self, survey: Survey, room: int) -> None:
        spares_s = self._expires_nobody_until_s - self._clock.boottime_s()
        if spares_s > 0:
            self._next_end_s = min(spares_s, self._next_end_s or spares_s)
        free = [
            lease
            for lease in survey.leases
            if (lease.is_vacant or (lease.is_overdue and spares_s <= 0))
            and lease.node_id != self.node_id
        ]
        self._random.shuffle(free)
        wanted: list[BucketLease] = free[:room]
        if wanted:
            overdue = {lease.node_id for lease in wanted if lease.is_overdue and lease.node_id}
            taken = set(await self._store.take(self.node_id, list(overdue), wanted))
            if any(lease.is_overdue and lease.bucket not in taken for lease in wanted):
                self._next_end_s = LOOK_AGAIN_S
            self._gain(taken)
            if taken:
                self.on_moved()

    def _gain(self, buckets: set[int]) -> None:
        if buckets:
            self._buckets |= buckets
            self.lease_changes += len(buckets)
            _log.info("buckets_taken", count=len(buckets), owned=len(self._buckets))
            self._holder.buckets_gained(buckets)

    async def _give(self, ours: Collection[int], count: int) -> None:
        """Let a surplus of so many buckets rest, and give what is quiet of it."""
        surplus = self._surplus(ours, count) if count > 0 else []
        quiet = self._holder.quiet_buckets(surplus)
        now_s = self._clock.boottime_s()
        self._rests_since_s = {
            bucket: self._rests_since_s.get(bucket, now_s)
            for bucket in surplus
            if bucket not in quiet
        }
        if not quiet:
            return
        given = await self._store.give(self.node_id, sorted(quiet))
        _log.info("buckets_handed_over", count=len(given))
        self._lose(quiet)
        self.on_moved()

    async def _give_up(self, ours: set[int]) -> None:
        """Give everything, whatever is in flight: its outcomes could not be recorded anyway."""
        self._lose(set(self._buckets))
        if ours:
            await self._store.give(self.node_id, sorted(ours))
            _log.error("buckets_released", count=len(ours))
            self.on_moved()

    def _surplus(self, ours: Collection[int], count: int) -> list[int]:
        """Which to give: those that rest already, unless a slow target holds them up.

        Neither by load nor by number of subscriptions: a newcomer gets a fair mixture of both.
        """
        now_s = self._clock.boottime_s()
        since_s = self._rests_since_s

        def order(bucket: int) -> tuple[bool, bool, int]:
            is_slow = now_s - since_s.get(bucket, now_s) > SLOW_S
            return is_slow, bucket not in since_s, -bucket

        return sorted(ours, key=order)[:count]

    def _lose(self, buckets: set[int]) -> None:
        if buckets:
            self._buckets -= buckets
            self.lease_changes += len(buckets)
            self._holder.buckets_lost(buckets)
