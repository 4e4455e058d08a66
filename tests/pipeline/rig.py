"""A node of the data path in the test's own process: every part real, the clock turnable.

Real Postgres, real lanes, real HTTP over loopback to a receiver that answers as configured. Only
the clock is ours: `turn` moves the database's due times and the node's durations together.
"""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from uuid import UUID

import asyncpg

from hookline_service.domain.event import EventType, NewEvent
from hookline_service.domain.ids import bucket_of, make_uuid7
from hookline_service.domain.limits import Limits
from hookline_service.domain.subscription import HttpTarget
from hookline_service.pipeline.actions.delivery_actions import DeliveryActions
from hookline_service.pipeline.actions.test_events import TestEvents
from hookline_service.pipeline.clock import DatabaseTime, SystemClock
from hookline_service.pipeline.coordination.changes import Changes
from hookline_service.pipeline.coordination.notifications import Notifier
from hookline_service.pipeline.dispatch.deliver import Deliverer
from hookline_service.pipeline.dispatch.dispatcher import Dispatcher, QueueBudget
from hookline_service.pipeline.dispatch.lane_configs import LaneConfigs
from hookline_service.pipeline.dispatch.lanes import Lanes
from hookline_service.pipeline.dispatch.record import Recorder
from hookline_service.pipeline.dispatch.refill import Refiller
from hookline_service.pipeline.dispatch.refill_queue import RefillQueue
from hookline_service.pipeline.dispatch.sweep import Sweeper
from hookline_service.pipeline.membership.ownership import Ownership
from hookline_service.pipeline.publishing.catalog import EventTypeCatalog
from hookline_service.pipeline.publishing.commit import GroupBuilder, GroupLimits
from hookline_service.pipeline.publishing.matching import Matcher
from hookline_service.pipeline.publishing.publish import Publisher
from hookline_service.pipeline.publishing.quota import PendingQuota
from hookline_service.pipeline.timers import Timers
from hookline_service.pipeline.upkeep.chores import Upkeep
from hookline_service.schema.checker import SchemaChecker
from hookline_service.store.backlog import BacklogStore
from hookline_service.store.data_keys import TenantSecrets
from hookline_service.store.database import Database, Session
from hookline_service.store.event_types import EventTypeHead
from hookline_service.store.lanes import LaneStore
from hookline_service.store.notifying import NotifyStore
from hookline_service.store.operations import OperationStore
from hookline_service.store.ownership import OwnershipStore
from hookline_service.store.publishing import PublishStore
from hookline_service.store.recording import RecordStore
from hookline_service.store.secrets import SecretBox, SecretPlace
from hookline_service.store.upkeep import UpkeepStore
from hookline_service.targets.http.egress import EgressPolicy
from hookline_service.targets.http.sender import HttpSenders, WebhookSender
from hookline_service.targets.http.transport import WebhookTransport
from hookline_service.targets.sender import TargetSenders
from tests.pipeline.receiver import Receiver

__all__ = [
    "KEY_WINDOW_S", "SECRET", "Receiver", "Rig", "TurnableClock", "heads_of", "order_created",
    "running", "schema_in",
]  # fmt: skip

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
KEY_WINDOW_S = 72 * 3600.0

_TURNABLE_NOW = """
CREATE TABLE test_clock (ahead interval NOT NULL);
INSERT INTO test_clock VALUES ('0');
CREATE OR REPLACE FUNCTION hookline_now() RETURNS timestamptz LANGUAGE sql STABLE AS
    'SELECT now() + (SELECT ahead FROM test_clock)';
"""


class TurnableClock(SystemClock):
    """The machine's clocks, and what a test has turned them ahead."""

    def __init__(self) -> None:
        self.ahead_s = 0.0
        self.wall_ahead_s = 0.0
        """How far the node's wall clock alone goes wrong."""

    def boottime_s(self) -> float:
        """Boottime, turned."""
        return super().boottime_s() + self.ahead_s

    def wall_s(self) -> float:
        """Unix seconds, turned."""
        return super().wall_s() + self.ahead_s + self.wall_ahead_s


class _NoEventTypes:
    def __init__(self) -> None:
        self.event_types: list[EventType] = []

    async def heads(self) -> list[EventTypeHead]:
        """Return the event types of the test."""
        return heads_of(self.event_types)

    async def schema(self, name: str) -> tuple[int, str] | None:
        """Return the revision and the schema of one of them."""
        return schema_in(self.event_types, name)


