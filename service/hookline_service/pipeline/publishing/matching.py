"""Which subscriptions an event goes to, answered in memory.

Per tenant an index `event type → subscriptions`: exact types, prefixes, all. The index belongs to
the tenant's epoch, and both are read in one statement; a publish writes only if the epoch still
stands, so an index can be stale but never wrong. Reloads bring what changed since the epoch that
is held.

An epoch belongs to a history (`store/connecting.py`): after a failover the same number may stand
for other subscriptions, so an index of another history counts for nothing.
"""

from __future__ import annotations

import asyncio
from random import Random
from uuid import UUID

import structlog

from hookline_service.domain.errors import NotFoundError, Reason
from hookline_service.domain.names import tenant_name
from hookline_service.pipeline.publishing.index_cache import IndexCache
from hookline_service.pipeline.publishing.tenant_index import Answers, TenantIndex
from hookline_service.store.database import OutcomeUnknownError, history_changed, unavailable
from hookline_service.store.routes import IndexLoad, IndexReader, load_index

_log = structlog.get_logger(__name__)

MAX_INDEX_BYTES = 128 * 1024 * 1024
"""Indexes held at once; others are read again when they are needed."""


class Matcher:
    """The indexes of the tenants that publish here, as far as there is room for them."""

    def __init__(
        self,
        reader: IndexReader,
        *,
        max_index_bytes: int = MAX_INDEX_BYTES,
        random: Random | None = None,
    ) -> None:
        self._reader = reader
        self._indexes = IndexCache(max_index_bytes, random or Random())  # noqa: S311 - no secret
        self._answers = Answers()
        self._reloads: dict[str, asyncio.Task[TenantIndex]] = {}
        self.reads = 0

    def cached(self, tenant_id: str) -> TenantIndex | None:
        """The index that memory holds, if it does; none that came late, of another history."""
        index = self._indexes.get(tenant_id)
        is_of_now = index is not None and index.history_id == self._reader.history_id
        return index if is_of_now else None

    def clear(self) -> None:
        """Forget every index: they were read on another history."""
        self._indexes.clear()
        self._reloads.clear()

    async def index(self, tenant_id: str) -> TenantIndex:
        """A tenant's index, loaded where it is not held. Raises what `reload` does."""
        return self.cached(tenant_id) or await self.reload(tenant_id)

    async def reload(self, tenant_id: str) -> TenantIndex:
        """Bring a tenant's index up to date; callers at the same time share one read.

        Raises `NotFoundError`, `UnavailableError`.
        """
        task = self._reloads.get(tenant_id)
        if task is None:
            task = asyncio.create_task(self.read(self._reader, tenant_id))
            self._reloads[tenant_id] = task
            task.add_done_callback(lambda done: self._reloaded(tenant_id, done))
        return await asyncio.shield(task)

    def _reloaded(self, tenant_id: str, task: asyncio.Task[TenantIndex]) -> None:
        self._reloads.pop(tenant_id, None)
        if not task.cancelled():
            task.exception()  # whoever asked may have given up: nobody is to be told

    async def read(self, reader: IndexReader, tenant_id: str) -> TenantIndex:
        """Bring a tenant's index up to date with what this reader sees. Raises as `reload` does."""
        self.reads += 1
        begun_on = reader.history_id
        known = self._held(tenant_id, begun_on)
        have_epoch, have_uid = (0, None) if known is None else (known.epoch, known.uid)
        try:
            load = await load_index(reader, tenant_id, have_epoch, have_uid)
            if load is not None and load.tenant_uid == have_uid and load.epoch < have_epoch:
                # No epoch goes back by itself: whatever moved it, what is known is of no use.
                _log.warning("epoch_went_back", tenant=tenant_id, had=have_epoch, found=load.epoch)
                self._indexes.pop(tenant_id)
                known, load = None, await load_index(reader, tenant_id)
        except OutcomeUnknownError as error:
            raise unavailable(error) from error  # it was only read
        if begun_on not in {None, reader.history_id}:
            raise history_changed()
        if load is None:
            self._indexes.pop(tenant_id)
            raise NotFoundError(
                f"there is no tenant {tenant_id!r}",
                Reason.TENANT_NOT_FOUND,
                metadata={"tenant": tenant_name(tenant_id)},
            )
        return self._take_in(tenant_id, load, known, reader.history_id)

    def _held(self, tenant_id: str, history_id: UUID | None) -> TenantIndex | None:
        """The index that memory holds, if it is of this history."""
        index = self._indexes.peek(tenant_id)
        return index if index is not None and index.history_id == history_id else None

    def _take_in(
        self,
        tenant_id: str,
        load: IndexLoad,
        known: TenantIndex | None,
        history_id: UUID | None,
    ) -> TenantIndex:
        # Another read may have ended meanwhile, or the index have made room for others. What
        # changed since `known` may be applied to it and to what is newer; an older load replaces
        # neither.
        held = [one for one in (self._held(tenant_id, history_id), known) if one is not None]
        index = max(held, key=lambda one: (one.uid, one.epoch), default=None)
        if index is None or (load.tenant_uid, load.epoch) > (index.uid, index.epoch):
            if index is None or load.is_whole:
                index = TenantIndex(tenant_id, load.tenant_uid, self._answers, history_id)
            index.apply(load.epoch, load.changed)
        self._indexes.put(tenant_id, index)
        return index
