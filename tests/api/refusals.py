"""How a client reads a refusal: the status and its details, as `google.rpc` defines them."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass, field

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

DETAILS_KEY = "grpc-status-details-bin"
PUSHBACK_KEY = "grpc-retry-pushback-ms"


@dataclass
class Refused:
    """The status of a refused call and its details."""

    code: grpc.StatusCode
    message: str
    reason: str = ""
    domain: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    violations: dict[str, str] = field(default_factory=dict)
    """The reason of each field's violation, by the field's path."""
    descriptions: list[str] = field(default_factory=list)
    retry_s: float | None = None
    quota: list[str] = field(default_factory=list)
    pushback_ms: str | None = None
    status_bytes: int = 0


def read_refusal(code: grpc.StatusCode, message: str, trailers: dict[str, str | bytes]) -> Refused:
    """Parse a status; fails if the status and its details disagree."""
    refused = Refused(code, message)
    pushback = trailers.get(PUSHBACK_KEY)
    refused.pushback_ms = str(pushback) if pushback is not None else None
    raw = trailers.get(DETAILS_KEY)
    if raw is None:
        return refused
    assert isinstance(raw, bytes)
    status = status_pb2.Status.FromString(raw)
    assert (status.code, status.message) == (code.value[0], message)
    refused.status_bytes = len(raw)
    info, bad, retry, quota = (
        error_details_pb2.ErrorInfo(),
        error_details_pb2.BadRequest(),
        error_details_pb2.RetryInfo(),
        error_details_pb2.QuotaFailure(),
    )
    for detail in status.details:
        known: list[Message] = [m for m in (info, bad, retry, quota) if detail.Unpack(m)]
        assert known, f"an unknown detail: {detail.type_url}"
    refused.reason, refused.domain = info.reason, info.domain
    refused.metadata = dict(info.metadata)
    refused.violations = {v.field: v.reason for v in bad.field_violations}
    refused.descriptions = [v.description for v in bad.field_violations]
    refused.quota = [v.quota_id for v in quota.violations]
    if any(detail.Is(retry.DESCRIPTOR) for detail in status.details):
        refused.retry_s = retry.retry_delay.ToTimedelta().total_seconds()
    return refused


async def refusal(call: Awaitable[object]) -> Refused:
    """Await a call that must be refused, and return its refusal."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = caught.value
    trailers = {str(key): value for key, value in error.trailing_metadata()}
    return read_refusal(error.code(), error.details() or "", trailers)
