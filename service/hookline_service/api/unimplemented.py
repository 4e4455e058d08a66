"""RPCs of the contract that a later version builds: refused one by one, never silently absent.

A servicer inherits the class of its service here instead of the generated one, and overrides what
it builds. Once an RPC is built, its refusal here goes.
"""

# ruff: noqa: ARG002, D102 (what is refused is not read, and its name says it all)

from __future__ import annotations

from typing import NoReturn

from hookline.v1 import (
    delivery_service_pb2_grpc,
    event_service_pb2_grpc,
    event_type_service_pb2_grpc,
)
from hookline_service.api.middleware.errors import not_implemented


class UnbuiltDeliveryRpcs(delivery_service_pb2_grpc.DeliveryServiceServicer):
    """What DeliveryService does not build yet."""

    def WatchDeliveries(self, request: object, context: object) -> NoReturn:
        raise not_implemented("WatchDeliveries")

    async def StartReplay(self, request: object, context: object) -> NoReturn:
        raise not_implemented("StartReplay")

    async def GetReplay(self, request: object, context: object) -> NoReturn:
        raise not_implemented("GetReplay")

    async def ListReplays(self, request: object, context: object) -> NoReturn:
        raise not_implemented("ListReplays")

    async def CancelReplay(self, request: object, context: object) -> NoReturn:
        raise not_implemented("CancelReplay")


class UnbuiltEventRpcs(event_service_pb2_grpc.EventServiceServicer):
    """What EventService does not build yet."""

    async def ExplainEvent(self, request: object, context: object) -> NoReturn:
        raise not_implemented("ExplainEvent")


class UnbuiltEventTypeRpcs(event_type_service_pb2_grpc.EventTypeServiceServicer):
    """What EventTypeService does not build yet."""

    async def RegisterEventTypes(self, request: object, context: object) -> NoReturn:
        raise not_implemented("RegisterEventTypes")
