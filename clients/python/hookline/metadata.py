"""The metadata of calls: the token and the trace context.

A grpc interceptor handles one kind of call, so there is a class for each kind. Those for streams
only add metadata.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import grpc

from hookline.tracing import HAS_OPENTELEMETRY, TRACEPARENT, current_traceparent


def with_metadata(
    asked: grpc.aio.ClientCallDetails, token: str | None, timeout_s: float | None
) -> grpc.aio.ClientCallDetails:
    """Return the call details with the token, the trace context and the default timeout."""
    metadata = grpc.aio.Metadata(*(asked.metadata or ()))
    if token is not None:
        metadata.add("authorization", f"Bearer {token}")
    if (traceparent := current_traceparent()) is not None:
        metadata[TRACEPARENT] = traceparent
    return grpc.aio.ClientCallDetails(
        method=asked.method,
        timeout=timeout_s if asked.timeout is None else asked.timeout,
        metadata=metadata,
        credentials=asked.credentials,
        wait_for_ready=asked.wait_for_ready,
    )


def stream_interceptors(token: str | None) -> Sequence[grpc.aio.ClientInterceptor]:
    """Return the interceptors of streaming calls; none if there is nothing to add."""
    if token is None and not HAS_OPENTELEMETRY:
        return ()
    return [_UnaryStream(token), _StreamUnary(token), _StreamStream(token)]


class _AddMetadata:
    def __init__(self, token: str | None) -> None:
        self._token = token

    async def pass_on(
        self,
        continuation: Callable[[grpc.aio.ClientCallDetails, Any], Any],
        client_call_details: grpc.aio.ClientCallDetails,
        request: Any,  # noqa: ANN401 (any message, or an iterator of them)
    ) -> Any:  # noqa: ANN401 (any call)
        return await continuation(with_metadata(client_call_details, self._token, None), request)


class _UnaryStream(_AddMetadata, grpc.aio.UnaryStreamClientInterceptor):
    intercept_unary_stream: Callable[..., Any] = _AddMetadata.pass_on


class _StreamUnary(_AddMetadata, grpc.aio.StreamUnaryClientInterceptor):
    intercept_stream_unary: Callable[..., Any] = _AddMetadata.pass_on


class _StreamStream(_AddMetadata, grpc.aio.StreamStreamClientInterceptor):
    intercept_stream_stream: Callable[..., Any] = _AddMetadata.pass_on
