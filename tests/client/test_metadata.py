"""The token and the trace context are sent with the four kinds of gRPC calls."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from opentelemetry import trace

from hookline import HooklineClient

Context = grpc.aio.ServicerContext[bytes, bytes]
CALLER = trace.SpanContext(10, 11, is_remote=False, trace_flags=trace.TraceFlags(1))
KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")


class Kinds(grpc.GenericRpcHandler):
    """Responds to `/any/KIND` with an empty message, and records the metadata."""

    def __init__(self) -> None:
        self.callers: list[object] = []
        self.traces: list[object] = []

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        metadata = dict(handler_call_details.invocation_metadata or ())
        self.callers.append(metadata.get("authorization"))
        self.traces.append(metadata.get("traceparent"))
        kind = handler_call_details.method.rpartition("/")[2]
        make: Any = getattr(grpc, f"{kind}_rpc_method_handler")
        handler: grpc.RpcMethodHandler[bytes, bytes] = make(
            _stream if kind.endswith("stream") else _unary
        )
        return handler


async def _unary(_request: object, _context: Context) -> bytes:
    return b""


async def _stream(_request: object, _context: Context) -> AsyncIterator[bytes]:
    yield b""


async def call_of(kind: str, token: str | None) -> Kinds:
    """Make a call of a kind to a server of its own."""
    server, kinds = grpc.aio.server(), Kinds()
    server.add_generic_rpc_handlers((kinds,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with HooklineClient(f"127.0.0.1:{port}", token=token) as client:
        make: Any = getattr(client.channel, kind)
        call = make(f"/any/{kind}")(iter([b""]) if kind.startswith("stream") else b"")
        if kind.endswith("stream"):
            assert [answer async for answer in call] == [b""]
        else:
            assert await call == b""
    await server.stop(0)
    return kinds


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("token", ["hk_1_secret", None])
async def test_the_token_is_sent_with_each_kind_of_call(kind: str, token: str | None) -> None:
    kinds = await call_of(kind, token)
    assert kinds.callers == [None if token is None else f"Bearer {token}"]
    assert kinds.traces == [None]


@pytest.mark.parametrize("kind", KINDS)
async def test_the_traceparent_is_sent_with_each_kind_of_call(kind: str) -> None:
    with trace.use_span(trace.NonRecordingSpan(CALLER)):
        kinds = await call_of(kind, None)
    assert kinds.traces == [f"00-{10:032x}-{11:016x}-01"]
    assert kinds.callers == [None]
