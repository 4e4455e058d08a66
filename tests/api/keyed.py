"""A server that authenticates API keys, with all services and an adjustable clock."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from hookline_service.api.access.service import AccessServicer
from hookline_service.api.conversion.paging import Pages
from hookline_service.api.middleware.api_key_source import ApiKeySource
from hookline_service.domain.caller import Scope
from hookline_service.domain.limits import Limits
from hookline_service.store.api_keys import ApiKeyLookup, ApiKeys, NewApiKey
from hookline_service.store.audit import AuditLog
from hookline_service.store.database import Database
from tests.api.conftest import DEPLOYMENT_KEY, PAGE_KEY
from tests.api.control import Control, controlling
from tests.pipeline.rig import TurnableClock

ALL = frozenset(Scope)
Metadata = tuple[tuple[str, str], ...]


def bearer(token: str) -> Metadata:
    return (("authorization", f"Bearer {token}"),)


@dataclass
class Keyed:
    """A channel to the server, and the objects behind it."""

    control: Control
    source: ApiKeySource
    clock: TurnableClock
    keys: ApiKeys

    @property
    def channel(self) -> Any:  # noqa: ANN401 (calls by name have no types)
        return self.control.channel

    async def token(
        self,
        *scopes: Scope,
        tenant: str | None = None,
        expire_time: datetime | None = None,
    ) -> str:
        """Create a key, by default with all scopes, and return its token."""
        draft = NewApiKey(
            display_name="",
            tenant_id=tenant,
            scopes=frozenset(scopes) or ALL,
            expire_time=expire_time,
        )
        return (await self.keys.create(draft))[1]


@asynccontextmanager
async def keyed(url: str, *, max_cached: int = 1_000) -> AsyncIterator[Keyed]:
    """Run a server that authenticates API keys, with a tenant `acme`, inside the context."""
    clock, database = TurnableClock(), Database(url)
    source = ApiKeySource(
        ApiKeyLookup(database.session("access")), DEPLOYMENT_KEY, clock, max_cached=max_cached
    )
    await database.open()
    keys = ApiKeys(database, DEPLOYMENT_KEY)
    access = AccessServicer(
        keys=keys,
        forget=source.forget,
        log=AuditLog(database),
        pages=Pages(PAGE_KEY, Limits()),
        limits=Limits(),
    )
    source.start()
    try:
        async with controlling(url, identities=[source], access=access) as control:
            yield Keyed(control, source, clock, keys)
    finally:
        await source.stop()
        await database.close()
