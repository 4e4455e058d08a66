"""The pulse of a node: what it is, read once a second and set down for whoever collects.

Counters count what happens; these are what is: lanes, buckets, connections, the backlog, how late
the event loop wakes. They are read here, in the loop whose they are, and never by the threads that
collect. What the database is asked for, it is asked seldom, and a database that does not answer is
no reason for anything.
"""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Callable
from typing import Final, NamedTuple

import structlog

from hookline_service.pipeline.clock import DatabaseTime
from hookline_service.pipeline.dispatch.deliver import Deliverer
from hookline_service.pipeline.dispatch.lanes import Lanes
from hookline_service.pipeline.membership.ownership import Ownership
from hookline_service.store.database import TRANSIENT, Database, RejectedError
from hookline_service.store.status import StatusStore
from hookline_service.targets.http.transport import WebhookTransport
from hookline_service.telemetry.meters import Meters

_log = structlog.get_logger(__name__)

INTERVAL_S: Final = 1.0
ASK_EVERY: Final = 15
"""Of so many beats the database is asked at one."""
_MILLISECONDS: Final = 1_000


class Watched(NamedTuple):
    """The parts of a node that are looked at."""

    lanes: Lanes
    deliverer: Deliverer
    ownership: Ownership
    transport: WebhookTransport
    database: Database
    status: StatusStore
    time: DatabaseTime
    max_in_flight: int


class MetricsSampler:
    """Beats while it is started; does nothing where nobody collects."""

    def __init__(
        self, meters: Meters, watched: Watched, before_each: Callable[[], None] = lambda: None
    ) -> None:
        """`before_each` is called at every beat."""
        self._meters = meters
        self._watched = watched
        self._before_each = before_each
        self._owned: frozenset[int] = frozenset()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, if anybody collects."""
        if self._meters.is_on:
            self._task = asyncio.create_task(self._run(), name="pulse")

    async def stop(self) -> None:
        """End; the last that is told of this process is that it has nothing."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._meters.reset_gauges()

    async def _run(self) -> None:
        loop, beats = asyncio.get_running_loop(), 0
        while True:
            try:
                self.beat()
                if beats % ASK_EVERY == 0:
                    await self.ask()
            except (*TRANSIENT, RejectedError) as error:
                _log.warning("health_sample_failed", error=str(error))
            except Exception:  # noqa: BLE001 - logged whole; the next beat goes on
                _log.exception("metrics_sampler_broken")
            beats += 1
            due_s = loop.time() + INTERVAL_S
            await asyncio.sleep(INTERVAL_S)
            self._meters.loop_lag.add(max(0.0, loop.time() - due_s))

    def beat(self) -> None:
        """Read what this node's memory says."""
        meters, watched = self._meters, self._watched
        self._before_each()
        counts = watched.lanes.counts()
        held = counts.open + counts.limited + counts.held
        for state, count in (
            ("ready", counts.total - held),
            ("open", counts.open),
            ("limited", counts.limited),
            ("held", counts.held),
        ):
            meters.lanes.set(count, (("hookline.lane.state", state),))
        owned = frozenset(watched.ownership.buckets)
        meters.buckets.set(len(owned))
        for change, number in (
            ("gained", len(owned - self._owned)),
            ("lost", len(self._owned - owned)),
        ):
            if number:
                meters.buckets_changed.add(number, (("hookline.bucket.change", change),))
        self._owned = owned
        meters.in_flight.set(watched.max_in_flight - watched.deliverer.free_slots)
        idle = watched.transport.idle_count
        for state, count in (("idle", idle), ("active", watched.transport.connection_count - idle)):
            meters.http_connections.set(count, (("http.connection.state", state),))
        idle, used = watched.database.pool_counts()
        for state, count in (("idle", idle), ("used", used)):
            labels = (
                ("db.client.connection.pool.name", "calls"),
                ("db.client.connection.state", state),
            )
            meters.pool_connections.set(count, labels)
        usage = resource.getrusage(resource.RUSAGE_SELF)
        meters.cpu_time.set(usage.ru_utime, (("cpu.mode", "user"),))
        meters.cpu_time.set(usage.ru_stime, (("cpu.mode", "system"),))

    async def ask(self) -> None:
        """Read what the database says of the whole deployment."""
        meters, watched = self._meters, self._watched
        backlog = await watched.status.backlog()
        meters.pending.set(backlog.count)
        since_ms = backlog.oldest_unix_ms
        age_ms = 0 if since_ms is None else max(0, watched.time.unix_ms() - since_ms)
        meters.oldest_pending.set(age_ms / _MILLISECONDS)
        meters.oldest_xmin.set(await watched.status.oldest_xmin_age())
        for kind, age in (await watched.status.unfrozen_ages())._asdict().items():
            meters.unfrozen.set(age, (("hookline.postgres.id_kind", kind),))
