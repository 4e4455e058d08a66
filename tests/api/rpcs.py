"""The RPCs of the contract, derived from the registry of methods."""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf.message_factory import GetMessageClass

from hookline_service.api import unimplemented
from hookline_service.api.middleware.audit_policy import CHANGES
from hookline_service.api.middleware.methods import METHODS, Method
from hookline_service.api.server import CONTRACT_SERVICES

CONTRACT = sorted(
    name
    for name, method in METHODS.items()
    if method.descriptor.containing_service.full_name in CONTRACT_SERVICES
)
"""The names of the contract's methods, such as `hookline.v1.EventService/GetEvent`."""
UNBUILT = {
    name
    for base in vars(unimplemented).values()
    if isinstance(base, type) and base.__module__ == unimplemented.__name__
    for name in vars(base)
    if not name.startswith("_")
}
"""The last parts of the names of the methods that are not implemented."""
CHANGING = sorted(name for name in CONTRACT if METHODS[name].audit is CHANGES)
"""The methods that change the control plane."""


def rpc_of(name: str) -> str:
    """Return the last part of a method's name."""
    return METHODS[name].descriptor.name


def request_of(method: Method) -> Any:  # noqa: ANN401 (any message)
    """Return an empty request."""
    return GetMessageClass(method.descriptor.input_type)()


def opened_by(channel: grpc.aio.Channel, method: Method) -> Any:  # noqa: ANN401 (by its streams)
    """Return a callable for a method that takes and returns serialized messages."""
    streams: dict[tuple[bool, bool], Any] = {
        (False, False): channel.unary_unary,
        (False, True): channel.unary_stream,
        (True, True): channel.stream_stream,
    }
    return streams[method.takes_stream, method.answers_stream](f"/{method.name}")
