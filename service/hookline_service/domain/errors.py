"""The errors that callers may see: exceptions with a status code and a reason.

Every error carries a `Reason` (the API's `ErrorReason` without its prefix) and a `Code` (the name
of a gRPC status). Only `api/middleware/errors.py` translates them to gRPC statuses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar


class Code(StrEnum):
    """The status code of an error, by its gRPC name."""

    UNAUTHENTICATED = "UNAUTHENTICATED"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    NOT_FOUND = "NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    ABORTED = "ABORTED"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    UNAVAILABLE = "UNAVAILABLE"
    UNIMPLEMENTED = "UNIMPLEMENTED"
    INTERNAL = "INTERNAL"


class Reason(StrEnum):
    """The API's `ErrorReason` without its prefix; a test compares the two."""

    INTERNAL = "INTERNAL"
    DATABASE_UNAVAILABLE = "DATABASE_UNAVAILABLE"
    SHUTTING_DOWN = "SHUTTING_DOWN"
    NOT_IMPLEMENTED = "NOT_IMPLEMENTED"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    OVERLOADED = "OVERLOADED"
    QUOTA_EXCEEDED = "QUOTA_EXCEEDED"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    ISSUER_UNAVAILABLE = "ISSUER_UNAVAILABLE"
    HANDSHAKE_REFUSED = "HANDSHAKE_REFUSED"
    REQUEST_MALFORMED = "REQUEST_MALFORMED"
    FIELD_INVALID = "FIELD_INVALID"
    FIELD_REQUIRED = "FIELD_REQUIRED"
    LIMIT_EXCEEDED = "LIMIT_EXCEEDED"
    FIELD_IMMUTABLE = "FIELD_IMMUTABLE"
    UPDATE_MASK_INVALID = "UPDATE_MASK_INVALID"
    PAGE_TOKEN_INVALID = "PAGE_TOKEN_INVALID"  # noqa: S105 - a reason's name
    FILTER_INVALID = "FILTER_INVALID"
    TARGET_URL_INVALID = "TARGET_URL_INVALID"
    TARGET_ADDRESS_FORBIDDEN = "TARGET_ADDRESS_FORBIDDEN"
    HEADER_INVALID = "HEADER_INVALID"
    SIGNING_SECRET_INVALID = "SIGNING_SECRET_INVALID"  # noqa: S105 - a reason's name
    PAYLOAD_INVALID = "PAYLOAD_INVALID"
    PAYLOAD_SCHEMA_MISMATCH = "PAYLOAD_SCHEMA_MISMATCH"
    PAYLOAD_TYPE_UNKNOWN = "PAYLOAD_TYPE_UNKNOWN"
    SCHEMA_INVALID = "SCHEMA_INVALID"
    TENANT_NOT_FOUND = "TENANT_NOT_FOUND"
    EVENT_TYPE_NOT_FOUND = "EVENT_TYPE_NOT_FOUND"
    EVENT_NOT_FOUND = "EVENT_NOT_FOUND"
    SUBSCRIPTION_NOT_FOUND = "SUBSCRIPTION_NOT_FOUND"
    DELIVERY_NOT_FOUND = "DELIVERY_NOT_FOUND"
    REPLAY_NOT_FOUND = "REPLAY_NOT_FOUND"
    API_KEY_NOT_FOUND = "API_KEY_NOT_FOUND"
    TENANT_ALREADY_EXISTS = "TENANT_ALREADY_EXISTS"
    EVENT_TYPE_ALREADY_EXISTS = "EVENT_TYPE_ALREADY_EXISTS"
    SUBSCRIPTION_ALREADY_EXISTS = "SUBSCRIPTION_ALREADY_EXISTS"
    REPLAY_ALREADY_EXISTS = "REPLAY_ALREADY_EXISTS"
    IDEMPOTENCY_KEY_REUSED = "IDEMPOTENCY_KEY_REUSED"
    ETAG_MISMATCH = "ETAG_MISMATCH"
    CONCURRENT_CHANGE = "CONCURRENT_CHANGE"
    TENANT_NOT_EMPTY = "TENANT_NOT_EMPTY"
    TENANT_DELETING = "TENANT_DELETING"
    TENANT_PROTECTED = "TENANT_PROTECTED"
    EVENT_TYPE_ARCHIVED = "EVENT_TYPE_ARCHIVED"
    EVENT_TYPE_UNKNOWN = "EVENT_TYPE_UNKNOWN"
    SCHEMA_INCOMPATIBLE = "SCHEMA_INCOMPATIBLE"
    SUBSCRIPTION_DELETED = "SUBSCRIPTION_DELETED"
    TARGET_KIND_MISMATCH = "TARGET_KIND_MISMATCH"
    DELIVERY_ALREADY_SUCCEEDED = "DELIVERY_ALREADY_SUCCEEDED"
    DELIVERY_ALREADY_FINISHED = "DELIVERY_ALREADY_FINISHED"
    EVENT_NEAR_EXPIRY = "EVENT_NEAR_EXPIRY"
    REPLAY_ALREADY_FINISHED = "REPLAY_ALREADY_FINISHED"


