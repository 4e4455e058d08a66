"""What lanes must know of their subscriptions: read, secrets opened, targets made ready."""

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
from hookline_service.targets.http.client_certificate import ClientIdentity
from hookline_service.targets.http.prepared import PreparedTarget, prepare_target
from hookline_service.targets.http.signature import Signer, parse_secret

_log = structlog.get_logger(__name__)

FAULT_LOG_PAUSE_S = 60.0
"""Of lanes that cannot be made ready one is logged, and then none for so long but counted."""


class LaneConfigs:
    """Configures lanes from their subscriptions' rows."""

    def __init__(
        self,
        reader: Reader,
        secrets: TenantSecrets,
        lanes: Lanes,
        timers: Timers,
        clock: Clock,
        time: DatabaseTime,
        *,
        user_agent: str,
    ) -> None:
        self._reader = reader
        self._secrets = secrets
        self._lanes = lanes
        self._timers = timers
        self._clock = clock
        self._time = time
        self._user_agent = user_agent
        self._quiet_until_s = 0.0
        self._unlogged = 0

    async def configure(self, lanes: Sequence[Lane]) -> None:
        """Read the lanes' subscriptions anew and tell the lanes."""
        by_uid = {lane.subscription_uid: lane for lane in lanes}
        for route in await load_routes(self._reader, self._secrets, list(by_uid)):
            lane = by_uid[route.subscription.uid]
            if route.is_deleted:
                self._lanes.deleted(lane)
            elif route.secret_fault:
                self._refuse(lane, route, "secret_unreadable", route.secret_fault)
            else:
                self._take_in(lane, route)

    async def reconfigure(self, uids: Sequence[UUID]) -> None:
        """The same for subscriptions that changed, where memory has a lane of theirs."""
        lanes = [lane for uid in uids if (lane := self._lanes.get(uid)) is not None]
        if lanes:
            await self.configure(lanes)
        for lane in lanes:
            if lane.is_gone:  # evicted meanwhile: there may be something to send
                self._lanes.changed(lane.subscription_uid, lane.bucket)

    async def prepare(self, subscription_uid: UUID) -> tuple[RouteRow, PreparedTarget] | None:
        """A subscription's row and target, outside any lane; None where it is gone.

        Raises `UnavailableError` where its secret cannot be opened: the fault is ours.
        """
        for route in await load_routes(self._reader, self._secrets, [subscription_uid]):
            if route.secret_fault:
                raise UnavailableError(
                    f"nothing was sent: a secret of {_name_of(route)} cannot be opened",
                    Reason.INTERNAL,
                )
            if not route.is_deleted:
                return route, self._target_of(route)
        return None

    def _take_in(self, lane: Lane, route: RouteRow) -> None:
        """Configure a lane, but where the target is outside today's grammar: others go on."""
        try:
            config = self._config_of(route)
        except ValueError as error:
            self._refuse(lane, route, "target_unusable", str(error))
            return
        self._lanes.configure(lane, config)
        self._watch_expiry(lane, route.secrets)

    def _refuse(self, lane: Lane, route: RouteRow, event: str, fault: str) -> None:
        """Hold a lane: the fault is ours, not the target's. Its deliveries wait in Postgres.

        There may be thousands, all for one reason: the log has one of them a minute.
        """
        is_news = lane.fault != fault
        self._lanes.unusable(lane, _name_of(route), fault)
        if not is_news:
            return
        now_s = self._clock.boottime_s()
        if now_s < self._quiet_until_s:
            self._unlogged += 1
            return
        _log.error(event, subscription=_name_of(route), error=fault, others=self._unlogged)
        self._quiet_until_s, self._unlogged = now_s + FAULT_LOG_PAUSE_S, 0

    def _config_of(self, route: RouteRow) -> LaneConfig:
        """Raises ValueError where the target is outside today's grammar."""
        subscription = route.subscription
        target = self._target_of(route)
        return LaneConfig(
            name=_name_of(route),
            version=route.version,
            tenant_uid=route.tenant_uid,
            state=subscription.state,
            schedule=schedule_of(subscription.retry_policy),
            max_in_flight=subscription.limits.max_in_flight,
            max_per_second=rate_of(subscription),
            is_ordered=subscription.ordered,
            payload_format=subscription.payload_format,
            url=subscription.target.url,
            target=target,
            propagate_trace=subscription.propagate_trace,
            failing_since_us=_unix_us(route.failing_since),
        )

    def _target_of(self, route: RouteRow) -> PreparedTarget:
        signer = Signer([parse_secret(secret.text) for secret in route.secrets])
        told = route.target_secrets
        return prepare_target(
            route.subscription.target,
            signer,
            user_agent=self._user_agent,
            tenant_id=route.subscription.tenant_id,
            secret_headers=told.headers,
            identity=ClientIdentity(*told.certificate) if told.certificate else None,
        )

    def _watch_expiry(self, lane: Lane, secrets: Sequence[LiveSecret]) -> None:
        """A rotation's old secret signs no more once its overlap is over; one timer sees to it."""
        expiries = [secret.expire_time for secret in secrets if secret.expire_time is not None]
        first = min(expiries, default=None)
        if first is None or lane.watched_expiry == first:
            return
        lane.watched_expiry = first
        left_s = first.timestamp() - self._time.unix_s()

        def expire() -> None:
            if lane.watched_expiry == first:
                lane.watched_expiry = None
                self._lanes.outdate(lane)

        self._timers.add(self._clock.boottime_s() + max(0.0, left_s), expire)


def _name_of(route: RouteRow) -> str:
    return subscription_name(route.subscription.tenant_id, route.subscription.subscription_id)


def _unix_us(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp() * 1_000_000)
