"""The registry of methods: complete, consistent with the protos, and checked at start."""

from __future__ import annotations

import re
from dataclasses import replace
from importlib import resources
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from hookline_service.api.middleware import methods
from hookline_service.api.middleware.audit_policy import NotAudited, Reads
from hookline_service.api.middleware.methods import (
    METHODS,
    SERVICES,
    Effect,
    MethodRegistryError,
    check_registry,
)
from hookline_service.api.server import CONTRACT_SERVICES
from tests.api.conftest import Api
from tests.api.rpcs import CHANGING, CONTRACT, request_of
from tests.api.test_server import server_at


def test_every_rpc_has_an_entry() -> None:
    check_registry(SERVICES, METHODS)
    rpcs = {f"{name}/{rpc.name}" for name, service in SERVICES.items() for rpc in service.methods}
    assert rpcs == set(METHODS)


def test_every_service_of_the_protos_is_served() -> None:
    """By the `buf build` image, which is generated from the protos."""
    data = resources.files("hookline_service.api").joinpath("descriptors.binpb").read_bytes()
    services = {
        f"{file.package}.{service.name}"
        for file in FileDescriptorSet.FromString(data).file
        for service in file.service
    }
    assert services == set(CONTRACT_SERVICES)


async def test_server_without_an_entry_for_an_rpc_does_not_start(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = CONTRACT[-1]
    entries = {name: method for name, method in METHODS.items() if name != missing}
    monkeypatch.setattr("hookline_service.api.server.METHODS", entries)
    with pytest.raises(MethodRegistryError, match=missing):
        server_at(api, "127.0.0.1:0")


def test_entry_without_an_rpc_is_an_error() -> None:
    [entry, *_] = methods.TABLE["hookline.v1.TenantService"].values()
    with pytest.raises(MethodRegistryError, match="TenantService/RenameTenant"):
        methods.make_registry({"hookline.v1.TenantService": {"RenameTenant": entry}})


@pytest.mark.parametrize("change", [{"resource_field": "tenant.nmae"}, {"effect": Effect.READ}])
def test_contradictory_entry_is_an_error(change: dict[str, Any]) -> None:
    with pytest.raises(MethodRegistryError, match="UpdateTenant"):
        replace(METHODS["hookline.v1.TenantService/UpdateTenant"], **change)


def test_only_changes_and_publishing_have_an_effect() -> None:
    """An entry with an effect is a change, or a publish, whose events are stored as they arrive."""
    with_effect = {name for name in METHODS if METHODS[name].effect is not Effect.READ}
    publishing = {
        name for name in CONTRACT if "events" in METHODS[name].descriptor.input_type.fields_by_name
    }
    assert with_effect == {*CHANGING, *publishing}


def test_methods_with_any_other_verb_than_a_read_are_changes() -> None:
    """By the name, independently of the entry: a new RPC is not a read by an oversight."""
    reads = ("Get", "List", "Watch", "Explain", "Check", "ServerReflectionInfo")
    publishes = ("PublishEvents", "StreamPublishEvents")
    verbs = {name: name.rpartition("/")[2] for name in METHODS}
    assert {n for n, verb in verbs.items() if not verb.startswith((*reads, *publishes))} == set(
        CHANGING
    )


def test_calls_that_create_or_send_are_unsafe_to_repeat() -> None:
    unsafe = {
        name.rpartition("/")[2]
        for name, method in METHODS.items()
        if method.effect is Effect.UNSAFE_TO_REPEAT
    }
    acting = re.compile("Create|Publish|StreamPublish|Rotate|Send|Start")
    assert unsafe == {
        name.rpartition("/")[2] for name in METHODS if acting.match(name.rpartition("/")[2])
    }


def test_calls_that_are_not_audited_have_a_reason() -> None:
    assert [
        m for m in METHODS.values() if isinstance(m.audit, NotAudited) and not m.audit.reason
    ] == []


def test_lists_are_the_methods_that_answer_pages() -> None:
    pages = {
        name
        for name in METHODS
        if "page_token" in METHODS[name].descriptor.input_type.fields_by_name
    }
    assert {name for name, method in METHODS.items() if method.is_list} == pages


def test_recorded_reads_of_one_resource_answer_it() -> None:
    for name, method in METHODS.items():
        if isinstance(method.audit, Reads) and method.audit.answered_field:
            field = method.descriptor.output_type.fields_by_name[method.audit.answered_field]
            assert field.message_type is not None, name
            assert "name" in field.message_type.fields_by_name, name


@pytest.mark.parametrize("name", [n for n in CONTRACT if METHODS[n].resource_field])
def test_tenant_is_found_in_the_resource_field(name: str) -> None:
    method = METHODS[name]
    request = request_of(method)
    assert method.tenant_id_in(request) is None
    *parents, last = method.resource_field.split(".")
    message = request
    for part in parents:
        message = getattr(message, part)
    for text, tenant_id in (
        ("tenants/acme", "acme"),
        ("tenants/acme/subscriptions/orders", "acme"),
        ("tenants/-", None),
        ("eventTypes/acme", None),
        (f"tenants/{'x' * 5_000}", None),
    ):
        setattr(message, last, text)
        assert method.resource_in(request) == text
        assert method.tenant_id_in(request) == tenant_id


def test_methods_without_a_resource_name_no_tenant() -> None:
    for name in CONTRACT:
        method = METHODS[name]
        if not method.resource_field:
            assert method.resource_in(request_of(method)) == ""
            assert method.tenant_id_in(request_of(method)) is None
