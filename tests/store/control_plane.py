"""The stores of the control plane on a test's database, with helpers that read its rows."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg

from hookline_service.domain.subscription import HttpTarget, SignatureScheme, Subscription
from hookline_service.store.data_keys import TenantSecrets
from hookline_service.store.database import Database
from hookline_service.store.event_types import EventTypes
from hookline_service.store.routes import IndexLoad, RouteRow, load_index, load_routes
from hookline_service.store.secrets import SecretBox
from hookline_service.store.subscriptions import NewSecret, Subscriptions
from hookline_service.store.tenants import Tenants

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
KEY = b"k" * 32
PLENTY = 1_000_000


def secret(text: str = SECRET) -> NewSecret:
    return NewSecret(SignatureScheme.HMAC_SHA256, text)


def draft(subscription_id: str = "orders", tenant_id: str = "acme", **fields: Any) -> Subscription:  # noqa: ANN401 (any field)
    """Return a subscription with defaults, changed by the given fields."""
    values: dict[str, Any] = {
        "tenant_id": tenant_id,
        "subscription_id": subscription_id,
        "uid": UUID(int=0),
        "event_types": ("order.*",),
        "target": HttpTarget(url="https://example.com/hook"),
    }
    return Subscription(**(values | fields))


@dataclass
class ControlPlane:
    """The stores, and direct access to their rows."""

    database: Database
    secrets: TenantSecrets
    tenants: Tenants
    event_types: EventTypes
    subscriptions: Subscriptions

    async def create(
        self,
        subscription_id: str = "orders",
        tenant_id: str = "acme",
        **fields: Any,  # noqa: ANN401 (any field)
    ) -> Subscription:
        wanted = draft(subscription_id, tenant_id, **fields)
        return await self.subscriptions.create(wanted, secret(), max_of_tenant=PLENTY)

    async def rows(self, statement: str, *args: object) -> list[asyncpg.Record]:
        return await self.database.fetch(statement, *args)

    async def value(self, statement: str, *args: object) -> Any:  # noqa: ANN401 (any column)
        ((value,),) = await self.database.fetch(statement, *args)
        return value

    async def epoch(self, tenant_id: str = "acme") -> int:
        statement = "SELECT epoch FROM tenants WHERE tenant_id = $1 AND deleted_at IS NULL"
        epoch: int = await self.value(statement, tenant_id)
        return epoch

    async def count(self, tenant_id: str = "acme") -> int:
        """Return the count of live subscriptions stored in the tenant's row."""
        statement = (
            "SELECT subscription_count FROM tenants WHERE tenant_id = $1 AND deleted_at IS NULL"
        )
        count: int = await self.value(statement, tenant_id)
        return count

    async def changes(self, kind: str = "SUBSCRIPTION") -> list[UUID | None]:
        """Return the subscriptions in the change log, in its order."""
        statement = "SELECT subscription_uid FROM change_log WHERE kind = $1 ORDER BY change_id"
        return [row[0] for row in await self.rows(statement, kind)]

    async def index(
        self, tenant_id: str = "acme", have_epoch: int = 0, have_uid: UUID | None = None
    ) -> IndexLoad:
        load = await load_index(self.database, tenant_id, have_epoch, have_uid)
        assert load is not None
        return load

    async def route(self, uid: UUID) -> RouteRow:
        (route,) = await load_routes(self.database, self.secrets, [uid])
        return route

    async def turn_clock(self, ahead: str) -> None:
        """Shift the time that the engine reads; `ahead` is a Postgres interval."""
        await self.rows(
            f"""CREATE OR REPLACE FUNCTION hookline_now() RETURNS timestamptz LANGUAGE sql STABLE
                AS $$ SELECT now() + interval '{ahead}' $$"""
        )


@asynccontextmanager
async def control_plane(url: str, *, pool_size: int = 8) -> AsyncIterator[ControlPlane]:
    """Open the stores with a tenant `acme` inside the context."""
    database = Database(url, pool_size=pool_size)
    await database.open()
    try:
        secrets = TenantSecrets(SecretBox([KEY]))
        plane = ControlPlane(
            database,
            secrets,
            Tenants(database),
            EventTypes(database),
            Subscriptions(database, secrets),
        )
        await plane.tenants.create("acme", "", {})
        yield plane
    finally:
        await database.close()
