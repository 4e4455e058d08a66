"""Matching events with subscriptions, in memory.

Each tenant has an index `event type -> subscriptions`: exact types, prefixes, all. The index
belongs to the tenant's epoch, and one statement reads both. A publish is stored only if the epoch
has not changed since, so an index may be stale but never wrong. A reload reads only what changed
since the epoch of the index in memory.

An epoch belongs to a history (`store/connecting.py`): after a failover the same number may stand
for other subscriptions, so an index of another history is not used.

The indexes in memory have a bound in bytes (`byte_cache.py`). An evicted index is read again when
it is needed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from random import Random
from typing import Final
from uuid import UUID

import structlog

from hookline_service.domain.errors import NotFoundError, Reason
from hookline_service.domain.event import RESERVED_TYPE_PREFIX
from hookline_service.domain.names import tenant_name
from hookline_service.pipeline.publishing.byte_cache import ByteCache
from hookline_service.store.database import OutcomeUnknownError, history_changed, unavailable
from hookline_service.store.routes import IndexLoad, IndexReader, IndexRow, load_index

_log = structlog.get_logger(__name__)

MAX_INDEX_BYTES = 96 * 1024 * 1024
"""The default bound of all indexes in memory."""
MAX_REMEMBERED = 4_000_000
"""Subscriptions in the cached answers of all indexes together: about 32 MB."""
ANSWER_WEIGHT = 32
"""The weight of an answer beside its subscriptions: the number of event types has no bound."""
TENANT_BYTES: Final = 1_000
SUBSCRIPTION_BYTES: Final = 700
"""The measured memory of an index: without subscriptions, and of each subscription."""


class Matcher:
    """The indexes of the tenants that publish on this node, bounded in bytes."""

    def __init__(
        self,
        reader: IndexReader,
        *,
        max_index_bytes: int = MAX_INDEX_BYTES,
        random: Random | None = None,
    ) -> None:
        self._reader = reader
        self._indexes = ByteCache[TenantIndex](max_index_bytes, random)
        self._answers = Answers()
        self._reloads: dict[str, asyncio.Task[TenantIndex]] = {}
        self.reads = 0

    def cached(self, tenant_id: str) -> TenantIndex | None:
        """Return the index in memory; None if there is none, or if it is of another history."""
        index = self._indexes.get(tenant_id)
        is_of_now = index is not None and index.history_id == self._reader.history_id
        return index if is_of_now else None

    def clear(self) -> None:
        """Drop every index: they were read on another history."""
        self._indexes.clear()
        self._reloads.clear()

    async def index(self, tenant_id: str) -> TenantIndex:
        """Return a tenant's index, loaded if it is not in memory. Raises as `reload` does."""
        return self.cached(tenant_id) or await self.reload(tenant_id)

    async def reload(self, tenant_id: str) -> TenantIndex:
        """Update a tenant's index and return it; concurrent callers share one read.

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
            task.exception()  # marks it as retrieved: every caller may have given up

    async def read(self, reader: IndexReader, tenant_id: str) -> TenantIndex:
        """Update a tenant's index with what this reader sees. Raises as `reload` does."""
        self.reads += 1
        begun_on = reader.history_id
        known = self._held(tenant_id, begun_on)
        have_epoch, have_uid = (0, None) if known is None else (known.epoch, known.uid)
        try:
            load = await load_index(reader, tenant_id, have_epoch, have_uid)
            if load is not None and load.tenant_uid == have_uid and load.epoch < have_epoch:
                # Epochs never decrease in one history, so the index in memory cannot be trusted.
                _log.warning("epoch_decreased", tenant=tenant_id, had=have_epoch, found=load.epoch)
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
        """Return the index in memory if it is of this history."""
        index = self._indexes.peek(tenant_id)
        return index if index is not None and index.history_id == history_id else None

    def _take_in(
        self,
        tenant_id: str,
        load: IndexLoad,
        known: TenantIndex | None,
        history_id: UUID | None,
    ) -> TenantIndex:
        # Another read may have ended meanwhile, or the index may have been evicted. The changes
        # since `known` may be applied to it and to a newer index; an older load replaces neither.
        held = [one for one in (self._held(tenant_id, history_id), known) if one is not None]
        index = max(held, key=lambda one: (one.uid, one.epoch), default=None)
        if index is None or (load.tenant_uid, load.epoch) > (index.uid, index.epoch):
            if index is None or load.is_whole:
                index = TenantIndex(tenant_id, load.tenant_uid, self._answers, history_id)
            index.apply(load.epoch, load.changed)
        size = TENANT_BYTES + SUBSCRIPTION_BYTES * index.subscription_count
        self._indexes.put(tenant_id, index, size)
        return index


class Answers:
    """A bound on the cached answers of all indexes: beyond it, all of them are dropped."""

    def __init__(self, most: int = MAX_REMEMBERED) -> None:
        self._most = most
        self._held = 0
        self._caches: list[dict[str, tuple[IndexRow, ...]]] = []

    def remember(
        self, cache: dict[str, tuple[IndexRow, ...]], event_type: str, answer: tuple[IndexRow, ...]
    ) -> None:
        """Add an answer to an index's cache."""
        self._held += len(answer) + ANSWER_WEIGHT
        if self._held > self._most:
            for one in self._caches:
                one.clear()
            self._caches.clear()
            self._held = len(answer) + ANSWER_WEIGHT
        if not cache:
            self._caches.append(cache)
        cache[event_type] = answer


class TenantIndex:
    """The subscriptions of one tenant at one epoch, by event type."""

    __slots__ = (
        "_all", "_answers", "_cached", "_exact", "_prefixes", "_routes", "epoch", "history_id",
        "tenant_id", "uid",
    )  # fmt: skip

    def __init__(
        self,
        tenant_id: str,
        uid: UUID,
        answers: Answers | None = None,
        history_id: UUID | None = None,
    ) -> None:
        self.tenant_id = tenant_id
        self.uid = uid
        self.history_id = history_id
        self.epoch = 0
        self._routes: dict[UUID, IndexRow] = {}
        self._exact: dict[str, dict[UUID, IndexRow]] = {}
        self._prefixes: dict[str, dict[UUID, IndexRow]] = {}
        self._all: dict[UUID, IndexRow] = {}
        self._cached: dict[str, tuple[IndexRow, ...]] = {}
        self._answers = answers or Answers()

    def apply(self, epoch: int, changed: Iterable[IndexRow]) -> None:
        """Apply the changes up to an epoch."""
        for route in changed:
            before = self._routes.pop(route.subscription_uid, None)
            if before is not None:
                for pattern in before.event_types:
                    self._remove(pattern, route.subscription_uid)
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

    def _remove(self, pattern: str, uid: UUID) -> None:
        """Remove a subscription from a pattern, and the pattern with its last subscription."""
        place = self._place_of(pattern)
        place.pop(uid, None)
        if place or pattern == "*":
            return
        if pattern.endswith(".*"):
            del self._prefixes[pattern[:-1]]
        else:
            del self._exact[pattern]

    @property
    def subscription_count(self) -> int:
        """The number of subscriptions."""
        return len(self._routes)

    def match(self, event_type: str) -> tuple[IndexRow, ...]:
        """Return the subscriptions with a pattern that matches a type, each once."""
        found = self._cached.get(event_type)
        if found is None:
            found = self._match(event_type)
            self._answers.remember(self._cached, event_type, found)
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
