"""Which name is looked up next: tenants take turns, and none has all places.

A lookup holds one of a few threads for as long as name servers please, and tenants name hosts whose
name servers are their own. So a tenant runs at most `TENANT_SHARE` times as many lookups as are
free, and as many of its names wait: one all of whose names are slow leaves some for the others.
"""

from __future__ import annotations

from collections import Counter, deque

TENANT_SHARE = 4


class LookupTurns:
    """The names that wait to be looked up, and how many lookups run. Tenants by their ids."""

    def __init__(self, running_max: int, waiting_max: int) -> None:
        self._running_max = running_max
        self._waiting_max = waiting_max
        self._running = Counter[str]()
        self._waiting: dict[str, deque[str]] = {}
        """Each tenant's names; the tenant whose turn is next comes first."""

    def join(self, tenant_id: str, host: str) -> bool:
        """Put a name behind the tenant's others; False: there is no room for it."""
        names = self._waiting.get(tenant_id, ())
        if host in names:
            return True
        free = self._waiting_max - sum(map(len, self._waiting.values()))
        if len(names) >= TENANT_SHARE * free:
            return False
        self._waiting.setdefault(tenant_id, deque()).append(host)
        return True

    def next(self) -> tuple[str, str] | None:
        """The tenant and name whose lookup begins now; None: none may. It ends with `ended`."""
        most = TENANT_SHARE * (self._running_max - self._running.total())
        tenant_id = next((one for one in self._waiting if self._running[one] < most), None)
        if tenant_id is None:
            return None
        names = self._waiting.pop(tenant_id)
        host = names.popleft()
        if names:
            self._waiting[tenant_id] = names
        self._running[tenant_id] += 1
        return tenant_id, host

    def leave(self, tenant_id: str, host: str) -> None:
        """A name waits no more: the caller that asked for it gave up."""
        names = self._waiting[tenant_id]
        names.remove(host)
        if not names:
            del self._waiting[tenant_id]

    def ended(self, tenant_id: str) -> None:
        """A lookup of the tenant's is over."""
        self._running[tenant_id] -= 1
        if not self._running[tenant_id]:
            del self._running[tenant_id]
