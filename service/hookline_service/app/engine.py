"""Construction of the data path: every part of `pipeline`, with its store."""

from __future__ import annotations

from functools import partial
from random import Random, SystemRandom
from typing import Final

from hookline_service import VERSION
from hookline_service.config import Settings
from hookline_service.domain.subscription import HttpTarget
from hookline_service.pipeline.actions.delivery_actions import DeliveryActions
from hookline_service.pipeline.actions.target_handshakes import TargetHandshakes
from hookline_service.pipeline.actions.test_events import TestEvents
from hookline_service.pipeline.clock import Clock, DatabaseTime
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
from hookline_service.pipeline.publishing.contended import TURNS_PER_WAIT
from hookline_service.pipeline.publishing.matching import Matcher
from hookline_service.pipeline.publishing.publish import Publisher
from hookline_service.pipeline.publishing.quota import PendingQuota
from hookline_service.pipeline.timers import Timers
from hookline_service.pipeline.upkeep.audit_pruner import AuditPruner
from hookline_service.pipeline.upkeep.chores import Upkeep
from hookline_service.schema.checker import SchemaChecker
from hookline_service.store.api_keys import ApiKeyLookup
from hookline_service.store.audit import AuditLog
from hookline_service.store.audit_checkpoints import AuditCheckpoints
from hookline_service.store.backlog import BacklogStore
from hookline_service.store.data_keys import TenantSecrets
from hookline_service.store.database import Database, Session
from hookline_service.store.event_types import EventTypes
from hookline_service.store.lanes import LaneStore
from hookline_service.store.notifying import NotifyStore
from hookline_service.store.operations import OperationStore
from hookline_service.store.ownership import OwnershipStore
from hookline_service.store.publishing import PublishStore
from hookline_service.store.recording import RecordStore
from hookline_service.store.upkeep import UpkeepStore
from hookline_service.targets.http.handshake import Handshake
from hookline_service.targets.http.sender import HttpSenders, WebhookSender
from hookline_service.targets.http.tls import make_tls_context
from hookline_service.targets.http.transport import TransportLimits, WebhookTransport
from hookline_service.targets.sender import TargetSenders
from hookline_service.telemetry.instruments import UNOBSERVED, Instruments

USER_AGENT: Final = f"hookline/{VERSION}"
KEY_WINDOW_S: Final = 72 * 3_600.0
"""How long an idempotency key is remembered; the contract names it."""
SESSIONS: Final = 10
"""A node's connections beside the pools: those of the data path, and one for API keys."""
LOOKUP_TIMEOUT_S: Final = 3.0
"""The timeout of the lookup of an API key."""


