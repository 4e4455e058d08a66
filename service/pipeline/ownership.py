"""Which buckets this node owns, and until when it may act on that.

Theory of operation. Liveness is one row, renewed every third of the lease; owning a bucket is
another row that changes only when ownership does. The local lease counts from before the renewal was
sent, less a second for drift, so it ends before the database's does: a node that was frozen sends
nothing more, even before it learns that it was buried. A node whose row is gone drops everything and
registers anew under another id.

    heartbeat: renew ─▶ survey ─▶ bury who is overdue, take what is vacant (up to the fair share)
                     └▶ row gone: lose everything, register anew

A surplus over the fair share is given back when nothing of it is in flight.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Protocol
from uuid import UUID

import structlog

from service.domain.errors import UnavailableError
from service.domain.ids import BUCKET_COUNT, make_uuid7
from service.store.database import ContentionError, OutcomeUnknownError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from random import Random

    from service.pipeline.clock import Clock, DatabaseTime
    from service.store.ownership import BucketLease, OwnershipStore, Survey

DRIFT_S = 1.0

_log = structlog.get_logger(__name__)
_TRANSIENT = (UnavailableError, OutcomeUnknownError, ContentionError)


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


class Ownership:
    """This node's row and its buckets."""

    def __init__(
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
    ) -> None:
        """`is_alone`: no other node can live on this database (`hookline dev` holds its directory's
        lock), so whoever is registered is dead and waits for no lease to end.
        """
        self._store = store
        self._holder = holder
        self._time = time
        self._clock = clock
        self._random = random
        self._version = version
        self._lease_s = lease_s
        self._is_alone = is_alone
        self._lease_until_s = 0.0
        self._buckets: set[int] = set()
        self._task: asyncio.Task[None] | None = None
        self.node_id = UUID(int=0)
        self.lease_changes = 0

    @property
    def buckets(self) -> frozenset[int]:
        """What this node owns."""
        return frozenset(self._buckets)

    def owns(self, bucket: int) -> bool:
        """Whether deliveries of a bucket are this node's to send."""
        return bucket in self._buckets

    def may_send(self) -> bool:
        """Whether the lease surely holds at this moment; asked just before a request's bytes go out."""
        return self._clock.boottime_s() < self._lease_until_s

    async def start(self) -> None:
        """Register and take what is free, then keep renewing. Raises where the database is away."""
        if self._is_alone:
            await self._store.bury_all()
        await self._register()
        await self._rebalance()
        self._task = asyncio.create_task(self._beat(), name="heartbeat")

    async def stop(self) -> None:
        """Leave: the buckets are vacant at once. Call when nothing is in flight any more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._lease_until_s = 0.0
        try:
            await self._store.leave(self.node_id)
        except _TRANSIENT:
            _log.warning("node_left_without_goodbye", node_id=str(self.node_id))
        await self._store.close()

    async def _register(self) -> None:
        self._lose(set(self._buckets))
        self.node_id = make_uuid7(self._time.unix_ms(), self._random.getrandbits(74))
        await self._store.register(self.node_id, self._lease_s, socket.gethostname(), self._version)
        await self._renew()

    async def _renew(self) -> bool:
        sent_s = self._clock.boottime_s()
        database_s = await self._store.renew(self.node_id, self._lease_s)
        if database_s is None:
            return False
        self._time.learn(database_s, sent_s, self._clock.boottime_s())
        self._lease_until_s = sent_s + self._lease_s - DRIFT_S
        return True

    async def _beat(self) -> None:
        loop = asyncio.get_running_loop()
        beat_s = loop.time()
        while True:
            # From beat to beat: one that waited for others does not delay the next.
            beat_s = max(beat_s + self._lease_s / 3, loop.time())
            await asyncio.sleep(beat_s - loop.time())
            try:
                await self.heartbeat()
            except _TRANSIENT as error:
                _log.warning("heartbeat_failed", error=str(error))
            except Exception:
                _log.exception("heartbeat_broken")

    async def heartbeat(self) -> None:
        """One beat: renew, or register anew where the row is gone; then see to the fair share."""
        if not await self._renew():
            _log.warning("lease_lost", node_id=str(self.node_id))
            self._lease_until_s = 0.0
            await self._register()
        await self._rebalance()

    async def _rebalance(self) -> None:
        survey = await self._store.survey()
        ours = {lease.bucket for lease in survey.leases if lease.node_id == self.node_id}
        self._lose(self._buckets - ours)
        # A `take` may have committed although its answer was lost.
        self._gain(ours - self._buckets)
        share = -(-BUCKET_COUNT // max(survey.live_nodes, 1))
        await self._give(sorted(ours)[share:])
        if len(ours) < share:
            await self._take(survey, share - len(ours))

    async def _take(self, survey: Survey, room: int) -> None:
        free = [
            lease
            for lease in survey.leases
            if (lease.is_vacant or lease.is_overdue) and lease.node_id != self.node_id
        ]
        self._random.shuffle(free)
        wanted: list[BucketLease] = free[:room]
        if wanted:
            overdue = {lease.node_id for lease in wanted if lease.is_overdue and lease.node_id}
            self._gain(set(await self._store.take(self.node_id, list(overdue), wanted)))

    def _gain(self, buckets: set[int]) -> None:
        if buckets:
            self._buckets |= buckets
            self.lease_changes += len(buckets)
            _log.info("buckets_taken", count=len(buckets), owned=len(self._buckets))
            self._holder.buckets_gained(buckets)

    async def _give(self, surplus: Iterable[int]) -> None:
        quiet = self._holder.quiet_buckets(surplus)
        if not quiet:
            return
        given = await self._store.give(self.node_id, sorted(quiet))
        _log.info("buckets_given", count=len(given))
        self._lose(quiet)

    def _lose(self, buckets: set[int]) -> None:
        if buckets:
            self._buckets -= buckets
            self.lease_changes += len(buckets)
            self._holder.buckets_lost(buckets)
