"""Which subscriptions an event goes to, answered in memory.

Per tenant an index `event type → subscriptions`: exact types, prefixes, all. The index belongs to the
tenant's epoch, and both are read in one statement; a publish writes only if the epoch still stands,
so an index can be stale but never wrong. Reloads bring what changed since the epoch that is held.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING

from service.domain.errors import NotFoundError, Reason
from service.domain.event import RESERVED_TYPE_PREFIX
from service.domain.names import tenant_name
from service.store.routes import load_index

if TYPE_CHECKING:
    from collections.abc import Iterable
    from uuid import UUID

    from service.store.routes import IndexRow, Reader

MAX_TENANTS = 10_000
MAX_CACHED_TYPES = 10_000


class TenantIndex:
    """The routes of one tenant at one epoch."""

    __slots__ = ("_all", "_cached", "_exact", "_prefixes", "_routes", "epoch", "tenant_id", "uid")

    def __init__(self, tenant_id: str, uid: UUID) -> None:
        self.tenant_id = tenant_id
        self.uid = uid
        self.epoch = 0
        self._routes: dict[UUID, IndexRow] = {}
        self._exact: dict[str, dict[UUID, IndexRow]] = {}
        self._prefixes: dict[str, dict[UUID, IndexRow]] = {}
        self._all: dict[UUID, IndexRow] = {}
        self._cached: dict[str, tuple[IndexRow, ...]] = {}

    def apply(self, epoch: int, changed: Iterable[IndexRow]) -> None:
        """Take in what changed up to an epoch."""
        for route in changed:
            before = self._routes.pop(route.subscription_uid, None)
            if before is not None:
                for pattern in before.event_types:
                    self._place_of(pattern).pop(route.subscription_uid, None)
            if not route.is_deleted:
                self._routes[route.subscription_uid] = route
                for pattern in route.event_types:
                    self._place_of(pattern)[route.subscription_uid] = route
            self._cached.clear()
        self.epoch = epoch

    def _place_of(self, pattern: str) -> dict[UUID, IndexRow]:
        if pattern == "*":
            return self._all
        if pattern.endswith(".*"):
            return self._prefixes.setdefault(pattern[:-1], {})
        return self._exact.setdefault(pattern, {})

    def match(self, event_type: str) -> tuple[IndexRow, ...]:
        """The subscriptions whose patterns cover a type, each once."""
        found = self._cached.get(event_type)
        if found is None:
            found = self._match(event_type)
            if len(self._cached) >= MAX_CACHED_TYPES:
                self._cached.clear()
            self._cached[event_type] = found
        return found

    def _match(self, event_type: str) -> tuple[IndexRow, ...]:
        found = dict(self._exact.get(event_type, {}))
        end = event_type.find(".")
        while end >= 0:
            found |= self._prefixes.get(event_type[: end + 1], {})
            end = event_type.find(".", end + 1)
        if not event_type.startswith(RESERVED_TYPE_PREFIX):
            found |= self._all
        return tuple(found.values())


class Matcher:
    """The indexes of all tenants that publish here, the most recently used of them."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._indexes: OrderedDict[str, TenantIndex] = OrderedDict()
        self._reloads: dict[str, asyncio.Task[TenantIndex]] = {}
        self.reloads = 0

    def cached(self, tenant_id: str) -> TenantIndex | None:
        """The index that memory holds, if it does."""
        index = self._indexes.get(tenant_id)
        if index is not None:
            self._indexes.move_to_end(tenant_id)
        return index

    async def index(self, tenant_id: str) -> TenantIndex:
        """A tenant's index, loaded where it is not held. Raises `NotFoundError`."""
        return self.cached(tenant_id) or await self.reload(tenant_id)

    async def reload(self, tenant_id: str) -> TenantIndex:
        """Bring a tenant's index up to date; callers at the same time share one read."""
        task = self._reloads.get(tenant_id)
        if task is None:
            task = asyncio.create_task(self._reload(tenant_id))
            self._reloads[tenant_id] = task
            task.add_done_callback(lambda _: self._reloads.pop(tenant_id, None))
        return await asyncio.shield(task)

    async def _reload(self, tenant_id: str) -> TenantIndex:
        index = self._indexes.get(tenant_id)
        have_epoch, have_uid = (0, None) if index is None else (index.epoch, index.uid)
        self.reloads += 1
        load = await load_index(self._reader, tenant_id, have_epoch, have_uid)
        if load is None:
            self._indexes.pop(tenant_id, None)
            raise NotFoundError(
                f"there is no tenant {tenant_id!r}",
                Reason.TENANT_NOT_FOUND,
                metadata={"tenant": tenant_name(tenant_id)},
            )
        if index is None or load.is_whole:
            index = TenantIndex(tenant_id, load.tenant_uid)
        if load.epoch >= index.epoch:  # an older load never replaces a newer
            index.apply(load.epoch, load.changed)
        self._indexes[tenant_id] = index
        self._indexes.move_to_end(tenant_id)
        while len(self._indexes) > MAX_TENANTS:
            self._indexes.popitem(last=False)
        return index
