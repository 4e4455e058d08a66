"""The registry of methods: one entry for each RPC that the server answers.

What holds for an RPC is stated here once, and read by the interceptor, admission, the error
translation and the tests. Streaming and the request's fields come from the proto descriptor. To add
an RPC, add it to the protos and an entry here: without one, the server refuses to start
(`check_registry`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from operator import attrgetter
from types import MappingProxyType
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, MethodDescriptor, ServiceDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from hookline.v1 import (
    access_service_pb2,
    delivery_service_pb2,
    event_service_pb2,
    event_type_service_pb2,
    operations_service_pb2,
    subscription_service_pb2,
    tenant_service_pb2,
)
from hookline_service.api.middleware.audit_policy import (
    CHANGES,
    DATA_PATH,
    ORDINARY_READ,
    READS,
    READS_ACROSS_TENANTS,
    READS_BY_CALLER_OF_ALL_TENANTS,
    READS_PAYLOADS,
    SERVICE_STATE,
    AuditPolicy,
    Changes,
    Reads,
    always_reads_one,
    reads_one,
)
from hookline_service.api.middleware.scopes import AUTHENTICATED, OPEN, AccessRule
from hookline_service.domain.caller import Scope
from hookline_service.domain.names import check_id

_TENANTS: Final = "tenants/"


class Effect(Enum):
    """What a call leaves behind: it decides what is answered when its result is lost."""

    READ = "read"
    """The call changes nothing: it may be repeated, and its answer may be dropped."""
    IDEMPOTENT = "idempotent"
    """A repeated call leaves what the first one left."""
    UNSAFE_TO_REPEAT = "unsafe to repeat"
    """A repeated call may act twice, so that a lost result is never answered UNAVAILABLE, on which
    client libraries repeat a call by themselves."""


class MethodRegistryError(Exception):
    """The registry and the protos disagree: an RPC without an entry, or a wrong entry."""


@dataclass(frozen=True, slots=True)
class _Entry:
    access: AccessRule
    audit: AuditPolicy
    effect: Effect
    names: str = ""
    is_list: bool = False


@dataclass(frozen=True, slots=True)
class Method:
    """What holds for one RPC."""

    name: str
    """Such as `hookline.v1.EventService/GetEvent`."""
    descriptor: MethodDescriptor
    access: AccessRule
    audit: AuditPolicy
    effect: Effect
    resource_field: str
    """The path of the request's field that names the resource, and thereby the tenant, that the
    call is about: `tenant`, `subscription.name`. Empty: the request names none."""
    is_list: bool
    """The call answers a page of a list, for which calls of one tenant take turns."""
    _resource: attrgetter[Any] | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Raise `MethodRegistryError` where parts of the entry contradict one another."""
        path = self.resource_field
        object.__setattr__(self, "_resource", attrgetter(path) if path else None)
        if isinstance(self.audit, Changes | Reads) and (
            isinstance(self.audit, Reads) is not (self.effect is Effect.READ)
        ):
            raise MethodRegistryError(f"{self.name}: its audit policy contradicts its effect")
        message: Descriptor | None = self.descriptor.input_type
        for part in path.split(".") if path else ():
            found = None if message is None else message.fields_by_name.get(part)
            if found is None:
                raise MethodRegistryError(f"{self.name}: its request has no field {path}")
            message = found.message_type

    @property
    def takes_stream(self) -> bool:
        """Whether the client sends a stream of messages."""
        return bool(self.descriptor.client_streaming)

    @property
    def answers_stream(self) -> bool:
        """Whether the server answers a stream of messages."""
        return bool(self.descriptor.server_streaming)

    def resource_in(self, request: object) -> str:
        """Return the resource name in a request; empty: it names none."""
        return "" if self._resource is None else self._resource(request)

    def tenant_id_in(self, request: object) -> str | None:
        """Return the tenant that a request names; None: it names none, or all (`tenants/-`).

        None also for text that is no tenant's id: the result is a key in tables, and must not be as
        long as a message.
        """
        name = self.resource_in(request)
        if not name.startswith(_TENANTS):
            return None
        tenant_id = name[len(_TENANTS) :].partition("/")[0]
        return tenant_id if check_id(tenant_id) is None else None


