"""Admission control: bounds on running calls, request sizes, and rates of callers and tenants.

All bounds hold for one node. A refusal names its setting and when to repeat the call; a request
that is too large is never to be repeated. Where authentication is off callers are anonymous, and
only their tenants' rates bound them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final, TypeVar

from hookline_service.api.middleware.authentication import ANONYMOUS, Metadata
from hookline_service.api.middleware.byte_budget import ByteBudget
from hookline_service.api.middleware.client_streams import ClientStreams
from hookline_service.api.middleware.message_fields import MessageReader
from hookline_service.api.middleware.rate_limits import RateLimit
from hookline_service.api.middleware.read_slots import ReadSlots
from hookline_service.api.middleware.streams import Stream
from hookline_service.domain.caller import Caller
from hookline_service.domain.errors import Reason, ResourceExhaustedError
from hookline_service.domain.limits import Limits
from hookline_service.domain.names import tenant_name

PATIENCE_S: Final = 1.0
"""How long a request is awaited while others wait for a slot."""
OPEN_TIMEOUT_S: Final = 2.0
"""How long the request of an unauthenticated call is awaited."""
OPEN_PATIENCE_S: Final = 0.1
OPEN_MESSAGE_BYTES: Final = 1_024
"""The largest request of an unauthenticated call: it names a service, and nothing else."""
WAITING_LISTS_FACTOR: Final = 16
"""Pages that a tenant may ask for at once, read or waiting, for each that is read at once."""
_RETRY_LIST_S: Final = 1.0
_ENTRY_BYTES: Final = 32
"""What each entry of metadata counts besides its text (RFC 9113 section 6.5.2)."""

T = TypeVar("T")


class Admission:
    """Admits calls, or refuses them with the bound that they exceed."""

    def __init__(
        self, limits: Limits, max_calls: int, monotonic_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._limits = limits
        self._max_calls = max_calls
        self._running: dict[str, int] = {}
        """Running calls by group: each method that is called without authentication is a group of
        its own. So they take no place of authenticated calls, and health watches, which never end,
        take none of health probes."""
        self._client_streams = ClientStreams(limits.max_client_streams, limits.stream_idle_s)
        self._slots = ReadSlots(
            "HOOKLINE_MAX_REQUESTS_READ",
            limits.max_requests_read,
            timeout_s=limits.request_timeout_s,
            patience_s=PATIENCE_S,
        )
        self._open_slots = ReadSlots(
            "HOOKLINE_MAX_OPEN_REQUESTS_READ",
            limits.max_open_requests_read,
            timeout_s=OPEN_TIMEOUT_S,
            patience_s=OPEN_PATIENCE_S,
        )
        self._requests = ByteBudget(
            "requests", "HOOKLINE_MAX_REQUEST_BYTES", limits.max_request_bytes
        )
        self._list_turns = ListTurns(limits.max_tenant_lists, limits.max_lists)
        self._callers = (
            RateLimit(
                "HOOKLINE_MAX_CALLER_CALLS_PER_S",
                "calls",
                limits.max_caller_calls_per_s,
                monotonic_s,
            ),
            RateLimit(
                "HOOKLINE_MAX_CALLER_BYTES_PER_S",
                "bytes",
                limits.max_caller_bytes_per_s,
                monotonic_s,
            ),
        )
        self._tenants = (
            RateLimit(
                "HOOKLINE_MAX_TENANT_CALLS_PER_S",
                "calls",
                limits.max_tenant_calls_per_s,
                monotonic_s,
            ),
            RateLimit(
                "HOOKLINE_MAX_TENANT_BYTES_PER_S",
                "bytes",
                limits.max_tenant_bytes_per_s,
                monotonic_s,
            ),
        )

    def check_metadata(self, metadata: Metadata) -> None:
        """Raise `ResourceExhaustedError` where a call's metadata is too large."""
        size = 0
        for key, value in metadata:
            size += len(key) + len(value) + _ENTRY_BYTES
        if size > self._limits.max_metadata_bytes:
            setting, most = "HOOKLINE_MAX_METADATA_BYTES", self._limits.max_metadata_bytes
            raise _too_large("the call's metadata", size, setting, most)

    def enter(self, group: str) -> None:
        """Count a running call. Raise `ResourceExhaustedError` where too many run."""
        running = self._running.get(group, 0)
        if running >= self._max_calls:
            raise _overloaded(
                f"{self._max_calls:,} calls are running, which is as many as this node takes",
                "HOOKLINE_MAX_CALLS",
                self._max_calls,
            )
        self._running[group] = running + 1

    def leave(self, group: str) -> None:
        """Count a call no more: it has ended."""
        self._running[group] -= 1

    def enter_client_stream(self, holder: str, stream: Stream) -> None:
        """Count a stream that sends messages. Raise where no other may be opened."""
        self._client_streams.enter(holder, stream)

    def leave_client_stream(self, stream: Stream) -> None:
        """Count such a stream no more: it has ended."""
        self._client_streams.leave(stream)

    def request(
        self, holder: str, request: Callable[[], Awaitable[T]], *, is_open: bool
    ) -> Awaitable[T]:
        """Await a request while it has a slot, and for no longer than the slot's timeout.

        `is_open`: the method is called without authentication.
        """
        slots = self._open_slots if is_open else self._slots
        return slots.read(holder, request)

    def hold(self, holder: str, size: int) -> None:
        """Count the bytes of a request that was read. Raise where that is too much."""
        self._requests.take(holder, size)

    def release(self, holder: str, size: int) -> None:
        """Count the bytes of a request no more."""
        self._requests.give(holder, size)

    def decode(self, read: MessageReader, caller: Caller, data: bytes) -> Any:  # noqa: ANN401 (any message)
        """Return the message in `data`, counted against the rates of its caller and its tenant.

        Raise `ResourceExhaustedError` where it is too large, or exceeds a rate: then nothing is
        counted. A message with too many fields counts for its caller.
        """
        size = len(data)
        is_anonymous = caller.principal == ANONYMOUS.principal
        if is_anonymous and not caller.scopes:
            if size > OPEN_MESSAGE_BYTES:
                raise _too_large("the message", size, "", OPEN_MESSAGE_BYTES)
            return read(data)
        if size > self._limits.max_message_bytes:
            setting, most = "HOOKLINE_MAX_MESSAGE_BYTES", self._limits.max_message_bytes
            raise _too_large("the message", size, setting, most)
        if not is_anonymous:
            _check(self._callers, caller.principal)
        if read.has_more_fields(data, self._limits.max_message_fields):
            if not is_anonymous:
                _take(self._callers, caller.principal, size)
            raise _too_many_fields(self._limits.max_message_fields)
        message = read(data)
        tenant_id = caller.tenant_id or read.tenant_id_in(message)
        if tenant_id is not None:
            name = tenant_name(tenant_id)
            _check(self._tenants, name)
            _take(self._tenants, name, size)
        if not is_anonymous:
            _take(self._callers, caller.principal, size)
        return message

    def list_turn(
        self, read: MessageReader, caller: Caller, message: object
    ) -> AbstractAsyncContextManager[None]:
        """Return a turn to read a page, among the lists of its tenant.

        A list across tenants takes turns with the other lists of its caller. Entering the turn
        raises `ResourceExhaustedError` where too many wait.
        """
        tenant_id = caller.tenant_id or read.tenant_id_in(message)
        return self._list_turns.turn(tenant_name(tenant_id) if tenant_id else caller.principal)


