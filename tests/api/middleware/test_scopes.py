"""Access rules: which callers may call each RPC."""

from __future__ import annotations

import pytest

from hookline_service.api.middleware.methods import METHODS
from hookline_service.api.middleware.scopes import AUTHENTICATED, OPEN, AccessRule
from hookline_service.domain.caller import Scope
from hookline_service.domain.errors import PermissionDeniedError
from tests.api.identities import caller
from tests.api.rpcs import CONTRACT

RULES = {name: method.access for name, method in METHODS.items()}


def methods_in(package: str) -> set[str]:
    return {
        name
        for name, method in METHODS.items()
        if method.descriptor.containing_service.file.package.startswith(package)
    }


def test_only_health_is_called_without_authentication() -> None:
    open_methods = {name for name, rule in RULES.items() if rule.is_open}
    assert open_methods == methods_in("grpc.health")


def test_only_reflection_is_for_every_authenticated_caller() -> None:
    without_scope = {name for name, rule in RULES.items() if rule == AUTHENTICATED}
    assert without_scope == methods_in("grpc.reflection")
    assert [name for name in CONTRACT if not RULES[name].scopes] == []


@pytest.mark.parametrize("name", CONTRACT)
@pytest.mark.parametrize("scope", Scope)
def test_a_scope_alone_opens_its_methods_and_no_other(name: str, scope: Scope) -> None:
    rule = RULES[name]
    if scope in {*rule.scopes, Scope.ADMIN}:
        rule.check(caller(scope))
        return
    with pytest.raises(PermissionDeniedError) as refused:
        rule.check(caller(scope))
    assert refused.value.metadata == {"scope": ",".join(rule.scopes)}
    assert rule.scopes[0] in refused.value.message


@pytest.mark.parametrize("name", CONTRACT)
def test_methods_of_all_tenants_refuse_callers_bound_to_one(name: str) -> None:
    RULES[name].check(caller())
    if not RULES[name].is_of_all_tenants:
        RULES[name].check(caller(tenant="acme"))
        return
    with pytest.raises(PermissionDeniedError, match="bound to one tenant"):
        RULES[name].check(caller(tenant="acme"))


def test_methods_of_all_tenants_are_exactly_these() -> None:
    """Written out on purpose: the registry must not decide alone what a tenant's key may call."""
    refused = {name for name in CONTRACT if RULES[name].is_of_all_tenants}
    assert {name.removeprefix("hookline.v1.") for name in refused} == {
        "EventTypeService/ArchiveEventType",
        "EventTypeService/CreateEventType",
        "EventTypeService/RegisterEventTypes",
        "EventTypeService/UpdateEventType",
        "OperationsService/GetStatus",
        "TenantService/CreateTenant",
        "TenantService/DeleteTenant",
    }


def test_open_rules_have_no_scopes() -> None:
    assert [rule for rule in RULES.values() if rule.is_open and rule != OPEN] == []
    assert not AccessRule().is_open