_PUBLISH = AccessRule((Scope.PUBLISH,))
_MANAGE = AccessRule((Scope.MANAGE,))
_MANAGE_ALL = AccessRule((Scope.MANAGE,), is_of_all_tenants=True)
_OPERATE = AccessRule((Scope.OPERATE,))
_OPERATE_ALL = AccessRule((Scope.OPERATE,), is_of_all_tenants=True)
_MANAGE_OR_OPERATE = AccessRule((Scope.MANAGE, Scope.OPERATE))
_ADMIN = AccessRule((Scope.ADMIN,))


def _read(access: AccessRule, audit: AuditPolicy, names: str = "") -> _Entry:
    return _Entry(access, audit, Effect.READ, names)


def _list(access: AccessRule, audit: AuditPolicy, names: str = "") -> _Entry:
    return _Entry(access, audit, Effect.READ, names, is_list=True)


def _change(access: AccessRule, names: str = "") -> _Entry:
    return _Entry(access, CHANGES, Effect.IDEMPOTENT, names)


def _unsafe_change(access: AccessRule, names: str = "") -> _Entry:
    return _Entry(access, CHANGES, Effect.UNSAFE_TO_REPEAT, names)


def _publish(names: str = "") -> _Entry:
    return _Entry(_PUBLISH, DATA_PATH, Effect.UNSAFE_TO_REPEAT, names)


_REFLECTION: Final = {"ServerReflectionInfo": _read(AUTHENTICATED, ORDINARY_READ)}
TABLE: Final[Mapping[str, Mapping[str, _Entry]]] = {
    "hookline.v1.TenantService": {
        # For callers of all tenants: ALREADY_EXISTS discloses which tenants exist.
        "CreateTenant": _unsafe_change(_MANAGE_ALL),
        "GetTenant": _read(_MANAGE, ORDINARY_READ, "name"),
        "ListTenants": _list(_MANAGE, READS_BY_CALLER_OF_ALL_TENANTS),
        "UpdateTenant": _change(_MANAGE, "tenant.name"),
        "DeleteTenant": _change(_MANAGE_ALL, "name"),
    },
    "hookline.v1.EventTypeService": {
        "CreateEventType": _unsafe_change(_MANAGE_ALL),
        "GetEventType": _read(_MANAGE, ORDINARY_READ, "name"),
        "ListEventTypes": _list(_MANAGE, ORDINARY_READ),
        "UpdateEventType": _change(_MANAGE_ALL, "event_type.name"),
        "ArchiveEventType": _change(_MANAGE_ALL, "name"),
        "RegisterEventTypes": _change(_MANAGE_ALL),
    },
    "hookline.v1.EventService": {
        "PublishEvents": _publish("tenant"),
        "StreamPublishEvents": _publish("tenant"),
        "GetEvent": _read(_OPERATE, always_reads_one("event"), "name"),
        "ListEvents": _list(_OPERATE, READS_PAYLOADS, "tenant"),
        "ExplainEvent": _read(_OPERATE, READS_ACROSS_TENANTS, "name"),
    },
    "hookline.v1.SubscriptionService": {
        "CreateSubscription": _unsafe_change(_MANAGE, "tenant"),
        "GetSubscription": _read(_MANAGE_OR_OPERATE, reads_one("subscription"), "name"),
        "ListSubscriptions": _list(_MANAGE_OR_OPERATE, READS_ACROSS_TENANTS, "tenant"),
        "UpdateSubscription": _change(_MANAGE, "subscription.name"),
        "DeleteSubscription": _change(_MANAGE, "name"),
        "PauseSubscription": _change(_OPERATE, "name"),
        "ResumeSubscription": _change(_OPERATE, "name"),
        # Repeated, it ends the secret that receivers still verify with: at most two are live.
        "RotateSigningSecret": _unsafe_change(_MANAGE, "name"),
        "SendTestEvent": _unsafe_change(_MANAGE, "name"),
    },
    "hookline.v1.DeliveryService": {
        "GetDelivery": _read(_OPERATE, reads_one("delivery"), "name"),
        "ListDeliveries": _list(_OPERATE, READS_ACROSS_TENANTS, "tenant"),
        "ListAttempts": _list(_OPERATE, READS_ACROSS_TENANTS, "delivery"),
        "RetryDelivery": _change(_OPERATE, "name"),
        "CancelDelivery": _change(_OPERATE, "name"),
        "WatchDeliveries": _read(_OPERATE, READS_ACROSS_TENANTS, "tenant"),
        "StartReplay": _unsafe_change(_OPERATE, "tenant"),
        "GetReplay": _read(_OPERATE, reads_one("replay"), "name"),
        "ListReplays": _list(_OPERATE, READS_ACROSS_TENANTS, "tenant"),
        "CancelReplay": _change(_OPERATE, "name"),
    },
    "hookline.v1.AccessService": {
        "CreateApiKey": _unsafe_change(_ADMIN, "api_key.tenant"),
        "ListApiKeys": _list(_ADMIN, READS),
        "RevokeApiKey": _change(_ADMIN, "name"),
        "ListAuditEntries": _list(_ADMIN, READS, "tenant"),
    },
    "hookline.v1.OperationsService": {
        "GetStatus": _read(_OPERATE_ALL, SERVICE_STATE),  # lanes and backlog of all tenants
    },
    "grpc.health.v1.Health": {
        "Check": _read(OPEN, SERVICE_STATE),
        "List": _read(OPEN, SERVICE_STATE),
        "Watch": _read(OPEN, SERVICE_STATE),
    },
    "grpc.reflection.v1.ServerReflection": _REFLECTION,
    "grpc.reflection.v1alpha.ServerReflection": _REFLECTION,
}
"""What `METHODS` is made of: each service's RPCs by their names."""

