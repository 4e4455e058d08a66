"""Reads of deliveries and attempts, for tenants and operators.

Theory of operation. A delivery is in the hot table while it is pending and in history afterwards. A
list reads a page from both in one statement (`sql/deliveries.sql`), then the details of the page's
deliveries in a second one. The tenant id `-` means all tenants.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NoReturn
from uuid import UUID

import asyncpg

from hookline_service.domain.attempt import Attempt, AttemptOutcome, AttemptRecord
from hookline_service.domain.delivery import DeliveryState, DeliveryStateReason
from hookline_service.domain.errors import NotFoundError, Reason
from hookline_service.domain.ids import (
    DELIVERY_ID,
    EVENT_ID,
    bucket_of_delivery,
    delivery_range_of,
    format_type_id,
)
from hookline_service.domain.names import (
    WILDCARD,
    delivery_name,
    event_name,
    subscription_name,
    tenant_name,
)
from hookline_service.domain.subscription import SubscriptionState
from hookline_service.store.database import Database
from hookline_service.store.statements import Statements
from hookline_service.store.windows import newest_rows

SQL = Statements("deliveries")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_HOLDS = {
    SubscriptionState.PAUSED: DeliveryStateReason.SUBSCRIPTION_PAUSED,
    SubscriptionState.DISABLED: DeliveryStateReason.SUBSCRIPTION_DISABLED,
}
"""Why the pending deliveries of a subscription in one of these states are held."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One event for one subscription, with its current state."""

    delivery_id: UUID
    tenant_id: str
    event_id: UUID
    event_type: str
    """Empty if the event is already dropped."""
    subscription_id: str
    """The id of its subscription, also if that is deleted."""
    state: DeliveryState
    state_reason: DeliveryStateReason | None
    attempt_count: int
    next_attempt_time: datetime | None
    """None unless pending, and while it is held."""
    last_attempt: Attempt | None
    finish_time: datetime | None
    subscription_uid: UUID
    is_due: bool
    """Whether it could be sent now by the database's state: it is due and not held."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The filter of a list of deliveries; by default all of a tenant."""

    tenant_id: str
    subscription: tuple[str, str] | None = None
    """The tenant's and the subscription's id."""
    event_id: UUID | None = None
    states: frozenset[DeliveryState] = frozenset(DeliveryState)


@dataclass(frozen=True, slots=True)
class DeliveryPage:
    """A page of deliveries, newest first."""

    deliveries: list[Delivery]
    has_more: bool


@dataclass(frozen=True, slots=True)
class AttemptPage:
    """A page of attempts of a delivery, oldest first."""

    attempts: list[Attempt]
    has_more: bool


