"""Writes of operators on one delivery: retry, cancel; and the storage of test events."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from hookline_service.domain.attempt import AttemptRecord
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
    """A delivery with the facts that a retry or cancellation depends on."""

    delivery_id: UUID
    event_id: UUID
    tenant_id: str
    tenant_uid: UUID
    subscription_id: str
    bucket: int
    state: DeliveryState
    is_due: bool
    """Now, or before its node reads a change."""
    has_event: bool
    """Whether its event is still stored."""
    is_subscription_deleted: bool
    retry_policy: RetryPolicy
    key_hash: int | None
    """The hash of its ordering key, if its subscription is ordered and it is finished."""


class OperationStore:
    """Reads and moves one delivery at a time, on the pool of the calls."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, tenant_id: str, delivery_id: UUID) -> FoundDelivery | None:
        """Return a tenant's delivery, pending or finished; None if there is none with this id."""
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

    async def retry_pending(self, found: FoundDelivery, state: DeliveryState) -> bool:
        """Make a pending delivery due now; return False if it is not pending or is due soon."""
        return await self._retry(SQL.retry_pending, found, state)

    async def retry_due(self, found: FoundDelivery, state: DeliveryState) -> bool:
        """Restart the retention of a due delivery; return False if it is no longer pending."""
        return await self._retry(SQL.retry_due, found, state)

    async def _retry(self, statement: str, found: FoundDelivery, state: DeliveryState) -> bool:
        draft = _draft(found, state)
        rows = await self._database.fetch(
            statement, found.bucket, found.delivery_id, found.tenant_uid, draft
        )
        return bool(rows)

    async def retry_finished(
        self, found: FoundDelivery, state: DeliveryState, max_attempts: int
    ) -> bool:
        """Move a finished delivery back to pending; return False if its state has changed."""
        rows = await self._database.fetch(
            SQL.retry_finished,
            found.tenant_uid,
            found.delivery_id,
            found.bucket,
            max_attempts,
            _draft(found, state),
            found.key_hash,
            found.state,
        )
        return bool(rows)

    async def cancel(self, found: FoundDelivery, state: DeliveryState) -> bool:
        """Cancel a pending delivery; return False if it is no longer pending."""
        rows = await self._database.fetch(
            SQL.cancel,
            found.tenant_uid,
            found.bucket,
            found.delivery_id,
            _draft(found, state),
            state,
        )
        return bool(rows)

    async def store_test_event(
        self,
        event: Event,
        delivery_id: UUID,
        subscription: Subscription,
        attempt: AttemptRecord,
        start_time: datetime,
        state: DeliveryState,
    ) -> None:
        """Store a test event with its delivery and attempt, so that it is listed as any other."""
        await self._database.fetch(
            SQL.store_test_event,
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
            attempt.http_status,
            attempt.latency_us,
            start_time,
            attempt.kind,
            attempt.url,
            attempt.remote_address,
            attempt.error.encode(),
            attempt.excerpt,
            _draft_of_test_event(event, delivery_id, subscription, state),
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


def _draft_of_test_event(
    event: Event, delivery_id: UUID, subscription: Subscription, state: DeliveryState
) -> dict[str, str]:
    tenant_id = subscription.tenant_id
    delivery = delivery_name(tenant_id, format_type_id(DELIVERY_ID, delivery_id))
    name = subscription_name(tenant_id, subscription.subscription_id)
    sent = event_name(tenant_id, format_type_id(EVENT_ID, event.event_id))
    after = delivery_view(delivery, sent, name, state)
    return draft(name, tenant_id=tenant_id, after=after)