class _Turns:
    __slots__ = ("places", "users")

    def __init__(self, most: int) -> None:
        self.places = asyncio.Semaphore(most)
        self.users = 0


class ListTurns:
    """Turns of lists: pages of one tenant wait for one another, and leave connections to others.

    A page may take long, and its tenant may ask for many at once: each holds a connection of the
    pool, and the memory of a page (`config/memory.py`), so all tenants together have a bound too.
    Pages that have a turn within their tenant wait for the common one in the order of arrival.
    """

    def __init__(self, most: int, most_of_all: int) -> None:
        """`most`: pages that are read at once for one tenant; `most_of_all`: for all of them."""
        self._most = most
        self._of_all = asyncio.Semaphore(most_of_all)
        self._turns: dict[str, _Turns] = {}

    @asynccontextmanager
    async def turn(self, subject: str) -> AsyncIterator[None]:
        """Wait for a turn, and hold it while inside.

        Raise `ResourceExhaustedError` where too many wait already.
        """
        turns = self._turns.setdefault(subject, _Turns(self._most))
        if turns.users >= self._most * WAITING_LISTS_FACTOR:
            raise ResourceExhaustedError(
                f"{turns.users} lists of {subject} are being read on this node or wait for that;"
                f" {self._most} are read at once (HOOKLINE_MAX_TENANT_LISTS): repeat the call"
                " later",
                Reason.OVERLOADED,
                retry_after_s=_RETRY_LIST_S,
                metadata={
                    "subject": subject,
                    "limit": "HOOKLINE_MAX_TENANT_LISTS",
                    "maximum": str(self._most),
                },
            )
        turns.users += 1
        try:
            async with turns.places, self._of_all:
                yield
        finally:
            turns.users -= 1
            if not turns.users:
                del self._turns[subject]


def _check(rates: tuple[RateLimit, RateLimit], subject: str) -> None:
    for rate in rates:
        rate.check(subject)


def _take(rates: tuple[RateLimit, RateLimit], subject: str, size: int) -> None:
    calls, data_bytes = rates
    calls.take(subject, 1)
    data_bytes.take(subject, size)


def _overloaded(what: str, setting: str, most: int) -> ResourceExhaustedError:
    return ResourceExhaustedError(
        what,
        Reason.OVERLOADED,
        retry_after_s=1.0,
        metadata={"limit": setting, "maximum": str(most)},
    )


def _too_large(what: str, size: int, setting: str, most: int) -> ResourceExhaustedError:
    return ResourceExhaustedError(
        f"{what} has {size:,} bytes; {setting or 'this method'} allows {most:,}",
        Reason.LIMIT_EXCEEDED,
        metadata={"limit": setting, "maximum": str(most)},
    )


def _too_many_fields(most: int) -> ResourceExhaustedError:
    return ResourceExhaustedError(
        f"the message has more than {most:,} fields, those of its parts included;"
        f" HOOKLINE_MAX_MESSAGE_FIELDS allows {most:,}: send smaller batches",
        Reason.LIMIT_EXCEEDED,
        metadata={"limit": "HOOKLINE_MAX_MESSAGE_FIELDS", "maximum": str(most)},
    )
