"""From a host's name to its addresses: cached for seconds, shared by concurrent askers, bounded.

Who looks up when is for `lookup_turns.py`: a tenant whose names are slow keeps no other waiting.

A cache cannot be rebound: the addresses that egress checks are the very values that are connected
to, so an answer that changes between two lookups changes nothing between a check and its
connection.

Whose fault is a name that does not resolve? "No such name" is the target's. "Try again" may be its
dead name servers or our dead resolver, and the two must not be confused: a target's fault spends
attempts, our own never does. So the resolver is checked (`resolver_check.py`), and if it works the
name is looked up once more: what fails before and after a check that passed fails by itself.
"""

from __future__ import annotations

import asyncio
import socket
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from hookline_service.domain.attempt import AttemptOutcome
from hookline_service.targets.http.failure import AttemptFailure
from hookline_service.targets.http.lookup_turns import LookupTurns
from hookline_service.targets.http.resolver_check import (
    NO_SUCH_NAME,
    UNCLEAR,
    Lookup,
    ResolverCheck,
)

LOOKUPS_MAX = 16
"""Lookups that run at once."""


@dataclass(frozen=True, slots=True)
class _Resolved:
    """What a lookup came to, and until when it holds on the loop's clock."""

    addresses: tuple[str, ...]
    expires_at: float
    failure: AttemptFailure | None = None


class SystemLookup:
    """`getaddrinfo`, a thread for each lookup that runs.

    The threads are its own: the loop's few serve everybody, and one slow name would hold them all.
    """

    def __init__(self, threads: int = LOOKUPS_MAX) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="resolve")

    async def __call__(self, host: str) -> Sequence[str]:
        """The host's addresses, in the system's order of preference."""
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(
            self._executor, lambda: socket.getaddrinfo(host.encode(), None, type=socket.SOCK_STREAM)
        )
        return [str(address[0]) for *_, address in found]

    def close(self) -> None:
        """Start no lookup any more; those that run end by themselves."""
        self._executor.shutdown(wait=False, cancel_futures=True)


class Resolver:
    """Names to addresses, through the system's lookup or another."""

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
        self._turns = LookupTurns(lookups_max, waiting_max)
        self._known: OrderedDict[str, _Resolved] = OrderedDict()
        self._asked: dict[str, asyncio.Future[_Resolved]] = {}
        """Names that somebody waits for, or waited."""
        self._lookups: dict[str, asyncio.Task[_Resolved]] = {}
        """Those of them that are looked up."""
        self._is_closed = False

    async def resolve(self, host: str, tenant_id: str = "") -> tuple[str, ...]:
        """All addresses of a name, at least one; raises `AttemptFailure`.

        `tenant_id`: who named it; empty: the deployment itself. A caller that gives up does not
        stop the lookup: its answer serves the next one.
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
        """Give up the lookups that are running, and start none any more."""
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
        """What will be known of a name. It waits among the names of each tenant that asks for it.

        Otherwise one tenant would make another's name wait among its own slow ones.
        """
        if host not in self._lookups:
            if self._is_closed:
                raise AttemptFailure(AttemptOutcome.INTERNAL_ERROR, "the service is stopping")
            if not self._turns.join(tenant_id, host):
                raise AttemptFailure(
                    AttemptOutcome.INTERNAL_ERROR, "too many names are waiting for the resolver"
                )
            if host not in self._asked:
                self._asked[host] = asyncio.get_running_loop().create_future()
            self._start_lookups()
        return self._asked[host]

    def _start_lookups(self) -> None:
        """Begin the lookups that may begin."""
        while not self._is_closed and (turn := self._turns.next()) is not None:
            tenant_id, host = turn
            if host not in self._asked or host in self._lookups:  # another tenant's turn came first
                self._turns.ended(tenant_id)
                continue
            task = asyncio.get_running_loop().create_task(self._resolve(host))
            self._lookups[host] = task
            task.add_done_callback(partial(self._ended, host, tenant_id))

    def _ended(self, host: str, tenant_id: str, task: asyncio.Task[_Resolved]) -> None:
        self._turns.ended(tenant_id)
        del self._lookups[host]
        asked = self._asked.pop(host)
        if task.cancelled():
            asked.cancel()
        elif (error := task.exception()) is not None:
            asked.set_exception(error)
            asked.exception()  # nobody may be waiting any more
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
        """All addresses of a name, at least one; raises `AttemptFailure`."""
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
        """Raise `socket.gaierror` where it is unclear whose fault it is, else `AttemptFailure`."""
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
