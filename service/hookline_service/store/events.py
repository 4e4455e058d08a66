"""Reads of events, for tenants and operators; `publishing` writes them."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

import asyncpg

from hookline_service.domain.errors import NotFoundError, Reason
from hookline_service.domain.event import Event
from hookline_service.domain.ids import EVENT_ID, format_type_id
from hookline_service.domain.names import WILDCARD, event_name, tenant_name
from hookline_service.store.database import Database
from hookline_service.store.event_rows import event_of
from hookline_service.store.statements import Statements
from hookline_service.store.windows import newest_rows

SQL = Statements("events")


@dataclass(frozen=True, slots=True)
class EventPage:
    """A page of events, newest first."""

    events: list[Event]
    has_more: bool


class EventStore:
    """Reads events. The tenant id `-` means all tenants."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, tenant_id: str, event_id: UUID) -> Event:
        """Return one event with its data; raise `NotFoundError` (EVENT_NOT_FOUND)."""
        row = await self._database.fetchrow(SQL.get, tenant_id, event_id)
        if row is None:
            name = event_name(tenant_id, format_type_id(EVENT_ID, event_id))
            raise NotFoundError(f"there is no {name}", Reason.EVENT_NOT_FOUND)
        return event_of(row)

    async def page(
        self, tenant_id: str, *, before: UUID, limit: int, with_data: bool, max_bytes: int
    ) -> EventPage:
        """Return events with ids below `before`, newest first; their data only if `with_data`.

        At most `limit` events and `max_bytes` of data, but at least one event. Raises NotFoundError
        (TENANT_NOT_FOUND).
        """
        if tenant_id == WILDCARD:
            rows = await self._rows_of_all(before, limit + 1, with_data, max_bytes)
        else:
            rows = await self._database.fetch(
                SQL.list, tenant_id, before, limit + 1, with_data, max_bytes
            )
        if not rows:
            await self.check_tenant(tenant_id)
        page = [event_of(row) for row in rows[:limit]]
        return EventPage(page, has_more=bool(rows) and rows[0]["found"] > len(page))

    async def _rows_of_all(self, before: UUID, limit: int, *weight: object) -> list[asyncpg.Record]:
        keys = await newest_rows(self._database, SQL.newest_of_all, before, limit)
        tenant_uids = [key["tenant_uid"] for key in keys]
        event_ids = [key["event_id"] for key in keys]
        return await self._database.fetch(SQL.read, tenant_uids, event_ids, *weight)

    async def check_tenant(self, tenant_id: str) -> None:
        """Raise `NotFoundError` (TENANT_NOT_FOUND) if the tenant does not exist."""
        if tenant_id == WILDCARD or await self._database.fetchrow(SQL.tenant, tenant_id):
            return
        raise NotFoundError(f"there is no {tenant_name(tenant_id)}", Reason.TENANT_NOT_FOUND)