class Engine:
    """The parts of one node's data path; `node.py` starts and stops them."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        path: Database,
        secrets: TenantSecrets,
        clock: Clock,
        place: str = "",
        instruments: Instruments = UNOBSERVED,
    ) -> None:
        """`database` is the pool of calls, `path` that of the data path (HOOKLINE_PATH_POOL_SIZE).

        `place` is the supervisor's name for this process; empty: there is none.
        """
        # Random numbers must not be predictable from ids, which tenants see.
        random = SystemRandom()
        self.time = time = DatabaseTime(clock)
        self.timers = Timers(clock)
        session = path.session
        self.lanes = self._make_lanes(settings, clock)
        self.ownership = self._make_ownership(settings, path, clock, random, worker_name=place)
        self.event_types = EventTypes(database)
        self.audit_log = AuditLog(database)
        self.schemas = SchemaChecker(settings.limits)
        self.catalog = EventTypeCatalog(
            EventTypes(path),
            self.schemas,
            is_strict=settings.is_strict_about_event_types,
            max_schema_bytes=settings.max_schema_cache_bytes,
        )
        self.transport = _make_transport(settings)
        senders = _make_senders(self.transport, time)
        configs = LaneConfigs(path, secrets, self.lanes, self.timers, clock, time, senders=senders)
        record, refill, changes = session("record"), session("refill"), session("changes")
        sweep = session("sweep")
        self._sessions = (record, refill, changes, sweep)
        self.changes = Changes(
            LaneStore(changes),
            self.lanes,
            configs,
            self.catalog,
            clock,
            notify_owner=lambda bucket: self.notifier.notify_changed(bucket),  # noqa: PLW0108 - the same
        )
        self.refiller = Refiller(LaneStore(refill), self.lanes, configs)
        self.sweeper = Sweeper(LaneStore(sweep), self.lanes, self.ownership, time, clock)
        self.notifier = Notifier(
            NotifyStore(session("notify")), self.ownership, self.lanes, self.changes, self.sweeper
        )
        self.key_lookup = ApiKeyLookup(session("access", timeout_s=LOOKUP_TIMEOUT_S))
        self.publisher = self._make_publisher(settings, path, random, instruments)
        self._make_delivery(settings, record, random, instruments)
        self.target_handshakes = TargetHandshakes(
            database,
            secrets,
            Handshake(self.transport, settings.egress.origin_name),
            user_agent=USER_AGENT,
        )
        operations, retention_days = OperationStore(database), settings.retention_days
        self.delivery_actions = DeliveryActions(
            operations, self.changes, time, retention_days=retention_days
        )
        self.test_events = TestEvents(
            operations, configs, self.catalog, time, random, instruments.tracer
        )
        self.upkeep = _make_upkeep(settings, path, secrets, instruments)
        self._connect_parts(path)

    def _connect_parts(self, path: Database) -> None:
        """Give ownership its workers, and have all parts drop their caches after a failover."""
        self.ownership.workers = (self.recorder, self.refiller, self.sweeper, self.changes)
        path.on_history_changed += [
            self.ownership.history_changed,
            self.matcher.clear,
            self.publisher.history_changed,
            self.changes.history_changed,
            self.upkeep.history_changed,
        ]

    async def open_sessions(self) -> None:
        """Open the connections that the work of buckets needs: without them a node owns none."""
        for session in self._sessions:
            await session.open()

    async def close_sessions(self) -> None:
        """Close the connections of parts that were never started."""
        for session in self._sessions:
            await session.close()

    def _make_ownership(
        self, settings: Settings, path: Database, clock: Clock, random: Random, *, worker_name: str
    ) -> Ownership:
        return Ownership(
            OwnershipStore(path.session("ownership", timeout_s=settings.lease_s / 3)),
            self.lanes,
            self.time,
            clock,
            random,
            version=VERSION,
            lease_s=settings.lease_s,
            on_moved=lambda: self.notifier.notify_moved(),  # noqa: PLW0108 - constructed later
            is_alone=settings.database_url is None,
            worker_name=worker_name,
        )

    def _make_lanes(self, settings: Settings, clock: Clock) -> Lanes:
        """Construct the lanes first: ownership, sweep, notifier and deliverer depend on them.

        The callbacks look these parts up when they are called.
        """
        refill_queue = RefillQueue(settings.max_lane_bytes)
        dispatcher = Dispatcher(
            clock,
            self.timers,
            QueueBudget(settings.max_queued_deliveries, settings.max_queued_delivery_bytes),
            refill_queue,
            on_ready=lambda: self.deliverer.wake_one(),  # noqa: PLW0108 - constructed later
            on_drained=lambda: self.ownership.poke(),  # noqa: PLW0108 - constructed later
        )
        return Lanes(
            clock,
            self.timers,
            dispatcher,
            refill_queue,
            lambda bucket: self.ownership.owns(bucket),  # noqa: PLW0108 - constructed later
            notify_owner=lambda uid, bucket: self.notifier.notify_due(uid, bucket),  # noqa: PLW0108 - the same
            sweep_buckets=lambda buckets: self.sweeper.visit_soon(buckets),  # noqa: PLW0108 - the same
            max_lane_bytes=settings.max_lane_bytes,
        )

    def _make_delivery(
        self, settings: Settings, record: Session, random: Random, instruments: Instruments
    ) -> None:
        self.recorder = Recorder(
            RecordStore(record),
            self.lanes,
            self.ownership,
            self.time,
            random,
            in_flight=lambda: self.deliverer.in_flight,
            on_recorded=lambda count: self.deliverer.release(count),  # noqa: PLW0108 - constructed later
            disable_after_s=settings.disable_after_days * 86_400,
            meters=instruments.meters,
        )
        self.deliverer = Deliverer(
            self.lanes.dispatcher,
            self.recorder,
            self.time,
            self.ownership.may_send,
            max_in_flight=settings.max_in_flight,
            tracer=instruments.tracer,
        )

    def _make_publisher(
        self, settings: Settings, path: Database, random: Random, instruments: Instruments
    ) -> Publisher:
        self.quota = PendingQuota(BacklogStore(path), settings.limits.max_pending_per_tenant)
        self.matcher = Matcher(path, max_index_bytes=settings.max_index_bytes, random=random)
        wait_s = settings.publish_lock_wait_s

        def store(session: Session) -> PublishStore:
            return PublishStore(session, KEY_WINDOW_S, wait_s / TURNS_PER_WAIT)

        return Publisher(
            store=store(path.session("publish")),
            contended_store=store(path.session("contended")),
            matcher=self.matcher,
            builder=GroupBuilder(self.time, random, self.lanes),
            catalog=self.catalog,
            quota=self.quota,
            limits=settings.limits,
            group_limits=GroupLimits(lock_wait_s=wait_s),
            instruments=instruments,
        )


def _make_transport(settings: Settings) -> WebhookTransport:
    return WebhookTransport(
        egress=settings.egress.policy,
        proxy=settings.egress.proxy,
        make_tls=partial(
            make_tls_context,
            settings.egress.ca_file,
            handshake_bytes_max=settings.egress.handshake_bytes_max,
        ),
        limits=TransportLimits(
            handshakes_max=settings.egress.handshakes_max,
            certificate_bytes_max=settings.egress.certificate_bytes_max,
        ),
    )


def _make_senders(transport: WebhookTransport, time: DatabaseTime) -> TargetSenders:
    """Register the sender of each kind of target, by the type of its configuration."""
    webhooks = WebhookSender(transport, unix_s=time.unix_s)
    return TargetSenders({HttpTarget: HttpSenders(webhooks, user_agent=USER_AGENT)})


def _make_upkeep(
    settings: Settings, database: Database, secrets: TenantSecrets, instruments: Instruments
) -> Upkeep:
    pruner = AuditPruner(
        AuditLog(database),
        AuditCheckpoints(database),
        secrets.box,
        retention_days=settings.audit_retention_days,
        meters=instruments.meters,
    )
    return Upkeep(
        UpkeepStore(database.session("upkeep")),
        retention_days=settings.retention_days,
        pending_retention_days=settings.pending_retention_days,
        tombstone_retention_days=settings.tombstone_retention_days,
        audit=pruner,
        meters=instruments.meters,
    )
