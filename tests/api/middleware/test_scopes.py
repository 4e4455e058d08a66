"""The rules of who may call what: one for each method there is, and none for what there is not."""

from __future__ import annotations

import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from hookline_service.api.middleware.scopes import KNOWN, OPEN, RULES, Rule
from hookline_service.api.reflection import SERVICES as REFLECTION
from hookline_service.domain.caller import Scope
from hookline_service.domain.errors import PermissionDeniedError
from tests.api.identities import caller
from tests.api.test_server import METHODS

CONTRACT = {name.removeprefix("/") for name in METHODS}
HEALTH = {
    f"{service.full_name}/{method.name}"
    for service in health_pb2.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
REFLECTING = {
    f"{service}/{method.name}"
    for service in REFLECTION
    for method in reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"].methods
}


def test_every_method_has_a_rule_and_every_rule_a_method() -> None:
    assert set(RULES) == CONTRACT | HEALTH | REFLECTING


def test_health_is_open_and_nothing_else_is() -> None:
    assert {name for name, rule in RULES.items() if rule.is_open} == HEALTH


def test_reflection_is_for_whoever_is_known_and_nothing_of_the_contract_is() -> None:
    assert {name for name, rule in RULES.items() if rule == KNOWN} == REFLECTING
    assert [name for name in sorted(CONTRACT) if not RULES[name].scopes] == []


@pytest.mark.parametrize("name", sorted(CONTRACT))
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


def test_what_belongs_to_no_tenant_is_not_for_who_is_bound_to_one() -> None:
    refused = {name for name in CONTRACT if RULES[name].is_of_all_tenants}
    for name in refused:
        RULES[name].check(caller())
        with pytest.raises(PermissionDeniedError, match="bound to one tenant"):
            RULES[name].check(caller(tenant="acme"))
    for name in CONTRACT - refused:
        RULES[name].check(caller(tenant="acme"))
    assert {name.removeprefix("hookline.v1.") for name in refused} == {
        "EventTypeService/ArchiveEventType",
        "EventTypeService/CreateEventType",
        "EventTypeService/RegisterEventTypes",
        "EventTypeService/UpdateEventType",
        "OperationsService/GetStatus",
        "TenantService/CreateTenant",
        "TenantService/DeleteTenant",
    }


def test_an_open_rule_is_the_only_one_that_asks_nobody() -> None:
    assert [rule for rule in RULES.values() if rule.is_open and rule != OPEN] == []
    assert not Rule().is_open
