"""Configurations of lanes: subscriptions are read, secrets decrypted, targets prepared."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import structlog

from hookline_service.domain.errors import Reason, UnavailableError
from hookline_service.domain.names import subscription_name
from hookline_service.domain.subscription import rate_of, schedule_of
from hookline_service.pipeline.clock import Clock, DatabaseTime
from hookline_service.pipeline.dispatch.lane import Lane, LaneConfig
from hookline_service.pipeline.dispatch.lanes import Lanes
from hookline_service.pipeline.timers import Timers
from hookline_service.store.data_keys import TenantSecrets
from hookline_service.store.routes import Reader, RouteRow, load_routes
from hookline_service.store.subscription_secrets import LiveSecret
from hookline_service.targets.sender import TargetCredentials, TargetSender, TargetSenders

_log = structlog.get_logger(__name__)

FAULT_LOG_PAUSE_S = 60.0
"""After a fault was logged, others are counted, not logged, for this long."""


class LaneConfigs:
    """Configures lanes from the rows of their subscriptions."""

    def __init__(
        self,
        reader: Reader,
        secrets: TenantSecrets,
        lanes: Lanes,
        timers: Timers,
        clock: Clock,
        time: DatabaseTime,
        *,
        senders: TargetSenders,
    ) -> None:
        self._reader = reader
        self._secrets = secrets
        self._lanes = lanes
        self._timers = timers
        self._clock = clock
        self._time = time
        self._senders = senders
        self._log_again_s = 0.0
        self._faults_unlogged = 0

    async def configure(self, lanes: Sequence[Lane]) -> None:
        """Read the subscriptions of these lanes, and configure the lanes."""
        by_uid = {lane.subscription_uid: lane for lane in lanes}
        for route in await load_routes(self._reader, self._secrets, list(by_uid)):
            lane = by_uid[route.subscription.uid]
            if route.is_deleted:
                self._lanes.deleted(lane)
            elif route.secret_fault:
                self._set_fault(lane, route, "secret_unreadable", route.secret_fault)
            else:
                self._configure_one(lane, route)

    async def reconfigure(self, uids: Sequence[UUID]) -> None:
        """The same for subscriptions that were changed, where memory has their lanes."""
        lanes = [lane for uid in uids if (lane := self._lanes.get(uid)) is not None]
        if lanes:
            await self.configure(lanes)
        for lane in lanes:
            if lane.is_gone:  # evicted during the read: its deliveries may be sent again
                self._lanes.changed(lane.subscription_uid, lane.bucket)

    async def prepare(self, subscription_uid: UUID) -> tuple[RouteRow, TargetSender] | None:
        """Return a subscription's row and sender, apart from its lane; None where it is gone.

        Raises `UnavailableError` where its secret cannot be decrypted: an error on our side.
        """
        for route in await load_routes(self._reader, self._secrets, [subscription_uid]):
            if route.secret_fault:
                raise UnavailableError(
                    f"nothing was sent: a secret of {_name_of(route)} cannot be opened",
                    Reason.INTERNAL,
                )
            if not route.is_deleted:
                return route, self._sender_of(route)
        return None

    def _configure_one(self, lane: Lane, route: RouteRow) -> None:
        """Configure one lane; a target that this version rejects does not stop the others."""
        try:
            config = self._config_of(route)
        except ValueError as error:
            self._set_fault(lane, route, "target_unusable", str(error))
            return
        self._lanes.configure(lane, config)
        self._watch_expiry(lane, route.secrets)

    def _set_fault(self, lane: Lane, route: RouteRow, event: str, fault: str) -> None:
        """Stop a lane for an error on our side, not the target's; its deliveries wait in Postgres.

        Thousands of lanes may have the same fault: one a minute is logged.
        """
        is_new = lane.fault != fault
        self._lanes.set_fault(lane, _name_of(route), fault)
        if not is_new:
            return
        now_s = self._clock.boottime_s()
        if now_s < self._log_again_s:
            self._faults_unlogged += 1
            return
        _log.error(event, subscription=_name_of(route), error=fault, others=self._faults_unlogged)
        self._log_again_s, self._faults_unlogged = now_s + FAULT_LOG_PAUSE_S, 0

    def _config_of(self, route: RouteRow) -> LaneConfig:
        """Return the configuration; raises `ValueError` where this version rejects the target."""
        subscription = route.subscription
        sender = self._sender_of(route)
        return LaneConfig(
            name=_name_of(route),
            version=route.version,
            tenant_uid=route.tenant_uid,
            state=subscription.state,
            schedule=schedule_of(subscription.retry_policy),
            max_in_flight=subscription.limits.max_in_flight,
            max_per_second=rate_of(subscription),
            is_ordered=subscription.ordered,
            sender=sender,
            propagate_trace=subscription.propagate_trace,
            failing_since_us=_unix_us(route.failing_since),
        )

    def _sender_of(self, route: RouteRow) -> TargetSender:
        opened = route.target_secrets
        credentials = TargetCredentials(
            tuple(secret.text for secret in route.secrets), opened.headers, opened.certificate
        )
        return self._senders.sender_of(route.subscription, credentials)

    def _watch_expiry(self, lane: Lane, secrets: Sequence[LiveSecret]) -> None:
        """Have the subscription read again when the overlap of a rotated secret ends."""
        expiries = [secret.expire_time for secret in secrets if secret.expire_time is not None]
        first = min(expiries, default=None)
        if first is None or lane.secret_expiry == first:
            return
        lane.expect_secret_expiry(first)
        left_s = first.timestamp() - self._time.unix_s()

        def expire() -> None:
            if lane.secret_expiry == first:
                lane.expect_secret_expiry(None)
                self._lanes.outdate(lane)

        self._timers.add(self._clock.boottime_s() + max(0.0, left_s), expire)


def _name_of(route: RouteRow) -> str:
    return subscription_name(route.subscription.tenant_id, route.subscription.subscription_id)


def _unix_us(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp() * 1_000_000)
