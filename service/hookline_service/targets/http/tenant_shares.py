"""Fair shares of what all tenants use in common: DNS lookups, TLS handshakes, certificate memory.

Each of the three is scarce, and a tenant chooses how long its targets hold it: a lookup holds one
of a few threads as long as the name servers take, a handshake holds a target's certificates until
its deadline, and OpenSSL keeps certificates as long as the connection. The rule is the same for
all: a tenant holds at most `TENANT_SHARE` times what is free, so that some is always left for
others. Waiting lookups and handshakes are served in turn by tenant (fair queueing).
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from hookline_service.domain.attempt import AttemptOutcome
from hookline_service.targets.http.connection import Connection
from hookline_service.targets.http.failure import AttemptFailure

TENANT_SHARE = 4


class FairQueue:
    """Waiting keys, such as host names, by tenant id, and each tenant's running slots.

    `running_max` bounds the slots, `waiting_max` the keys that wait, of all tenants together.
    """

    def __init__(self, running_max: int, waiting_max: int) -> None:
        self._running_max = running_max
        self._waiting_max = waiting_max
        self._running = Counter[str]()
        self._waiting: dict[str, deque[str]] = {}
        """Each tenant's waiting keys; the tenant that is served next comes first."""

    def join(self, tenant_id: str, host: str) -> bool:
        """Append a key to the tenant's queue; return False if the tenant's share is used up.

        A key that waits already stays where it is.
        """
        names = self._waiting.get(tenant_id, ())
        if host in names:
            return True
        free = self._waiting_max - sum(map(len, self._waiting.values()))
        if len(names) >= TENANT_SHARE * free:
            return False
        self._waiting.setdefault(tenant_id, deque()).append(host)
        return True

    def next(self) -> tuple[str, str] | None:
        """Start the next slot and return its tenant and key; None if none may start.

        The caller ends the slot with `ended`.
        """
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
        """Remove a waiting key whose caller gave up."""
        names = self._waiting[tenant_id]
        names.remove(host)
        if not names:
            del self._waiting[tenant_id]

    def ended(self, tenant_id: str) -> None:
        """Release a slot of the tenant."""
        self._running[tenant_id] -= 1
        if not self._running[tenant_id]:
            del self._running[tenant_id]


class HandshakeQueue:
    """Admission of TLS handshakes; `running_max` bounds the memory of certificates."""

    def __init__(self, running_max: int, waiting_max: int = 4_096) -> None:
        self._queue = FairQueue(running_max, waiting_max)
        self._numbers = itertools.count()
        self._waiting: dict[str, asyncio.Future[None]] = {}

    @property
    def waiting_count(self) -> int:
        """Connections that wait for a slot."""
        return len(self._waiting)

    @asynccontextmanager
    async def slot(self, tenant_id: str) -> AsyncIterator[None]:
        """Wait for a slot and hold it while inside; raise `AttemptFailure` if too many wait.

        A cancelled waiter gives up its place.
        """
        number = str(next(self._numbers))
        if not self._queue.join(tenant_id, number):
            raise AttemptFailure(
                AttemptOutcome.INTERNAL_ERROR, "too many connections wait for their TLS handshake"
            )
        may_begin = self._waiting[number] = asyncio.get_running_loop().create_future()
        self._start()
        try:
            await may_begin
            yield
        finally:
            if self._waiting.pop(number, None) is not None:
                self._queue.leave(tenant_id, number)
            else:
                self._queue.ended(tenant_id)
                self._start()

    def _start(self) -> None:
        """Wake the waiters that may start."""
        while (started := self._queue.next()) is not None:
            _, number = started
            may_begin = self._waiting.pop(number)
            if not may_begin.done():  # otherwise the waiter is cancelled, and releases its slot
                may_begin.set_result(None)


CERTIFICATE_BYTES_MAX = 2 * 1_024 * 1_024
USUAL_BYTES = 4_096


class CertificateBudget:
    """The bound on the handshake bytes that open connections keep, by tenant.

    The first `USUAL_BYTES` of each connection do not count: only large certificates do. A
    tenant that holds nothing may take whatever is free.
    """

    def __init__(self, bytes_max: int) -> None:
        self._free = bytes_max
        self._held: dict[Connection, tuple[str, int]] = {}
        """The tenant of each counted connection, and its bytes."""
        self._held_by = Counter[str]()

    def hold(self, connection: Connection, tenant_id: str) -> bool:
        """Count a connection until it is released; return False if its bytes do not fit."""
        size = connection.handshake_bytes - USUAL_BYTES
        if size <= 0:
            return True
        left, held = self._free - size, self._held_by[tenant_id]
        if left < 0 or (held and held + size > TENANT_SHARE * left):
            return False
        self._free = left
        self._held[connection] = tenant_id, size
        self._held_by[tenant_id] += size
        return True

    def release(self, connection: Connection) -> None:
        """Stop counting a connection; do nothing if it is not counted."""
        tenant_id, size = self._held.pop(connection, ("", 0))
        if size:
            self._free += size
            self._held_by[tenant_id] -= size
            if not self._held_by[tenant_id]:
                del self._held_by[tenant_id]
