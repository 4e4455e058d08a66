"""Whether the resolver works: what tells its outage from a name whose own servers are dead.

Theory. "Try again" may mean that the name's own servers do not answer, or that our resolver does
not. To find out, the resolver is asked for a name that nobody can have asked for before: a random
label directly below the top-level domain of the name that failed. Any answer, "no such name" the
usual one, then came over the network from servers that no tenant runs. What tenants can arrange
proves nothing and is not used: a name in the hosts file, an answer that the resolver kept, a name
that the resolver serves itself, a tenant's own servers near by. The label ends in a dot, so that no
search domain answers for it.

After an outage resolvers keep failures, and avoid servers that did not answer, for a while (RFC
9520 section 3.2; unbound's infra cache), so a failure soon after one is still the resolver's.

Not found out: a resolver that derives "no such name" from signed records it kept (RFC 8198) answers
for a small top-level domain during an outage.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence

Lookup = Callable[[str], Awaitable[Sequence[str]]]
"""Addresses of a name, best first, without ports or brackets; raises `socket.gaierror`."""

NO_SUCH_NAME = frozenset(
    getattr(socket, name)
    for name in ("EAI_NONAME", "EAI_NODATA", "EAI_ADDRFAMILY")
    if hasattr(socket, name)
)
"""An answer: there is no such name, or it has no address."""
UNCLEAR = frozenset({socket.EAI_AGAIN, socket.EAI_FAIL})
"""No answer, or none that says anything: the name's own servers, or the resolver."""


class ResolverCheck:
    """Asks the resolver for fresh names, and remembers where it did not answer."""

    def __init__(
        self, lookup: Lookup, *, outage_tail_s: float = 60.0, zones_max: int = 2_048
    ) -> None:
        """An outage counts for `outage_tail_s` seconds after it was last seen.

        `zones_max` top-level domains are remembered: more than there are.
        """
        self._lookup = lookup
        self._outage_tail_s = outage_tail_s
        self._zones_max = zones_max
        self._failed_at: OrderedDict[str, float] = OrderedDict()
        """When a zone's servers were last not reached, on the loop's clock."""

    async def works_for(self, host: str) -> bool:
        """Whether the resolver reaches the servers above a name now, and has for some time.

        False for a name of one label: it is the machine's own, or one of its search domains'.
        """
        _, dot, zone = host.rpartition(".")
        if not dot:
            return False
        clock = asyncio.get_running_loop().time
        if not await self._is_answered(f"{secrets.token_hex(8)}.{zone}."):
            self._failed_at[zone] = clock()
            self._failed_at.move_to_end(zone)
            if len(self._failed_at) > self._zones_max:
                self._failed_at.popitem(last=False)
            return False
        failed_at = self._failed_at.get(zone)
        if failed_at is None:
            return True
        if clock() - failed_at < self._outage_tail_s:
            return False
        del self._failed_at[zone]
        return True

    async def _is_answered(self, name: str) -> bool:
        try:
            await self._lookup(name)
        except socket.gaierror as error:
            return error.errno in NO_SUCH_NAME
        except (OSError, UnicodeError):
            return False
        return True