@dataclass(frozen=True, slots=True)
class Violation:
    """One invalid field of a request, with its path (`events[3].type`)."""

    field: str
    description: str
    reason: Reason = Reason.FIELD_INVALID
    limit: str = ""
    """The name of the exceeded setting, if `reason` is LIMIT_EXCEEDED and the limit is a setting.
    """
    maximum: int = 0
    """The value of that setting."""


class HooklineError(Exception):
    """An error that a caller may see: a message for people, a reason for programs."""

    code: ClassVar[Code] = Code.INTERNAL

    def __init__(
        self,
        message: str,
        reason: Reason,
        *,
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[Violation] = (),
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.metadata = dict(metadata or {})
        self.violations = tuple(violations)
        self.retry_after_s = retry_after_s


class UnauthenticatedError(HooklineError):
    """The caller is not authenticated; created only by `unauthenticated()`."""

    code = Code.UNAUTHENTICATED


class PermissionDeniedError(HooklineError):
    """The caller is authenticated and does not have the permission for the method."""

    code = Code.PERMISSION_DENIED


class InvalidArgumentError(HooklineError):
    """The request is invalid, independently of any stored state; names every invalid field."""

    code = Code.INVALID_ARGUMENT


class NotFoundError(HooklineError):
    """The resource does not exist or belongs to another tenant; both look the same to callers."""

    code = Code.NOT_FOUND


class AlreadyExistsError(HooklineError):
    """The name or the idempotency key is already used."""

    code = Code.ALREADY_EXISTS


class FailedPreconditionError(HooklineError):
    """The resource is in a state that does not allow the call."""

    code = Code.FAILED_PRECONDITION


class AbortedError(HooklineError):
    """The resource was changed concurrently: read it again and repeat the call."""

    code = Code.ABORTED


class ResourceExhaustedError(HooklineError):
    """A limit was reached; `retry_after_s` is the time after which a repetition can succeed."""

    code = Code.RESOURCE_EXHAUSTED


class UnavailableError(HooklineError):
    """Temporarily unavailable: nothing was stored, or the call has idempotency keys."""

    code = Code.UNAVAILABLE


class UnimplementedError(HooklineError):
    """The method or field is part of the contract but not implemented; rejected, never ignored."""

    code = Code.UNIMPLEMENTED


def unauthenticated() -> UnauthenticatedError:
    """Return the error for credentials that are missing, malformed, unknown, expired or revoked."""
    return UnauthenticatedError(
        "the caller is not authenticated: send valid credentials, such as an API key in"
        " `authorization: Bearer hk_…`",
        Reason.UNAUTHENTICATED,
    )


def invalid(violations: Sequence[Violation]) -> InvalidArgumentError:
    """Return the error for all invalid fields of a request; `violations` must not be empty.

    Its reason is the reason of the violations if they agree, and FIELD_INVALID otherwise. Its
    metadata contains the first exceeded setting (`limit`) and the value of it (`maximum`).
    """
    first = violations[0]
    more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
    same_reason = all(violation.reason == first.reason for violation in violations)
    exceeded = next((violation for violation in violations if violation.limit), None)
    return InvalidArgumentError(
        f"{first.field}: {first.description}{more}",
        first.reason if same_reason else Reason.FIELD_INVALID,
        violations=violations,
        metadata={"limit": exceeded.limit, "maximum": str(exceeded.maximum)} if exceeded else None,
    )


def over_limit(field: str, size: int, unit: str, limit: str, maximum: int) -> Violation:
    """Return the violation of a limit: `limit` is the name of the setting, `maximum` its value."""
    return Violation(
        field,
        f"has {size:,} {unit}; {limit} allows {maximum:,}",
        Reason.LIMIT_EXCEEDED,
        limit,
        maximum,
    )
