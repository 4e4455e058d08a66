"""Actions of operators on single deliveries: retry and cancel.

Each reads the delivery's state, looks the transition up, and writes it in one guarded statement. If
the state changed in between, the statement matches nothing, and the action starts again.
"""

from __future__ import annotations

from uuid import UUID

from hookline_service.domain.delivery import DeliveryState, IllegalMoveError, Trigger, advance
from hookline_service.domain.errors import (
    AbortedError,
    FailedPreconditionError,
    NotFoundError,
    Reason,
)
from hookline_service.domain.ids import DELIVERY_ID, format_type_id, unix_ms_of
from hookline_service.domain.names import delivery_name
from hookline_service.domain.subscription import schedule_of
from hookline_service.pipeline.clock import DatabaseTime
from hookline_service.pipeline.coordination.changes import Changes
from hookline_service.store.operations import FoundDelivery, OperationStore

SAFE_DAYS = 4
"""In so many days before its event is dropped, a finished delivery cannot be retried."""
_TRIES = 5
_DAY_MS = 86_400_000


class DeliveryActions:
    """Retries and cancels deliveries."""

    def __init__(
        self,
        store: OperationStore,
        changes: Changes,
        time: DatabaseTime,
        *,
        retention_days: int = 30,
    ) -> None:
        self._store = store
        self._changes = changes
        self._time = time
        self._retention_days = retention_days

    async def retry(self, tenant_id: str, delivery_id: UUID) -> None:
        """Make a delivery due now; a finished one gets a new budget of attempts.

        Raises `NotFoundError`, or `FailedPreconditionError` if it succeeded, its subscription is
        deleted, or its event is about to be dropped.
        """
        for _ in range(_TRIES):
            found = await self._find(tenant_id, delivery_id)
            name = delivery_name(tenant_id, format_type_id(DELIVERY_ID, delivery_id))
            try:
                state = advance(found.state, Trigger.RETRIED)
            except IllegalMoveError:
                raise FailedPreconditionError(
                    f"{name} has succeeded; to send its event again, start a replay",
                    Reason.DELIVERY_ALREADY_SUCCEEDED,
                    metadata={"delivery": name},
                ) from None
            self._check_retry(found, name)
            if await self._write_retry(found, state):
                self._changes.poke()
                return
        raise _contended(tenant_id, delivery_id)

    async def _write_retry(self, found: FoundDelivery, state: DeliveryState) -> bool:
        if found.state is not DeliveryState.PENDING:
            max_attempts = schedule_of(found.retry_policy).max_attempts
            return await self._store.retry_finished(found, state, max_attempts)
        # A delivery that is due, or will be before its node reads this change, may be on the wire
        # by then: a new version would discard the outcome, and it would be sent twice.
        if found.is_due:
            return await self._store.retry_due(found, state)
        return await self._store.retry_pending(found, state)

    def _check_retry(self, found: FoundDelivery, name: str) -> None:
        if found.is_subscription_deleted:
            raise FailedPreconditionError(
                f"the subscription of {name} is deleted; its deliveries can only be read",
                Reason.SUBSCRIPTION_DELETED,
                metadata={"delivery": name},
            )
        age_days = (self._time.unix_ms() - unix_ms_of(found.event_id)) / _DAY_MS
        if found.state is not DeliveryState.PENDING and (
            not found.has_event or age_days > self._retention_days - SAFE_DAYS
        ):
            raise FailedPreconditionError(
                f"the event of {name} is dropped for its age, or within {SAFE_DAYS} days of it"
                " (HOOKLINE_RETENTION_DAYS)",
                Reason.EVENT_NEAR_EXPIRY,
                metadata={"delivery": name},
            )

    async def cancel(self, tenant_id: str, delivery_id: UUID) -> None:
        """Cancel a pending delivery; do nothing if it is cancelled already.

        Raises `NotFoundError`, or `FailedPreconditionError` if it finished in another state.
        """
        for _ in range(_TRIES):
            found = await self._find(tenant_id, delivery_id)
            if found.state is DeliveryState.CANCELLED:
                return
            try:
                state = advance(found.state, Trigger.CANCELLED)
            except IllegalMoveError:
                name = delivery_name(tenant_id, format_type_id(DELIVERY_ID, delivery_id))
                raise FailedPreconditionError(
                    f"{name} is {found.state} already",
                    Reason.DELIVERY_ALREADY_FINISHED,
                    metadata={"delivery": name, "state": found.state},
                ) from None
            if await self._store.cancel(found, state):
                self._changes.poke()
                return
        raise _contended(tenant_id, delivery_id)

    async def _find(self, tenant_id: str, delivery_id: UUID) -> FoundDelivery:
        found = await self._store.find(tenant_id, delivery_id)
        if found is None:
            name = delivery_name(tenant_id, format_type_id(DELIVERY_ID, delivery_id))
            raise NotFoundError(
                f"there is no delivery {name}",
                Reason.DELIVERY_NOT_FOUND,
                metadata={"delivery": name},
            )
        return found


def _contended(tenant_id: str, delivery_id: UUID) -> AbortedError:
    name = delivery_name(tenant_id, format_type_id(DELIVERY_ID, delivery_id))
    return AbortedError(f"{name} is changing; read it again", Reason.CONCURRENT_CHANGE)
