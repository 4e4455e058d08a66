"""The tenants' indexes that memory holds: up to so many bytes, and without a cliff at the bound.

Full, the cache evicts the less recently used of two that are drawn at random. The least recently
used of all would do worse: where tenants publish in turn, and a few more than fit, each would be
evicted just before its turn, and every call would read its index from Postgres.
"""

from __future__ import annotations

from random import Random
from typing import Final

from hookline_service.pipeline.publishing.tenant_index import TenantIndex

TENANT_BYTES: Final = 1_000
SUBSCRIPTION_BYTES: Final = 700
"""What an index takes, measured: with no subscription, and for each."""


class _Entry:
    __slots__ = ("index", "place", "used", "weight")

    def __init__(self, index: TenantIndex, place: int) -> None:
        self.index = index
        self.place = place
        self.used = self.weight = 0


class IndexCache:
    """Indexes by their tenants' ids."""

    def __init__(self, max_bytes: int, random: Random) -> None:
        self._max_bytes = max_bytes
        self._random = random
        self._entries: dict[str, _Entry] = {}
        self._ids: list[str] = []
        """The keys, so that one can be drawn; each entry has its place in it."""
        self._uses = 0
        self.held_bytes = 0

    def peek(self, tenant_id: str) -> TenantIndex | None:
        """Return an index, which does not count as a use."""
        entry = self._entries.get(tenant_id)
        return None if entry is None else entry.index

    def get(self, tenant_id: str) -> TenantIndex | None:
        """Return an index, which is used now."""
        entry = self._entries.get(tenant_id)
        if entry is None:
            return None
        self._uses += 1
        entry.used = self._uses
        return entry.index

    def put(self, tenant_id: str, index: TenantIndex) -> None:
        """Hold an index, or weigh it anew; others make room. One alone may exceed the bound."""
        entry = self._entries.get(tenant_id)
        if entry is None:
            entry = self._entries[tenant_id] = _Entry(index, len(self._ids))
            self._ids.append(tenant_id)
        weight = TENANT_BYTES + SUBSCRIPTION_BYTES * index.subscription_count
        self.held_bytes += weight - entry.weight
        entry.index, entry.weight = index, weight
        while self.held_bytes > self._max_bytes and len(self._ids) > 1:
            self.pop(self._drawn(tenant_id))
        self.get(tenant_id)

    def pop(self, tenant_id: str) -> None:
        """Forget an index, where it is held."""
        entry = self._entries.pop(tenant_id, None)
        if entry is None:
            return
        self.held_bytes -= entry.weight
        last = self._ids.pop()
        if last != tenant_id:
            self._ids[entry.place] = last
            self._entries[last].place = entry.place

    def clear(self) -> None:
        """Forget every index."""
        self._entries.clear()
        self._ids.clear()
        self.held_bytes = 0

    def _drawn(self, but: str) -> str:
        """Return the less recently used of two others."""
        drawn: list[str] = []
        while len(drawn) < min(2, len(self._ids) - 1):
            place = self._random.randrange(len(self._ids))
            if self._ids[place] != but:
                drawn.append(self._ids[place])
        return min(drawn, key=lambda tenant_id: self._entries[tenant_id].used)
