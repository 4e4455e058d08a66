"""TenantService over a real channel."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from hookline.v1.tenant_pb2 import TENANT_STATE_ACTIVE, TENANT_STATE_DELETING, Tenant
from hookline.v1.tenant_service_pb2 import (
    CreateTenantRequest,
    DeleteTenantRequest,
    DeleteTenantResponse,
    GetTenantRequest,
    ListTenantsRequest,
    ListTenantsResponse,
    UpdateTenantRequest,
)
from hookline_service.domain.limits import Limits
from tests.api.control import INVALID, Control, controlling
from tests.api.refusals import Refused, refusal


@pytest.fixture
async def control(database_url: str) -> AsyncIterator[Control]:
    async with controlling(database_url) as control:
        yield control


async def create(control: Control, tenant_id: str, **fields: Any) -> Tenant:  # noqa: ANN401 (any field)
    request = CreateTenantRequest(tenant_id=tenant_id, tenant=Tenant(**fields))
    return (await control.tenants.CreateTenant(request)).tenant


async def get(control: Control, name: str) -> Tenant:
    return (await control.tenants.GetTenant(GetTenantRequest(name=name))).tenant


async def update(control: Control, tenant: Tenant, *paths: str) -> Tenant:
    mask = FieldMask(paths=paths)
    request = UpdateTenantRequest(tenant=tenant, update_mask=mask)
    return (await control.tenants.UpdateTenant(request)).tenant


async def delete(control: Control, name: str, **fields: Any) -> DeleteTenantResponse:  # noqa: ANN401 (any field)
    return await control.tenants.DeleteTenant(DeleteTenantRequest(name=name, **fields))


async def page(control: Control, **fields: Any) -> ListTenantsResponse:  # noqa: ANN401 (any field)
    return await control.tenants.ListTenants(ListTenantsRequest(**fields))


async def test_created_tenant_has_the_given_fields(control: Control) -> None:
    made = await create(
        control,
        "globex",
        name="ignored",
        uid="ignored",
        display_name="Globex ☂",
        labels={"plan": "gold", "a-b_c": ""},
        state=TENANT_STATE_DELETING,
    )
    assert made == await get(control, "tenants/globex")
    assert UUID(made.uid).version == 7
    assert (made.name, made.display_name, made.state) == (
        "tenants/globex",
        "Globex ☂",
        TENANT_STATE_ACTIVE,
    )
    assert dict(made.labels) == {"plan": "gold", "a-b_c": ""}
    assert made.create_time.seconds > 1_700_000_000


async def test_changed_copy_of_a_read_tenant_is_accepted(control: Control) -> None:
    made = await create(control, "globex", display_name="Globex", labels={"a": "1"})
    made.display_name = "G"
    changed = await update(control, made)
    assert changed == made
    assert changed == await get(control, "tenants/globex")


@pytest.mark.parametrize(
    "paths,after",
    [
        ([], ("new", {"a": "1"})),
        (["display_name"], ("new", {"a": "1"})),
        (["displayName"], ("new", {"a": "1"})),
        (["labels"], ("old", {})),
        (["labels", "display_name"], ("new", {})),
        (["*"], ("new", {})),
    ],
)
async def test_update_changes_only_fields_of_its_mask(
    control: Control, paths: list[str], after: tuple[str, dict[str, str]]
) -> None:
    await create(control, "globex", display_name="old", labels={"a": "1"})
    changed = await update(control, Tenant(name="tenants/globex", display_name="new"), *paths)
    assert (changed.display_name, dict(changed.labels)) == after


async def test_concurrent_creations_with_one_id_create_one_tenant(control: Control) -> None:
    answers = await asyncio.gather(
        *[create(control, "globex") for _ in range(6)], return_exceptions=True
    )
    codes = [answer.code() for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
    assert codes == [grpc.StatusCode.ALREADY_EXISTS] * 5
    refused = await refusal(create(control, "globex"))
    assert refused.reason == "TENANT_ALREADY_EXISTS"


async def test_pages_are_newest_first_and_bound_to_their_list(control: Control) -> None:
    for n in range(5):
        await create(control, f"t{n}")
    first = await page(control, page_size=4)
    last = await page(control, page_size=4, page_token=first.next_page_token)
    names = [tenant.name for answer in (first, last) for tenant in answer.tenants]
    assert names == [f"tenants/t{n}" for n in (4, 3, 2, 1, 0)] + ["tenants/acme"]
    assert last.next_page_token == ""
    refused = await refusal(page(control, page_token=first.next_page_token + "x"))
    assert refused.violations == {"page_token": "PAGE_TOKEN_INVALID"}
    assert (await refusal(page(control, page_size=-1))).violations == {"page_size": "FIELD_INVALID"}


async def test_page_is_limited_in_bytes(database_url: str) -> None:
    async with controlling(database_url, limits=Limits(max_page_bytes=1_000)) as control:
        for n in range(4):
            await create(control, f"t{n}", display_name="n" * 256)
        first = await page(control)
        assert 0 < len(first.tenants) < 4
        names = [tenant.name for tenant in first.tenants]
        token = first.next_page_token
        while token:
            answer = await page(control, page_token=token)
            names += [tenant.name for tenant in answer.tenants]
            token = answer.next_page_token
    assert names == ["tenants/t3", "tenants/t2", "tenants/t1", "tenants/t0", "tenants/acme"]


async def test_only_an_empty_tenant_can_be_deleted(control: Control) -> None:
    await control.create()
    refused = await refusal(delete(control, "tenants/acme"))
    assert refused.code == grpc.StatusCode.FAILED_PRECONDITION
    assert refused.reason == "TENANT_NOT_EMPTY"
    await create(control, "globex")
    assert not (await delete(control, "tenants/globex")).HasField("tenant")
    assert (await refusal(get(control, "tenants/globex"))).reason == "TENANT_NOT_FOUND"


async def test_default_tenant_cannot_be_deleted(control: Control) -> None:
    refused = await refusal(delete(control, "tenants/default"))
    assert (refused.code, refused.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "TENANT_PROTECTED",
    )


async def test_fields_of_later_versions_are_refused(control: Control) -> None:
    for call, field in [
        (delete(control, "tenants/acme", force=True), "force"),
        (page(control, filter='state == "ACTIVE"'), "filter"),
    ]:
        refused = await refusal(call)
        assert (refused.code, refused.reason) == (
            grpc.StatusCode.UNIMPLEMENTED,
            "NOT_IMPLEMENTED",
        )
        assert refused.metadata == {"field": field}


BAD_IDS = [
    "A", "1a", "-a", "a.b", "a/b", "a b", "a_b", "ä", "a" * 64, "a\n", "a\x00", "-", "*",
    "\u0430cme", "a%2fb", "tenants/acme",
]  # fmt: skip


@pytest.mark.parametrize("tenant_id", BAD_IDS)
async def test_an_id_outside_the_grammar_is_refused(control: Control, tenant_id: str) -> None:
    refused = await refusal(create(control, tenant_id))
    assert (refused.code, refused.violations) == (INVALID, {"tenant_id": "FIELD_INVALID"})
    for call in (
        get(control, f"tenants/{tenant_id}"),
        delete(control, f"tenants/{tenant_id}"),
    ):
        named = await refusal(call)
        assert (named.code, named.violations) == (INVALID, {"name": "FIELD_INVALID"})


@pytest.mark.parametrize(
    "name", ["", "acme", "tenants", "tenants/", "tenants/a/b", "/tenants/acme", "Tenants/acme"]
)
async def test_malformed_name_is_refused(control: Control, name: str) -> None:
    reason = "FIELD_INVALID" if name else "FIELD_REQUIRED"
    for call, field in [
        (get(control, name), "name"),
        (delete(control, name), "name"),
        (update(control, Tenant(name=name)), "tenant.name"),
    ]:
        refused = await refusal(call)
        assert (refused.code, refused.violations) == (INVALID, {field: reason})


async def test_unknown_tenant_is_not_found(control: Control) -> None:
    for call in (
        get(control, "tenants/unknown"),
        delete(control, "tenants/unknown"),
        update(control, Tenant(name="tenants/unknown", display_name="x")),
    ):
        refused = await refusal(call)
        assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "TENANT_NOT_FOUND")


async def test_all_violations_are_reported_together(control: Control) -> None:
    refused: Refused = await refusal(
        create(
            control,
            "",
            display_name="n" * 257,
            labels={"Upper": "", "": "", "a" * 64: "", "ok": "v" * 257, "nul": "\x00"},
        )
    )
    assert refused.code == INVALID
    assert refused.reason == "FIELD_INVALID"
    assert refused.violations == {
        "tenant_id": "FIELD_REQUIRED",
        "tenant.display_name": "LIMIT_EXCEEDED",
        "tenant.labels['Upper']": "FIELD_INVALID",
        "tenant.labels['']": "FIELD_INVALID",
        f"tenant.labels['{'a' * 64}']": "FIELD_INVALID",
        "tenant.labels['ok']": "LIMIT_EXCEEDED",
        "tenant.labels['nul']": "FIELD_INVALID",
    }
    many = await refusal(create(control, "t", labels={f"l{n}": "" for n in range(65)}))
    assert many.violations == {"tenant.labels": "LIMIT_EXCEEDED"}
    assert many.metadata == {"limit": "HOOKLINE_MAX_LABELS", "maximum": "64"}


@pytest.mark.parametrize(
    "path", ["nmae", "name", "uid", "state", "create_time", "labels.a", "", "display_name.x"]
)
async def test_invalid_update_mask_is_refused(control: Control, path: str) -> None:
    refused = await refusal(update(control, Tenant(name="tenants/acme"), path))
    assert (refused.code, refused.violations) == (INVALID, {"update_mask": "UPDATE_MASK_INVALID"})