class DeliveryStore:
    """Reads deliveries and attempts."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, tenant_id: str, delivery_id: UUID) -> Delivery:
        """Return one delivery; raise `NotFoundError` (DELIVERY_NOT_FOUND)."""
        found = await self._detailed([await self._row(tenant_id, delivery_id)])
        if not found:
            _raise_not_found(tenant_id, delivery_id)
        return found[0]

    async def page(self, selection: Selection, *, before: UUID, limit: int) -> DeliveryPage:
        """Return at most `limit` deliveries with ids below `before`.

        Raises `NotFoundError` if the tenant, subscription or event does not exist.
        """
        common = (before, limit + 1, [state.value for state in selection.states])
        if selection.event_id is not None:
            rows = await self._rows_of_event(selection, selection.event_id, common)
        elif selection.subscription is not None:
            uids = await self._uids_of(selection)
            rows = await self._database.fetch(SQL.list_of_subscriptions, *common, uids)
        elif selection.tenant_id != WILDCARD:
            tenant_uid = await self._tenant_uid_of(selection.tenant_id)
            rows = await self._database.fetch(SQL.list_of_tenant, *common, tenant_uid)
        else:
            rows = await newest_rows(self._database, SQL.list_of_all, *common)
        page = await self._detailed(rows[:limit])
        return DeliveryPage(page, has_more=len(rows) > limit)

    async def attempts(
        self, tenant_id: str, delivery_id: UUID, *, after: int, limit: int
    ) -> AttemptPage:
        """Return at most `limit` attempts with numbers above `after`.

        Raises `NotFoundError` (DELIVERY_NOT_FOUND).
        """
        row = await self._row(tenant_id, delivery_id)
        if _keeps_its_attempt(row):
            found = await self._detailed([row])
            last = found[0].last_attempt if found else None
            return AttemptPage([] if after or last is None else [last], has_more=False)
        rows = await self._database.fetch(SQL.attempts, delivery_id, after, limit + 1)
        return AttemptPage([_attempt_of(row) for row in rows[:limit]], len(rows) > limit)

    async def _row(self, tenant_id: str, delivery_id: UUID) -> asyncpg.Record:
        row = await self._database.fetchrow(
            SQL.get, tenant_id, delivery_id, bucket_of_delivery(delivery_id)
        )
        if row is None:
            _raise_not_found(tenant_id, delivery_id)
        return row

    async def _rows_of_event(
        self, selection: Selection, event_id: UUID, common: tuple[object, ...]
    ) -> list[asyncpg.Record]:
        owner = await self._database.fetchrow(SQL.event_owner, selection.tenant_id, event_id)
        if owner is None:
            name = event_name(selection.tenant_id, format_type_id(EVENT_ID, event_id))
            raise NotFoundError(f"there is no {name}", Reason.EVENT_NOT_FOUND)
        uids = await self._uids_of(selection) if selection.subscription else None
        first, last = delivery_range_of(event_id)
        return await self._database.fetch(
            SQL.list_of_event, *common, owner["tenant_uid"], event_id, first, last, uids
        )

    async def _tenant_uid_of(self, tenant_id: str) -> UUID:
        row = await self._database.fetchrow(SQL.tenant, tenant_id)
        if row is None:
            raise NotFoundError(f"there is no {tenant_name(tenant_id)}", Reason.TENANT_NOT_FOUND)
        uid: UUID = row["tenant_uid"]
        return uid

    async def _uids_of(self, selection: Selection) -> Sequence[UUID]:
        assert selection.subscription is not None  # noqa: S101 (for the type checker)
        tenant_id, subscription_id = selection.subscription
        rows = await self._database.fetch(SQL.subscriptions_named, tenant_id, subscription_id)
        if not rows:
            await self._tenant_uid_of(tenant_id)
            name = subscription_name(tenant_id, subscription_id)
            raise NotFoundError(f"there is no {name}", Reason.SUBSCRIPTION_NOT_FOUND)
        return [row["subscription_uid"] for row in rows]

    async def _detailed(self, rows: Sequence[asyncpg.Record]) -> list[Delivery]:
        """Return the deliveries of rows, except those whose history was dropped meanwhile."""
        if not rows:
            return []
        details = await self._database.fetch(
            SQL.details,
            [row["delivery_id"] for row in rows],
            [row["subscription_uid"] for row in rows],
            [row["event_id"] for row in rows],
            [0 if _keeps_its_attempt(row) else row["attempt_count"] for row in rows],
        )
        return [_delivery_of(rows[detail["place"] - 1], detail) for detail in details]


def _raise_not_found(tenant_id: str, delivery_id: UUID) -> NoReturn:
    name = delivery_name(tenant_id, format_type_id(DELIVERY_ID, delivery_id))
    raise NotFoundError(f"there is no {name}", Reason.DELIVERY_NOT_FOUND)


def _delivery_of(row: asyncpg.Record, detail: asyncpg.Record) -> Delivery:
    state = DeliveryState(row["state"])
    reason = row["state_reason"] and DeliveryStateReason(row["state_reason"])
    due_at: datetime | None = row["due_at"]
    if state is DeliveryState.PENDING:
        reason = _HOLDS.get(SubscriptionState(detail["subscription_state"]))
        due_at = None if reason or detail["is_orphan"] else due_at
        if reason is None and detail["is_behind"]:
            reason = DeliveryStateReason.BLOCKED_BY_ORDER
    return Delivery(
        delivery_id=row["delivery_id"],
        tenant_id=detail["tenant_id"],
        event_id=row["event_id"],
        event_type=detail["event_type"] or "",
        subscription_id=detail["subscription_id"],
        state=state,
        state_reason=reason,
        attempt_count=row["attempt_count"],
        next_attempt_time=due_at,
        last_attempt=_last_attempt_of(row, detail),
        finish_time=row["finish_time"],
        subscription_uid=row["subscription_uid"],
        is_due=reason is None and due_at is not None and due_at <= detail["read_time"],
    )


def _last_attempt_of(row: asyncpg.Record, detail: asyncpg.Record) -> Attempt | None:
    if _keeps_its_attempt(row):
        return _only_attempt_of(row, detail["trace_context"])
    return None if detail["number"] is None else _attempt_of(detail)


def _keeps_its_attempt(row: asyncpg.Record) -> bool:
    """Whether the first attempt succeeded: its own row then holds the attempt."""
    return row["url"] is not None


def _only_attempt_of(row: asyncpg.Record, trace_context: bytes | None) -> Attempt:
    latency_us: int = row["latency_us"]
    return Attempt(
        number=row["attempt_count"],
        start_time_us=_unix_us(row["finish_time"]) - latency_us,
        record=AttemptRecord(
            kind=AttemptOutcome.ACCEPTED,
            latency_us=latency_us,
            url=row["url"],
            http_status=row["http_status"],
            remote_address=row["remote_address"],
        ),
        # The first attempt belongs to its event's trace.
        trace_id=trace_context and trace_context[:16],
    )


def _attempt_of(row: asyncpg.Record) -> Attempt:
    return Attempt(
        number=row["number"],
        start_time_us=_unix_us(row["start_time"]),
        record=AttemptRecord(
            kind=AttemptOutcome(row["outcome"]),
            latency_us=row["latency_us"],
            url=row["url"],
            http_status=row["http_status"],
            error=row["error"].decode(errors="replace"),
            excerpt=row["response_excerpt"],
            remote_address=row["remote_address"],
        ),
        trace_id=row["trace_id"],
    )


def _unix_us(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)