def heads_of(event_types: Sequence[EventType]) -> list[EventTypeHead]:
    """Return the event types as the catalog holds them."""
    return [
        EventTypeHead(one.name, one.state, one.revision, bool(one.json_schema))
        for one in event_types
    ]


def schema_in(event_types: Sequence[EventType], name: str) -> tuple[int, str] | None:
    """Return the revision and the schema of an event type."""
    for one in event_types:
        if one.name == name:
            return one.revision, one.json_schema
    return None


@dataclass
class Rig:
    """All parts of one node, by their names in `service/hookline_service/pipeline`."""

    url: str
    clock: TurnableClock = field(default_factory=TurnableClock)
    seed: int = 1
    is_alone: bool = False
    lease_s: float = 10.0
    max_in_flight: int = 2_000
    max_queued_jobs: int = 50_000
    max_queued_bytes: int = 64 * 1024 * 1024
    max_lane_bytes: int = 64 * 1024 * 1024
    limits: Limits = field(default_factory=Limits)
    group_limits: GroupLimits = field(default_factory=lambda: GroupLimits(lock_wait_s=60.0))
    session_urls: Mapping[str, str] = field(default_factory=dict)
    """Where a session by its name finds the database, if elsewhere: through a `Wire`."""
    has_word: bool = False
    """Whether it sends and receives notifications; else it finds everything by polling."""
    place: str = ""
    max_index_bytes: int = 1 << 27
    publish_timeout_s: float = 10.0
    lock_timeout_s: float = 60.0
    """Of the group commit: a rival's lock blocks all calls for as long as a test looks at it."""

    def __post_init__(self) -> None:
        self.random = Random(self.seed)
        self.database = Database(self.url)
        self.box = SecretBox([b"k" * 32])
        self.secrets = TenantSecrets(self.box)
        self.time = DatabaseTime(self.clock)
        self.timers = Timers(self.clock)
        self._make_lanes()
        session = self._session
        self.ownership_store = OwnershipStore(session("heartbeat"))
        self.ownership = Ownership(
            self.ownership_store,
            self.lanes,
            self.time,
            self.clock,
            self.random,
            version="0.0.0",
            lease_s=self.lease_s,
            on_moved=lambda: self.notifier.notify_moved(),  # noqa: PLW0108 - constructed later
            is_alone=self.is_alone,
            worker_name=self.place,
        )
        self.transport = WebhookTransport(
            egress=EgressPolicy((ipaddress.ip_network("127.0.0.0/8"),))
        )
        self.sender = WebhookSender(self.transport)
        self.configs = LaneConfigs(
            self.database,
            self.secrets,
            self.lanes,
            self.timers,
            self.clock,
            self.time,
            senders=TargetSenders(
                {HttpTarget: HttpSenders(self.sender, user_agent="hookline/0.0.0")}
            ),
        )
        self.event_types = _NoEventTypes()
        self.schemas = SchemaChecker(self.limits)
        self.catalog = EventTypeCatalog(self.event_types, self.schemas)
        self.changes = Changes(
            LaneStore(session("changes")),
            self.lanes,
            self.configs,
            self.catalog,
            self.clock,
            notify_owner=lambda bucket: self.notifier.notify_changed(bucket),  # noqa: PLW0108 - the same
        )
        self.lane_store = LaneStore(session("refill"))
        self.refiller = Refiller(self.lane_store, self.lanes, self.configs)
        self.sweep_store = LaneStore(session("sweep"))
        self.sweeper = Sweeper(self.sweep_store, self.lanes, self.ownership, self.time, self.clock)
        self._make_notifier()
        self._make_delivery()
        self._make_publishing()
        operations = OperationStore(self.database)
        self.delivery_actions = DeliveryActions(operations, self.changes, self.time)
        self.test_events = TestEvents(
            operations, self.configs, self.catalog, self.time, self.random
        )
        self.upkeep_store = UpkeepStore(session("upkeep"))
        self.upkeep = Upkeep(self.upkeep_store)
        self.ownership.workers = (self.recorder, self.refiller, self.sweeper, self.changes)
        self.database.on_history_changed += [
            self.ownership.history_changed,
            self.matcher.clear,
            self.publisher.history_changed,
            self.changes.history_changed,
            self.upkeep.history_changed,
        ]

    def _make_notifier(self) -> None:
        self.notify_store = NotifyStore(self._session("notify"))
        self.notifier = Notifier(
            self.notify_store, self.ownership, self.lanes, self.changes, self.sweeper
        )

    def _make_lanes(self) -> None:
        refill_queue = RefillQueue(self.max_lane_bytes)
        dispatcher = Dispatcher(
            self.clock,
            self.timers,
            QueueBudget(self.max_queued_jobs, self.max_queued_bytes),
            refill_queue,
            on_ready=lambda: self.deliverer.wake_one(),  # noqa: PLW0108 - constructed later
            on_drained=lambda: self.ownership.poke(),  # noqa: PLW0108 - constructed later
        )
        self.lanes = Lanes(
            self.clock,
            self.timers,
            dispatcher,
            refill_queue,
            lambda bucket: self.ownership.owns(bucket),  # noqa: PLW0108 - constructed later
            notify_owner=lambda uid, bucket: self.notifier.notify_due(uid, bucket),  # noqa: PLW0108 - the same
            sweep_buckets=lambda buckets: self.sweeper.visit_soon(buckets),  # noqa: PLW0108 - the same
            max_lane_bytes=self.max_lane_bytes,
        )

    def _make_delivery(self) -> None:
        self.recorder = Recorder(
            RecordStore(self._session("record")),
            self.lanes,
            self.ownership,
            self.time,
            self.random,
            in_flight=lambda: self.deliverer.in_flight,
            on_recorded=lambda count: self.deliverer.release(count),  # noqa: PLW0108 - constructed later
        )
        self.deliverer = Deliverer(
            self.lanes.dispatcher,
            self.recorder,
            self.time,
            self.ownership.may_send,
            max_in_flight=self.max_in_flight,
        )

    def _make_publishing(self) -> None:
        self.matcher = Matcher(
            self.database, max_index_bytes=self.max_index_bytes, random=self.random
        )
        self.builder = GroupBuilder(self.time, self.random, self.lanes)
        self.publish_store = PublishStore(
            self._session("publish", self.publish_timeout_s), KEY_WINDOW_S, self.lock_timeout_s
        )
        self.contended_store = PublishStore(self._session("contended"), KEY_WINDOW_S)
        self.quota = PendingQuota(BacklogStore(self.database), self.limits.max_pending_per_tenant)
        self.publisher = Publisher(
            store=self.publish_store,
            contended_store=self.contended_store,
            matcher=self.matcher,
            builder=self.builder,
            catalog=self.catalog,
            quota=self.quota,
            limits=self.limits,
            group_limits=self.group_limits,
        )

    def _session(self, name: str, timeout_s: float | None = None) -> Session:
        url = self.session_urls.get(name)
        database = self.database if url is None else Database(url)
        return database.session(name, timeout_s=timeout_s)

    async def start(self) -> None:
        """Open the database and start every loop but upkeep's, as `app.py` does."""
        await self.database.open()
        await self.ownership.start()
        self.recorder.start()
        await self.changes.start()
        self.refiller.start()
        self.sweeper.start()
        self.publisher.start()
        if self.has_word:
            self.notifier.start()

    async def stop(self) -> None:
        """Stop as `app.py` does."""
        self.deliverer.pause()
        self.ownership.begin_leaving()
        await self.publisher.stop()
        await self.schemas.stop()
        await self.deliverer.stop()
        await self.recorder.stop()
        await self.stop_reading()
        await self.changes.stop()
        await self.upkeep.stop()
        await self.ownership.stop()
        await self.notifier.stop()
        self.timers.clear()
        await self.transport.aclose()
        await self.database.close()

    async def stop_reading(self) -> None:
        """Sweep no more and refill no more, but as a test asks for it."""
        await self.sweeper.stop()
        await self.refiller.stop()

    # ------------------------------------------------------------------ what tests do with it

    async def make_clock_turnable(self) -> None:
        """Let `turn` move this database's due times."""
        async with self.database.transaction() as connection:
            await connection.execute(_TURNABLE_NOW)

    async def turn(self, ahead_s: float) -> None:
        """Move due times and this node's durations ahead; what came due is looked for at once.

        The lease is renewed under the new time, as a node's heartbeat would have done meanwhile.
        """
        await self.database.fetch(
            "UPDATE test_clock SET ahead = ahead + make_interval(secs => $1)", ahead_s
        )
        self.clock.ahead_s += ahead_s
        await self.ownership.heartbeat()
        self.timers.poke()
        self.sweeper.sweep_soon()

    async def tenant(self, tenant_id: str = "acme") -> UUID:
        """A tenant."""
        uid = self.new_uid()
        await self.database.fetch(
            "INSERT INTO tenants (tenant_uid, tenant_id) VALUES ($1, $2)", uid, tenant_id
        )
        return uid

    async def subscription(
        self, tenant_uid: UUID, url: str, *patterns: str, **columns: object
    ) -> UUID:
        """A subscription to the patterns (default: all), with its columns as named."""
        return await self.subscription_as(self.new_uid(), tenant_uid, url, *patterns, **columns)

    async def subscription_as(
        self, uid: UUID, tenant_uid: UUID, url: str, *patterns: str, **columns: object
    ) -> UUID:
        """The same, with a uid that decides on its bucket."""
        values: dict[str, object] = {
            "subscription_uid": uid,
            "tenant_uid": tenant_uid,
            "bucket": bucket_of(uid),
            "subscription_id": f"s-{uid.hex[-8:]}",
            "event_types": list(patterns or ("*",)),
            "url": url,
            "timeout_ms": 5_000,
            "max_in_flight": 64,
        } | columns
        names = ", ".join(values)
        holes = ", ".join(f"${n + 2}" for n in range(len(values)))
        await self.database.fetch(
            f"""WITH bumped AS (UPDATE tenants SET epoch = epoch + 1,
                                       subscription_count = subscription_count + 1
                                WHERE tenant_uid = $1 RETURNING epoch)
                INSERT INTO subscriptions (changed_epoch, {names})
                SELECT epoch, {holes} FROM bumped""",  # noqa: S608 - names of our own columns
            tenant_uid,
            *values.values(),
        )
        sealed = self.box.seal(SECRET.encode(), SecretPlace(tenant_uid, uid, 1))
        await self.database.fetch(
            """INSERT INTO signing_keys (subscription_uid, version, scheme, sealed_secret)
               VALUES ($1, 1, 'HMAC_SHA256', $2)""",
            uid,
            sealed,
        )
        return uid

    async def set_state(self, subscription_uid: UUID, state: str) -> None:
        """Pause, disable or resume a subscription, as the API does: epoch, version, change log."""
        await self.database.fetch(
            """WITH s AS (UPDATE subscriptions SET state = $2, version = version + 1,
                              state_reason = CASE WHEN $2 <> 'ACTIVE' THEN 'OPERATOR' END
                          WHERE subscription_uid = $1 RETURNING *),
                    t AS (UPDATE tenants SET epoch = epoch + 1
                          WHERE tenant_uid IN (SELECT tenant_uid FROM s))
               INSERT INTO change_log (kind, bucket, subscription_uid)
               SELECT 'SUBSCRIPTION', bucket, subscription_uid FROM s""",
            subscription_uid,
            state,
        )
        self.changes.poke()

    def new_uid(self) -> UUID:
        """An id of this moment."""
        return make_uuid7(self.time.unix_ms(), self.random.getrandbits(74))

    async def pending(self) -> list[asyncpg.Record]:
        """The hot table."""
        return await self.database.fetch("SELECT * FROM pending_deliveries ORDER BY delivery_id")

    async def finished(self) -> list[asyncpg.Record]:
        """History."""
        return await self.database.fetch("SELECT * FROM deliveries ORDER BY delivery_id")

    async def attempts(self) -> list[asyncpg.Record]:
        """All attempts that have a row of their own, in order."""
        return await self.database.fetch("SELECT * FROM attempts ORDER BY delivery_id, number")


def order_created(number: int = 1, **fields: object) -> NewEvent:
    """An event."""
    values: dict[str, object] = {"type": "order.created", "data": b'{"id":%d}' % number}
    return NewEvent(**(values | fields))  # type: ignore[arg-type]  # a test's own fields


@asynccontextmanager
async def running(url: str, **options: object) -> AsyncIterator[Rig]:
    """A rig that runs while inside."""
    rig = Rig(url, **options)  # type: ignore[arg-type]  # a test's own options
    await rig.start()
    try:
        yield rig
    finally:
        await rig.stop()
