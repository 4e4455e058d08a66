"""Whether there is room for a call: how many run, what it weighs, how often its caller comes.

All of it is of this node alone, and told with the setting's name and when to come back. What is too
large is never advised to come again. Where authentication is off callers are not told apart, so
that only their tenant's rates bound them.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, TypeVar

from hookline_service.api.middleware.authentication import ANONYMOUS, Metadata
from hookline_service.api.middleware.byte_budget import ByteBudget
from hookline_service.api.middleware.client_streams import ClientStreams
from hookline_service.api.middleware.list_turns import ListTurns
from hookline_service.api.middleware.message_fields import MessageReader
from hookline_service.api.middleware.read_slots import ReadSlots
from hookline_service.api.middleware.streams import Stream
from hookline_service.api.middleware.token_buckets import TokenBuckets
from hookline_service.domain.caller import Caller
from hookline_service.domain.errors import Reason, ResourceExhaustedError
from hookline_service.domain.limits import Limits
from hookline_service.domain.names import check_id, tenant_name

PATIENCE_S: Final = 1.0
"""How long a request is awaited while others wait for a slot."""
OPEN_TIMEOUT_S: Final = 2.0
"""How long a request that needs no key is awaited."""
OPEN_PATIENCE_S: Final = 0.1
OPEN_MESSAGE_BYTES: Final = 1_024
"""A request that needs no key names a service, and nothing else."""
_ENTRY_BYTES: Final = 32
"""What each entry of metadata counts for besides its text (RFC 9113 section 6.5.2)."""
_NAMING: Final = ("tenant", "name", "delivery", "subscription")
"""The fields of requests that say whose data they are about."""
_PREFIX: Final = "tenants/"

T = TypeVar("T")


class Admission:
    """Lets calls in, or says why not."""

    def __init__(
        self, limits: Limits, max_calls: int, monotonic_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._limits = limits
        self._max_calls = max_calls
        self._running = Counter[str]()
        """Calls that run; of what is open to strangers each method by itself. They crowd out nobody
        who is known, nor do their watches, which never end, crowd out a probe."""
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
        self._callers = (
            _Rate(
                "HOOKLINE_MAX_CALLER_CALLS_PER_S",
                "calls",
                limits.max_caller_calls_per_s,
                monotonic_s,
            ),
            _Rate(
                "HOOKLINE_MAX_CALLER_BYTES_PER_S",
                "bytes",
                limits.max_caller_bytes_per_s,
                monotonic_s,
            ),
        )
        self._list_turns = ListTurns(limits.max_tenant_lists, limits.max_lists)
        self._tenants = (
            _Rate(
                "HOOKLINE_MAX_TENANT_CALLS_PER_S",
                "calls",
                limits.max_tenant_calls_per_s,
                monotonic_s,
            ),
            _Rate(
                "HOOKLINE_MAX_TENANT_BYTES_PER_S",
                "bytes",
                limits.max_tenant_bytes_per_s,
                monotonic_s,
            ),
        )

    def check_metadata(self, metadata: Metadata) -> None:
        """Raises where a call brings too much along."""
        size = sum([len(key) + len(value) + _ENTRY_BYTES for key, value in metadata])
        if size > self._limits.max_metadata_bytes:
            setting, most = "HOOKLINE_MAX_METADATA_BYTES", self._limits.max_metadata_bytes
            raise _too_large("the call's metadata", size, setting, most)

    def enter(self, crowd: str) -> None:
        """Count a call among those that run. Raises where more run than may."""
        if self._running[crowd] >= self._max_calls:
            raise _overloaded(
                f"{self._max_calls:,} calls are running, which is as many as this node takes",
                "HOOKLINE_MAX_CALLS",
                self._max_calls,
            )
        self._running[crowd] += 1

    def leave(self, crowd: str) -> None:
        """A call has ended."""
        self._running[crowd] -= 1

    def enter_client_stream(self, holder: str, stream: Stream) -> None:
        """Count a stream that sends messages. Raises where there is no place for another."""
        self._client_streams.enter(holder, stream)

    def leave_client_stream(self, stream: Stream) -> None:
        """Such a stream has ended."""
        self._client_streams.leave(stream)

    async def request(
        self, holder: str, request: Callable[[], Awaitable[T]], *, is_open: bool
    ) -> T:
        """Await a request as long as there is room for it on its way, and its caller sends it.

        `is_open`: of a method that needs no key.
        """
        slots = self._open_slots if is_open else self._slots
        return await slots.read(holder, request)

    def hold(self, holder: str, size: int) -> None:
        """Count what was read as held. Raises where that is too much."""
        self._requests.take(holder, size)

    def release(self, holder: str, size: int) -> None:
        """Count it as held no more."""
        self._requests.give(holder, size)

    def read(self, read: MessageReader, caller: Caller, data: bytes) -> Any:  # noqa: ANN401 (any message)
        """The message in `data`, counted against the rates of its caller and its tenant.

        Raises where it is too large, or comes too soon: then nothing is counted. One with too many
        fields counts for its caller.
        """
        size = len(data)
        if caller.principal == ANONYMOUS.principal and not caller.scopes:
            if size > OPEN_MESSAGE_BYTES:
                raise _too_large("the message", size, "", OPEN_MESSAGE_BYTES)
            return read(data)
        if size > self._limits.max_message_bytes:
            setting, most = "HOOKLINE_MAX_MESSAGE_BYTES", self._limits.max_message_bytes
            raise _too_large("the message", size, setting, most)
        principal = caller.principal if caller.principal != ANONYMOUS.principal else None
        if principal is not None:
            for rate in self._callers:
                rate.check(principal)
        if read.has_more_fields(data, self._limits.max_message_fields):
            if principal is not None:
                _take(self._callers, principal, size)
            raise _too_many_fields(self._limits.max_message_fields)
        message = read(data)
        tenant_id = caller.tenant_id or _tenant_named_by(message)
        if tenant_id is not None:
            name = tenant_name(tenant_id)
            for rate in self._tenants:
                rate.check(name)
            _take(self._tenants, name, size)
        if principal is not None:
            _take(self._callers, principal, size)
        return message

    def list_turn(self, caller: Caller, message: object) -> AbstractAsyncContextManager[None]:
        """A turn to read a page, among those of the same tenant, or of the same caller's of all.

        Raises where too many wait for theirs.
        """
        tenant_id = caller.tenant_id or _tenant_named_by(message)
        return self._list_turns.turn(tenant_name(tenant_id) if tenant_id else caller.principal)


class _Rate:
    """One setting, and the bucket of each of those whom it bounds."""

    def __init__(
        self, setting: str, unit: str, rate_per_s: int, monotonic_s: Callable[[], float]
    ) -> None:
        self._setting = setting
        self._unit = unit
        self._rate_per_s = rate_per_s
        self.buckets = TokenBuckets(rate_per_s, monotonic_s=monotonic_s)

    def check(self, subject: str) -> None:
        """Raises where it has done as much as it may."""
        wait_s = self.buckets.wait_s(subject)
        if wait_s > 0:
            raise ResourceExhaustedError(
                f"{subject} comes to more than {self._rate_per_s:,} {self._unit} a second on this"
                f" node ({self._setting}); nothing was done, come back later",
                Reason.QUOTA_EXCEEDED,
                retry_after_s=wait_s,
                metadata={
                    "subject": subject,
                    "limit": self._setting,
                    "maximum": str(self._rate_per_s),
                },
            )


def _take(rates: tuple[_Rate, _Rate], subject: str, size: int) -> None:
    calls, data_bytes = rates
    calls.buckets.take(subject, 1)
    data_bytes.buckets.take(subject, size)


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


def _tenant_named_by(message: object) -> str | None:
    """Whose data a request is about, as far as it says so, and in a name that there may be.

    Others, `tenants/-` among them, are nobody's: a bucket's key must not be as long as a message.
    """
    for field in _NAMING:
        value = getattr(message, field, None)
        name = value if isinstance(value, str) else getattr(value, "name", "")
        if name.startswith(_PREFIX):
            tenant_id: str = name.removeprefix(_PREFIX).partition("/")[0]
            return tenant_id if check_id(tenant_id) is None else None
    return None