_REFLECTION_V1ALPHA: Final = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]
SERVICES: Final[Mapping[str, ServiceDescriptor]] = MappingProxyType(
    {
        service.full_name: service
        for module in (
            access_service_pb2,
            delivery_service_pb2,
            event_service_pb2,
            event_type_service_pb2,
            operations_service_pb2,
            subscription_service_pb2,
            tenant_service_pb2,
            health_pb2,
            reflection_pb2,
        )
        for service in module.DESCRIPTOR.services_by_name.values()
    }
    # The messages of both versions are the same on the wire (`api/reflection.py`).
    | {"grpc.reflection.v1.ServerReflection": _REFLECTION_V1ALPHA}
)
"""The descriptor of each service that the server answers, by its full name."""


def make_registry(table: Mapping[str, Mapping[str, _Entry]]) -> Mapping[str, Method]:
    """Return the methods of a table by their full names. Raise `MethodRegistryError`."""
    methods = {}
    for service, entries in table.items():
        descriptors = SERVICES[service].methods_by_name
        for name, entry in entries.items():
            full_name = f"{service}/{name}"
            if name not in descriptors:
                raise MethodRegistryError(f"{full_name} has an entry, and the protos have none")
            methods[full_name] = Method(
                full_name,
                descriptors[name],
                entry.access,
                entry.audit,
                entry.effect,
                entry.names,
                entry.is_list,
            )
    return MappingProxyType(methods)


METHODS: Final = make_registry(TABLE)
"""Each RPC by its full name."""


def check_registry(
    services: Mapping[str, ServiceDescriptor], methods: Mapping[str, Method]
) -> None:
    """Raise `MethodRegistryError`, with the RPC's name, for an RPC without an entry."""
    for service, descriptor in services.items():
        for method in descriptor.methods:
            name = f"{service}/{method.name}"
            if name not in methods:
                raise MethodRegistryError(
                    f"{name} has no entry in the registry of methods (api/middleware/methods.py):"
                    " state its access rule, audit policy, effect and resource field there"
                )
