"""What operators do to one delivery: retry, cancel; and what a trial leaves behind."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from hookline_service.domain.attempt import Outcome
from hookline_service.domain.audit_view import delivery_view
from hookline_service.domain.delivery import DeliveryState
from hookline_service.domain.event import Event
from hookline_service.domain.ids import DELIVERY_ID, EVENT_ID, bucket_of_delivery, format_type_id
from hookline_service.domain.names import delivery_name, event_name, subscription_name
from hookline_service.domain.ordering import key_hash_of
from hookline_service.domain.subscription import RetryPolicy, Subscription
from hookline_service.store.audit import draft
from hookline_service.store.database import Database
from hookline_service.store.event_rows import stored_content_type
from hookline_service.store.statements import Statements

SQL = Statements("operations")


@dataclass(frozen=True, slots=True)
class FoundDelivery:
    """A delivery and what an operator's move depends on."""

    delivery_id: UUID
    event_id: UUID
    tenant_id: str
    tenant_uid: UUID
    subscription_id: str
    bucket: int
    state: DeliveryState
    is_due: bool
    """Now, or before its node would hear of a change."""
    has_event: bool
    """Whether what it would send is still there."""
    is_subscription_deleted: bool
    retry_policy: RetryPolicy
    key_hash: int | None
    """Of its ordering key, where its subscription is ordered and it is finished."""


class OperationStore:
    """One delivery at a time, on the calls' pool."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, tenant_id: str, delivery_id: UUID) -> FoundDelivery | None:
        """A tenant's delivery, pending or finished; None where it has none of this id."""
        row = await self._database.fetchrow(
            SQL.find, tenant_id, bucket_of_delivery(delivery_id), delivery_id
        )
        if row is None:
            return None
        return FoundDelivery(
            delivery_id=row["delivery_id"],
            event_id=row["event_id"],
            tenant_id=row["tenant_id"],
            tenant_uid=row["tenant_uid"],
            subscription_id=row["subscription_id"],
            bucket=row["bucket"],
            state=DeliveryState(row["state"]),
            is_due=row["is_due"],
            has_event=row["has_event"],
            is_subscription_deleted=row["is_deleted"],
            retry_policy=RetryPolicy(
                max_attempts=row["max_attempts"],
                min_backoff_s=row["min_backoff_s"],
                max_backoff_s=row["max_backoff_s"],
                schedule_s=tuple(row["schedule_s"]),
            ),
            key_hash=(
                key_hash_of(row["ordering_key"] or "", row["event_id"])
                if row["ordered"] and row["state"] != DeliveryState.PENDING
                else None
            ),
        )

    async def retry_pending(self, found: FoundDelivery) -> bool:
        """Make a waiting delivery due now; False where it waits no longer."""
        return await self._retry(SQL.retry_pending, found)

    async def retry_due(self, found: FoundDelivery) -> bool:
        """Begin the retention of a due delivery anew; False where it is pending no longer."""
        return await self._retry(SQL.retry_due, found)

    async def _retry(self, statement: str, found: FoundDelivery) -> bool:
        draft = _draft(found, DeliveryState.PENDING)
        rows = await self._database.fetch(
            statement, found.bucket, found.delivery_id, found.tenant_uid, draft
        )
        return bool(rows)

    async def retry_finished(self, found: FoundDelivery, max_attempts: int) -> bool:
        """Move a finished delivery back; False where somebody else was faster."""
        rows = await self._database.fetch(
            SQL.retry_finished,
            found.tenant_uid,
            found.delivery_id,
            found.bucket,
            max_attempts,
            _draft(found, DeliveryState.PENDING),
            found.key_hash,
        )
        return bool(rows)

    async def cancel(self, found: FoundDelivery) -> bool:
        """End a pending delivery; False where it is pending no longer."""
        rows = await self._database.fetch(
            SQL.cancel,
            found.tenant_uid,
            found.bucket,
            found.delivery_id,
            _draft(found, DeliveryState.CANCELLED),
        )
        return bool(rows)

    async def store_trial(
        self,
        event: Event,
        delivery_id: UUID,
        subscription: Subscription,
        outcome: Outcome,
        start_time: datetime,
        state: DeliveryState,
    ) -> None:
        """Keep what a trial did, so that it can be looked up as any other delivery."""
        await self._database.fetch(
            SQL.store_trial,
            event.tenant_uid,
            event.event_id,
            event.occur_time,
            event.event_type_revision,
            event.is_json,
            event.type,
            event.source,
            stored_content_type(event),
            event.subject or None,
            event.external_id or None,
            event.data_schema or None,
            event.ordering_key or None,
            event.attributes or None,
            event.data,
            delivery_id,
            subscription.uid,
            state,
            outcome.http_status,
            outcome.latency_us,
            start_time,
            outcome.kind,
            outcome.url,
            outcome.remote_address,
            outcome.error.encode(),
            outcome.excerpt,
            _draft_of_trial(event, delivery_id, subscription, state),
            event.trace_context,
        )


def _draft(found: FoundDelivery, state: DeliveryState) -> dict[str, str]:
    name = delivery_name(found.tenant_id, format_type_id(DELIVERY_ID, found.delivery_id))
    event = event_name(found.tenant_id, format_type_id(EVENT_ID, found.event_id))
    subscription = subscription_name(found.tenant_id, found.subscription_id)
    return draft(
        name,
        tenant_id=found.tenant_id,
        before=delivery_view(name, event, subscription, found.state),
        after=delivery_view(name, event, subscription, state),
    )


def _draft_of_trial(
    event: Event, delivery_id: UUID, subscription: Subscription, state: DeliveryState
) -> dict[str, str]:
    tenant_id = subscription.tenant_id
    delivery = delivery_name(tenant_id, format_type_id(DELIVERY_ID, delivery_id))
    name = subscription_name(tenant_id, subscription.subscription_id)
    sent = event_name(tenant_id, format_type_id(EVENT_ID, event.event_id))
    after = delivery_view(delivery, sent, name, state)
    return draft(name, tenant_id=tenant_id, after=after)
