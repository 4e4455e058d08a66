"""A token on its way: the header that carries it, on calls of every kind.

grpc asks an interceptor for the one kind of call that it is written for, so there is one a kind.
Those of streams change nothing else: a stream is grpc's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import grpc


def with_token(
    asked: grpc.aio.ClientCallDetails, token: str | None, timeout_s: float | None
) -> grpc.aio.ClientCallDetails:
    """What a call is to be made with: as asked, and the token, and a deadline where it has none."""
    metadata = grpc.aio.Metadata(*(asked.metadata or ()))
    if token is not None:
        metadata.add("authorization", f"Bearer {token}")
    return grpc.aio.ClientCallDetails(
        method=asked.method,
        timeout=timeout_s if asked.timeout is None else asked.timeout,
        metadata=metadata,
        credentials=asked.credentials,
        wait_for_ready=asked.wait_for_ready,
    )


def token_on_streams(token: str) -> Sequence[grpc.aio.ClientInterceptor]:
    """What adds the token to calls that stream."""
    return [_UnaryStream(token), _StreamUnary(token), _StreamStream(token)]


class _Bearer:
    def __init__(self, token: str) -> None:
        self._token = token

    async def pass_on(
        self,
        continuation: Callable[[grpc.aio.ClientCallDetails, Any], Any],
        client_call_details: grpc.aio.ClientCallDetails,
        request: Any,  # noqa: ANN401 (any message, or an iterator of them)
    ) -> Any:  # noqa: ANN401 (any call)
        return await continuation(with_token(client_call_details, self._token, None), request)


class _UnaryStream(_Bearer, grpc.aio.UnaryStreamClientInterceptor):
    intercept_unary_stream: Callable[..., Any] = _Bearer.pass_on


class _StreamUnary(_Bearer, grpc.aio.StreamUnaryClientInterceptor):
    intercept_stream_unary: Callable[..., Any] = _Bearer.pass_on


class _StreamStream(_Bearer, grpc.aio.StreamStreamClientInterceptor):
    intercept_stream_stream: Callable[..., Any] = _Bearer.pass_on
