"""What goes with each call: its caller's token and trace; on calls of every kind.

grpc asks an interceptor for the one kind of call that it is written for, so there is one a kind.
Those of streams change nothing else: a stream is grpc's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import grpc

from hookline.tracing import HAS_OPENTELEMETRY, TRACEPARENT, current_traceparent


def accompanied(
    asked: grpc.aio.ClientCallDetails, token: str | None, timeout_s: float | None
) -> grpc.aio.ClientCallDetails:
    """What a call is to be made with: as asked, and with token, trace, and a deadline if any."""
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


def on_streams(token: str | None) -> Sequence[grpc.aio.ClientInterceptor]:
    """What accompanies calls that stream; nothing where there is nothing to add."""
    if token is None and not HAS_OPENTELEMETRY:
        return ()
    return [_UnaryStream(token), _StreamUnary(token), _StreamStream(token)]


class _Accompanying:
    def __init__(self, token: str | None) -> None:
        self._token = token

    async def pass_on(
        self,
        continuation: Callable[[grpc.aio.ClientCallDetails, Any], Any],
        client_call_details: grpc.aio.ClientCallDetails,
        request: Any,  # noqa: ANN401 (any message, or an iterator of them)
    ) -> Any:  # noqa: ANN401 (any call)
        return await continuation(accompanied(client_call_details, self._token, None), request)


class _UnaryStream(_Accompanying, grpc.aio.UnaryStreamClientInterceptor):
    intercept_unary_stream: Callable[..., Any] = _Accompanying.pass_on


class _StreamUnary(_Accompanying, grpc.aio.StreamUnaryClientInterceptor):
    intercept_stream_unary: Callable[..., Any] = _Accompanying.pass_on


class _StreamStream(_Accompanying, grpc.aio.StreamStreamClientInterceptor):
    intercept_stream_stream: Callable[..., Any] = _Accompanying.pass_on
