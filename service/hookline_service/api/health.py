"""grpc.health.v1: Check, List and Watch of a fixed set of services.

The library's servicer keeps the name that each watch asks for, even an unknown one, and lacks List.
This one keeps nothing of a request. Source: grpc/health/v1/health.proto.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
from grpc.aio import ServicerContext
from grpc_health.v1 import health_pb2

_Context = ServicerContext[Any, Any]
_States = health_pb2.HealthCheckResponse
_list: Any = health_pb2
"""The package's type stubs lack the messages of List."""
_SERVICE = health_pb2.DESCRIPTOR.services_by_name["Health"]


class HealthServicer:
    """Reports the server (the empty name) and each service: all serve, or none does."""

    def __init__(self, services: Iterable[str]) -> None:
        self._services = frozenset(("", *services))
        self._is_serving = False
        self._changed = asyncio.Event()

    def set_serving(self, serving: bool) -> None:  # noqa: FBT001 (it reads as what it does)
        """Set the state, and send it to every watch."""
        self._is_serving = serving
        self._changed.set()
        self._changed = asyncio.Event()

    @property
    def _state(self) -> Any:  # noqa: ANN401 - an enum's value, whose type only the stubs have
        return _States.SERVING if self._is_serving else _States.NOT_SERVING

    async def Check(
        self, request: health_pb2.HealthCheckRequest, context: _Context
    ) -> health_pb2.HealthCheckResponse:
        """Answer the state of a service; NOT_FOUND for an unknown one."""
        if request.service not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no service of this name")
        return _States(status=self._state)

    async def List(
        self,
        request: Any,  # noqa: ANN401
        context: _Context,
    ) -> Any:  # noqa: ANN401
        """Answer the state of every service."""
        del request, context
        answer = _list.HealthListResponse()
        for service in self._services:
            answer.statuses[service].status = self._state
        return answer

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: _Context
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Yield the state of a service and each change of it; an unknown one never changes."""
        del context
        is_known = request.service in self._services
        del request
        sent = None
        while True:
            changed = self._changed
            state = self._state if is_known else _States.SERVICE_UNKNOWN
            if state != sent:
                yield _States(status=state)
                sent = state
            else:
                await changed.wait()

    def handlers(self) -> grpc.GenericRpcHandler:
        """Return the handler that the server registers."""
        return grpc.method_handlers_generic_handler(
            _SERVICE.full_name,
            {
                "Check": grpc.unary_unary_rpc_method_handler(
                    self.Check,
                    request_deserializer=health_pb2.HealthCheckRequest.FromString,
                    response_serializer=_States.SerializeToString,
                ),
                "List": grpc.unary_unary_rpc_method_handler(
                    self.List,
                    request_deserializer=_list.HealthListRequest.FromString,
                    response_serializer=_list.HealthListResponse.SerializeToString,
                ),
                "Watch": grpc.unary_stream_rpc_method_handler(
                    self.Watch,
                    request_deserializer=health_pb2.HealthCheckRequest.FromString,
                    response_serializer=_States.SerializeToString,
                ),
            },
        )
