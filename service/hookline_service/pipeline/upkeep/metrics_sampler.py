"""Samples the gauges of a node once a second: lanes, buckets, connections, backlog, loop lag.

Counters are incremented where things happen; gauges are sampled here, in the event loop that owns
the values, and never in the threads that export them. The database is queried at every
`QUERY_EVERY`th sample only; a failed query is logged and has no other effect.
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
QUERY_EVERY: Final = 15
"""The database is queried at one of so many samples."""
_MILLISECONDS: Final = 1_000


class Watched(NamedTuple):
    """The parts of a node that are sampled."""

    lanes: Lanes
    deliverer: Deliverer
    ownership: Ownership
    transport: WebhookTransport
    database: Database
    status: StatusStore
    time: DatabaseTime
    max_in_flight: int


class MetricsSampler:
    """Samples gauges between start and stop, if an exporter is configured."""

    def __init__(
        self, meters: Meters, watched: Watched, before_each: Callable[[], None] = lambda: None
    ) -> None:
        """`before_each` is called before every sample."""
        self._meters = meters
        self._watched = watched
        self._before_each = before_each
        self._owned: frozenset[int] = frozenset()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start sampling, if an exporter is configured."""
        if self._meters.is_on:
            self._task = asyncio.create_task(self._run(), name="metrics sampler")

    async def stop(self) -> None:
        """Stop sampling; the last exported values of this process are zeros."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._meters.reset_gauges()

    async def _run(self) -> None:
        loop, samples = asyncio.get_running_loop(), 0
        while True:
            try:
                self.sample()
                if samples % QUERY_EVERY == 0:
                    await self.query()
            except (*TRANSIENT, RejectedError) as error:
                _log.warning("health_sample_failed", error=str(error))
            except Exception:  # noqa: BLE001 - logged whole; the next sample goes on
                _log.exception("metrics_sampler_broken")
            samples += 1
            due_s = loop.time() + INTERVAL_S
            await asyncio.sleep(INTERVAL_S)
            self._meters.loop_lag.add(max(0.0, loop.time() - due_s))

    def sample(self) -> None:
        """Sample this node's memory."""
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

    async def query(self) -> None:
        """Sample the whole deployment from the database."""
        meters, watched = self._meters, self._watched
        backlog = await watched.status.backlog()
        meters.pending.set(backlog.count)
        since_ms = backlog.oldest_unix_ms
        age_ms = 0 if since_ms is None else max(0, watched.time.unix_ms() - since_ms)
        meters.oldest_pending.set(age_ms / _MILLISECONDS)
        meters.oldest_xmin.set(await watched.status.oldest_xmin_age())
        for kind, age in (await watched.status.unfrozen_ages())._asdict().items():
            meters.unfrozen.set(age, (("hookline.postgres.id_kind", kind),))
