"""What large certificates of open connections come to, in the node and for each tenant.

OpenSSL keeps a target's certificates as long as the connection, and a tenant whose targets show
large ones opens many. So what targets sent in their handshakes is bounded for all connections
together, but for the first `USUAL_BYTES` of each, and a tenant holds at most `TENANT_SHARE` times
as much as is free; one that holds nothing gets whatever is free.
"""

from __future__ import annotations

from collections import Counter

from hookline_service.targets.http.connection import Connection
from hookline_service.targets.http.lookup_turns import TENANT_SHARE

CERTIFICATE_BYTES_MAX = 2 * 1_024 * 1_024
USUAL_BYTES = 4_096


class CertificateBudget:
    """The handshake bytes of open connections beyond the usual, by tenant."""

    def __init__(self, bytes_max: int) -> None:
        self._free = bytes_max
        self._held: dict[Connection, tuple[str, int]] = {}
        """The tenant for which each connection was opened, and how much it counts."""
        self._held_by = Counter[str]()

    def hold(self, connection: Connection, tenant_id: str) -> bool:
        """Count a connection until it is released; False: there is no room for it."""
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
        """Stop counting a connection that closes; nothing where it is not counted."""
        tenant_id, size = self._held.pop(connection, ("", 0))
        if size:
            self._free += size
            self._held_by[tenant_id] -= size
            if not self._held_by[tenant_id]:
                del self._held_by[tenant_id]
