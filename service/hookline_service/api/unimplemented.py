"""RPCs of the contract that are not implemented yet: each is refused with its name.

A servicer inherits the class of its service here instead of the generated one, and overrides the
RPCs that it implements. The refusal of an implemented RPC is removed here.
"""

# ruff: noqa: ARG002, D102 (the arguments are unused, and the names of the methods suffice)

from __future__ import annotations

from typing import NoReturn

from hookline.v1 import (
    delivery_service_pb2_grpc,
    event_service_pb2_grpc,
    event_type_service_pb2_grpc,
)
from hookline_service.api.middleware.errors import not_implemented


class UnbuiltDeliveryRpcs(delivery_service_pb2_grpc.DeliveryServiceServicer):
    """The RPCs of DeliveryService that are not implemented yet."""

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
    """The RPCs of EventService that are not implemented yet."""

    async def ExplainEvent(self, request: object, context: object) -> NoReturn:
        raise not_implemented("ExplainEvent")


class UnbuiltEventTypeRpcs(event_type_service_pb2_grpc.EventTypeServiceServicer):
    """The RPCs of EventTypeService that are not implemented yet."""

    async def RegisterEventTypes(self, request: object, context: object) -> NoReturn:
        raise not_implemented("RegisterEventTypes")
