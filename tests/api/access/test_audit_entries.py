"""ListAuditEntries: pages of entries, with all fields that verify the hash chain."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC
from typing import Any
from uuid import UUID

import grpc
import pytest

from hookline.v1.access_service_pb2 import ListAuditEntriesRequest, ListAuditEntriesResponse
from hookline.v1.access_service_pb2_grpc import AccessServiceStub
from hookline.v1.audit_entry_pb2 import AuditEntry
from hookline.v1.tenant_pb2 import Tenant
from hookline.v1.tenant_service_pb2 import (
    CreateTenantRequest,
    ListTenantsRequest,
    UpdateTenantRequest,
)
from hookline_service.domain.audit import AuditEntry as Entry
from hookline_service.domain.audit import ChainWalk
from hookline_service.domain.limits import Limits
from tests.api.control import INVALID, Control, controlling
from tests.api.keyed import bearer, keyed
from tests.api.refusals import refusal


@pytest.fixture
async def control(database_url: str) -> AsyncIterator[Control]:
    async with controlling(database_url) as control:
        yield control


async def page_of(control: Control, **fields: Any) -> ListAuditEntriesResponse:  # noqa: ANN401
    request = ListAuditEntriesRequest(**({"tenant": "tenants/-"} | fields))
    return await AccessServiceStub(control.channel).ListAuditEntries(request)


async def listed(control: Control, **fields: Any) -> list[AuditEntry]:  # noqa: ANN401 (any field)
    """Return all entries, read page by page."""
    found: list[AuditEntry] = []
    token = ""
    while True:
        page = await page_of(control, page_token=token, **fields)
        found += page.audit_entries
        token = page.next_page_token
        if not token:
            return found


async def rename(control: Control, display_name: str) -> None:
    tenant = Tenant(name="tenants/acme", display_name=display_name)
    await control.tenants.UpdateTenant(UpdateTenantRequest(tenant=tenant))


async def test_entry_of_a_change_shows_the_state_before_and_after(control: Control) -> None:
    await rename(control, "Acme")
    entry = (await page_of(control, tenant="tenants/acme")).audit_entries[0]
    assert entry.name == f"auditEntries/{entry.sequence}"
    assert (entry.principal, entry.resource, entry.tenant) == (
        "anonymous",
        "tenants/acme",
        "tenants/acme",
    )
    assert entry.method == "/hookline.v1.TenantService/UpdateTenant"
    assert entry.remote_address.startswith("ipv4:127.0.0.1:")
    assert '"display_name":""' in entry.before_json
    assert '"display_name":"Acme"' in entry.after_json
    assert (len(entry.hash), entry.encoding) == (32, 1)


async def test_entries_of_all_pages_verify_as_a_hash_chain(control: Control) -> None:
    """Computes the hashes as the contract documents them, without the code under test."""
    await rename(control, "Ümläut")
    await control.create()
    walk = ChainWalk()
    for entry in reversed(await listed(control)):
        walk.follow(
            Entry(
                sequence=entry.sequence,
                create_time=entry.create_time.ToDatetime(UTC),
                principal=entry.principal,
                method=entry.method,
                resource=entry.resource,
                tenant=entry.tenant,
                tenant_uid=UUID(entry.tenant_uid) if entry.tenant_uid else None,
                remote_address=entry.remote_address,
                before_json=entry.before_json,
                after_json=entry.after_json,
                trace_id=entry.trace_id,
                encoding=entry.encoding,
                hash=entry.hash,
            )
        )
    assert walk.head.sequence >= 3


async def test_pages_are_newest_first_and_complete(control: Control) -> None:
    """Each list call adds an entry of its own, newer than all others."""
    for n in range(7):
        await rename(control, f"Acme {n}")
    found = [entry.sequence for entry in await listed(control, page_size=3)]
    assert found == list(range(8, 0, -1))
    names = [entry.method.rpartition("/")[2] for entry in await listed(control)]
    assert names[:3] == ["ListAuditEntries"] * 3


async def test_list_of_a_tenant_has_only_its_own_entries(control: Control) -> None:
    await control.rig.tenant("other")
    await rename(control, "Acme")
    assert {entry.tenant for entry in await listed(control, tenant="tenants/acme")} == {
        "tenants/acme"
    }
    assert await listed(control, tenant="tenants/other") == []
    answer = await refusal(page_of(control, tenant="tenants/unknown"))
    assert (answer.code, answer.reason) == (grpc.StatusCode.NOT_FOUND, "TENANT_NOT_FOUND")


async def test_page_token_of_another_list_is_refused(control: Control) -> None:
    for n in range(3):
        await rename(control, f"Acme {n}")
    token = (await page_of(control, page_size=1)).next_page_token
    assert token
    for fields in ({"tenant": "tenants/acme"}, {"page_token": token[:-1]}):
        answer = await refusal(page_of(control, **({"page_token": token} | fields)))
        assert (answer.code, answer.reason) == (INVALID, "PAGE_TOKEN_INVALID")


async def test_invalid_field_is_named(control: Control) -> None:
    answer = await refusal(page_of(control, tenant="acme", page_size=-1))
    assert answer.code == INVALID
    assert set(answer.violations) == {"tenant", "page_size"}
    answer = await refusal(page_of(control, filter='principal == "x"'))
    assert answer.code == grpc.StatusCode.UNIMPLEMENTED


async def test_page_is_limited_in_bytes(database_url: str) -> None:
    async with controlling(database_url, limits=Limits(max_page_bytes=2_000)) as control:
        for n in range(10):
            await rename(control, f"Acme {n} {'x' * 200}")
        page = await page_of(control)
        assert 1 <= len(page.audit_entries) < 10
        assert page.ByteSize() < 2_100
        assert [entry.sequence for entry in await listed(control)][-1] == 1


async def test_a_tenant_admin_sees_changes_of_the_tenant_and_their_principals(
    database_url: str,
) -> None:
    async with keyed(database_url) as gateway:
        boss = bearer(await gateway.token())
        own = bearer(await gateway.token(tenant="acme"))
        tenant = Tenant(name="tenants/acme", display_name="Acme")
        tenants, access = gateway.control.tenants, AccessServiceStub(gateway.channel)
        await tenants.UpdateTenant(UpdateTenantRequest(tenant=tenant), metadata=boss)
        await tenants.CreateTenant(CreateTenantRequest(tenant_id="other"), metadata=boss)
        await tenants.ListTenants(
            ListTenantsRequest(), metadata=own
        )  # only its own tenant: not a privileged read
        await tenants.ListTenants(ListTenantsRequest(), metadata=boss)
        page = await access.ListAuditEntries(
            ListAuditEntriesRequest(tenant="tenants/acme"), metadata=own
        )
        updated, made, created = page.audit_entries
        assert (updated.resource, made.resource.partition("/")[0]) == ("tenants/acme", "apiKeys")
        assert created.method == ""
        assert updated.principal.startswith("apiKeys/")
        assert updated.principal != made.resource

        for name, code in (
            ("tenants/other", grpc.StatusCode.NOT_FOUND),
            ("tenants/-", grpc.StatusCode.PERMISSION_DENIED),
        ):
            request = ListAuditEntriesRequest(tenant=name)
            answer = await refusal(access.ListAuditEntries(request, metadata=own))
            assert answer.code == code
        everything = await access.ListAuditEntries(
            ListAuditEntriesRequest(tenant="tenants/-"), metadata=boss
        )
        entries_seen = [
            (entry.method.rpartition("/")[2], entry.principal) for entry in everything.audit_entries
        ]
        assert entries_seen[:3] == [
            ("ListAuditEntries", made.resource),
            ("ListTenants", updated.principal),
            ("CreateTenant", updated.principal),
        ]
