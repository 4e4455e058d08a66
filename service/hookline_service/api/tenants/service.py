"""TenantService: manages tenants."""

from __future__ import annotations

from typing import Any

from grpc.aio import ServicerContext

from hookline.v1 import tenant_pb2, tenant_service_pb2, tenant_service_pb2_grpc
from hookline_service.api.conversion.names import tenant_id_in
from hookline_service.api.conversion.paging import Pages
from hookline_service.api.conversion.text import display_name_in, labels_in
from hookline_service.api.conversion.update_mask import leaves_in
from hookline_service.api.conversion.values import enum_of, timestamp_of
from hookline_service.api.middleware.errors import not_implemented
from hookline_service.domain.caller import current_caller
from hookline_service.domain.errors import Reason, Violation, invalid
from hookline_service.domain.limits import Limits
from hookline_service.domain.names import check_id, tenant_name
from hookline_service.domain.tenant import Tenant
from hookline_service.store.tenants import Tenants

_Context = ServicerContext[Any, Any]
_LEAVES = ("display_name", "labels")


class TenantServicer(tenant_service_pb2_grpc.TenantServiceServicer):
    """Implements TenantService."""

    def __init__(self, *, tenants: Tenants, pages: Pages, limits: Limits) -> None:
        self._tenants = tenants
        self._pages = pages
        self._limits = limits

    async def CreateTenant(
        self, request: tenant_service_pb2.CreateTenantRequest, context: _Context
    ) -> tenant_service_pb2.CreateTenantResponse:
        """Create a tenant."""
        del context
        violations: list[Violation] = []
        if not request.tenant_id:
            violations.append(Violation("tenant_id", "is required", Reason.FIELD_REQUIRED))
        elif problem := check_id(request.tenant_id):
            violations.append(Violation("tenant_id", problem))
        display_name, labels = self._fields_in(request.tenant, violations)
        if violations:
            raise invalid(violations)
        tenant = await self._tenants.create(request.tenant_id, display_name, labels)
        return tenant_service_pb2.CreateTenantResponse(tenant=_message_of(tenant))

    async def GetTenant(
        self, request: tenant_service_pb2.GetTenantRequest, context: _Context
    ) -> tenant_service_pb2.GetTenantResponse:
        """Return one tenant."""
        del context
        tenant = await self._tenants.get(_named(request.name))
        return tenant_service_pb2.GetTenantResponse(tenant=_message_of(tenant))

    async def ListTenants(
        self, request: tenant_service_pb2.ListTenantsRequest, context: _Context
    ) -> tenant_service_pb2.ListTenantsResponse:
        """List tenants, newest first; a caller bound to a tenant sees only that one."""
        del context
        violations: list[Violation] = []
        bound = current_caller().tenant_id
        binding = ("ListTenants", bound or "")
        page = self._pages.requested(request, binding, violations)
        if bound is not None:
            tenant = await self._tenants.get(bound)
            return tenant_service_pb2.ListTenantsResponse(tenants=[_message_of(tenant)])
        found = await self._tenants.list_page(before=page.before, limit=page.size + 1)
        messages = [_message_of(tenant) for tenant in found[: page.size]]
        kept, token = self._pages.finished(
            messages, binding, lambda at: found[at].uid.bytes, has_more=len(found) > page.size
        )
        return tenant_service_pb2.ListTenantsResponse(tenants=kept, next_page_token=token)

    async def UpdateTenant(
        self, request: tenant_service_pb2.UpdateTenantRequest, context: _Context
    ) -> tenant_service_pb2.UpdateTenantResponse:
        """Change the display name or the labels of a tenant."""
        del context
        violations: list[Violation] = []
        tenant_id = tenant_id_in(request.tenant.name, violations, field="tenant.name")
        leaves = leaves_in(request.update_mask.paths, request.tenant, _LEAVES, violations)
        display_name, labels = self._fields_in(request.tenant, violations)
        if violations:
            raise invalid(violations)
        tenant = await self._tenants.update(
            tenant_id,
            display_name=display_name if "display_name" in leaves else None,
            labels=labels if "labels" in leaves else None,
        )
        return tenant_service_pb2.UpdateTenantResponse(tenant=_message_of(tenant))

    async def DeleteTenant(
        self, request: tenant_service_pb2.DeleteTenantRequest, context: _Context
    ) -> tenant_service_pb2.DeleteTenantResponse:
        """Delete an empty tenant; `force` is not implemented."""
        del context
        tenant_id = _named(request.name)
        if request.force:
            raise not_implemented("force", field="force")
        await self._tenants.delete(tenant_id)
        return tenant_service_pb2.DeleteTenantResponse()

    def _fields_in(
        self, tenant: tenant_pb2.Tenant, violations: list[Violation]
    ) -> tuple[str, dict[str, str]]:
        display_name = display_name_in(tenant.display_name, "tenant.display_name", violations)
        return display_name, labels_in(tenant.labels, self._limits, "tenant.labels", violations)


def _named(name: str) -> str:
    violations: list[Violation] = []
    tenant_id = tenant_id_in(name, violations, field="name")
    if violations:
        raise invalid(violations)
    return tenant_id


def _message_of(tenant: Tenant) -> tenant_pb2.Tenant:
    return tenant_pb2.Tenant(
        name=tenant_name(tenant.tenant_id),
        uid=str(tenant.uid),
        display_name=tenant.display_name,
        labels=tenant.labels,
        state=enum_of(tenant_pb2.TenantState, "TENANT_STATE_", tenant.state),
        create_time=timestamp_of(tenant.create_time) if tenant.create_time else None,
    )
