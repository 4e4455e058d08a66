"""A collector that accepts and drops everything, so that only the sender's cost is measured.

Prints its port, then serves until its input ends.
"""

from __future__ import annotations

import asyncio
import sys

import grpc

EXPORTS = (
    "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
    "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
)


async def _take(request: bytes, context: object) -> bytes:
    del request, context
    return b""  # an empty message


class _Taker(grpc.GenericRpcHandler):
    """Does not parse messages: takes bytes and returns none."""

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        if handler_call_details.method not in EXPORTS:
            return None
        return grpc.unary_unary_rpc_method_handler(_take)


async def main() -> None:
    """Accept exports until standard input closes."""
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    server.add_generic_rpc_handlers((_Taker(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await server.stop(0)


if __name__ == "__main__":
    asyncio.run(main())
