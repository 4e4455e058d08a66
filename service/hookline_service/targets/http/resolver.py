"""DNS: from a name to its addresses; cached for seconds, shared by concurrent callers, bounded.

Which name is looked up next is decided by `tenant_shares`: a tenant whose names are slow does not
delay another's.

The cache cannot be rebound: the addresses that the egress policy checks are the values that are
connected to, so a DNS answer that changes between two lookups changes nothing between a check and
its connection.

Attribution. A name that does not resolve is either the target's failure, which spends an attempt,
or our own, which never does. "No such name" is the target's. "Try again" may come from the name's
dead servers or from our own resolver. So the resolver is checked, and if it works the name is
looked up once more: a lookup that fails before and after a passed check is the target's failure.

The check looks up a name that no other client can have asked for: a random label directly below the
top-level domain of the name that failed. Any answer, usually "no such name", then came over the
network from servers that no tenant runs. What a tenant can arrange proves nothing and is not used:
a name in the hosts file, a cached answer, a name that the resolver serves itself, a tenant's own
name servers near by. The label ends in a dot, so that no search domain answers for it.

After an outage resolvers keep failures, and avoid servers that did not answer, for a while (RFC
9520 section 3.2; unbound's infra cache), so a failure soon after an outage counts as the
resolver's.

Limit: a resolver that derives "no such name" from cached signed records (RFC 8198) answers for a
small top-level domain during an outage.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from hookline_service.domain.attempt import AttemptOutcome
from hookline_service.targets.http.failure import AttemptFailure
from hookline_service.targets.http.tenant_shares import FairQueue

Lookup = Callable[[str], Awaitable[Sequence[str]]]
"""Return the addresses of a name, best first; raise `socket.gaierror`."""

NO_SUCH_NAME = frozenset(
    getattr(socket, name)
    for name in ("EAI_NONAME", "EAI_NODATA", "EAI_ADDRFAMILY")
    if hasattr(socket, name)
)
"""Definite answers: there is no such name, or it has no address."""
UNCLEAR = frozenset({socket.EAI_AGAIN, socket.EAI_FAIL})
"""Indefinite failures: of the name's own servers, or of the resolver."""


class ResolverCheck:
    """Probes the resolver with random names, and remembers recent outages."""

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
        """When the servers of a zone were last not reached, on the loop's clock."""

    async def works_for(self, host: str) -> bool:
        """Whether the resolver reaches the servers above a name, and had no recent outage.

        False for a name of one label: it belongs to the machine, or to a search domain.
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


LOOKUPS_MAX = 16
"""Lookups that run at once."""


@dataclass(frozen=True, slots=True)
class _Resolved:
    """The result of a lookup, and when it expires on the loop's clock."""

    addresses: tuple[str, ...]
    expires_at: float
    failure: AttemptFailure | None = None


class SystemLookup:
    """`getaddrinfo`, a thread for each lookup that runs.

    It has threads of its own: slow names would occupy the loop's few shared threads.
    """

    def __init__(self, threads: int = LOOKUPS_MAX) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="resolve")

    async def __call__(self, host: str) -> Sequence[str]:
        """Return the host's addresses, in the system's order of preference."""
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(
            self._executor, lambda: socket.getaddrinfo(host.encode(), None, type=socket.SOCK_STREAM)
        )
        return [str(address[0]) for *_, address in found]

    def close(self) -> None:
        """Start no more lookups; running ones end by themselves."""
        self._executor.shutdown(wait=False, cancel_futures=True)


