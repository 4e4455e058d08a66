"""Hookline's client: publish events over gRPC, operate deliveries, verify webhooks.

    from hookline import HooklineClient      # hookline.client: publish, batching, the typed stubs
    from hookline.tls import Tls             # how the connection is secured
    from hookline import webhook             # hookline.webhook: verify a request that was received
    from hookline.errors import NotFoundError
    from hookline.v1.event_pb2 import Event  # the messages, generated from the contract

`HooklineClient` is imported on first use: a receiver that only verifies webhooks loads neither gRPC
nor protobuf.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hookline.client import HooklineClient

__all__ = ["HooklineClient"]


def __getattr__(name: str) -> object:
    if name == "HooklineClient":
        from hookline.client import HooklineClient  # noqa: PLC0415 - see above

        return HooklineClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
