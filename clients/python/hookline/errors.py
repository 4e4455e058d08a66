"""The errors of calls: one exception class for each gRPC status, with a reason for programs.

The service adds `google.rpc.Status` details to its errors. Programs use `error.reason`
(`hookline.v1.ErrorReason` without its prefix), never the text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self

import grpc
from google.protobuf.message import DecodeError
from google.rpc import (  # type: ignore[import-untyped]  # its stubs would overwrite grpc's
    error_details_pb2,
    status_pb2,
)

DETAILS_KEY: Final = "grpc-status-details-bin"
PUSHBACK_KEY: Final = "grpc-retry-pushback-ms"
_PLACE: Final = re.compile(r"events\[(\d+)\]")


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One invalid field of a request."""

    field: str
    """The path within the request, for example `events[3].type`."""
    description: str
    reason: str
    """The reason, as `HooklineError.reason`; empty if the service gave none."""


@dataclass(frozen=True, slots=True)
class _Details:
    """The content of `google.rpc.Status`."""

    message: str = ""
    reason: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    violations: tuple[FieldViolation, ...] = ()
    retry_after_s: float | None = None


class HooklineError(Exception):
    """The error of a call that did not end with OK. Its cause is the `grpc.aio.AioRpcError`."""

    code: grpc.StatusCode
    message: str
    """A message for people; it can change between versions."""
    reason: str
    """A reason for programs, for example `TENANT_NOT_FOUND`; empty if the error does not come from
    the service, for example if the connection is refused."""
    metadata: dict[str, str]
    """Details of the reason."""
    violations: tuple[FieldViolation, ...]
    """The invalid fields, if `code` is INVALID_ARGUMENT."""
    retry_after_s: float | None
    """How long to wait before repeating the call, in seconds; None if the service gave no time."""
    retry_forbidden: bool
    """Whether the service asked the client not to repeat the call."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        details = _details_of(error)
        self.code = error.code()
        self.message = details.message or error.details() or self.code.name
        self.reason = details.reason
        self.metadata = details.metadata
        self.violations = details.violations
        pushback_ms = _pushback_ms(error)
        self.retry_forbidden = pushback_ms is not None and pushback_ms < 0
        self.retry_after_s = (
            pushback_ms / 1000
            if pushback_ms is not None and pushback_ms >= 0
            else details.retry_after_s
        )
        super().__init__(self.message)

    @property
    def events(self) -> frozenset[int]:
        """The positions of the rejected events in the request; empty if the error names none."""
        places = [fault.field for fault in self.violations]
        places.append(self.metadata.get("field", ""))
        found = {int(place[1]) for text in places if (place := _PLACE.match(text))}
        index = self.metadata.get("index", "")
        return frozenset(found | ({int(index)} if index.isdecimal() else set()))

    def of_event(self, index: int) -> Self:
        """Return the error for one event of a batch, as if it had been published alone."""
        own, here, alone = self.copy(), f"events[{index}]", "events[0]"
        own.metadata = {name: text.replace(here, alone) for name, text in self.metadata.items()}
        if "index" in own.metadata:
            own.metadata["index"] = "0"
        own.message = self.message.replace(here, alone)
        faults = [fault for fault in self.violations if fault.field.startswith(here)]
        if faults:
            own.violations = tuple(
                replace(fault, field=fault.field.replace(here, alone, 1)) for fault in faults
            )
            first, *others = own.violations
            more = f" (and {len(others)} more)" if others else ""
            own.message = f"{first.field}: {first.description}{more}"
            if any(fault.reason != first.reason for fault in others):
                own.reason = "FIELD_INVALID"
            else:
                own.reason = first.reason or self.reason
        own.args = (own.message,)
        return own

    def copy(self) -> Self:
        """The same, to be raised elsewhere: an exception that two tasks raise grows with each."""
        own = type(self).__new__(type(self), self.message)
        own.__dict__.update(self.__dict__)
        own.__cause__ = self.__cause__
        return own

    def __str__(self) -> str:
        reason = f" ({self.reason})" if self.reason not in {"", self.code.name} else ""
        faults = [f"{fault.field}: {fault.description}" for fault in self.violations]
        lines = [f"  {fault}" for fault in faults if faults != [self.message]]
        return "\n".join([f"{self.code.name}{reason}: {self.message}", *lines])


class InvalidArgumentError(HooklineError):
    """The request is invalid; `violations` names each invalid field."""


class NotFoundError(HooklineError):
    """The resource does not exist, or the caller may not see it."""


class AlreadyExistsError(HooklineError):
    """The name or the idempotency key is already used."""


class FailedPreconditionError(HooklineError):
    """The resource is in a state that does not allow the call."""


class AbortedError(HooklineError):
    """The resource was changed concurrently: read it again and repeat the call."""


class ResourceExhaustedError(HooklineError):
    """A limit was reached before anything was stored; see `retry_after_s`."""


class UnauthenticatedError(HooklineError):
    """The caller is not authenticated."""


class PermissionDeniedError(HooklineError):
    """The caller is authenticated and does not have the permission."""


class UnimplementedError(HooklineError):
    """The service does not implement this part of the contract."""


class UnavailableError(HooklineError):
    """The service or its database is not reachable: nothing is stored, or repeating is safe."""


class DeadlineExceededError(HooklineError):
    """No response arrived before the deadline; the call may have been carried out."""


_BY_CODE: Final[dict[grpc.StatusCode, type[HooklineError]]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgumentError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExistsError,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPreconditionError,
    grpc.StatusCode.ABORTED: AbortedError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhaustedError,
    grpc.StatusCode.UNAUTHENTICATED: UnauthenticatedError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
    grpc.StatusCode.UNIMPLEMENTED: UnimplementedError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
}


def error_of(error: grpc.aio.AioRpcError) -> HooklineError:
    """Return the typed error of a failed call; `HooklineError` for a status without a class."""
    return _BY_CODE.get(error.code(), HooklineError)(error)


def _trailer(error: grpc.aio.AioRpcError, key: str) -> str | bytes | None:
    return next((value for name, value in error.trailing_metadata() or () if name == key), None)


def _pushback_ms(error: grpc.aio.AioRpcError) -> int | None:
    """Return the retry pushback (gRFC A6): a delay, or a negative value that forbids a retry."""
    value = _trailer(error, PUSHBACK_KEY)
    if value is None:
        return None
    try:
        return int(value)
    except ValueError:
        return -1  # A6: a malformed value forbids the retry


def _details_of(error: grpc.aio.AioRpcError) -> _Details:
    """Return the details of an error; empty if they are missing or malformed."""
    encoded = _trailer(error, DETAILS_KEY)
    if not isinstance(encoded, bytes):
        return _Details()
    try:
        status = status_pb2.Status.FromString(encoded)
        info = _unpacked(status, error_details_pb2.ErrorInfo())
        request = _unpacked(status, error_details_pb2.BadRequest())
        retry = _unpacked(status, error_details_pb2.RetryInfo())
    except DecodeError:
        return _Details()
    return _Details(
        message=status.message,
        reason=info.reason if info else "",
        metadata=dict(info.metadata) if info else {},
        violations=tuple(
            FieldViolation(fault.field, fault.description, fault.reason)
            for fault in (request.field_violations if request else ())
        ),
        retry_after_s=retry.retry_delay.ToTimedelta().total_seconds() if retry else None,
    )


def _unpacked(status: Any, message: Any) -> Any:  # noqa: ANN401 - google.rpc is untyped
    return next((message for detail in status.details if detail.Unpack(message)), None)