class Resolver:
    """Resolves names through the system's lookup or another."""

    def __init__(
        self,
        lookup: Lookup | None = None,
        *,
        check: ResolverCheck | None = None,
        ttl_s: float = 10.0,
        failure_ttl_s: float = 2.0,
        names_max: int = 4_096,
        lookups_max: int = LOOKUPS_MAX,
        waiting_max: int = 1_024,
    ) -> None:
        """Addresses are kept for `ttl_s` seconds, failures for `failure_ttl_s`, `names_max` in all.

        `lookups_max` bounds the lookups that run, `waiting_max` the names that wait for one.
        """
        self._system_lookup: SystemLookup | None = None
        if lookup is None:
            lookup = self._system_lookup = SystemLookup()
        self._lookup = lookup
        self._check = check or ResolverCheck(lookup)
        self._ttl_s = ttl_s
        self._failure_ttl_s = failure_ttl_s
        self._names_max = names_max
        self._queue = FairQueue(lookups_max, waiting_max)
        self._known: OrderedDict[str, _Resolved] = OrderedDict()
        self._asked: dict[str, asyncio.Future[_Resolved]] = {}
        """Names that callers wait for, or waited for."""
        self._lookups: dict[str, asyncio.Task[_Resolved]] = {}
        """Those of them whose lookup runs."""
        self._is_closed = False

    async def resolve(self, host: str, tenant_id: str = "") -> tuple[str, ...]:
        """Return all addresses of a name, at least one; raise `AttemptFailure`.

        `tenant_id` is the tenant that owns the name; empty: the deployment itself. A caller that
        gives up does not stop the lookup: its result serves the next caller.
        """
        known = self._known.get(host)
        if known is None or known.expires_at <= asyncio.get_running_loop().time():
            known = await self._wait(self._ask(host, tenant_id))
        if known.failure is not None:
            # A new exception each time: one that is raised twice would grow its traceback.
            raise AttemptFailure(known.failure.kind, known.failure.message)
        return known.addresses

    async def _wait(self, asked: asyncio.Future[_Resolved]) -> _Resolved:
        try:
            return await asyncio.shield(asked)
        except asyncio.CancelledError:
            waiting = asyncio.current_task()
            if asked.cancelled() and not (waiting and waiting.cancelling()):
                raise AttemptFailure(
                    AttemptOutcome.INTERNAL_ERROR, "the service is stopping"
                ) from None
            raise

    async def aclose(self) -> None:
        """Cancel running lookups and start no more."""
        self._is_closed = True
        tasks = tuple(self._lookups.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for host, asked in self._asked.items():
            # From Python 3.12 on, `gather` may return before the callback of a finished lookup has
            # run: that callback, `_ended`, resolves the future.
            if host not in self._lookups:
                asked.cancel()
        if self._system_lookup is not None:
            self._system_lookup.close()

    def _ask(self, host: str, tenant_id: str) -> asyncio.Future[_Resolved]:
        """Return the future result of a lookup, queued for each tenant that waits for the name.

        Otherwise one tenant could make another's name wait behind its own slow ones.
        """
        if host not in self._lookups:
            if self._is_closed:
                raise AttemptFailure(AttemptOutcome.INTERNAL_ERROR, "the service is stopping")
            if not self._queue.join(tenant_id, host):
                raise AttemptFailure(
                    AttemptOutcome.INTERNAL_ERROR, "too many names are waiting for the resolver"
                )
            if host not in self._asked:
                self._asked[host] = asyncio.get_running_loop().create_future()
            self._start_lookups()
        return self._asked[host]

    def _start_lookups(self) -> None:
        """Start the lookups that may start."""
        while not self._is_closed and (started := self._queue.next()) is not None:
            tenant_id, host = started
            if host not in self._asked or host in self._lookups:  # queued by another tenant as well
                self._queue.ended(tenant_id)
                continue
            task = asyncio.get_running_loop().create_task(self._resolve(host))
            self._lookups[host] = task
            task.add_done_callback(partial(self._ended, host, tenant_id))

    def _ended(self, host: str, tenant_id: str, task: asyncio.Task[_Resolved]) -> None:
        self._queue.ended(tenant_id)
        del self._lookups[host]
        asked = self._asked.pop(host)
        if task.cancelled():
            asked.cancel()
        elif (error := task.exception()) is not None:
            asked.set_exception(error)
            asked.exception()  # marks it as retrieved: there may be no waiter left
        else:
            asked.set_result(task.result())
        self._start_lookups()

    async def _resolve(self, host: str) -> _Resolved:
        clock = asyncio.get_running_loop().time
        try:
            addresses = await self._addresses_of(host)
        except AttemptFailure as failure:
            kept = AttemptFailure(failure.kind, failure.message)  # without what led to it
            resolved = _Resolved((), clock() + self._failure_ttl_s, kept)
        else:
            resolved = _Resolved(addresses, clock() + self._ttl_s)
        self._known[host] = resolved
        self._known.move_to_end(host)
        if len(self._known) > self._names_max:
            self._known.popitem(last=False)
        return resolved

    async def _addresses_of(self, host: str) -> tuple[str, ...]:
        """Look a name up, twice where its failure is unclear; raise `AttemptFailure`."""
        try:
            return await self._look_up(host)
        except socket.gaierror:
            if not await self._check.works_for(host):
                raise AttemptFailure(
                    AttemptOutcome.INTERNAL_ERROR, "the resolver does not answer"
                ) from None
        try:
            return await self._look_up(host)
        except socket.gaierror:
            raise AttemptFailure(
                AttemptOutcome.CONNECTION_FAILED,
                "the host's name servers do not answer, while the resolver works",
            ) from None

    async def _look_up(self, host: str) -> tuple[str, ...]:
        """Look a name up; raise `socket.gaierror` if the cause is unclear, or `AttemptFailure`."""
        try:
            addresses = tuple(dict.fromkeys(await self._lookup(host)))
        except UnicodeError:
            raise AttemptFailure(
                AttemptOutcome.CONNECTION_FAILED, "the host is no valid name"
            ) from None
        except OSError as error:
            if isinstance(error, socket.gaierror):
                if error.errno in UNCLEAR:
                    raise
                if error.errno in NO_SUCH_NAME:
                    raise AttemptFailure(
                        AttemptOutcome.CONNECTION_FAILED, "the host's name does not resolve"
                    ) from None
            raise AttemptFailure(
                AttemptOutcome.INTERNAL_ERROR, "the resolver does not answer"
            ) from None
        if not addresses:
            raise AttemptFailure(AttemptOutcome.CONNECTION_FAILED, "the host's name has no address")
        return addresses
