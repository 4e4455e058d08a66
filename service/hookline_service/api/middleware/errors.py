"""The only translation of the engine's errors into `google.rpc.Status`.

Servicers raise a `HooklineError` for what a caller may see, and the store's exceptions as they are.
`refusal_of` translates any exception into what is sent. The text of an exception that is no
`HooklineError` is logged and never sent.

Sources: google/rpc/status.proto and error_details.proto (AIP-193); for `grpc-retry-pushback-ms` the
gRPC retry design (A6).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import NamedTuple

import grpc
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from hookline_service.domain.errors import (
    HooklineError,
    InvalidArgumentError,
    Reason,
    ResourceExhaustedError,
    UnavailableError,
    UnimplementedError,
    Violation,
)
from hookline_service.store.database import ContentionError, OutcomeUnknownError

DOMAIN = "hookline"
DETAILS_KEY = "grpc-status-details-bin"
PUSHBACK_KEY = "grpc-retry-pushback-ms"
NEVER = "-1"
"""Do not make this call again (A6)."""

STATUS_BYTES_MAX = 4_000
"""Of the whole Status: gRPC may drop trailers of 8 KiB and more, and they carry it twice."""
MESSAGE_LENGTH_MAX = 400
FIELD_LENGTH_MAX = 200
DESCRIPTION_LENGTH_MAX = 400
METADATA_LENGTH_MAX = 255

_log = logging.getLogger(__name__)


class Refusal(NamedTuple):
    """The end of a refused call: the three arguments of `ServicerContext.abort`."""

    code: grpc.StatusCode
    message: str
    trailers: tuple[tuple[str, str | bytes], ...]


def not_implemented(what: str, *, field: str = "") -> UnimplementedError:
    """Return the refusal of an RPC, or of a value of `field`, that is not implemented yet."""
    return UnimplementedError(
        f"{what} is not built yet in this version",
        Reason.NOT_IMPLEMENTED,
        metadata={"field": field} if field else None,
    )


def malformed() -> InvalidArgumentError:
    """Return the refusal of bytes that are not the message that the method takes."""
    return InvalidArgumentError(
        "the request is not a message of the method's type, or holds text that is not UTF-8",
        Reason.REQUEST_MALFORMED,
    )


def interrupted() -> UnavailableError:
    """Return the refusal of a call whose work was cancelled by the node."""
    return UnavailableError("this node stops; another one serves", Reason.SHUTTING_DOWN)


def deadline_exceeded() -> Refusal:
    """Return the refusal of a call whose deadline had passed before it began."""
    return _refusal(
        grpc.StatusCode.DEADLINE_EXCEEDED,
        "the deadline had passed before the call began; nothing was done",
        Reason.DEADLINE_EXCEEDED,
    )


def refusal_of(error: BaseException, *, repeatable: bool) -> Refusal:
    """Translate an exception.

    `repeatable`: repeating the call does no harm where it was done already. Where a connection to
    the database broke before it answered, only such a call is answered UNAVAILABLE.
    """
    match error:
        case HooklineError():
            return _refusal_of_known(error)
        case ContentionError():
            return _refusal(
                grpc.StatusCode.ABORTED,
                "another call changed the same resource at the same moment; repeat the call",
                Reason.CONCURRENT_CHANGE,
            )
        case OutcomeUnknownError() if repeatable:
            return _refusal_of_known(
                UnavailableError(
                    "the connection to the database was lost; repeat the call",
                    Reason.DATABASE_UNAVAILABLE,
                    retry_after_s=1.0,
                )
            )
        case OutcomeUnknownError():
            return _refusal(
                grpc.StatusCode.UNKNOWN,
                "the connection to the database was lost before it answered: the change may have "
                "been made; read the resource before you repeat the call",
                Reason.DATABASE_UNAVAILABLE,
            )
        case _:
            _log.exception("call_broken", exc_info=error)
            return _refusal(
                grpc.StatusCode.INTERNAL,
                "internal error, a bug in Hookline: the log event call_broken has the traceback",
                Reason.INTERNAL,
            )


def _refusal(code: grpc.StatusCode, message: str, reason: Reason) -> Refusal:
    status = _new_status(code, message)
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN))
    return Refusal(code, status.message, ((DETAILS_KEY, status.SerializeToString()),))


def _refusal_of_known(error: HooklineError) -> Refusal:
    code = grpc.StatusCode[error.code]
    status = _new_status(code, error.message)
    info = error_details_pb2.ErrorInfo(
        reason=error.reason,
        domain=DOMAIN,
        metadata={key: _clip(value, METADATA_LENGTH_MAX) for key, value in error.metadata.items()},
    )
    trailers: list[tuple[str, str | bytes]] = []
    others: list[error_details_pb2.RetryInfo | error_details_pb2.QuotaFailure] = []
    if error.retry_after_s is not None:
        retry_ms = math.ceil(error.retry_after_s * 1_000)
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(retry_ms)
        others.append(retry)
        trailers.append((PUSHBACK_KEY, str(retry_ms)))
    if isinstance(error, ResourceExhaustedError):
        others.append(_quota_failure(error))
        if error.retry_after_s is None:  # it does not pass by itself
            trailers.append((PUSHBACK_KEY, NEVER))
    if error.violations:
        status.message = _pack_violations(status, info, error.violations)
    else:
        status.details.add().Pack(info)
    for detail in others:
        status.details.add().Pack(detail)
    trailers.append((DETAILS_KEY, status.SerializeToString()))
    return Refusal(code, status.message, tuple(trailers))


def _new_status(code: grpc.StatusCode, message: str) -> status_pb2.Status:
    return status_pb2.Status(code=code.value[0], message=_clip(message, MESSAGE_LENGTH_MAX))


def _quota_failure(error: ResourceExhaustedError) -> error_details_pb2.QuotaFailure:
    violation = error_details_pb2.QuotaFailure.Violation(
        subject=_clip(error.metadata.get("subject", DOMAIN), METADATA_LENGTH_MAX),
        description=_clip(error.message, DESCRIPTION_LENGTH_MAX),
        quota_id=_clip(error.metadata.get("limit", ""), METADATA_LENGTH_MAX),
    )
    return error_details_pb2.QuotaFailure(violations=[violation])


def _pack_violations(
    status: status_pb2.Status, info: error_details_pb2.ErrorInfo, violations: Sequence[Violation]
) -> str:
    """Add ErrorInfo and as many violations as fit; return the message, which counts the rest."""
    bad_request = error_details_pb2.BadRequest()
    free_bytes = STATUS_BYTES_MAX - status.ByteSize() - info.ByteSize() - 300
    for violation in violations:
        entry = error_details_pb2.BadRequest.FieldViolation(
            field=_clip(violation.field, FIELD_LENGTH_MAX),
            description=_clip(violation.description, DESCRIPTION_LENGTH_MAX),
            reason=violation.reason,
        )
        free_bytes -= entry.ByteSize() + 3  # its tag and length
        if free_bytes < 0:
            break
        bad_request.field_violations.append(entry)
    message: str = status.message
    omitted = len(violations) - len(bad_request.field_violations)
    if omitted:
        info.metadata["omitted_violations"] = str(omitted)
        message += f" [{omitted} more violations do not fit into the details]"
    status.details.add().Pack(info)
    status.details.add().Pack(bad_request)
    return message


def _clip(text: str, length_max: int) -> str:
    return text if len(text) <= length_max else text[: length_max - 1] + "…"
