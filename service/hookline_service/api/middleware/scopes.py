"""Who may call what: a rule for each method; what has none is refused to everybody.

Whose data a call may touch is another matter: the names in its request say so, and those of other
tenants look like names of nothing (`convert_names.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from hookline_service.domain.caller import Caller, Scope
from hookline_service.domain.errors import PermissionDeniedError, Reason


@dataclass(frozen=True, slots=True)
class Rule:
    """Who may call a method."""

    scopes: tuple[Scope, ...] = ()
    """One of these is needed; none: whoever is known may."""
    is_open: bool = False
    """Nobody is asked who he is."""
    is_of_all_tenants: bool = False
    """It touches what belongs to no tenant: not for a caller who is bound to one."""

    def check(self, caller: Caller) -> None:
        """Raises `PermissionDeniedError`, which names what is missing."""
        if self.scopes and not any(map(caller.may, self.scopes)):
            needed = " or ".join(self.scopes)
            raise PermissionDeniedError(
                f"this call needs the scope {needed}, which the caller lacks",
                Reason.PERMISSION_DENIED,
                metadata={"scope": ",".join(self.scopes)},
            )
        if self.is_of_all_tenants and caller.tenant_id is not None:
            raise bound_to_one_tenant("this call")


def bound_to_one_tenant(what: str) -> PermissionDeniedError:
    """The refusal of what is not for callers who are bound to one tenant."""
    return PermissionDeniedError(
        f"{what} is for callers of all tenants, and this one is bound to one tenant",
        Reason.PERMISSION_DENIED,
    )


_PUBLISH = Rule((Scope.PUBLISH,))
_MANAGE = Rule((Scope.MANAGE,))
_MANAGE_ALL = Rule((Scope.MANAGE,), is_of_all_tenants=True)
_OPERATE = Rule((Scope.OPERATE,))
_OPERATE_ALL = Rule((Scope.OPERATE,), is_of_all_tenants=True)
_MANAGE_OR_OPERATE = Rule((Scope.MANAGE, Scope.OPERATE))
_ADMIN = Rule((Scope.ADMIN,))
OPEN: Final = Rule(is_open=True)
KNOWN: Final = Rule()
"""Whoever is known. Also for methods that there are not: strangers do not learn which there are."""

RULES: Final[Mapping[str, Rule]] = MappingProxyType(
    {
        f"{service}/{method}": rule
        for service, methods in {
            "hookline.v1.TenantService": {
                "CreateTenant": _MANAGE_ALL,  # whoever may try learns which there are
                "GetTenant": _MANAGE,
                "ListTenants": _MANAGE,
                "UpdateTenant": _MANAGE,
                "DeleteTenant": _MANAGE_ALL,
            },
            "hookline.v1.EventTypeService": {
                "CreateEventType": _MANAGE_ALL,
                "GetEventType": _MANAGE,
                "ListEventTypes": _MANAGE,
                "UpdateEventType": _MANAGE_ALL,
                "ArchiveEventType": _MANAGE_ALL,
                "RegisterEventTypes": _MANAGE_ALL,
            },
            "hookline.v1.EventService": {
                "PublishEvents": _PUBLISH,
                "StreamPublishEvents": _PUBLISH,
                "GetEvent": _OPERATE,
                "ListEvents": _OPERATE,
                "ExplainEvent": _OPERATE,
            },
            "hookline.v1.SubscriptionService": {
                "CreateSubscription": _MANAGE,
                "GetSubscription": _MANAGE_OR_OPERATE,
                "ListSubscriptions": _MANAGE_OR_OPERATE,
                "UpdateSubscription": _MANAGE,
                "DeleteSubscription": _MANAGE,
                "PauseSubscription": _OPERATE,
                "ResumeSubscription": _OPERATE,
                "RotateSigningSecret": _MANAGE,
                "SendTestEvent": _MANAGE,
            },
            "hookline.v1.DeliveryService": {
                "GetDelivery": _OPERATE,
                "ListDeliveries": _OPERATE,
                "ListAttempts": _OPERATE,
                "RetryDelivery": _OPERATE,
                "CancelDelivery": _OPERATE,
                "WatchDeliveries": _OPERATE,
                "StartReplay": _OPERATE,
                "GetReplay": _OPERATE,
                "ListReplays": _OPERATE,
                "CancelReplay": _OPERATE,
            },
            "hookline.v1.AccessService": {
                "CreateApiKey": _ADMIN,
                "ListApiKeys": _ADMIN,
                "RevokeApiKey": _ADMIN,
                "ListAuditEntries": _ADMIN,
            },
            "hookline.v1.OperationsService": {
                "GetStatus": _OPERATE_ALL,  # the lanes and the backlog of all tenants
            },
            "grpc.health.v1.Health": {"Check": OPEN, "List": OPEN, "Watch": OPEN},
            "grpc.reflection.v1.ServerReflection": {"ServerReflectionInfo": KNOWN},
            "grpc.reflection.v1alpha.ServerReflection": {"ServerReflectionInfo": KNOWN},
        }.items()
        for method, rule in methods.items()
    }
)
