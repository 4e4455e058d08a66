"""Which calls the audit log tells of: a word on each method; what has none is refused to everybody.

A change is entered by the store that makes it, in its transaction. A privileged read has none, so
it is entered here, after the store has answered and before the caller is: where it cannot be
entered, he learns nothing. A refused call changed and disclosed nothing, and leaves no entry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Protocol, TypeAlias

from hookline.v1 import event_pb2
from hookline_service.domain.caller import current_caller
from hookline_service.domain.names import WILDCARD

_Resource = Callable[[Any, Any], str]
"""The name of what is read, by the request and the response; a stream has none of these yet."""


class AuditLog(Protocol):
    """Where privileged reads are entered."""

    async def add_read(self, resource: str, tenant_id: str) -> None:
        """Enter that the current caller read something; returns when that is safe."""
        ...


@dataclass(frozen=True, slots=True)
class Changes:
    """It changes something, and the store enters that."""


@dataclass(frozen=True, slots=True)
class Reads:
    """It reads, and where that is privileged it is entered."""

    resource: _Resource
    is_privileged: Callable[[Any], bool]
    """By the request."""

    async def enter(self, journal: AuditLog, request: object, response: object = None) -> None:
        """Enter it, if it is to be."""
        if self.is_privileged(request):
            resource = self.resource(request, response)
            await journal.add_read(resource, _tenant_id_in(resource))


@dataclass(frozen=True, slots=True)
class NotAudited:
    """It is not entered."""

    reason: str


AuditPolicy: TypeAlias = Changes | Reads | NotAudited


def _tenant_id_in(resource: str) -> str:
    collection, _, rest = resource.partition("/")
    tenant_id = rest.partition("/")[0]
    return tenant_id if collection == "tenants" and tenant_id != WILDCARD else ""


def _always(request: object) -> bool:
    del request
    return True


def _asked_for(request: Any) -> str:  # noqa: ANN401 (any message)
    """What a request names: a resource, or a list's parent."""
    for field in ("name", "delivery", "tenant"):
        if found := getattr(request, field, ""):
            return str(found)
    return ""


def _across(request: Any) -> bool:  # noqa: ANN401 (any message)
    return _asked_for(request).startswith(f"tenants/{WILDCARD}")


def _with_payloads(request: Any) -> bool:  # noqa: ANN401 (any message)
    return request.view == event_pb2.EVENT_VIEW_FULL or _across(request)


def _unbound(request: object) -> bool:
    del request
    return current_caller().tenant_id is None


def _parent(request: Any, response: object) -> str:  # noqa: ANN401 (any message)
    del response
    return _asked_for(request)


def _answered(field: str) -> _Resource:
    """The answer's name of it: where it was asked for across tenants, that says whose it is."""

    def resource(request: object, response: Any) -> str:  # noqa: ANN401 (any message)
        del request
        return str(getattr(response, field).name)

    return resource


CHANGES: Final = Changes()
_DATA_PATH = NotAudited("the data path: what is published is stored as it came, with its time")
_ORDINARY = NotAudited("an ordinary read: of one tenant, without payloads, or of no tenant's")
_STATE = NotAudited("the service's state, which monitoring asks for again and again")

_WORDS: Final[dict[str, dict[str, AuditPolicy]]] = {
    "hookline.v1.TenantService": {
        "CreateTenant": CHANGES,
        "GetTenant": _ORDINARY,
        "ListTenants": Reads(_parent, _unbound),
        "UpdateTenant": CHANGES,
        "DeleteTenant": CHANGES,
    },
    "hookline.v1.EventTypeService": {
        "CreateEventType": CHANGES,
        "GetEventType": _ORDINARY,
        "ListEventTypes": _ORDINARY,
        "UpdateEventType": CHANGES,
        "ArchiveEventType": CHANGES,
        "RegisterEventTypes": CHANGES,
    },
    "hookline.v1.EventService": {
        "PublishEvents": _DATA_PATH,
        "StreamPublishEvents": _DATA_PATH,
        "GetEvent": Reads(_answered("event"), _always),
        "ListEvents": Reads(_parent, _with_payloads),
        "ExplainEvent": Reads(_parent, _across),
    },
    "hookline.v1.SubscriptionService": {
        "CreateSubscription": CHANGES,
        "GetSubscription": Reads(_answered("subscription"), _across),
        "ListSubscriptions": Reads(_parent, _across),
        "UpdateSubscription": CHANGES,
        "DeleteSubscription": CHANGES,
        "PauseSubscription": CHANGES,
        "ResumeSubscription": CHANGES,
        "RotateSigningSecret": CHANGES,
        "SendTestEvent": CHANGES,
    },
    "hookline.v1.DeliveryService": {
        "GetDelivery": Reads(_answered("delivery"), _across),
        "ListDeliveries": Reads(_parent, _across),
        "ListAttempts": Reads(_parent, _across),
        "RetryDelivery": CHANGES,
        "CancelDelivery": CHANGES,
        "WatchDeliveries": Reads(_parent, _across),
        "StartReplay": CHANGES,
        "GetReplay": Reads(_answered("replay"), _across),
        "ListReplays": Reads(_parent, _across),
        "CancelReplay": CHANGES,
    },
    "hookline.v1.AccessService": {
        "CreateApiKey": CHANGES,
        "ListApiKeys": Reads(_parent, _always),
        "RevokeApiKey": CHANGES,
        "ListAuditEntries": Reads(_parent, _always),
    },
    "hookline.v1.OperationsService": {"GetStatus": _STATE},
    "grpc.health.v1.Health": {"Check": _STATE, "List": _STATE, "Watch": _STATE},
    "grpc.reflection.v1.ServerReflection": {"ServerReflectionInfo": _ORDINARY},
    "grpc.reflection.v1alpha.ServerReflection": {"ServerReflectionInfo": _ORDINARY},
}
AUDIT: Final[Mapping[str, AuditPolicy]] = MappingProxyType(
    {
        f"{service}/{method}": word
        for service, methods in _WORDS.items()
        for method, word in methods.items()
    }
)
